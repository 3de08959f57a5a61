package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// fakeStarter makes fake workers; time is synctest's.
type fakeStarter struct {
	startup time.Duration
	work    time.Duration
	fail    func(n int, req StartRequest) error

	mu      sync.Mutex
	workers []*fakeWorker
	started int
	alive   int
	most    int
}

type fakeWorker struct {
	s      *fakeStarter
	id     string
	events Events
	calls  atomic.Int64
	closed sync.Once
	busy   atomic.Bool
}

// counts are what a fakeStarter has done so far.
type counts struct{ started, alive, most int }

func (s *fakeStarter) count() counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return counts{s.started, s.alive, s.most}
}

func (s *fakeStarter) Start(ctx context.Context, req StartRequest) (Worker, error) {
	s.mu.Lock()
	s.started++
	n := s.started
	s.alive++
	s.most = max(s.most, s.alive)
	s.mu.Unlock()
	select {
	case <-time.After(s.startup):
	case <-ctx.Done():
		s.gone()
		return nil, context.Cause(ctx)
	}
	if s.fail != nil {
		if err := s.fail(n, req); err != nil {
			s.gone()
			return nil, err
		}
	}
	w := &fakeWorker{s: s, id: fmt.Sprintf("%s/%d", req.Version, n), events: req.Events}
	s.mu.Lock()
	s.workers = append(s.workers, w)
	s.mu.Unlock()
	return w, nil
}

func (s *fakeStarter) gone() {
	s.mu.Lock()
	s.alive--
	s.mu.Unlock()
}

func (w *fakeWorker) ID() string       { return w.id }
func (w *fakeWorker) Info() WorkerInfo { return WorkerInfo{ID: w.id} }

func (w *fakeWorker) Invoke(req *invocation.Request) *invocation.Outcome {
	if !w.busy.CompareAndSwap(false, true) {
		panic("two invocations at once on " + w.id)
	}
	time.Sleep(w.s.work)
	w.calls.Add(1)
	w.busy.Store(false)
	go w.events.Idle() // ends at once; the worker's own goroutine in real life
	return &invocation.Outcome{Payload: []byte(w.id + " " + req.ID)}
}

func (w *fakeWorker) Close(string) {
	w.closed.Do(func() {
		go func() {
			w.events.Dying()
			time.Sleep(10 * time.Millisecond)
			w.s.gone()
			w.events.Gone()
		}()
	})
}

var testEnv = function.Environment{Project: "shop", Name: "default"}

func version(name string, n, least, most int) *function.Version {
	return &function.Version{
		Key:    function.Key{Environment: testEnv, Function: name},
		Number: n,
		Config: function.Config{Concurrency: function.Concurrency{Min: least, Max: most}},
	}
}

func record(n int, vs ...*function.Version) (function.Release, map[string]*function.Version) {
	r := function.Release{Environment: testEnv, Number: n, Versions: map[string]int{}}
	m := map[string]*function.Version{}
	for _, v := range vs {
		r.Versions[v.Function] = v.Number
		m[v.Function] = v
	}
	return r, m
}

func newTestManager(s Starter) *Manager {
	return NewManager(Options{
		Starter: s, DefaultMax: func(*function.Version) int { return 10 }, QueueLimit: 5, QueueTimeout: time.Minute, IdleTimeout: 10 * time.Minute,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
}

// activate prepares, warms and activates.
func activate(t *testing.T, m *Manager, n int, vs ...*function.Version) *Release {
	t.Helper()
	rec, versions := record(n, vs...)
	r, err := m.Prepare(rec, versions)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Activate()
	return r
}

// call runs one request through the active release and returns "worker request release".
func call(m *Manager, name, id string) (string, error) {
	b, err := m.Bind(testEnv, name)
	if err != nil {
		return "", err
	}
	defer b.Close()
	out, err := b.Invoke(context.Background(), &invocation.Request{ID: id})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s r%d", out.Payload, b.ReleaseNumber()), nil
}

func closeManager(m *Manager) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m.Close(ctx)
}

func TestOneInstanceServesCallsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, work: time.Millisecond}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 0))
		for i := range 3 {
			got, err := call(m, "f", fmt.Sprint(i))
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("shop/f:1/1 %d r1", i); got != want {
				t.Errorf("call %d = %q, want %q", i, got, want)
			}
			synctest.Wait()
		}
		if s.count().started != 1 {
			t.Errorf("%d instances were started, want 1", s.count().started)
		}
	})
}

func TestEightCallsWithMaxOneAnswerInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, work: 100 * time.Millisecond}
		m := newTestManager(s)
		m.opts.QueueLimit = 8
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 1))
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if _, err := call(m, "f", fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, fmt.Sprint(i))
				mu.Unlock()
			})
			synctest.Wait() // so that they queue in this order
		}
		wg.Wait()
		if diff := cmp.Diff([]string{"0", "1", "2", "3", "4", "5", "6", "7"}, order); diff != "" {
			t.Errorf("order of answers (-want +got):\n%s", diff)
		}
		if s.count().most != 1 {
			t.Errorf("%d instances at once, want 1", s.count().most)
		}
	})
}

func TestFullQueueAndLongWaitAreThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, work: 2 * time.Minute}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 1))
		errs := make(chan error, 8)
		for range 8 {
			go func() { _, err := call(m, "f", "x"); errs <- err }()
		}
		throttled := 0
		for range 8 {
			var te *invocation.ThrottledError
			if err := <-errs; errors.As(err, &te) {
				throttled++
				if te.Reason == "" || te.RetryAfter == 0 {
					t.Errorf("throttled without reason or time: %+v", te)
				}
			} else if err != nil {
				t.Error(err)
			}
		}
		// five fit into the queue, the first of which the instance takes: three are refused at once, and
		// four wait longer than the queue timeout.
		if throttled != 7 {
			t.Errorf("%d calls were throttled, want 7", throttled)
		}
	})
}

func TestStartThatHangsIsUnavailableInBoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Hour}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 1))
		begin := time.Now()
		_, err := call(m, "f", "x")
		var ue *invocation.UnavailableError
		if !errors.As(err, &ue) || time.Since(begin) > m.opts.QueueTimeout {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
	})
}

func TestFailedInitRunsAgainInsideTheInvocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var phases []InitPhase
		s := &fakeStarter{startup: time.Second, fail: func(_ int, req StartRequest) error {
			phases = append(phases, req.Phase)
			e := &InitError{Detail: "broken"}
			if req.For != nil {
				e.Outcome = &invocation.Outcome{Payload: []byte("own error of " + req.For.ID), FunctionError: "Unhandled"}
			}
			return e
		}}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 0))
		got, err := call(m, "f", "7")
		if err != nil {
			t.Fatal(err)
		}
		if want := "own error of 7 r1"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if diff := cmp.Diff([]InitPhase{PhaseInit, PhaseInvoke}, phases); diff != "" {
			t.Errorf("phases (-want +got):\n%s", diff)
		}
	})
}

// TestRoomOfAFailedInitIsTakenUntilItIsRemoved, and its client does not wait for that.
func TestRoomOfAFailedInitIsTakenUntilItIsRemoved(t *testing.T) {
	for _, last := range []InitPhase{PhaseInit, PhaseInvoke} { // whose removal takes longest
		synctest.Test(t, func(t *testing.T) {
			removed := map[InitPhase]chan struct{}{PhaseInit: make(chan struct{}), PhaseInvoke: make(chan struct{})}
			s := &fakeStarter{startup: time.Second, fail: func(_ int, req StartRequest) error {
				return &InitError{Outcome: &invocation.Outcome{Payload: []byte("broken")}, Removed: removed[req.Phase]}
			}}
			m := newTestManager(s)
			defer closeManager(m)
			r := activate(t, m, 1, version("f", 1, 0, 1))
			taken := func() int64 {
				synctest.Wait()
				l := r.Pool("f").limit
				l.mu.Lock()
				defer l.mu.Unlock()
				return l.used
			}
			begin := time.Now()
			if got, err := call(m, "f", "1"); err != nil || got != "broken r1" || time.Since(begin) != 2*time.Second {
				t.Errorf("after %s: %q, %v", time.Since(begin), got, err)
			}
			if n := taken(); n != 1 {
				t.Errorf("room for %d instances is taken while two are removed, want the one of both", n)
			}
			for phase, c := range removed {
				if phase != last {
					close(c)
				}
			}
			if n := taken(); n != 1 {
				t.Errorf("room for %d instances is taken while the one of %s is removed, want 1", n, last)
			}
			close(removed[last])
			if n := taken(); n != 0 {
				t.Errorf("room for %d instances is taken after all", n)
			}
		})
	}
}

