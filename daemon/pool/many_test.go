package pool

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// crowdStarter makes instances whose runtime parks a number of next calls; time is synctest's.
type crowdStarter struct {
	startup, work time.Duration
	parks         int
	pause         time.Duration                                     // between one next and the following
	outcome       func(req *invocation.Request) *invocation.Outcome // nil: the worker's name and the request's ID

	mu      sync.Mutex
	workers []*crowdWorker
}

// crowdWorker is a Beginner. It fails the test that gives it more than it has parked.
type crowdWorker struct {
	s      *crowdStarter
	id     string
	events Events
	origin int
	once   sync.Once

	mu                    sync.Mutex
	parked, running, most int
	bindings              []int // the releases of what it ran
	mixed, frozen         bool
	closed                int // what ran when it was closed
	thaws                 int
}

func (s *crowdStarter) Start(ctx context.Context, req StartRequest) (Worker, error) {
	select {
	case <-time.After(s.startup):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &crowdWorker{s: s, id: fmt.Sprintf("i%d", len(s.workers)+1), events: req.Events, parked: 1, origin: releaseNumber(req.Binding), closed: -1}
	s.workers = append(s.workers, w)
	for i := range s.parks - 1 {
		go func() { time.Sleep(time.Duration(i+1) * s.pause); w.park() }() // ends when the pool has the worker
	}
	return w, nil
}

func (w *crowdWorker) park() {
	w.mu.Lock()
	w.parked++
	w.mu.Unlock()
	w.events.Idle()
}

func (w *crowdWorker) ID() string       { return w.id }
func (w *crowdWorker) Info() WorkerInfo { return WorkerInfo{ID: w.id} }

// take takes a next for a request, if there is one.
func (w *crowdWorker) take(req *invocation.Request) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.parked == 0 {
		return false
	}
	if w.frozen {
		panic("an event for a frozen instance")
	}
	w.parked--
	w.running++
	w.most = max(w.most, w.running)
	n := releaseNumber(req.Binding)
	w.mixed = w.mixed || n != w.origin
	w.bindings = append(w.bindings, n)
	return true
}

func (w *crowdWorker) run(req *invocation.Request) *invocation.Outcome {
	time.Sleep(w.s.work)
	w.mu.Lock()
	w.running--
	w.mu.Unlock()
	if w.s.outcome != nil {
		if out := w.s.outcome(req); out != nil {
			return out
		}
	}
	return &invocation.Outcome{Payload: []byte(w.id + " " + req.ID)}
}

func (w *crowdWorker) Invoke(req *invocation.Request) *invocation.Outcome {
	if !w.take(req) {
		return nil
	}
	out := w.run(req)
	if out.Result != invocation.TimedOut {
		go w.park() // ends at once
	}
	return out
}

func (w *crowdWorker) Begin(req *invocation.Request, done Done) bool {
	if req.Tail {
		return false
	}
	if !w.take(req) {
		done.Ended(nil)
		return true
	}
	go func() { // ends with the invocation
		out := w.run(req)
		done.Ended(out)
		if out.Result != invocation.TimedOut {
			w.park()
		}
	}()
	return true
}

func (w *crowdWorker) Close(string) {
	w.once.Do(func() {
		w.mu.Lock()
		w.closed = w.running
		w.mu.Unlock()
		go func() { w.events.Dying(); w.events.Gone() }() // ends at once
	})
}

func (w *crowdWorker) Freeze(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running > 0 {
		panic("frozen while something runs")
	}
	w.frozen = true
	return nil
}

func (w *crowdWorker) Thaw() error {
	time.Sleep(time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen = false
	w.thaws++
	return nil
}

func (s *crowdStarter) all() []*crowdWorker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.workers)
}

// most lists how much each instance ran at once.
func (s *crowdStarter) most() (out []int) {
	for _, w := range s.all() {
		w.mu.Lock()
		out = append(out, w.most)
		w.mu.Unlock()
	}
	return out
}

// manyAtOnce is a version whose instances run n invocations at once.
func manyAtOnce(name string, number, n, most int) *function.Version {
	v := version(name, number, 0, most)
	v.Config.Concurrency.PerInstance = n
	return v
}

