package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// chainStarter makes instances that answer with their version.
type chainStarter struct {
	fail func(*function.Version) bool // whether the function ends in an error
	wait func(*function.Version) time.Duration
}

type chainWorker struct {
	s      *chainStarter
	v      *function.Version
	events Events
	once   sync.Once
}

func (s *chainStarter) Start(_ context.Context, req StartRequest) (Worker, error) {
	return &chainWorker{s: s, v: req.Version, events: req.Events}, nil
}

func (w *chainWorker) ID() string       { return w.v.String() }
func (w *chainWorker) Info() WorkerInfo { return WorkerInfo{ID: w.v.String()} }

func (w *chainWorker) Invoke(*invocation.Request) *invocation.Outcome {
	if w.s.wait != nil {
		time.Sleep(w.s.wait(w.v))
	}
	go w.events.Idle() // ends at once
	out := &invocation.Outcome{Payload: []byte(w.v.String())}
	if w.s.fail != nil && w.s.fail(w.v) {
		out.FunctionError = "Unhandled"
	}
	return out
}

func (w *chainWorker) Close(string) {
	w.once.Do(func() {
		go func() { w.events.Dying(); w.events.Gone() }() // ends at once
	})
}

// share prepares, warms and routes a share to a release.
func share(t *testing.T, m *Manager, part, n int, vs ...*function.Version) *Release {
	t.Helper()
	rec, versions := record(n, vs...)
	r, err := m.Prepare(rec, versions)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Share(part)
	return r
}

// chain calls a → b → c through bindings as the gateway does, and returns the releases that it saw.
func chain(m *Manager, depth int) (seen []int, err error) {
	var bounds []*Bound
	defer func() {
		for _, b := range bounds {
			b.Close()
		}
	}()
	b, err := m.Bind(testEnv, "a")
	for i := range depth {
		if err != nil {
			return seen, err
		}
		bounds = append(bounds, b)
		seen = append(seen, b.ReleaseNumber())
		req := &invocation.Request{ID: "1"}
		out, err := b.Invoke(context.Background(), req)
		if err != nil {
			return seen, err
		}
		if want := b.Version().String(); string(out.Payload) != want {
			return seen, fmt.Errorf("answered by %s, want %s", out.Payload, want)
		}
		if req.Binding.ReleaseNumber() != seen[0] {
			return seen, fmt.Errorf("the instance was told release %d", req.Binding.ReleaseNumber())
		}
		if i+1 < depth {
			b, err = req.Binding.(*Release).Bind(string(rune('a' + (i+1)%3)))
			if err != nil {
				return seen, err
			}
		}
	}
	return seen, nil
}

