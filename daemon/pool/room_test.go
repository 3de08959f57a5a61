package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// sized is a version that takes memory of the host's budget.
func sized(name string, memory, least int) *function.Version {
	v := version(name, 1, least, 0)
	v.Config.MemoryMB = memory
	return v
}

// caller calls a function again and again until stop; errors are the test's.
func caller(t *testing.T, m *Manager, name string, wg *sync.WaitGroup, stop <-chan struct{}) {
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := call(m, name, "x"); err != nil {
				t.Errorf("call of %s: %v", name, err)
				return
			}
		}
	})
}

func TestSwitchWhereTwoMinimaDoNotFit(t *testing.T) {
	for _, load := range []int{0, 1, 4} {
		for _, n := range []int{1, 2, 3} {
			t.Run(fmt.Sprintf("%d instances and %d callers", n, load), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &fakeStarter{startup: 200 * time.Millisecond, work: 100 * time.Millisecond}
					m := newTestManager(s)
					defer closeManager(m)
					activate(t, m, 1, version("f", 1, n, n))
					stop := make(chan struct{})
					var wg sync.WaitGroup
					for range load {
						caller(t, m, "f", &wg, stop)
					}
					time.Sleep(time.Second)
					before := time.Now()
					r2 := activate(t, m, 2, version("f", 2, n, n))
					if took := time.Since(before); took > 30*time.Second {
						t.Errorf("the switch took %s", took)
					}
					time.Sleep(10 * time.Second)
					if st := r2.Pool("f").Stats(); st.Instances != n {
						t.Errorf("after the switch %d instances run, want %d", st.Instances, n)
					}
					started := s.count().started
					close(stop)
					wg.Wait()
					time.Sleep(time.Minute)
					if s.count().started > started+1 {
						t.Errorf("instances are started without end: %d, then %d", started, s.count().started)
					}
					if s.count().most > n {
						t.Errorf("%d instances at once, want at most %d", s.count().most, n)
					}
				})
			})
		}
	}
}

func TestDrainingReleaseDoesNotKeepItsMinimum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: 200 * time.Millisecond, work: 100 * time.Millisecond}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 1, 1))
		b, err := m.Bind(testEnv, "f") // a request that lasts
		if err != nil {
			t.Fatal(err)
		}
		r2 := activate(t, m, 2, version("f", 2, 1, 1))
		time.Sleep(time.Minute)
		if s.count().started > 3 {
			t.Errorf("%d instances were started while release 1 drains, want 2", s.count().started)
		}
		if st := r2.Pool("f").Stats(); st.Idle != 1 {
			t.Errorf("the active release has %+v, want one idle instance", st)
		}
		if _, err := b.Invoke(context.Background(), &invocation.Request{ID: "late"}); err != nil {
			t.Errorf("a request of the draining release: %v", err)
		}
		b.Close()
		time.Sleep(time.Minute)
		if st := r2.Pool("f").Stats(); st.Idle != 1 {
			t.Errorf("after the drain the active release has %+v, want one idle instance", st)
		}
	})
}

func TestFailingStartsAreNotRepeatedAtOnce(t *testing.T) {
	for _, live := range []int{0, 1} {
		t.Run(fmt.Sprintf("beside %d instances", live), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &fakeStarter{work: 10 * time.Second, fail: func(n int, _ StartRequest) error {
					if n > live {
						return errors.New("containerd is away")
					}
					return nil
				}}
				m := newTestManager(s)
				defer closeManager(m)
				activate(t, m, 1, version("f", 1, live, 0))
				var wg sync.WaitGroup
				refused := 0
				var mu sync.Mutex
				for range 4 {
					wg.Go(func() {
						_, err := call(m, "f", "x")
						var away *invocation.UnavailableError
						mu.Lock()
						defer mu.Unlock()
						if errors.As(err, &away) {
							refused++
						} else if err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if s.count().started > 20 {
					t.Errorf("%d starts for four requests", s.count().started)
				}
				if want := 4 * (1 - live); refused != want {
					t.Errorf("%d requests were refused, want %d", refused, want)
				}
			})
		})
	}
}

func TestCapIsThatOfTheActiveRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Millisecond, work: time.Second}
		m := newTestManager(s)
		defer closeManager(m)
		old := version("f", 1, 0, 1)
		activate(t, m, 2, version("f", 2, 0, 3))
		b, err := m.Bind(testEnv, "f")
		if err != nil {
			t.Fatal(err)
		}
		b.At(old)
		if _, err := b.Invoke(t.Context(), &invocation.Request{ID: "old"}); err != nil {
			t.Fatal(err)
		}
		b.Close()
		rec, versions := record(3, version("f", 3, 0, 5))
		c, err := m.Prepare(rec, versions)
		if err != nil {
			t.Fatal(err)
		}
		c.Abort()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, err := call(m, "f", "x"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if s.count().most != 3 {
			t.Errorf("%d instances at once, want the active release's 3", s.count().most)
		}
	})
}

func TestBindToADrainedReleaseIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&fakeStarter{})
		defer closeManager(m)
		v := version("f", 1, 0, 0)
		r1 := activate(t, m, 1, v)
		activate(t, m, 2, v, version("g", 1, 0, 0))
		<-r1.Drained()
		if _, err := r1.Bind("f"); !errors.Is(err, ErrNoRelease) {
			t.Errorf("got %v, want ErrNoRelease", err)
		}
	})
}

func TestAbandonedWaitersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, work: 10 * time.Second}
		m := newTestManager(s)
		defer closeManager(m)
		r := activate(t, m, 1, version("f", 1, 0, 1))
		var wg sync.WaitGroup
		for range 2 { // one runs, one waits at the head of the queue
			wg.Go(func() { call(m, "f", "x") }) //nolint:errcheck // not the point
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			wg.Go(func() {
				b, err := m.Bind(testEnv, "f")
				if err != nil {
					t.Error(err)
					return
				}
				defer b.Close()
				if _, err := b.Invoke(ctx, &invocation.Request{ID: "gone", Payload: make([]byte, 1<<20)}); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v, want the cancellation", err)
				}
			})
		}
		time.Sleep(2 * time.Second)
		cancel()
		synctest.Wait()
		p := r.Pool("f")
		p.mu.Lock()
		n := 0
		for w := p.head; w != nil; w = w.next {
			n++
		}
		p.mu.Unlock()
		if n != 1 {
			t.Errorf("%d waiters are in the queue, want 1", n)
		}
		wg.Wait()
	})
}

func TestMemoryBudgetEvictsIdleInstancesOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: 100 * time.Millisecond, work: time.Millisecond}
		m := newTestManager(s)
		m.memory.setMax(1000)
		defer closeManager(m)
		r := activate(t, m, 1, sized("a", 600, 0), sized("b", 600, 0), sized("warm", 300, 1))
		for _, name := range []string{"a", "b", "a"} {
			before := time.Now()
			if _, err := call(m, name, "x"); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(before); took > time.Second {
				t.Errorf("%s waited %s", name, took)
			}
			synctest.Wait()
			if used := m.memory.used; used > 1000 {
				t.Errorf("%d MiB are in use", used)
			}
		}
		if s.count().started != 4 || s.count().most > 2 {
			t.Errorf("%d instances were started, %d at once; want 4, 2", s.count().started, s.count().most)
		}
		if st := r.Pool("warm").Stats(); st.Idle != 1 {
			t.Errorf("the minimum of another function gave way: %+v", st)
		}
	})
}