// burst begins n requests at once, every third of which needs a goroutine that waits, and waits for all.
func burst(t *testing.T, m *Manager, n int) {
	t.Helper()
	var all []*heard
	for i := range n {
		id := fmt.Sprint(i)
		if i%3 == 2 {
			id = "tail"
		}
		all = append(all, begin(t, m, "f", id))
	}
	for i, h := range all {
		<-h.done
		if h.err != nil || !strings.HasSuffix(h.text, " "+h.req.ID) {
			t.Errorf("request %d: %q, %v", i, h.text, h.err)
		}
	}
}

func TestInstancesThatRunSeveralAtOnce(t *testing.T) {
	for _, tc := range []struct {
		name              string
		per, parks, calls int
		pause             time.Duration
		max               int
		instances, most   int // how many there were, and the most that one of them ran at once
	}{
		{"four in one", 4, 4, 4, 0, 0, 1, 4},
		{"eight in two", 4, 4, 8, 0, 0, 2, 4},
		{"nine in three", 4, 4, 9, 0, 0, 3, 4},
		{"a maximum", 4, 4, 9, 0, 1, 1, 4},
		{"a runtime that takes its time", 4, 4, 4, 30 * time.Millisecond, 0, 1, 4},
		{"one at a time", 1, 1, 4, 0, 0, 4, 1},
		{"a runtime that parks one", 4, 1, 4, 0, 0, 4, 1},
		{"a runtime that parks two", 4, 2, 4, 0, 0, 2, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &crowdStarter{startup: 100 * time.Millisecond, work: 2 * time.Second, parks: tc.parks, pause: tc.pause}
				m := newTestManager(s)
				m.opts.QueueLimit = 20
				defer closeManager(m)
				v := manyAtOnce("f", 1, tc.per, tc.max)
				if tc.per == 1 {
					v.Config.Concurrency.PerInstance = 0
				}
				activate(t, m, 1, v)
				burst(t, m, tc.calls)
				// Where there are more places than calls, the instances come up at the same moment and may share them evenly.
				least := min(tc.most, (tc.calls+tc.instances-1)/tc.instances)
				if got := s.most(); len(got) != tc.instances || slices.Max(got) > tc.most || slices.Max(got) < least {
					t.Errorf("instances ran %v at once, want %d with %d to %d", got, tc.instances, least, tc.most)
				}
			})
		})
	}
}

// TestHottestInstanceIsFilledFirst: the others grow old and leave.
func TestHottestInstanceIsFilledFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &crowdStarter{startup: time.Millisecond, work: 3 * time.Second, parks: 4}
		m := newTestManager(s)
		m.opts.QueueLimit = 20
		defer closeManager(m)
		p := activate(t, m, 1, manyAtOnce("f", 1, 4, 0)).Pool("f")
		burst(t, m, 8)
		synctest.Wait()
		if st := p.Stats(); st.Idle != 2 || st.Instances != 2 {
			t.Fatalf("%+v", st)
		}
		first := begin(t, m, "f", "x")
		synctest.Wait()
		var busy string
		for _, in := range p.Instances() {
			if in.State == StateBusy {
				busy = in.ID
			}
		}
		rest := []*heard{begin(t, m, "f", "y"), begin(t, m, "f", "z"), begin(t, m, "f", "u")}
		synctest.Wait()
		for _, in := range p.Instances() {
			if want := map[bool]int{true: 4}[in.ID == busy]; in.InFlight != want {
				t.Errorf("%s runs %d, want %d", in.ID, in.InFlight, want)
			}
		}
		for _, h := range append(rest, first) {
			<-h.done
			if !strings.HasPrefix(h.text, busy+" ") {
				t.Errorf("served by %q, want %s", h.text, busy)
			}
		}
	})
}