func TestPlatformFailureIsAnsweredAndTheNextCallStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("containerd is not answering")
		s := &fakeStarter{startup: time.Second, fail: func(n int, _ StartRequest) error {
			if n == 1 {
				return broken
			}
			return nil
		}}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 0))
		if _, err := call(m, "f", "1"); !errors.Is(err, broken) {
			t.Errorf("err = %v, want %v", err, broken)
		}
		if _, err := call(m, "f", "2"); err != nil {
			t.Errorf("second call: %v", err)
		}
	})
}

func TestMinIsKeptWarmAndDeadOnesAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second}
		m := newTestManager(s)
		defer closeManager(m)
		r := activate(t, m, 1, version("f", 1, 2, 0))
		synctest.Wait() // ready is a moment before idle
		if got := r.Pool("f").Stats().Idle; got != 2 {
			t.Fatalf("%d idle after warm, want 2", got)
		}
		s.workers[0].Close("killed")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := r.Pool("f").Stats(); got.Idle != 2 || s.count().started != 3 {
			t.Errorf("after one died: %+v with %d starts, want 2 idle and 3 starts", got, s.count().started)
		}
	})
}

func TestWarmReportsTheFunctionsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, fail: func(int, StartRequest) error { return &InitError{Detail: "no module named app"} }}
		m := newTestManager(s)
		defer closeManager(m)
		rec, versions := record(1, version("f", 1, 1, 0))
		r, err := m.Prepare(rec, versions)
		if err != nil {
			t.Fatal(err)
		}
		err = r.Warm(t.Context())
		if err == nil || err.Error() != "function f, version 1, does not start: initialisation failed: no module named app" {
			t.Errorf("err = %v", err)
		}
		r.Abort()
		<-r.Drained()
		if len(m.Pools()) != 0 {
			t.Error("pools are left after Abort")
		}
	})
}

func TestIdleInstancesEndAfterTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second}
		m := newTestManager(s)
		defer closeManager(m)
		r := activate(t, m, 1, version("f", 1, 0, 0))
		if _, err := call(m, "f", "1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Minute)
		if got := r.Pool("f").Stats().Instances; got != 1 {
			t.Errorf("%d instances before the timeout, want 1", got)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := r.Pool("f").Stats().Instances; got != 0 || s.count().alive != 0 {
			t.Errorf("%d instances (%d alive) after the timeout, want none", got, s.count().alive)
		}
	})
}

func TestSwitchLeavesRequestsOnTheirRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, work: 10 * time.Second}
		m := newTestManager(s)
		defer closeManager(m)
		shared := version("shared", 1, 0, 0)
		old := activate(t, m, 1, version("f", 1, 0, 0), shared)
		first := make(chan string, 1)
		go func() { got, _ := call(m, "f", "a"); first <- got }()
		time.Sleep(5 * time.Second) // it runs on release 1 now

		// A request that is bound to release 1 calls on, after the switch.
		caller, err := m.Bind(testEnv, "f")
		if err != nil {
			t.Fatal(err)
		}
		activate(t, m, 2, version("f", 2, 0, 0), shared)
		if got, err := call(m, "f", "b"); err != nil || got != "shop/f:2/2 b r2" {
			t.Errorf("new request: %q, %v", got, err)
		}
		if got := <-first; got != "shop/f:1/1 a r1" {
			t.Errorf("request in flight: %q", got)
		}
		nested, err := caller.release.Bind("f")
		if err != nil {
			t.Fatal(err)
		}
		if got := nested.Version().Number; got != 1 {
			t.Errorf("nested call goes to version %d, want 1", got)
		}
		nested.Close()
		select {
		case <-old.Drained():
			t.Error("release 1 drained with a request bound to it")
		default:
		}
		caller.Close()
		<-old.Drained()
		time.Sleep(time.Second)
		synctest.Wait()
		if len(m.Pools()) != 2 {
			t.Errorf("%d pools, want 2 (shared and f:2)", len(m.Pools()))
		}
	})
}