func TestBusyFunctionGivesRoomToOneThatHasNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: 100 * time.Millisecond, work: 300 * time.Millisecond}
		m := newTestManager(s)
		m.memory.setMax(1000)
		defer closeManager(m)
		activate(t, m, 1, sized("a", 500, 0), sized("b", 500, 0))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			caller(t, m, "a", &wg, stop)
		}
		time.Sleep(5 * time.Second)
		before := time.Now()
		if _, err := call(m, "b", "x"); err != nil {
			t.Error(err)
		}
		if took := time.Since(before); took > 5*time.Second {
			t.Errorf("b waited %s beside a busy a", took)
		}
		close(stop)
		wg.Wait()
	})
}

func TestFunctionLargerThanTheBudgetIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(&fakeStarter{})
		m.memory.setMax(1000)
		defer closeManager(m)
		rec, versions := record(1, sized("big", 2000, 0))
		r, err := m.Prepare(rec, versions)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Warm(t.Context()); err == nil || !strings.Contains(err.Error(), "memory_budget") {
			t.Errorf("warm says %v, want the setting that is in the way", err)
		}
		r.Activate()
		var away *invocation.UnavailableError
		if _, err := call(m, "big", "x"); !errors.As(err, &away) || !strings.Contains(err.Error(), "memory_budget") {
			t.Errorf("a call says %v, want the setting that is in the way", err)
		}
	})
}

// stuckWorker answers and never comes back for more.
type stuckWorker struct{ *fakeWorker }

func (w stuckWorker) Invoke(req *invocation.Request) *invocation.Outcome {
	return &invocation.Outcome{Payload: []byte(req.ID)}
}

type stuckStarter struct{ *fakeStarter }

func (s stuckStarter) Start(ctx context.Context, req StartRequest) (Worker, error) {
	w, err := s.fakeStarter.Start(ctx, req)
	if err != nil {
		return nil, err
	}
	return stuckWorker{w.(*fakeWorker)}, nil
}

func TestCloseEndsInstancesOfRetiredPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stuckStarter{&fakeStarter{}}
		m := newTestManager(s)
		activate(t, m, 1, version("f", 1, 0, 0))
		if _, err := call(m, "f", "x"); err != nil {
			t.Fatal(err)
		}
		r1 := m.Active(testEnv)
		activate(t, m, 2, version("f", 2, 0, 0))
		<-r1.Drained()
		closeManager(m) // a deadlock without the kill
		if s.count().alive != 0 {
			t.Errorf("%d instances are left", s.count().alive)
		}
	})
}

func TestRoomIsGivenBackOnEveryPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: 10 * time.Millisecond, work: 5 * time.Millisecond, fail: func(n int, req StartRequest) error {
			switch n % 4 {
			case 1:
				return errors.New("the platform")
			case 2:
				return &InitError{Outcome: &invocation.Outcome{}, Detail: "the function"}
			}
			return nil
		}}
		m := newTestManager(s)
		m.memory.setMax(400)
		activate(t, m, 1, sized("a", 100, 0), sized("b", 100, 0))
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
				defer cancel()
				b, err := m.Bind(testEnv, []string{"a", "b"}[i%2])
				if err != nil {
					t.Error(err)
					return
				}
				defer b.Close()
				b.Invoke(ctx, &invocation.Request{ID: "x"}) //nolint:errcheck // every way to end is meant
			})
			time.Sleep(time.Duration(i%7) * time.Millisecond)
		}
		wg.Wait()
		time.Sleep(time.Hour) // idle instances end
		for _, p := range m.Pools() {
			if st := p.Stats(); st != (Stats{}) {
				t.Errorf("%s: %+v is left", p.version, st)
			}
			if l := p.limit; l.used != 0 || l.freeing != 0 || p.live.Load() != 0 {
				t.Errorf("%s: used %d, freeing %d, live %d", p.version, l.used, l.freeing, p.live.Load())
			}
		}
		if m.memory.used != 0 || m.memory.freeing != 0 {
			t.Errorf("memory: used %d, freeing %d", m.memory.used, m.memory.freeing)
		}
		closeManager(m)
	})
}