func TestSeveralAtOnceFreezeOnlyWhenNothingRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &crowdStarter{startup: time.Millisecond, work: 10 * time.Second, parks: 4}
		m := NewManager(Options{Starter: s, DefaultMax: func(*function.Version) int { return 10 }, QueueLimit: 20, QueueTimeout: time.Minute,
			IdleTimeout: 10 * time.Minute, FreezeAfter: time.Second, Log: slog.New(slog.DiscardHandler)})
		defer closeManager(m)
		p := activate(t, m, 1, manyAtOnce("f", 1, 4, 1)).Pool("f")
		burst(t, m, 1)
		for range 3 {
			time.Sleep(5 * time.Second)
			if st := p.Instances(); st[0].State != StateFrozen {
				t.Fatalf("%+v", st)
			}
			burst(t, m, 4) // all take it frozen, one thaws it
		}
		if w := s.all()[0]; w.thaws != 3 || w.most != 4 {
			t.Errorf("thawed %d times, %d at once", w.thaws, w.most)
		}
	})
}

// TestTimeoutTakesAPlace: the code runs on; the other places are used, and one that comes back later is used again.
func TestTimeoutTakesAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &crowdStarter{startup: time.Millisecond, work: time.Second, parks: 2, outcome: func(req *invocation.Request) *invocation.Outcome {
			if req.ID == "slow" {
				return &invocation.Outcome{Payload: []byte("i1 slow"), Result: invocation.TimedOut}
			}
			return nil
		}}
		m := newTestManager(s)
		defer closeManager(m)
		p := activate(t, m, 1, manyAtOnce("f", 1, 2, 1)).Pool("f")
		<-begin(t, m, "f", "slow").done
		synctest.Wait()
		if st := p.Stats(); st.Idle != 1 {
			t.Errorf("%+v", st)
		}
		begun := time.Now()
		burst(t, m, 2)
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("two calls took %s with one place, want 2s", took)
		}
		s.all()[0].park()
		begun = time.Now()
		burst(t, m, 2)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("two calls took %s with two places, want 1s", took)
		}
	})
}

// TestPlaceWithoutNextIsForgotten: a connection went away; its request goes elsewhere.
func TestPlaceWithoutNextIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &crowdStarter{startup: time.Millisecond, work: time.Second, parks: 3}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 1, manyAtOnce("f", 1, 4, 2))
		burst(t, m, 1)
		synctest.Wait()
		w := s.all()[0]
		w.mu.Lock()
		w.parked = 1
		w.mu.Unlock()
		burst(t, m, 3)
		if diff := cmp.Diff([]int{1, 2}, s.most()); diff != "" {
			t.Errorf("at once in each instance (-want +got):\n%s", diff)
		}
	})
}

// TestSwitchWithASharedVersion: each release has instances of its own, what is in flight ends on its release, and the old
// instances go with the last of it.
func TestSwitchWithASharedVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &crowdStarter{startup: time.Millisecond, work: time.Minute / 2, parks: 4}
		m := newTestManager(s)
		m.opts.QueueLimit = 20
		defer closeManager(m)
		v := manyAtOnce("f", 1, 4, 0)
		old := activate(t, m, 1, v)
		first := begin(t, m, "f", "first")
		time.Sleep(time.Second)
		next := activate(t, m, 2, v)
		if old.Pool("f") == next.Pool("f") {
			t.Fatal("two releases share a pool")
		}
		second := begin(t, m, "f", "second")
		time.Sleep(time.Second)
		nested, err := old.Bind("f") // a call of the old release's
		if err != nil {
			t.Fatal(err)
		}
		if out, err := nested.Invoke(t.Context(), &invocation.Request{ID: "nested"}); err != nil || string(out.Payload) != "i1 nested" {
			t.Errorf("nested: %s, %v", out.Payload, err)
		}
		nested.Close()
		<-first.done
		<-second.done
		<-old.Drained()
		synctest.Wait()
		all := s.all()
		if len(all) != 2 || first.text != "i1 first" || second.text != "i2 second" {
			t.Errorf("%d instances, %q, %q", len(all), first.text, second.text)
		}
		if all[0].closed != 0 || all[1].closed != -1 {
			t.Errorf("instances ended with %d and %d in progress, want 0 and none ended", all[0].closed, all[1].closed)
		}
		if left := m.Pools(); len(left) != 1 || left[0] != next.Pool("f") {
			t.Errorf("%d pools are left", len(left))
		}
	})
}

