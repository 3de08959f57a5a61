package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// icyStarter makes workers that can be frozen and count what was done to them.
type icyStarter struct {
	fakeStarter
	freezeTakes time.Duration // until the processes are stopped
	failFreeze  error
	failThaw    error

	freezes, thaws atomic.Int64
	icy            []*icyWorker
}

type icyWorker struct {
	*fakeWorker
	s      *icyStarter
	frozen atomic.Bool
	memory atomic.Uint64
}

func (s *icyStarter) Start(ctx context.Context, req StartRequest) (Worker, error) {
	w, err := s.fakeStarter.Start(ctx, req)
	if err != nil {
		return nil, err
	}
	i := &icyWorker{fakeWorker: w.(*fakeWorker), s: s}
	s.mu.Lock()
	s.icy = append(s.icy, i)
	s.mu.Unlock()
	return i, nil
}

func (s *icyStarter) workers() []*icyWorker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.icy)
}

func (w *icyWorker) Freeze(ctx context.Context) error {
	w.s.freezes.Add(1)
	select {
	case <-time.After(w.s.freezeTakes):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if w.s.failFreeze != nil {
		return w.s.failFreeze
	}
	w.frozen.Store(true)
	return nil
}

func (w *icyWorker) Thaw() error {
	w.s.thaws.Add(1)
	w.frozen.Store(false)
	return w.s.failThaw
}

func (w *icyWorker) MemoryBytes() uint64 { return w.memory.Load() }

func (w *icyWorker) Invoke(req *invocation.Request) *invocation.Outcome {
	if w.frozen.Load() {
		panic("an event for a frozen instance")
	}
	return w.fakeWorker.Invoke(req)
}

// icyManager freezes after a second.
func icyManager(s Starter) *Manager {
	m := newTestManager(&fakeStarter{})
	closeManager(m)
	o := m.opts
	o.Starter, o.FreezeAfter = s, time.Second
	return NewManager(o)
}

func TestIdleInstancesAreFrozenAndThawedForTheNextEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icyStarter{freezeTakes: time.Millisecond}
		m := icyManager(s)
		defer closeManager(m)
		r := activate(t, m, 1, version("f", 1, 0, 0))
		for range 20 { // hot: never idle for a second
			if _, err := call(m, "f", "x"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
		}
		if n := s.freezes.Load(); n != 0 {
			t.Errorf("a hot instance was frozen %d times", n)
		}
		for range 3 {
			time.Sleep(5 * time.Second)
			if got := states(r.Pool("f")); got != "frozen" || !s.workers()[0].frozen.Load() {
				t.Errorf("after five seconds: %s", got)
			}
			before := time.Now()
			if _, err := call(m, "f", "x"); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(before); took > time.Millisecond {
				t.Errorf("the call waited %s", took)
			}
			if got := states(r.Pool("f")); got != "idle" {
				t.Errorf("after the call: %s", got)
			}
		}
		if s.count().started != 1 || s.freezes.Load() != 3 || s.thaws.Load() != 3 {
			t.Errorf("%d starts, %d freezes, %d thaws; want 1, 3, 3", s.count().started, s.freezes.Load(), s.thaws.Load())
		}
	})
}

// states lists the states of a pool's instances.
func states(p *Pool) (out string) {
	synctest.Wait()
	for _, in := range p.Instances() {
		if out != "" {
			out += " "
		}
		out += in.State
	}
	return out
}

func TestFreezeIsCalledOffByAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icyStarter{freezeTakes: time.Minute} // a hostile function holds it up
		m := icyManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 1, 1))
		for n := int64(1); n <= 3; n++ {
			for s.freezes.Load() < n {
				time.Sleep(time.Second)
			}
			before := time.Now()
			if _, err := call(m, "f", "x"); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(before); took > time.Millisecond {
				t.Errorf("the call waited %s for the freeze", took)
			}
		}
		if s.count().started != 1 {
			t.Errorf("%d instances were started, want 1", s.count().started)
		}
	})
}

func TestInstanceThatCannotBeFrozenIsNotTriedAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icyStarter{failFreeze: errors.New("no freezer")}
		m := icyManager(s)
		defer closeManager(m)
		r := activate(t, m, 1, version("f", 1, 0, 1))
		if _, err := call(m, "f", "x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := s.freezes.Load(); n < 1 || n > 4 {
			t.Errorf("%d tries in a minute", n)
		}
		if got := states(r.Pool("f")); got != "idle" {
			t.Errorf("state %s, want idle", got)
		}
		time.Sleep(10 * time.Minute)
		if s.count().alive != 0 {
			t.Error("it does not end after its idle time")
		}
	})
}

func TestKilledWhileFrozenMeansAColdStartAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icyStarter{failThaw: errors.New("it was killed")}
		s.startup = 100 * time.Millisecond
		m := icyManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 1))
		for i := range 3 {
			before := time.Now()
			got, err := call(m, "f", "x")
			if want := fmt.Sprintf("shop/f:1/%d x r1", i+1); err != nil || got != want {
				t.Fatalf("got %q, %v, want %q", got, err, want)
			}
			if took := time.Since(before); took > time.Second {
				t.Errorf("call %d waited %s", i, took)
			}
			time.Sleep(3 * time.Second)
		}
	})
}

