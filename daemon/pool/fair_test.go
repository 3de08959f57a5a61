package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// roomManager has the given caps.
func roomManager(s Starter, change func(*Options)) *Manager {
	o := Options{
		Starter: s, DefaultMax: func(*function.Version) int { return 50 }, QueueLimit: 100, QueueTimeout: time.Minute,
		IdleTimeout: 10 * time.Minute, Log: slog.New(slog.DiscardHandler),
	}
	change(&o)
	return NewManager(o)
}

// TestStartsGoRoundTheFunctionsThatWait: the room of a function that ends is given out in turn.
func TestStartsGoRoundTheFunctionsThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icyStarter{}
		s.startup, s.work = 10*time.Millisecond, 20*time.Second
		m := roomManager(s, func(o *Options) { o.MaxInstances, o.QueueTimeout = 6, time.Hour })
		defer closeManager(m)
		r := activate(t, m, 1, version("first", 1, 0, 0), version("long", 1, 0, 0), version("short", 1, 0, 0), version("other", 1, 0, 0))
		var wg sync.WaitGroup
		send := func(name string, n int) {
			for range n {
				wg.Go(func() {
					if _, err := call(m, name, "x"); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				})
				synctest.Wait()
			}
		}
		send("first", 6)
		time.Sleep(100 * time.Millisecond)
		send("long", 40)
		send("short", 2)
		send("other", 2)
		time.Sleep(20 * time.Second) // first has answered, and its idle instances give way
		got := map[string]int{}
		for _, name := range []string{"long", "short", "other"} {
			st := r.Pool(name).Stats()
			got[name] = st.Busy + st.Starting
		}
		if got["long"] != 2 || got["short"] != 2 || got["other"] != 2 {
			t.Errorf("instances by function: %v, want two each", got)
		}
		if s.count().most > 6 {
			t.Errorf("%d instances at once, the host may have 6", s.count().most)
		}
		wg.Wait()
	})
}

// TestWhoHasMoreGivesWay: a function that holds the whole host shares it with one that needs as much.
func TestWhoHasMoreGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: 10 * time.Millisecond, work: 100 * time.Millisecond}
		m := roomManager(s, func(o *Options) { o.MaxInstances = 8 })
		defer closeManager(m)
		r := activate(t, m, 1, version("a", 1, 0, 0), version("b", 1, 0, 0))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 20 {
			caller(t, m, "a", &wg, stop)
		}
		time.Sleep(5 * time.Second)
		for range 20 {
			caller(t, m, "b", &wg, stop)
		}
		time.Sleep(30 * time.Second)
		a, b := r.Pool("a").Stats(), r.Pool("b").Stats()
		if a.Instances < 3 || b.Instances < 3 || a.Instances+b.Instances > 8 {
			t.Errorf("a has %d and b %d of 8 instances, want about the half each", a.Instances, b.Instances)
		}
		before := s.count().started
		time.Sleep(time.Minute)
		if n := s.count().started - before; n > 4 {
			t.Errorf("%d instances were started in a minute of even load", n)
		}
		close(stop)
		wg.Wait()
	})
}

// TestLargeInstanceFindsRoomBesideManySmallOnes: newcomers of functions that have something wait behind it.
func TestLargeInstanceFindsRoomBesideManySmallOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: 10 * time.Millisecond, work: 200 * time.Millisecond}
		m := roomManager(s, func(o *Options) { o.MemoryMB = 1000 })
		defer closeManager(m)
		var small []*function.Version
		for i := range 5 {
			small = append(small, sized(fmt.Sprint("small", i), 100, 0))
		}
		activate(t, m, 1, append(small, sized("large", 700, 0))...)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for _, v := range small {
			for range 3 {
				caller(t, m, v.Function, &wg, stop)
			}
		}
		time.Sleep(3 * time.Second)
		before := time.Now()
		if _, err := call(m, "large", "x"); err != nil {
			t.Error(err)
		}
		if took := time.Since(before); took > 6*time.Second {
			t.Errorf("large waited %s", took)
		}
		close(stop)
		wg.Wait()
	})
}