// TestSwitchesWithSeveralAtOnce: at random, every call succeeds, no instance ever runs two releases or is closed while it
// runs something, and nothing is left.
func TestSwitchesWithSeveralAtOnce(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			s := &crowdStarter{startup: 30 * time.Millisecond, work: 200 * time.Millisecond, parks: 3}
			m := NewManager(Options{Starter: s, DefaultMax: func(*function.Version) int { return 10 }, QueueLimit: 1000, QueueTimeout: time.Minute,
				IdleTimeout: 3 * time.Second, FreezeAfter: time.Second, MaxInstances: 6, Log: slog.New(slog.DiscardHandler)})
			v, w := manyAtOnce("f", 1, 3, 0), manyAtOnce("f", 2, 3, 0)
			activate(t, m, 1, v)
			var failed atomic.Int32
			var calls sync.WaitGroup
			for i := range 300 {
				calls.Go(func() {
					if _, err := call(m, "f", fmt.Sprint(i)); err != nil {
						failed.Add(1)
					}
				})
				if rnd.IntN(20) == 0 {
					activate(t, m, i+2, []*function.Version{v, w}[rnd.IntN(2)])
				}
				time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
			}
			calls.Wait()
			closeManager(m)
			if n := failed.Load(); n != 0 {
				t.Errorf("seed %d: %d calls failed", seed, n)
			}
			most := 0
			for _, w := range s.all() {
				most = max(most, w.most)
				if w.mixed || w.closed != 0 || w.most > 3 {
					t.Errorf("seed %d: %s of release %d ran %v, at most %d at once, ended with %d", seed, w.id, w.origin, w.bindings, w.most, w.closed)
				}
			}
			if most < 2 {
				t.Errorf("seed %d: nothing ever ran at once", seed)
			}
		})
	}
}

// TestCloseWaitsForAllOfAnInstance: the manager's end leaves nothing, and closes no instance that runs something in time.
func TestCloseWaitsForAllOfAnInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &crowdStarter{startup: time.Millisecond, work: 5 * time.Second, parks: 4}
		m := newTestManager(s)
		activate(t, m, 1, manyAtOnce("f", 1, 4, 1))
		var all []*heard
		for i := range 4 {
			all = append(all, begin(t, m, "f", fmt.Sprint(i)))
			time.Sleep(time.Second)
		}
		closeManager(m)
		for i, h := range all {
			<-h.done
			if h.err != nil {
				t.Errorf("request %d: %v", i, h.err)
			}
		}
		if w := s.all()[0]; w.closed != 0 || w.most != 4 {
			t.Errorf("ended with %d in progress, %d at once", w.closed, w.most)
		}
	})
}

// TestInstanceOfSeveralGivesWay: another function waits for room; the instance takes nothing more, ends with what it runs, and
// the call that waits for its pool is served after.
func TestInstanceOfSeveralGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &crowdStarter{startup: time.Millisecond, work: 2 * time.Second, parks: 2}
		m := NewManager(Options{Starter: s, DefaultMax: func(*function.Version) int { return 10 }, QueueLimit: 100, QueueTimeout: time.Minute,
			IdleTimeout: 10 * time.Minute, MaxInstances: 1, Log: slog.New(slog.DiscardHandler)})
		activate(t, m, 1, manyAtOnce("f", 1, 2, 0), manyAtOnce("g", 1, 2, 0))
		defer closeManager(m)
		var all []*heard
		for i := range 12 {
			all = append(all, begin(t, m, "f", fmt.Sprint(i)))
			time.Sleep(100 * time.Millisecond)
		}
		other := begin(t, m, "g", "g")
		<-other.done
		if other.err != nil || other.after > 10*time.Second {
			t.Errorf("the other function: %q, %v after %s", other.text, other.err, other.after)
		}
		for i, h := range all {
			<-h.done
			if h.err != nil {
				t.Errorf("request %d: %v", i, h.err)
			}
		}
		for _, w := range s.all() {
			if w.closed > 0 {
				t.Errorf("%s ended with %d in progress", w.id, w.closed)
			}
		}
	})
}