func TestFrozenInstancesEndLikeOthers(t *testing.T) {
	for name, end := range map[string]func(*Manager){
		"idle timeout": func(*Manager) { time.Sleep(time.Hour) },
		"switch":       func(m *Manager) { m.Deactivate(testEnv); time.Sleep(time.Second) },
		"pressure":     func(m *Manager) { m.Relieve("test"); time.Sleep(time.Second) },
		"close":        func(m *Manager) { closeManager(m) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &icyStarter{}
				m := icyManager(s)
				r := activate(t, m, 1, version("f", 1, 0, 1))
				if _, err := call(m, "f", "x"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
				if got := states(r.Pool("f")); got != "frozen" {
					t.Fatalf("state %q, want frozen", got)
				}
				end(m)
				synctest.Wait()
				if s.count().alive != 0 {
					t.Errorf("%d instances are left", s.count().alive)
				}
				closeManager(m)
			})
		})
	}
}

func TestInstancesForPeople(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icyStarter{}
		s.startup, s.work = time.Second, 10*time.Second
		m := icyManager(s)
		defer closeManager(m)
		v := version("f", 1, 0, 0)
		activate(t, m, 6, v)
		r := activate(t, m, 7, v)
		p := r.Pool("f")
		var wg sync.WaitGroup
		wg.Go(func() { call(m, "f", "x") }) //nolint:errcheck // seen below
		time.Sleep(100 * time.Millisecond)
		want := func(state string, release, inFlight int, memory int64) {
			t.Helper()
			synctest.Wait()
			all := p.Instances()
			if len(all) != 1 {
				t.Fatalf("%d instances, want one that is %s", len(all), state)
			}
			in := all[0]
			if in.State != state || in.Release != release || in.InFlight != inFlight || in.MemoryBytes != memory || in.Version != v {
				t.Errorf("%+v, want %s of release %d with %d in flight and %d bytes", in, state, release, inFlight, memory)
			}
		}
		want(StateStarting, 7, 0, 0)
		time.Sleep(time.Second)
		synctest.Wait()
		s.workers()[0].memory.Store(5 << 20)
		want(StateBusy, 7, 1, 5<<20)
		wg.Wait()
		want(StateIdle, 7, 0, 5<<20)
		time.Sleep(5 * time.Second)
		want(StateFrozen, 7, 0, 5<<20)
		s.workers()[0].Close("test")
		want(StateStopping, 7, 0, 5<<20)
	})
}

func TestReleaseOfAnInstanceIsThatOfItsInvocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &icyStarter{}
		s.work = time.Second
		m := icyManager(s)
		defer closeManager(m)
		v := version("f", 1, 1, 1)
		activate(t, m, 1, v)
		old, err := m.Bind(testEnv, "f")
		if err != nil {
			t.Fatal(err)
		}
		r2 := activate(t, m, 2, v, version("g", 1, 0, 0))
		var wg sync.WaitGroup
		wg.Go(func() {
			defer old.Close()
			if _, err := old.Invoke(t.Context(), &invocation.Request{ID: "old"}); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(100 * time.Millisecond)
		if got := r2.Pool("f").Instances()[0].Release; got != 1 {
			t.Errorf("the invocation is bound to release 1, the instance says %d", got)
		}
		wg.Wait()
		if _, err := call(m, "f", "new"); err != nil {
			t.Error(err)
		}
		if got := r2.Pool("f").Instances()[0].Release; got != 2 {
			t.Errorf("after an invocation of release 2 the instance says %d", got)
		}
	})
}

func TestStoppedFunctionIsThrottledAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{work: time.Minute}
		m := newTestManager(s)
		defer closeManager(m)
		v1, v2 := version("f", 1, 0, 0), version("f", 2, 0, 0)
		v2.Config.Concurrency = function.Concurrency{Stopped: true}
		activate(t, m, 1, v1)
		running, nested := make(chan error, 1), make(chan error, 1)
		go func() { _, err := call(m, "f", "x"); running <- err }() // ends with its answer
		time.Sleep(time.Second)
		old, err := m.Bind(testEnv, "f")
		if err != nil {
			t.Fatal(err)
		}
		activate(t, m, 2, v2)
		go func() { // ends at once
			_, err := old.Invoke(t.Context(), &invocation.Request{ID: "y"})
			old.Close()
			nested <- err
		}()
		before := time.Now()
		_, err = call(m, "f", "z")
		for what, err := range map[string]error{"a call": err, "a call of the draining release": <-nested} {
			var te *invocation.ThrottledError
			if !errors.As(err, &te) || te.Reason != "ReservedFunctionConcurrentInvocationLimitExceeded" || te.RetryAfter != 0 {
				t.Errorf("%s: %v, want a throttle by the function's own limit without a time", what, err)
			}
		}
		if took := time.Since(before); took > 0 {
			t.Errorf("the answer took %s", took)
		}
		if err := <-running; err != nil {
			t.Errorf("what was running: %v", err)
		}
		v3 := version("f", 3, 0, 0)
		activate(t, m, 3, v3)
		if _, err := call(m, "f", "x"); err != nil {
			t.Errorf("after the function was allowed again: %v", err)
		}
	})
}
