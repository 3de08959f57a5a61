package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// notes is an Observer that keeps what it is told, as "function:version what".
type notes struct {
	mu  sync.Mutex
	all []string
}

func (n *notes) add(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, fmt.Sprintf(format, args...))
}

func (n *notes) Started(v *function.Version, took time.Duration, phases map[string]time.Duration) {
	n.add("%s:%d started in %s %v", v.Function, v.Number, took, phases)
}
func (n *notes) StartFailed(v *function.Version) { n.add("%s:%d did not start", v.Function, v.Number) }
func (n *notes) Ended(v *function.Version, reason string) {
	n.add("%s:%d ended: %s", v.Function, v.Number, reason)
}

// want takes what was noted so far, sorted, and compares.
func (n *notes) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	got := n.all
	n.all = nil
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("noted (-want +got):\n%s", diff)
	}
}

func newObserved(s Starter, memory int64) (*Manager, *notes) {
	n := &notes{}
	m := newTestManager(s)
	closeManager(m)
	opts := m.opts
	opts.Observer, opts.MemoryMB = n, memory
	return NewManager(opts), n
}

func TestInstancesAreObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, work: time.Millisecond}
		m, n := newObserved(s, 256)
		f, g := version("f", 1, 0, 0), version("g", 1, 0, 0)
		f.Config.MemoryMB, g.Config.MemoryMB = 200, 128
		activate(t, m, 1, f, g)
		mustCall(t, m, "f")
		n.want(t, "f:1 started in 1s map[]")
		if diff := cmp.Diff(Memory{Budget: 256, Reserved: 200, Reservable: 256}, m.Memory()); diff != "" {
			t.Errorf("memory (-want +got):\n%s", diff)
		}
		mustCall(t, m, "g") // f gives way
		n.want(t, "f:1 ended: room", "g:1 started in 1s map[]")
		time.Sleep(11 * time.Minute)
		n.want(t, "g:1 ended: idle")
		mustCall(t, m, "g")
		s.last().events.Dying()
		s.last().events.Gone()
		n.want(t, "g:1 ended: failed", "g:1 started in 1s map[]")
		mustCall(t, m, "g")
		g2 := version("g", 2, 0, 0)
		activate(t, m, 2, g2)
		n.want(t, "g:1 ended: release", "g:1 started in 1s map[]")
		closeManager(m)
		n.want(t)
		if got := m.Memory().Reserved; got != 0 {
			t.Errorf("%d MiB are taken at the end", got)
		}
	})
}

// mustCall calls and lets the instance become idle.
func mustCall(t *testing.T, m *Manager, name string) {
	t.Helper()
	if _, err := call(m, name, "x"); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func (s *fakeStarter) last() *fakeWorker {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alive-- // the test ends it
	return s.workers[len(s.workers)-1]
}

func TestFailedStartsAreObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, fail: func(_ int, req StartRequest) error {
			switch {
			case req.Version.Function == "away":
				return errors.New("containerd is not answering")
			case req.Phase == PhaseInvoke && req.Version.Function == "second":
				return nil // the repeated init is good
			}
			return &InitError{Outcome: &invocation.Outcome{Payload: []byte("x")}}
		}}
		m, n := newObserved(s, 0)
		defer closeManager(m)
		activate(t, m, 1, version("away", 1, 0, 0), version("bad", 1, 0, 0), version("second", 1, 0, 0))
		if _, err := call(m, "away", "x"); err == nil {
			t.Error("a function that cannot be started has answered")
		}
		n.want(t, "away:1 did not start")
		mustCall(t, m, "bad")
		n.want(t, "bad:1 did not start")
		mustCall(t, m, "second")
		n.want(t, "second:1 started in 1s map[]")
	})
}

func TestWaitIsTraced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeStarter{startup: time.Second, work: 3 * time.Second}
		m, _ := newObserved(s, 0)
		m.opts.QueueTimeout = 2 * time.Second
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 1))
		invoke := func() (invocation.Trace, error) {
			b, err := m.Bind(testEnv, "f")
			if err != nil {
				t.Error(err)
				return invocation.Trace{}, err
			}
			defer b.Close()
			req := &invocation.Request{ID: "x"}
			_, err = b.Invoke(context.Background(), req)
			return req.Trace, err
		}
		if tr, err := invoke(); err != nil || tr.Granted.Sub(tr.Queued) != time.Second {
			t.Errorf("the first waited %s for its instance: %v", tr.Granted.Sub(tr.Queued), err)
		}
		synctest.Wait()
		var wg sync.WaitGroup
		wg.Go(func() {
			if tr, err := invoke(); err != nil || !tr.Queued.IsZero() || !tr.Granted.IsZero() {
				t.Errorf("one that found an idle instance waited: %+v, %v", tr, err)
			}
		})
		synctest.Wait()
		tr, err := invoke()
		var throttled *invocation.ThrottledError
		if !errors.As(err, &throttled) || tr.Queued.IsZero() || !tr.Granted.IsZero() {
			t.Errorf("one that got none: %+v, %v", tr, err)
		}
		wg.Wait()
	})
}