func TestReasonsOfThrottles(t *testing.T) {
	for _, c := range []struct {
		name, reason string
		most         int
		host         int64
		memory       int64
	}{
		{"the function's own maximum", "ReservedFunctionConcurrentInvocationLimitExceeded", 1, 0, 0},
		{"the daemon's default", "ConcurrentInvocationLimitExceeded", 0, 0, 0},
		{"the host's cap", "ConcurrentInvocationLimitExceeded", 10, 1, 0},
		{"the host's memory", "ConcurrentInvocationLimitExceeded", 10, 0, 150},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &fakeStarter{work: 2 * time.Minute}
				m := roomManager(s, func(o *Options) {
					o.DefaultMax = func(*function.Version) int { return 1 }
					o.QueueLimit, o.MaxInstances, o.MemoryMB = 1, c.host, c.memory
				})
				defer closeManager(m)
				v := version("f", 1, 0, c.most)
				v.Config.MemoryMB, v.Config.TmpMB = 100, 30
				activate(t, m, 1, v)
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() { call(m, "f", "runs") }) //nolint:errcheck // not the point
				time.Sleep(time.Second)
				late := make(chan error, 1)
				go func() { _, err := call(m, "f", "waits"); late <- err }() // ends with the queue timeout
				time.Sleep(time.Second)
				_, full := call(m, "f", "finds the queue full")
				for what, err := range map[string]error{"queue full": full, "waited too long": <-late} {
					var te *invocation.ThrottledError
					if !errors.As(err, &te) || te.Reason != c.reason || te.RetryAfter != time.Second {
						t.Errorf("%s: %v, want the reason %s and a second", what, err, c.reason)
					}
				}
			})
		})
	}
}

// meteredHost is what the functions of a test use, in MiB.
type meteredHost struct {
	used  atomic.Int64
	fault atomic.Bool
	reads atomic.Int64
}

func (h *meteredHost) read() (int64, error) {
	h.reads.Add(1)
	if h.fault.Load() {
		return 0, errors.New("no such file")
	}
	return h.used.Load() << 20, nil
}

func TestMemoryIsAdmittedByLimitsAndByUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icyStarter{}
		s.startup, s.work = 100*time.Millisecond, 10*time.Second
		host := &meteredHost{}
		m := roomManager(s, func(o *Options) { o.MemoryMB, o.Overcommit, o.MemoryUsed = 1000, 2, host.read })
		defer closeManager(m)
		v := version("f", 1, 0, 0)
		v.Config.MemoryMB, v.Config.TmpMB = 200, 50
		r := activate(t, m, 1, v)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { call(m, "f", "x") }) //nolint:errcheck // seen below
		}
		// Until the first reading five starts fill the budget; then they turn out to use little, and the
		// limits allow 2000 / 250 of them.
		time.Sleep(time.Millisecond)
		if st := r.Pool("f").Stats(); st.Starting != 5 {
			t.Errorf("%d start before anything was measured, want 5", st.Starting)
		}
		host.used.Store(50)
		time.Sleep(5 * time.Second)
		if st := r.Pool("f").Stats(); st.Instances != 8 {
			t.Errorf("%d instances beside a small use, want the 8 that the limits allow", st.Instances)
		}
		wg.Wait()
		for _, w := range s.workers() { // all of them end
			w.Close("test")
		}
		time.Sleep(time.Second)
		host.used.Store(900) // something that holds on to its memory
		m.memory.mu.Lock()
		m.memory.used += 250
		m.memory.mu.Unlock()
		time.Sleep(2 * time.Second)
		wg.Go(func() { call(m, "f", "x") }) //nolint:errcheck // seen below
		time.Sleep(5 * time.Second)
		if st := r.Pool("f").Stats(); st.Instances != 0 || st.Queued != 1 {
			t.Errorf("%+v beside 900 of 1000 MiB in use, want one request that waits", st)
		}
		host.used.Store(700)
		time.Sleep(5 * time.Second)
		if st := r.Pool("f").Stats(); st.Instances != 1 {
			t.Errorf("%+v beside 700 of 1000 MiB in use, want one instance", st)
		}
		m.memory.mu.Lock()
		m.memory.used -= 250
		m.memory.mu.Unlock()
		wg.Wait()
	})
}

func TestIdleInstancesLeaveBeforeTheBudgetIsUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icyStarter{}
		host := &meteredHost{}
		m := roomManager(s, func(o *Options) { o.MemoryMB, o.Overcommit, o.MemoryUsed = 1000, 4, host.read })
		defer closeManager(m)
		r := activate(t, m, 1, sized("min", 100, 1), sized("a", 100, 0), sized("b", 100, 0), sized("c", 100, 0))
		for _, name := range []string{"a", "b", "c"} {
			if _, err := call(m, name, "x"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		for _, w := range s.workers() {
			w.memory.Store(60 << 20)
		}
		host.used.Store(960)
		for begin := time.Now(); r.Pool("a").Stats().Idle == 1 && time.Since(begin) < time.Minute; {
			time.Sleep(time.Millisecond)
		}
		host.used.Store(900)
		time.Sleep(3 * time.Second)
		got := fmt.Sprint(r.Pool("min").Stats().Idle, r.Pool("a").Stats().Idle, r.Pool("b").Stats().Idle, r.Pool("c").Stats().Idle)
		if got != "1 0 1 1" { // 960 - 60 is 90 % of the budget
			t.Errorf("idle instances of min, a, b, c: %s, want 1 0 1 1", got)
		}
		host.used.Store(2000) // all that may leave does, and min stays
		time.Sleep(3 * time.Second)
		if n := s.count().alive; n != 1 || r.Pool("min").Stats().Idle != 1 {
			t.Errorf("%d instances are left, %+v of min", n, r.Pool("min").Stats())
		}
	})
}

func TestUnreadableMemoryDoesNotStopStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{}
		host := &meteredHost{}
		host.fault.Store(true)
		m := roomManager(s, func(o *Options) { o.MemoryMB, o.MemoryUsed = 1000, host.read })
		defer closeManager(m)
		activate(t, m, 1, sized("f", 300, 0))
		for range 20 { // each starts anew
			if _, err := call(m, "f", "x"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second) // it is looked at while it lives
			synctest.Wait()
			s.last().Close("test")
			synctest.Wait()
		}
		if host.reads.Load() == 0 {
			t.Error("nobody has looked")
		}
	})
}

// TestBlindGaugeHoldsNobodyUp: while another instance lives, so that there is something to measure, and measuring fails, many
// instances in turn find room; with the next good reading the use counts again.
func TestBlindGaugeHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{}
		host := &meteredHost{}
		m := roomManager(s, func(o *Options) {
			o.MemoryMB, o.Overcommit, o.MemoryUsed, o.QueueTimeout = 1000, 2, host.read, 5*time.Second
		})
		defer closeManager(m)
		activate(t, m, 1, sized("f", 300, 0), sized("stays", 100, 1))
		host.used.Store(100)
		time.Sleep(2 * time.Second)
		host.fault.Store(true)
		for n := range 20 {
			if _, err := call(m, "f", "x"); err != nil {
				t.Fatalf("start %d: %v", n, err)
			}
			time.Sleep(2 * time.Second) // it is looked at while it lives
			synctest.Wait()
			s.last().Close("test")
			time.Sleep(time.Second)
		}
		m.memory.mu.Lock()
		young, blind := m.memory.gauge.young, m.memory.gauge.blind
		m.memory.mu.Unlock()
		if young != 0 || !blind {
			t.Errorf("%d MiB are young while nothing starts; blind: %v", young, blind)
		}
		host.used.Store(900)
		host.fault.Store(false)
		time.Sleep(2 * time.Second)
		var throttled *invocation.ThrottledError
		if _, err := call(m, "f", "x"); !errors.As(err, &throttled) {
			t.Errorf("beside 900 of 1000 MiB that were read: %v, want a throttle", err)
		}
		host.fault.Store(true)
		time.Sleep(2 * time.Second)
		if _, err := call(m, "f", "x"); err != nil {
			t.Errorf("beside a use that is not known any more: %v", err)
		}
	})
}

func TestCheapestAndLongestUnusedLeaveFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := map[string]time.Duration{"cheap": 50 * time.Millisecond, "dear": 5 * time.Second}
		s := &pacedStarter{slow: slow}
		m := roomManager(s, func(o *Options) {})
		defer closeManager(m)
		r := activate(t, m, 1, version("cheap", 1, 0, 0), version("dear", 1, 0, 0))
		for _, name := range []string{"dear", "cheap"} { // dear is unused for longer
			if _, err := call(m, name, "x"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		if n := m.Relieve("test"); n != 1 {
			t.Fatalf("%d instances left, want 1", n)
		}
		if r.Pool("cheap").Stats().Idle != 0 || r.Pool("dear").Stats().Idle != 1 {
			t.Error("the instance that takes five seconds to make has left before the one that takes 50 ms")
		}
		time.Sleep(time.Minute)
		if _, err := call(m, "cheap", "x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // a moment ago against more than a minute
		m.Relieve("test")
		if r.Pool("cheap").Stats().Idle != 1 || r.Pool("dear").Stats().Idle != 0 {
			t.Error("an instance that was used a moment ago has left before one that nobody has used for a minute")
		}
	})
}

// pacedStarter takes its time by function.
type pacedStarter struct {
	fakeStarter
	slow map[string]time.Duration
}

func (s *pacedStarter) Start(ctx context.Context, req StartRequest) (Worker, error) {
	time.Sleep(s.slow[req.Version.Function])
	return s.fakeStarter.Start(ctx, req)
}
