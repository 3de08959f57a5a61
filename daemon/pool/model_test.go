package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/pool/policy"
)

// Caps of the model: instances of every function, instances of all, and MiB of all.
const (
	modelMax    = 3
	modelHost   = 6
	modelMemory = 700
)

// model is a Starter whose instances do what real ones may do, at random: slow starts, inits that fail
// once or for good, a platform that fails, work that takes its time, deaths before the event, in the
// middle of it, between the answer and next, and while idle.
type model struct {
	t     *testing.T
	mu    sync.Mutex
	rand  *rand.Rand
	alive map[function.Key]int // counted from the begin of a start to the end of a removal
	total int
	n     int
	idle  []*modelWorker
}

func (m *model) intn(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rand.IntN(n)
}

func (m *model) sleep(most time.Duration) { time.Sleep(time.Duration(m.intn(int(most)))) }

func (m *model) count(k function.Key, by int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alive[k] += by
	m.total += by
	if m.alive[k] > modelMax {
		m.t.Errorf("%d instances of %s at once, the maximum is %d", m.alive[k], k, modelMax)
	}
	if m.total > modelHost {
		m.t.Errorf("%d instances at once, the host may have %d", m.total, modelHost)
	}
}

func (m *model) Start(ctx context.Context, req StartRequest) (Worker, error) {
	m.count(req.Version.Key, 1)
	select {
	case <-time.After(time.Duration(m.intn(int(200 * time.Millisecond)))):
	case <-ctx.Done():
		m.count(req.Version.Key, -1)
		return nil, context.Cause(ctx)
	}
	switch m.intn(20) {
	case 0:
		m.count(req.Version.Key, -1)
		return nil, errModel
	case 1:
		m.count(req.Version.Key, -1)
		e := &InitError{Detail: "broken"}
		if req.For != nil {
			e.Outcome = &invocation.Outcome{Payload: []byte(req.For.ID), FunctionError: "Unhandled"}
		}
		return nil, e
	}
	m.mu.Lock()
	m.n++
	w := &modelWorker{m: m, version: req.Version, id: strconv.Itoa(m.n), events: req.Events}
	m.idle = append(m.idle, w)
	m.mu.Unlock()
	return w, nil
}

// killSome ends a random worker, idle or busy, as a process that dies does.
func (m *model) killSome() {
	m.mu.Lock()
	var w *modelWorker
	if len(m.idle) > 0 {
		w = m.idle[m.rand.IntN(len(m.idle))]
	}
	m.mu.Unlock()
	if w != nil {
		w.Close("killed")
	}
}

var errModel = errors.New("the platform failed")

type modelWorker struct {
	m       *model
	version *function.Version
	id      string
	events  Events
	once    sync.Once
	dead    atomic.Bool
	busy    atomic.Bool
	frozen  atomic.Bool
}

var _ interface {
	Freezer
	Meter
} = (*modelWorker)(nil)