// TestSwitchesNeverMixReleases: while deploys, canaries, other shares, promotions, aborts and rollbacks follow
// one another at random, every request succeeds and its whole chain runs on one release.
func TestSwitchesNeverMixReleases(t *testing.T) {
	m := NewManager(Options{
		Starter: &chainStarter{}, DefaultMax: func(*function.Version) int { return 50 }, QueueLimit: 1000, QueueTimeout: time.Minute, IdleTimeout: time.Minute,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	defer func() { m.Close(context.Background()) }()
	// c is the same version in all releases, a changes always, b every other time.
	versions := func(n int) []*function.Version {
		return []*function.Version{version("a", n, n%2, 0), version("b", n/2+1, 1, 0), version("c", 1, 1, 0)}
	}
	activate(t, m, 1, versions(1)...)
	var done atomic.Bool
	var wg sync.WaitGroup
	var calls atomic.Int64
	for range 8 {
		wg.Go(func() {
			for !done.Load() {
				seen, err := chain(m, 5)
				if err != nil {
					t.Errorf("after %v: %v", seen, err)
					return
				}
				for _, n := range seen {
					if n != seen[0] {
						t.Errorf("a chain saw the releases %v", seen)
						return
					}
				}
				calls.Add(1)
			}
		})
	}
	wg.Go(func() { // asks for the number that is active, which may not be for long
		for !done.Load() {
			b, err := m.BindNumber(testEnv, m.Active(testEnv).record.Number, "a", true)
			if errors.Is(err, ErrNoRelease) {
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := b.Invoke(context.Background(), &invocation.Request{ID: "1"}); err != nil {
				t.Errorf("by number: %v", err)
			}
			b.Close()
		}
	})
	random := rand.New(rand.NewPCG(7, 9))
	var drained []*Release
	for n := 2; n < 150; n++ {
		if n%3 == 0 { // an ordinary deploy, or going back
			r := m.Active(testEnv)
			if random.IntN(2) == 0 {
				activate(t, m, 1+random.IntN(n), versions(1+random.IntN(n))...)
			} else {
				activate(t, m, n, versions(n)...)
			}
			drained = append(drained, r)
			continue
		}
		old := m.Active(testEnv)
		c := share(t, m, 1+random.IntN(9999), n, versions(n)...)
		c.Share(1 + random.IntN(9999))
		if random.IntN(2) == 0 {
			c.Activate()
			drained = append(drained, old)
		} else {
			c.Abort()
			drained = append(drained, c)
		}
	}
	done.Store(true)
	wg.Wait()
	for _, r := range drained {
		select {
		case <-r.Drained():
		default:
			t.Errorf("release %d has not drained: %d in flight", r.record.Number, r.InFlight())
		}
	}
	if n := len(m.Live(testEnv)); n != 1 {
		t.Errorf("%d releases live, want the active one", n)
	}
	if len(m.Pools()) != 3 {
		t.Errorf("%d pools, the active release has 3", len(m.Pools()))
	}
	if calls.Load() == 0 {
		t.Error("nothing was called")
	}
}

// TestEndingReleaseTakesNoRequest: one that comes between the end of a release, which nothing is bound to any more, and the
// closing of its pools is refused. It would be in the queue of a pool that closes, and its end, told while the
// environment is locked, would end the release once more.
func TestEndingReleaseTakesNoRequest(t *testing.T) {
	m := newTestManager(&chainStarter{})
	defer func() { m.Close(context.Background()) }()
	old := activate(t, m, 1, version("a", 1, 0, 0))
	e := m.environment(testEnv)
	before := e.routing.Load() // as a request has it that asks now and is then held up
	rec, versions := record(2, version("a", 2, 0, 0))
	next, err := m.Prepare(rec, versions)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock() // the end stops in finish
	switched := make(chan struct{})
	go func() { // ends with the switch, which the test waits for
		defer close(switched)
		next.Activate()
	}()
	for deadline := time.Now().Add(20 * time.Second); !old.retired.Load() || old.inflight.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			m.mu.Unlock()
			t.Fatal("the release that was switched away from does not end")
		}
	}
	if _, err := old.Bind("a"); !errors.Is(err, ErrNoRelease) {
		t.Errorf("a call from inside an instance: %v", err)
	}
	if e.hold(before, old) {
		t.Error("a request that had drawn the release before is bound to it")
	}
	if _, err := m.BindNumber(testEnv, 1, "a", true); !errors.Is(err, ErrNoRelease) {
		t.Errorf("a request for its number: %v", err)
	}
	if n := old.InFlight(); n != 0 {
		t.Errorf("%d requests are bound to a release that has ended", n)
	}
	m.mu.Unlock()
	for _, end := range []<-chan struct{}{switched, old.Drained()} {
		select {
		case <-end:
		case <-time.After(20 * time.Second):
			t.Fatal("the switch does not end")
		}
	}
	if _, err := old.Bind("a"); !errors.Is(err, ErrNoRelease) {
		t.Errorf("after the end: %v", err)
	}
	activate(t, m, 3, version("a", 3, 0, 0)) // nothing holds the environment
}

// TestNumberIsRoutedToWhenBound: a request that asked for a release by number and was held up while the release was
// switched away from does not join those that it drains of.
func TestNumberIsRoutedToWhenBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&chainStarter{})
		defer func() { m.Close(context.Background()) }()
		old := activate(t, m, 1, version("a", 1, 0, 0))
		e := m.environment(testEnv)
		before := e.routing.Load()
		under, err := m.BindNumber(testEnv, 1, "a", true)
		if err != nil {
			t.Fatal(err)
		}
		activate(t, m, 2, version("a", 2, 0, 0))
		if e.hold(before, old) || old.InFlight() != 1 {
			t.Errorf("it is bound: %d in flight, want the one of before", old.InFlight())
		}
		under.Close()
		<-old.Drained()
	})
}

// TestMaximumIsOfWhatIsRoutedTo: the cap on a function's instances is that of the active release, or what the canary asks for
// beyond it, whatever else is live.
func TestMaximumIsOfWhatIsRoutedTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&chainStarter{})
		defer func() { m.Close(context.Background()) }()
		active := activate(t, m, 2, version("a", 2, 0, 2))
		most := func(when string, want int64) {
			t.Helper()
			l := active.Pool("a").limit
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.max != want {
				t.Errorf("%s: at most %d instances, want %d", when, l.max, want)
			}
		}
		rec, versions := record(1, version("a", 1, 0, 8))
		kept, err := m.BindKept(rec, versions, "a")
		if err != nil {
			t.Fatal(err)
		}
		most("while a request runs on a kept release", 2)
		kept.Close()
		most("after it", 2)
		share(t, m, 100, 3, version("a", 3, 0, 7))
		most("with a canary", 7)
		third := share(t, m, 100, 4, version("a", 4, 0, 4))
		most("with another one", 4)
		third.Abort()
		most("with none", 2)
	})
}