// TestBusyInstanceDoesNotComeBackToAClosedPool: its release is replaced and drained while it is on its way back to next.
func TestBusyInstanceDoesNotComeBackToAClosedPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &lateStarter{back: 10 * time.Second}
		m := newTestManager(s)
		defer closeManager(m)
		old := activate(t, m, 1, version("f", 1, 0, 0))
		if got, err := call(m, "f", "a"); err != nil || got != "shop/f:1/1 a r1" {
			t.Fatalf("%q, %v", got, err)
		}
		p := old.Pool("f")
		activate(t, m, 2, version("f", 2, 0, 0))
		<-old.Drained()
		if st := p.Stats(); st.Busy != 1 {
			t.Fatalf("%+v, want an instance that is not back yet", st)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if st := p.Stats(); st != (Stats{}) {
			t.Errorf("%+v is left of the closed pool", st)
		}
		if got, err := call(m, "f", "b"); err != nil || got != "shop/f:2/2 b r2" {
			t.Errorf("%q, %v", got, err)
		}
		time.Sleep(11 * time.Second) // until it is back
	})
}

// lateStarter makes workers that answer at once and take their time to come back for more.
type lateStarter struct {
	fakeStarter
	back time.Duration
}

type lateWorker struct {
	*fakeWorker
	back time.Duration
}

func (s *lateStarter) Start(ctx context.Context, req StartRequest) (Worker, error) {
	w, err := s.fakeStarter.Start(ctx, req)
	if err != nil {
		return nil, err
	}
	return lateWorker{w.(*fakeWorker), s.back}, nil
}

func (w lateWorker) Invoke(req *invocation.Request) *invocation.Outcome {
	go func() { // ends with Idle
		time.Sleep(w.back)
		w.events.Idle()
	}()
	return &invocation.Outcome{Payload: []byte(w.id + " " + req.ID)}
}

func TestVersionsOfAFunctionShareItsMaximum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, work: time.Second}
		m := newTestManager(s)
		defer closeManager(m)
		v1, v2 := version("f", 1, 0, 1), version("f", 2, 0, 1)
		activate(t, m, 1, v1)
		if _, err := call(m, "f", "1"); err != nil {
			t.Fatal(err)
		}
		b, err := m.Bind(testEnv, "f") // holds release 1 open while version 2 wants the only place
		if err != nil {
			t.Fatal(err)
		}
		activate(t, m, 2, v2)
		if got, err := call(m, "f", "2"); err != nil || got != "shop/f:2/2 2 r2" {
			t.Errorf("got %q, %v", got, err)
		}
		if s.count().most != 1 {
			t.Errorf("%d instances at once, want 1", s.count().most)
		}
		b.Close()
	})
}

func TestPinnedVersionIsSweptWhenUnused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 2, version("f", 2, 0, 0))
		b, err := m.Bind(testEnv, "f")
		if err != nil {
			t.Fatal(err)
		}
		b.At(version("f", 1, 0, 0))
		out, err := b.Invoke(t.Context(), &invocation.Request{ID: "1"})
		if err != nil || string(out.Payload) != "shop/f:1/1 1" {
			t.Fatalf("got %v, %v", out, err)
		}
		b.Close()
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		if len(m.Pools()) != 1 {
			t.Errorf("%d pools, want 1", len(m.Pools()))
		}
	})
}

func TestCloseLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, work: time.Second}
		m := newTestManager(s)
		activate(t, m, 1, version("f", 1, 3, 0))
		done := make(chan error, 1)
		go func() { _, err := call(m, "f", "1"); done <- err }()
		time.Sleep(100 * time.Millisecond)
		closeManager(m)
		if err := <-done; err != nil {
			t.Errorf("the request in flight failed: %v", err)
		}
		if s.count().alive != 0 {
			t.Errorf("%d instances are left", s.count().alive)
		}
		if _, err := call(m, "f", "2"); !errors.Is(err, ErrNoRelease) {
			t.Errorf("a call after Close: %v", err)
		}
	})
}

// BenchmarkAcquire is what the pool adds to a warm invocation.
func BenchmarkAcquire(b *testing.B) {
	s := &fakeStarter{}
	m := newTestManager(s)
	defer closeManager(m)
	rec, versions := record(1, version("f", 1, 1, 1))
	r, err := m.Prepare(rec, versions)
	if err != nil {
		b.Fatal(err)
	}
	if err := r.Warm(b.Context()); err != nil {
		b.Fatal(err)
	}
	r.Activate()
	req := &invocation.Request{ID: "x"}
	b.ReportAllocs()
	for b.Loop() {
		bound, _ := m.Bind(testEnv, "f")
		s, _, _ := bound.pool.acquire(b.Context(), req)
		bound.pool.idleAgain(s)
		bound.Close()
	}
}
