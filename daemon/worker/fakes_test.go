package worker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/logs"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/internal/leaktest"
	"lfx.dev/lfxd/internal/tmpdir"
	"lfx.dev/lfxd/runtime/instance"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// runtime is the function's side of a fake instance: a client of the Runtime API, the two pipes, and
// its own end. Its calls fail when it was killed.
type runtime struct {
	in     *fakeInstance
	client *http.Client
	addr   string
}

// event is what next returned.
type event struct {
	id, payload string
	header      http.Header
}

func (r *runtime) do(method, path, body string, header ...string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(r.in.life, method, "http://"+r.addr+"/2018-06-01/runtime"+path, strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

// next waits for an event; ok is false when the instance was killed.
func (r *runtime) next() (e event, ok bool) {
	resp, b, err := r.do("GET", "/invocation/next", "")
	if err != nil || resp.StatusCode != http.StatusOK {
		return event{}, false
	}
	return event{resp.Header.Get("Lambda-Runtime-Aws-Request-Id"), string(b), resp.Header}, true
}

func (r *runtime) respond(id, body string, header ...string) {
	r.do("POST", "/invocation/"+id+"/response", body, header...)
}

func (r *runtime) fail(id, errorType, body string) {
	r.do("POST", "/invocation/"+id+"/error", body, "Lambda-Runtime-Function-Error-Type", errorType)
}

func (r *runtime) initError(errorType, body string) {
	r.do("POST", "/init/error", body, "Lambda-Runtime-Function-Error-Type", errorType)
}

func (r *runtime) print(text string)    { io.WriteString(r.in.stdout[1], text) }
func (r *runtime) printErr(text string) { io.WriteString(r.in.stderr[1], text) }
func (r *runtime) exit(e instance.Exit) { r.in.end(e) }

// wait blocks until the instance was killed.
func (r *runtime) wait() { <-r.in.life.Done() }

// serve answers every event with f's result.
func (r *runtime) serve(f func(event) string) {
	for {
		e, ok := r.next()
		if !ok {
			return
		}
		r.respond(e.id, f(e))
	}
}

// fakeInstance is an instance whose runtime is a goroutine.
type fakeInstance struct {
	spec           instance.Spec
	stdout, stderr [2]*os.File
	life           context.Context
	kill           context.CancelFunc
	exited         chan struct{}
	once           sync.Once
	exit           instance.Exit
	script         chan struct{} // closed when the script has ended
	word           chan struct{} // closed by Begin
	listener       net.Listener
	stuck          <-chan struct{}

	mu        sync.Mutex
	cores     []float64
	destroyed int
}

func (i *fakeInstance) Address() netip.Addr { return netip.MustParseAddr("10.1.2.3") }
func (i *fakeInstance) Phases() instance.Phases {
	return instance.Phases{Create: time.Hour, Network: 4 * time.Millisecond}
}
func (i *fakeInstance) Stdout() *os.File        { return i.stdout[0] }
func (i *fakeInstance) Stderr() *os.File        { return i.stderr[0] }
func (i *fakeInstance) PeakMemory() uint64      { return 41<<20 + 1 }
func (i *fakeInstance) MemoryBytes() uint64     { return 12 << 20 }
func (i *fakeInstance) Thaw() error             { return nil }
func (i *fakeInstance) Exited() <-chan struct{} { return i.exited }

func (i *fakeInstance) Freeze(context.Context) error { return nil }

func (i *fakeInstance) Exit() instance.Exit {
	select {
	case <-i.exited:
		return i.exit
	default:
		return instance.Exit{}
	}
}

// Begin fails when the instance has ended, as that of the real one does.
func (i *fakeInstance) Begin() error {
	select {
	case <-i.exited:
		return errdefs.ErrFailedPrecondition
	default:
	}
	close(i.word)
	return nil
}

func (i *fakeInstance) SetCores(cores float64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cores = append(i.cores, cores)
	return nil
}

func (i *fakeInstance) end(e instance.Exit) {
	i.once.Do(func() {
		i.exit = e
		i.kill()
		close(i.exited)
	})
}

func (i *fakeInstance) Kill() error {
	i.end(instance.Exit{Code: 137, Signal: syscall.SIGKILL})
	return nil
}

func (i *fakeInstance) Destroy(context.Context) error {
	i.Kill()
	if i.stuck != nil {
		<-i.stuck
	}
	<-i.script
	i.mu.Lock()
	i.destroyed++
	i.mu.Unlock()
	i.listener.Close()
	for _, f := range []*os.File{i.stdout[0], i.stdout[1], i.stderr[0], i.stderr[1]} {
		f.Close()
	}
	return nil
}

// creator makes fake instances that run script; fail holds the errors of the first calls.
type creator struct {
	script func(*runtime)

	mu   sync.Mutex
	fail []error
	made []*fakeInstance
	ids  []string
	next int
	// slow is called by Create before anything is made.
	slow func(instance.Spec)
	// stuck, if it is set, is what Destroy of the instances waits for.
	stuck <-chan struct{}
}

func (c *creator) NewID(string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	return fmt.Sprintf("lfx-start-%d", c.next)
}

func (c *creator) Create(_ context.Context, spec instance.Spec) (Instance, error) {
	if c.slow != nil {
		c.slow(spec)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ids = append(c.ids, spec.ID)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if err := spec.Listen(l); err != nil {
		return nil, err
	}
	if len(c.fail) > 0 {
		err, c.fail = c.fail[0], c.fail[1:]
		return nil, err
	}
	in := &fakeInstance{spec: spec, exited: make(chan struct{}), script: make(chan struct{}), word: make(chan struct{}), listener: l, stuck: c.stuck}
	in.life, in.kill = context.WithCancel(context.Background())
	for _, p := range []*[2]*os.File{&in.stdout, &in.stderr} {
		if p[0], p[1], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	c.made = append(c.made, in)
	r := &runtime{in: in, addr: l.Addr().String(), client: &http.Client{Transport: &http.Transport{}}}
	go func() { // Destroy waits for it
		defer close(in.script)
		defer r.client.CloseIdleConnections()
		if spec.Hold {
			select {
			case <-in.word:
			case <-in.exited:
				return
			}
		}
		c.script(r)
	}()
	return in, nil
}

func (c *creator) instance(t testing.TB) *fakeInstance {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.made) == 0 {
		t.Fatal("no instance was made")
	}
	return c.made[len(c.made)-1]
}

type binding int

func (b binding) ReleaseNumber() int { return int(b) }

// world is a Starter with its creator, its log and the events of its worker.
type world struct {
	*Starter
	t       testing.TB
	creator *creator
	logs    *logs.Store
	version *function.Version

	idle, dying, gone chan struct{}
	calls             chan string // what the runtime's Lambda API was called with
}

func newWorld(t testing.TB, script func(*runtime)) *world {
	t.Helper()
	var err error
	w := &world{
		t: t, creator: &creator{script: script}, calls: make(chan string, 10),
		idle: make(chan struct{}, 100), dying: make(chan struct{}, 100), gone: make(chan struct{}, 100),
	}
	if w.logs, err = logs.Open(tmpdir.New(t), logs.Options{}); err != nil {
		t.Fatal(err)
	}
	w.version = &function.Version{
		Key:    function.Key{Environment: function.Environment{Project: "shop", Name: "default"}, Function: "hello"},
		Number: 3, Image: function.Image{Name: "localhost/hello", Digest: "sha256:1", Entrypoint: []string{"/e"}, Cmd: []string{"h"}},
		Config: function.Config{MemoryMB: 128, TmpMB: 64, CPU: 0.5, Timeout: 20 * time.Second},
	}
	w.Starter = NewStarter(Options{
		Instances: w.creator, Logs: w.logs, Region: "eu-west-1", InitTimeout: 20 * time.Second, CreateTimeout: 20 * time.Second,
		LambdaAPI: func(env function.Environment, caller func() invocation.Caller) http.Handler {
			return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				c := caller()
				w.calls <- fmt.Sprintf("%s %s r%d %s", env, r.URL.Path, c.Binding.ReleaseNumber(), c.RequestID)
			})
		},
		Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() {
		w.Wait()
		if ids := w.IDs(); len(ids) != 0 {
			t.Errorf("instances %v are still noted", ids)
		}
		for _, in := range w.creator.made {
			if in.destroyed != 1 {
				t.Errorf("instance %s was destroyed %d times", in.spec.ID, in.destroyed)
			}
		}
		w.logs.Close()
	})
	return w
}

// start starts a worker; inside is the request that a repeated init runs in, or nil.
func (w *world) start(inside *invocation.Request) (pool.Worker, error) {
	w.t.Helper()
	req := pool.StartRequest{
		Version: w.version, Binding: binding(1), Phase: pool.PhaseInit,
		Events: pool.Events{
			Idle: func() { w.idle <- struct{}{} }, Dying: func() { w.dying <- struct{}{} }, Gone: func() { w.gone <- struct{}{} },
		},
	}
	if inside != nil {
		req.Phase, req.For = pool.PhaseInvoke, inside
	}
	return w.Start(w.t.Context(), req)
}

// worker starts one that must succeed and ends with the test.
func (w *world) worker() pool.Worker {
	w.t.Helper()
	wk, err := w.start(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { wk.Close("spindown") })
	return wk
}

func (w *world) await(what string, c <-chan struct{}) {
	w.t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		w.t.Fatalf("%s: not within twenty seconds", what)
	}
}

// ended waits until the pool was told that the worker is gone, in order and once.
func (w *world) ended() {
	w.t.Helper()
	w.await("gone", w.gone)
	if len(w.dying) != 1 || len(w.gone) != 0 {
		w.t.Errorf("%d times dying, %d times gone too much", len(w.dying), len(w.gone))
	}
}

var durations = regexp.MustCompile(`[0-9]+(\.[0-9]+)? ms`)

// lines returns the log as "stream|request|release|message", durations replaced by N.
func (w *world) lines() (out []string) {
	w.t.Helper()
	for e, err := range w.logs.Query(w.t.Context(), logs.Query{Key: w.version.Key}) {
		if err != nil {
			w.t.Fatal(err)
		}
		stream := strings.NewReplacer("stdout", "out", "stderr", "err", "platform", "lfx").Replace(e.Stream)
		out = append(out, fmt.Sprintf("%s|%s|%d|%s", stream, e.RequestID, e.Release, durations.ReplaceAllString(e.Message, "N ms")))
	}
	return out
}

func request(id string) *invocation.Request {
	return &invocation.Request{
		ID: id, Payload: []byte(`{"n":1}`), FunctionARN: "arn", TraceID: "Root=1", ClientContext: "{}", TenantID: "t", Binding: binding(2),
	}
}

// text is an outcome in one line: "payload|function error|error type".
func text(o *invocation.Outcome) string {
	if o == nil {
		return "nil"
	}
	return fmt.Sprintf("%s|%s|%s", bytes.TrimSpace(o.Payload), o.FunctionError, o.ErrorType)
}