// TestEndedReleaseThatIsActivated has no requests, and none looks for another release for ever.
func TestEndedReleaseThatIsActivated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&chainStarter{})
		defer func() { m.Close(context.Background()) }()
		r := activate(t, m, 1, version("a", 1, 0, 0))
		m.Deactivate(testEnv)
		<-r.Drained()
		r.Activate()
		if _, err := m.Bind(testEnv, "a"); !errors.Is(err, ErrNoRelease) {
			t.Errorf("bind: %v", err)
		}
		if _, err := m.BindNumber(testEnv, 1, "a", true); !errors.Is(err, ErrNoRelease) {
			t.Errorf("by number: %v", err)
		}
		activate(t, m, 2, version("a", 2, 0, 0))
		if got, err := call(m, "a", "x"); err != nil {
			t.Errorf("after the next deploy: %q, %v", got, err)
		}
	})
}

// TestCanaryGetsItsShare: root requests are drawn by the share, nested ones never are.
func TestCanaryGetsItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&chainStarter{})
		defer func() { m.Close(context.Background()) }()
		activate(t, m, 1, version("a", 1, 0, 0), version("b", 1, 0, 0), version("c", 1, 0, 0))
		c := share(t, m, 2000, 2, version("a", 2, 0, 0), version("b", 1, 0, 0), version("c", 2, 0, 0))
		count := func(n int) (canary int) {
			for range n {
				seen, err := chain(m, 4)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range seen {
					if s != seen[0] {
						t.Fatalf("a chain saw %v", seen)
					}
				}
				if seen[0] == 2 {
					canary++
				}
			}
			return canary
		}
		if got := count(2000); got < 300 || got > 500 { // 400 ± 5.6 σ
			t.Errorf("%d of 2000 went to a canary of 20 %%", got)
		}
		c.Share(9999)
		if got := count(500); got < 490 {
			t.Errorf("%d of 500 went to a canary of 99.99 %%", got)
		}
		if _, n := m.Canary(testEnv); n != 9999 {
			t.Errorf("the share is %d", n)
		}
		c.Abort()
		if got := count(200); got != 0 {
			t.Errorf("%d of 200 went to a canary that was aborted", got)
		}
		if r, n := m.Canary(testEnv); r != nil || n != 0 {
			t.Errorf("canary %v with %d", r, n)
		}
	})
}

// TestFunctionOfOneReleaseOnly: a function that only one of the two releases has is served by that one, and
// what it calls stays there.
func TestFunctionOfOneReleaseOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&chainStarter{})
		defer func() { m.Close(context.Background()) }()
		activate(t, m, 1, version("a", 1, 0, 0), version("old", 1, 0, 0))
		share(t, m, 5000, 2, version("a", 2, 0, 0), version("new", 1, 0, 0))
		for range 50 {
			for name, want := range map[string]int{"old": 1, "new": 2} {
				b, err := m.Bind(testEnv, name)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				nested, err := b.release.Bind("a")
				if err != nil || b.ReleaseNumber() != want || nested.Version().Number != want {
					t.Fatalf("%s runs on release %d", name, b.ReleaseNumber())
				}
				nested.Close()
				b.Close()
			}
		}
		if _, err := m.Bind(testEnv, "none"); !errors.Is(err, ErrNoFunction) {
			t.Errorf("neither has it: %v", err)
		}
	})
}

// TestRemovedFunctionIsReachedFromItsRelease: a request that is under way when a release without the function
// becomes active still reaches it, and a new request does not.
func TestRemovedFunctionIsReachedFromItsRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&chainStarter{})
		defer func() { m.Close(context.Background()) }()
		old := activate(t, m, 1, version("a", 1, 0, 0), version("gone", 1, 0, 0))
		root, err := m.Bind(testEnv, "a")
		if err != nil {
			t.Fatal(err)
		}
		activate(t, m, 2, version("a", 2, 0, 0))
		nested, err := old.Bind("gone") // no instance of it ever ran: it starts now
		if err != nil {
			t.Fatal(err)
		}
		if out, err := nested.Invoke(t.Context(), &invocation.Request{}); err != nil || string(out.Payload) != "shop/gone:1" {
			t.Errorf("%v, %v", out, err)
		}
		if _, err := m.Bind(testEnv, "gone"); !errors.Is(err, ErrNoFunction) {
			t.Errorf("a new request: %v", err)
		}
		nested.Close()
		root.Close()
		<-old.Drained()
		synctest.Wait()
		if n := len(m.Pools()); n != 1 {
			t.Errorf("%d pools are left", n)
		}
	})
}