// Freeze takes its time, and fails now and then.
func (w *modelWorker) Freeze(ctx context.Context) error {
	if w.busy.Load() {
		w.m.t.Errorf("instance %s is frozen in the middle of an invocation", w.id)
	}
	select {
	case <-time.After(time.Duration(w.m.intn(int(50 * time.Millisecond)))):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if w.dead.Load() || w.m.intn(10) == 0 {
		return errModel
	}
	w.frozen.Store(true)
	return nil
}

// Thaw fails for one that was killed, and now and then.
func (w *modelWorker) Thaw() error {
	w.frozen.Store(false)
	if w.dead.Load() || w.m.intn(10) == 0 {
		return errModel
	}
	return nil
}

func (w *modelWorker) MemoryBytes() uint64 { return uint64(w.m.intn(100 << 20)) }

// use is what all of the model's instances use, now and then more than there is.
func (m *model) use() (int64, error) {
	m.mu.Lock()
	total := m.total
	m.mu.Unlock()
	switch m.intn(10) {
	case 0:
		return 0, errModel
	case 1:
		return modelMemory << 20, nil
	}
	return int64(m.intn(100<<20) * total), nil
}

func (w *modelWorker) ID() string       { return w.id }
func (w *modelWorker) Info() WorkerInfo { return WorkerInfo{ID: w.id} }

func (w *modelWorker) Invoke(req *invocation.Request) *invocation.Outcome {
	if !w.busy.CompareAndSwap(false, true) {
		w.m.t.Errorf("two invocations at once on instance %s", w.id)
	}
	if w.frozen.Load() {
		w.m.t.Errorf("an event for instance %s, which is frozen", w.id)
	}
	out := &invocation.Outcome{Payload: []byte(req.ID)}
	if w.dead.Load() {
		w.busy.Store(false)
		return nil
	}
	w.m.sleep(100 * time.Millisecond)
	next := w.m.intn(12)
	w.busy.Store(false)
	if next == 0 { // it dies with its answer, or instead of one
		w.Close("failure")
		return out
	}
	go func() { // ends after the pause between answer and next
		w.m.sleep(30 * time.Millisecond)
		if next == 1 || w.dead.Load() {
			w.Close("failure")
			return
		}
		w.events.Idle()
	}()
	return out
}

func (w *modelWorker) Close(string) {
	w.once.Do(func() {
		w.dead.Store(true)
		go func() { // ends with Gone
			w.events.Dying()
			w.m.sleep(50 * time.Millisecond)
			w.m.count(w.version.Key, -1)
			w.m.mu.Lock()
			for i, o := range w.m.idle {
				if o == w {
					w.m.idle = append(w.m.idle[:i], w.m.idle[i+1:]...)
					break
				}
			}
			w.m.mu.Unlock()
			w.events.Gone()
		}()
	})
}

// TestRandomLives drives pools through random interleavings of calls, switches, rollbacks, pinned
// versions, deaths and idle times, and ends them. LFX_TEST_SEED=n repeats one.
func TestRandomLives(t *testing.T) {
	seeds := make([]uint64, 40)
	for i := range seeds {
		seeds[i] = uint64(i + 1)
	}
	if s := os.Getenv("LFX_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{n}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { live(t, seed) })
		})
	}
}

