package pool

import (
	"testing"
	"testing/synctest"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/pool/policy"
)

// fallback is a policy that always answers with d.
func fallback(d time.Duration) *policy.Policy {
	o := policy.Defaults()
	o.Least, o.Fallback, o.Learn = time.Second, d, 1<<30
	return policy.New(o)
}

func TestKeepAlive(t *testing.T) {
	for _, c := range []struct {
		name        string
		policy      *policy.Policy
		idleTimeout time.Duration
		want        time.Duration
		least       int
	}{
		{"without a policy", nil, 10 * time.Minute, 10 * time.Minute, 0},
		{"the policy's time", fallback(time.Minute), 10 * time.Minute, time.Minute, 0},
		{"the timeout bounds it", fallback(time.Hour), 10 * time.Minute, 10 * time.Minute, 0},
		{"min stays", fallback(time.Minute), 10 * time.Minute, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := roomManager(&fakeStarter{}, func(o *Options) { o.Policy, o.IdleTimeout = c.policy, c.idleTimeout })
				defer closeManager(m)
				r := activate(t, m, 1, version("f", 1, c.least, 0))
				if _, err := call(m, "f", "x"); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				for r.Pool("f").Stats().Instances > 0 && time.Since(begin) < time.Hour {
					time.Sleep(100 * time.Millisecond)
				}
				kept := time.Since(begin)
				if c.least > 0 {
					if kept < time.Hour {
						t.Errorf("min ended after %s", kept)
					}
				} else if kept < c.want || kept > c.want+2*time.Second {
					t.Errorf("kept for %s, want %s", kept, c.want)
				}
			})
		})
	}
}

// TestInstanceIsStartedAheadOfARegularCall: a large function that is slow to start and is called every two
// hours is not kept in between, and is there when it is called.
func TestInstanceIsStartedAheadOfARegularCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: 5 * time.Second}
		m := roomManager(s, func(o *Options) { o.Policy, o.IdleTimeout = policy.New(policy.Defaults()), 4*time.Hour })
		defer closeManager(m)
		r := activate(t, m, 1, sized("report", 10_000, 0))
		p := r.Pool("report")
		cold, between := 0, 0
		const rounds, learning = 30, 20
		for i := range rounds {
			begin := time.Now()
			if _, err := call(m, "report", "x"); err != nil {
				t.Fatal(err)
			}
			if i >= learning && time.Since(begin) > time.Second {
				cold++
			}
			time.Sleep(time.Hour)
			if i >= learning && p.Stats().Instances > 0 {
				between++
			}
			time.Sleep(time.Until(begin.Add(2*time.Hour + 30*time.Second))) // in the middle of a minute
		}
		if cold > 1 || between > 1 {
			t.Errorf("of the last %d calls %d were cold, and %d times an instance was there an hour before; want none of both", rounds-learning, cold, between)
		}
		if s.count().started < rounds-learning {
			t.Errorf("%d instances were started in all", s.count().started)
		}
	})
}

func TestNewVersionKnowsWhatIsKnownOfTheFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: 3 * time.Second}
		m := roomManager(s, func(o *Options) { o.Policy = policy.New(policy.Defaults()) })
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 0))
		for range 5 {
			if _, err := call(m, "f", "x"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
		}
		p := activate(t, m, 2, version("f", 2, 0, 0)).Pool("f")
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.known.Seen() != 4 || p.cost != 3*time.Second {
			t.Errorf("the new version knows %d idle times and a start of %s, want 4 and 3s", p.known.Seen(), p.cost)
		}
	})
}

func TestStoppedFunctionIsNotStartedAheadOfNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: 5 * time.Second}
		m := roomManager(s, func(o *Options) { o.Policy, o.IdleTimeout = policy.New(policy.Defaults()), 4*time.Hour })
		defer closeManager(m)
		activate(t, m, 1, sized("report", 10_000, 0))
		for range 20 {
			if _, err := call(m, "report", "x"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Hour)
		}
		v := sized("report", 10_000, 0)
		v.Number, v.Config.Concurrency = 2, function.Concurrency{Stopped: true}
		activate(t, m, 2, v)
		time.Sleep(time.Minute) // what was under way
		before := s.count().started
		time.Sleep(24 * time.Hour)
		if s.count().started != before {
			t.Errorf("%d instances were started for a function that must not run", s.count().started-before)
		}
	})
}