// TestCanaryIsWarmAndGivesBack: what a canary keeps warm lives beside the active release's, stays when it is
// promoted and goes when it is aborted; shared pools go on.
func TestCanaryIsWarmAndGivesBack(t *testing.T) {
	for _, promote := range []bool{true, false} {
		t.Run(fmt.Sprint("promote ", promote), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newTestManager(&chainStarter{})
				defer func() { m.Close(context.Background()) }()
				one := activate(t, m, 1, version("a", 1, 2, 4), version("same", 1, 1, 0))
				two := share(t, m, 100, 2, version("a", 2, 3, 8), version("same", 1, 1, 0))
				time.Sleep(time.Hour) // sweeps
				synctest.Wait()
				if a, b := one.Pool("a").Stats().Instances, two.Pool("a").Stats().Instances; a != 2 || b != 3 {
					t.Errorf("%d and %d warm instances, want 2 and 3", a, b)
				}
				same := one.Pool("same")
				if same != two.Pool("same") || same.binding != one {
					t.Error("a shared pool is the active release's")
				}
				if promote {
					two.Activate()
				} else {
					two.Abort()
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				want, most, binding := 2, int64(4), one
				if promote {
					want, most, binding = 3, 8, two
				}
				p := m.Active(testEnv).Pool("a")
				if got := p.Stats().Instances; got != want || p.limit.max != most || same.binding != binding {
					t.Errorf("%d instances of at most %d", got, p.limit.max)
				}
				if n := len(m.Pools()); n != 2 {
					t.Errorf("%d pools", n)
				}
				if got := same.Stats().Instances; got != 1 {
					t.Errorf("the shared pool has %d instances", got)
				}
			})
		})
	}
}

// TestCountersOutliveARelease: what a release did is counted by number, for roots and for all, and is there when
// it is activated again.
func TestCountersOutliveARelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&chainStarter{
			fail: func(v *function.Version) bool { return v.Number == 2 && v.Function == "b" },
			wait: func(v *function.Version) time.Duration { return time.Duration(v.Number) * 10 * time.Millisecond },
		})
		defer func() { m.Close(context.Background()) }()
		one := []*function.Version{version("a", 1, 0, 0), version("b", 1, 0, 0), version("c", 1, 0, 0)}
		activate(t, m, 1, one...)
		for range 10 {
			chain(m, 3) //nolint:errcheck // counted below
		}
		two := activate(t, m, 2, version("a", 2, 0, 0), version("b", 2, 0, 0))
		chain(m, 2) //nolint:errcheck // counted below
		b, err := m.Bind(testEnv, "b")
		if err != nil {
			t.Fatal(err)
		}
		b.Invoke(t.Context(), &invocation.Request{}) //nolint:errcheck // counted below
		b.Close()
		b, _ = m.Bind(testEnv, "a")
		b.At(version("a", 1, 0, 0))
		b.Invoke(t.Context(), &invocation.Request{}) //nolint:errcheck // counted below
		b.Close()
		c := m.Counters(testEnv, 2)
		if c.Requests != 4 || c.Errors != 2 || c.Roots != 2 || c.RootErrors != 1 {
			t.Errorf("release 2: %d requests, %d errors, %d roots, %d of them errors", c.Requests, c.Errors, c.Roots, c.RootErrors)
		}
		if p := c.Latency.Quantile(0.5); p < 20*time.Millisecond || p > 22*time.Millisecond {
			t.Errorf("p50 %v, want 20ms", p)
		}
		activate(t, m, 1, one...)
		<-two.Drained()
		two.counters.end(true, 0, nil, context.Canceled) // its client went away before it ran
		if again := m.Counters(testEnv, 2); again != c {
			t.Error("a request whose client went away is counted")
		}
		m.Forget(testEnv, func(n int) bool { return n == 1 })
		if c := m.Counters(testEnv, 1); c.Roots < 10 || c.Requests < 30 {
			t.Errorf("release 1 after it came back: %+v", c.Roots)
		}
		if c := m.Counters(testEnv, 2); c.Requests != 0 {
			t.Error("a release that was forgotten is counted still")
		}
	})
}

// beginner is a chainWorker whose invocations need no goroutine.
type beginner struct {
	*chainWorker
	s *beginnerStarter
}