func live(t *testing.T, seed uint64) {
	mod := &model{t: t, rand: rand.New(rand.NewPCG(seed, 1)), alive: map[function.Key]int{}}
	var keep *policy.Policy
	if seed%3 != 0 {
		keep = fallback(2 * time.Second)
	}
	m := NewManager(Options{
		Policy: keep, Starter: mod, DefaultMax: func(*function.Version) int { return modelMax }, QueueLimit: 8, QueueTimeout: 2 * time.Second,
		IdleTimeout: 5 * time.Second, FreezeAfter: 500 * time.Millisecond, MaxInstances: modelHost,
		MemoryMB: modelMemory, Overcommit: 1.5, MemoryUsed: mod.use, Log: slog.New(slog.DiscardHandler),
	})
	names := []string{"a", "b", "c"}
	var (
		calls, answers atomic.Int64
		wg             sync.WaitGroup
		releases       []*Release
	)
	versions := map[string]*function.Version{}
	pick := func(name string, n int) *function.Version {
		key := fmt.Sprintf("%s:%d", name, n)
		if versions[key] == nil {
			v := version(name, n, mod.intn(3), modelMax)
			v.Config.MemoryMB, v.Config.TmpMB = 50+mod.intn(150), 50
			if mod.intn(10) == 0 {
				v.Config.Concurrency = function.Concurrency{Stopped: true}
			}
			versions[key] = v
		}
		return versions[key]
	}
	for op := range 150 {
		switch k := mod.intn(20); {
		case k < 12: // a call, now and then one whose client has little patience, or to another version
			name, patience, other := names[mod.intn(len(names))], time.Duration(1+mod.intn(5000))*time.Millisecond, mod.intn(6) == 0
			pinned := pick(name, 1+mod.intn(3))
			calls.Add(1)
			wg.Go(func() {
				defer answers.Add(1)
				id := fmt.Sprint("call-", op)
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				checkCall(t, m, ctx, name, id, other, pinned)
			})
		case k < 14: // a switch, to the same or to other versions, sometimes without one of the functions
			rec, vs := record(len(releases)+1, pick("a", 1+mod.intn(3)), pick("b", 1+mod.intn(3)))
			if mod.intn(2) == 0 {
				v := pick("c", 1+mod.intn(3))
				rec.Versions["c"], vs["c"] = v.Number, v
			}
			r, err := m.Prepare(rec, vs)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(mod.intn(3000))*time.Millisecond)
			err = r.Warm(ctx)
			cancel()
			releases = append(releases, r)
			if err != nil && mod.intn(2) == 0 {
				r.Abort()
				continue
			}
			r.Activate()
		case k < 17:
			mod.killSome()
		case k < 18 && mod.intn(4) == 0:
			m.Deactivate(testEnv)
		case k < 18:
			m.Relieve("the model")
		case k < 19:
			mod.sleep(10 * time.Second)
		default:
			mod.sleep(100 * time.Millisecond)
		}
	}
	wg.Wait()
	if calls.Load() != answers.Load() {
		t.Errorf("%d calls and %d answers", calls.Load(), answers.Load())
	}
	if seed%2 == 0 { // let it run dry by itself, else end it in the middle
		m.Deactivate(testEnv)
		time.Sleep(time.Hour)
		if n := len(m.Pools()); n != 0 {
			t.Errorf("%d pools are left in an environment without a release", n)
		}
	}
	closeManager(m)
	time.Sleep(time.Second) // for the last of the model's own goroutines
	if mod.total != 0 || len(mod.idle) != 0 {
		t.Errorf("%d instances are left", mod.total)
	}
	for _, r := range releases {
		select {
		case <-r.Drained():
		default:
			t.Errorf("release %d was not drained", r.ReleaseNumber())
		}
		if n := r.InFlight(); n != 0 {
			t.Errorf("%d requests are bound to release %d", n, r.ReleaseNumber())
		}
	}
	for what, l := range map[string]*limit{"memory": m.memory, "host": m.host} {
		if l.used != 0 || l.freeing != 0 || l.wants.Load() != 0 || len(l.wanting) != 0 {
			t.Errorf("%s that was not given back: %d, %d; %d pools want it", what, l.used, l.freeing, len(l.wanting))
		}
	}
	if g := m.memory.gauge; g.young != g.settled || g.leaving != 0 {
		t.Errorf("the gauge is wrong at the end: %+v", g)
	}
	for k, l := range m.limits {
		if l.used != 0 || l.freeing != 0 {
			t.Errorf("room of %s that was not given back: %d, %d", k, l.used, l.freeing)
		}
	}
}

// checkCall makes one call and holds its answer against what may be.
func checkCall(t *testing.T, m *Manager, ctx context.Context, name, id string, other bool, pinned *function.Version) {
	b, err := m.Bind(testEnv, name)
	if err != nil {
		if !errors.Is(err, ErrNoRelease) && !errors.Is(err, ErrNoFunction) {
			t.Errorf("%s: bind: %v", id, err)
		}
		return
	}
	defer b.Close()
	if other {
		b.At(pinned)
	}
	out, err := b.Invoke(ctx, &invocation.Request{ID: id})
	var throttled *invocation.ThrottledError
	var unavailable *invocation.UnavailableError
	switch {
	case err == nil && out == nil:
		t.Errorf("%s: neither an answer nor an error", id)
	case err == nil && strings.TrimSpace(string(out.Payload)) != id:
		t.Errorf("%s: got the answer of %s", id, out.Payload)
	case err != nil && !errors.As(err, &throttled) && !errors.As(err, &unavailable) && !errors.Is(err, context.DeadlineExceeded):
		t.Errorf("%s: %v", id, err)
	}
}