func (w *beginner) Begin(req *invocation.Request, done Done) bool {
	if w.s.lost.Swap(false) {
		done.Ended(nil)
		w.Close("failure")
	} else {
		done.Ended(w.Invoke(req))
	}
	return true
}

type beginnerStarter struct {
	chainStarter
	lost atomic.Bool // the next event never reaches the function
}

func (s *beginnerStarter) Start(ctx context.Context, req StartRequest) (Worker, error) {
	w, err := s.chainStarter.Start(ctx, req)
	if err != nil {
		return nil, err
	}
	return &beginner{chainWorker: w.(*chainWorker), s: s}, nil
}

// TestBegunInvocationsAreCounted: those without a goroutine count as the others do, and once when an event
// was given to a second instance.
func TestBegunInvocationsAreCounted(t *testing.T) {
	for _, lost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &beginnerStarter{chainStarter: chainStarter{fail: func(*function.Version) bool { return true }}}
			s.lost.Store(lost)
			m := newTestManager(s)
			defer func() { m.Close(context.Background()) }()
			activate(t, m, 1, version("a", 1, 1, 0))
			h := begin(t, m, "a", "1")
			<-h.done
			if h.err != nil || h.text == "" {
				t.Errorf("lost %v: %q, %v", lost, h.text, h.err)
			}
			if c := m.Counters(testEnv, 1); c.Requests != 1 || c.Errors != 1 || c.Roots != 1 || c.RootErrors != 1 || c.Latency.Count() != 1 {
				t.Errorf("lost %v: %d requests, %d errors", lost, c.Requests, c.Errors)
			}
		})
	}
}

func TestBindNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&chainStarter{})
		defer func() { m.Close(context.Background()) }()
		activate(t, m, 4, version("a", 1, 0, 0))
		share(t, m, 1, 7, version("a", 2, 0, 0))
		for number, want := range map[int]string{4: "shop/a:1", 7: "shop/a:2"} {
			b, err := m.BindNumber(testEnv, number, "a", true)
			if err != nil || b.Version().String() != want || b.ReleaseNumber() != number {
				t.Fatalf("release %d: %v, %v", number, b, err)
			}
			b.Close()
		}
		if _, err := m.BindNumber(testEnv, 5, "a", true); !errors.Is(err, ErrNoRelease) {
			t.Errorf("a release that is not routed to: %v", err)
		}
		wantDraining(t, m, 4, 7)
		if _, err := m.Bind(testEnv, "a"); !errors.Is(err, ErrNoRelease) {
			t.Errorf("after the environment is gone: %v", err)
		}
	})
}

// wantDraining deactivates the environment with a request bound to the active release, to the canary, to a release
// that drains since an earlier switch and to one that was asked for by number: all of them are waited for.
func wantDraining(t *testing.T, m *Manager, active, canary int) {
	t.Helper()
	var bound []*Bound
	bind := func(b *Bound, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		bound = append(bound, b)
	}
	bind(m.BindNumber(testEnv, active, "a", true))
	bind(m.BindNumber(testEnv, canary, "a", true))
	activate(t, m, canary+1, version("a", 3, 0, 0)) // the one before drains
	rec, versions := record(canary+2, version("a", 4, 0, 0))
	bind(m.BindKept(rec, versions, "a"))
	old := m.Deactivate(testEnv)
	var numbers []int
	for _, r := range old {
		numbers = append(numbers, r.ReleaseNumber())
	}
	slices.Sort(numbers)
	if want := []int{active, canary, canary + 2}; !slices.Equal(numbers, want) {
		t.Errorf("the releases %v drain, want %v", numbers, want)
	}
	for _, b := range bound {
		b.Close()
	}
	for _, r := range old {
		<-r.Drained()
	}
}

// BenchmarkBind is what the draw costs a warm request.
func BenchmarkBind(b *testing.B) {
	for _, canary := range []bool{false, true} {
		b.Run(fmt.Sprintf("canary=%v", canary), func(b *testing.B) {
			m := newTestManager(&chainStarter{})
			defer func() { m.Close(context.Background()) }()
			for n := range 2 {
				rec, versions := record(n+1, version("a", n+1, 0, 0))
				r, err := m.Prepare(rec, versions)
				if err != nil {
					b.Fatal(err)
				}
				if n == 0 {
					r.Activate()
				} else if canary {
					r.Share(1000)
				} else {
					r.Abort()
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				bound, err := m.Bind(testEnv, "a")
				if err != nil {
					b.Fatal(err)
				}
				bound.Close()
			}
		})
	}
}
