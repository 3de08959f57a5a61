package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lfx.dev/lfxd/daemon/invocation"
)

// beginStarter makes workers that are Beginners. refuse says which events never reach their function.
type beginStarter struct {
	*fakeStarter
	refuse func(workerID string) bool
}

type beginWorker struct {
	*fakeWorker
	s *beginStarter
}

func (s *beginStarter) Start(ctx context.Context, req StartRequest) (Worker, error) {
	w, err := s.fakeStarter.Start(ctx, req)
	if err != nil {
		return nil, err
	}
	return &beginWorker{w.(*fakeWorker), s}, nil
}

// Begin answers on a goroutine of its own, and is idle only after that, as a real worker.
func (w *beginWorker) Begin(req *invocation.Request, done Done) bool {
	if req.Tail {
		return false
	}
	if !w.busy.CompareAndSwap(false, true) {
		panic("two invocations at once on " + w.id)
	}
	if w.s.refuse != nil && w.s.refuse(w.id) {
		done.Ended(nil)
		w.Close("failure")
		return true
	}
	go func() {
		time.Sleep(w.fakeWorker.s.work)
		w.calls.Add(1)
		w.busy.Store(false)
		done.Ended(&invocation.Outcome{Payload: []byte(w.id + " " + req.ID)})
		w.events.Idle()
	}()
	return true
}

// heard is what a completion was told.
type heard struct {
	t     *testing.T
	times atomic.Int32
	route invocation.Route
	req   *invocation.Request
	after time.Duration
	text  string // the outcome's payload
	err   error
	done  chan struct{}
	begun time.Time
}

// begin runs one request through the active release.
func begin(t *testing.T, m *Manager, name, id string) *heard {
	t.Helper()
	b, err := m.Bind(testEnv, name)
	if err != nil {
		t.Fatal(err)
	}
	h := &heard{t: t, route: b, req: &invocation.Request{ID: id, Tail: id == "tail"}, done: make(chan struct{}), begun: time.Now()}
	b.Begin(h.req, h)
	return h
}

func (h *heard) Complete(out *invocation.Outcome, err error) {
	if h.times.Add(1) > 1 {
		h.t.Error("a request was completed twice")
		return
	}
	if h.after, h.err = time.Since(h.begun), err; out != nil {
		h.text = string(out.Payload)
	}
	h.route.Close()
	close(h.done)
}

func TestBegunRequestsAnswerInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beginStarter{fakeStarter: &fakeStarter{startup: time.Second, work: 100 * time.Millisecond}}
		m := newTestManager(s)
		m.opts.QueueLimit = 8
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 1))
		var all []*heard
		for i := range 8 {
			id := fmt.Sprint(i)
			if i == 5 {
				id = "tail" // needs a goroutine that waits
			}
			all = append(all, begin(t, m, "f", id))
		}
		for i, h := range all {
			<-h.done
			if want := time.Second + time.Duration(i+1)*100*time.Millisecond; h.err != nil || h.after != want || !strings.HasSuffix(h.text, " "+h.req.ID) {
				t.Errorf("request %d: %q, %v after %s, want %s", i, h.text, h.err, h.after, want)
			}
		}
	})
}

func TestBegunRequestsThatWaitForTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beginStarter{fakeStarter: &fakeStarter{work: time.Hour}}
		m := newTestManager(s)
		defer closeManager(m)
		r := activate(t, m, 1, version("f", 1, 1, 1))
		running := begin(t, m, "f", "a")
		first := begin(t, m, "f", "b")
		time.Sleep(20 * time.Second)
		second := begin(t, m, "f", "c")
		for name, h := range map[string]*heard{"first": first, "second": second} {
			<-h.done
			var throttled *invocation.ThrottledError
			if !errors.As(h.err, &throttled) || h.after != time.Minute {
				t.Errorf("%s: %v after %s", name, h.err, h.after)
			}
		}
		if st := r.Pool("f").Stats(); st.Queued != 0 {
			t.Errorf("stats %+v", st)
		}
		<-running.done
	})
}

func TestBegunRequestThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beginStarter{fakeStarter: &fakeStarter{work: time.Second}}
		m := newTestManager(s)
		defer closeManager(m)
		r := activate(t, m, 1, version("f", 1, 1, 1))
		running, waits, next := begin(t, m, "f", "a"), begin(t, m, "f", "b"), begin(t, m, "f", "c")
		running.route.Leave(running.req, context.Canceled) // it runs
		waits.route.Leave(waits.req, context.Canceled)
		<-waits.done
		if waits.err != context.Canceled || waits.after != 0 { //nolint:errorlint // the value itself
			t.Errorf("%v after %s", waits.err, waits.after)
		}
		waits.route.Leave(waits.req, context.Canceled) // it has ended
		<-next.done
		if running.err != nil || next.err != nil || next.after != 2*time.Second {
			t.Errorf("running: %v; next: %v after %s", running.err, next.err, next.after)
		}
		if st := r.Pool("f").Stats(); st.Queued != 0 {
			t.Errorf("stats %+v", st)
		}
	})
}

// TestBegunRequestThatLeavesBetweenTwoInstances: its client goes away while it is given to an instance that turns out to be dead. It
// does not wait for another one.
func TestBegunRequestThatLeavesBetweenTwoInstances(t *testing.T) {
	for name, least := range map[string]int{"was queued": 0, "was never queued": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gone := errors.New("the client went away")
				h := &heard{t: t, req: &invocation.Request{ID: "a"}, done: make(chan struct{}), begun: time.Now()}
				s := &beginStarter{fakeStarter: &fakeStarter{startup: time.Second}}
				s.refuse = func(string) bool {
					h.route.Leave(h.req, gone)
					return true
				}
				m := newTestManager(s)
				defer closeManager(m)
				activate(t, m, 1, version("f", 1, least, 1))
				synctest.Wait() // ready is a moment before idle
				b, err := m.Bind(testEnv, "f")
				if err != nil {
					t.Fatal(err)
				}
				h.route, h.begun = b, time.Now()
				b.Begin(h.req, h)
				<-h.done
				if want := time.Duration(1-least) * time.Second; h.err != gone || h.after != want { //nolint:errorlint // the value itself
					t.Errorf("%q, %v after %s, want the cause after %s", h.text, h.err, h.after, want)
				}
				if n := s.count().started; n != 1 {
					t.Errorf("%d instances were started for it, want 1", n)
				}
			})
		})
	}
}

func TestUndeliveredRequestGoesToAnotherWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beginStarter{fakeStarter: &fakeStarter{}, refuse: func(id string) bool { return strings.HasSuffix(id, "/1") }}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 1, 1))
		h := begin(t, m, "f", "a")
		<-h.done
		if h.err != nil || h.text != "shop/f:1/2 a" {
			t.Errorf("%q, %v", h.text, h.err)
		}
	})
}

// TestRuntimesThatAlwaysExit: a request is not given to new instances for ever.
func TestRuntimesThatAlwaysExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &beginStarter{fakeStarter: &fakeStarter{startup: 7 * time.Second}, refuse: func(string) bool { return true }}
		m := newTestManager(s)
		defer closeManager(m)
		activate(t, m, 1, version("f", 1, 0, 1))
		h := begin(t, m, "f", "a")
		<-h.done
		if h.err == nil || h.after < time.Minute || h.after > 2*time.Minute {
			t.Errorf("%q, %v after %s", h.text, h.err, h.after)
		}
	})
}

func TestBegunRequestIsToldWhyNot(t *testing.T) {
	outcome := &invocation.Outcome{Payload: []byte("init failed")}
	for name, tt := range map[string]struct {
		most  int
		fail  error
		close bool
		text  string
		err   string
	}{
		"platform":   {fail: errors.New("containerd is not answering"), err: "containerd is not answering"},
		"init error": {fail: &InitError{Outcome: outcome, Detail: "x"}, text: "init failed"},
		"closed":     {close: true, err: errClosed.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &beginStarter{fakeStarter: &fakeStarter{startup: time.Second}}
				if tt.fail != nil {
					s.fail = func(int, StartRequest) error { return tt.fail }
				}
				m := newTestManager(s)
				defer closeManager(m)
				r := activate(t, m, 1, version("f", 1, 0, 1))
				h := begin(t, m, "f", "a")
				if tt.close {
					r.Pool("f").close()
				}
				<-h.done
				if h.text != tt.text || (h.err == nil) != (tt.err == "") || h.err != nil && !strings.Contains(h.err.Error(), tt.err) {
					t.Errorf("%q, %v", h.text, h.err)
				}
			})
		})
	}
}

// TestBeginAndLeaveAtOnce: every request is completed once, whoever comes first.
func TestBeginAndLeaveAtOnce(t *testing.T) {
	s := &beginStarter{fakeStarter: &fakeStarter{work: 50 * time.Microsecond}, refuse: nil}
	m := newTestManager(s)
	m.opts.QueueLimit = 1000
	defer closeManager(m)
	activate(t, m, 1, version("f", 1, 2, 3))
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 200 {
				h := begin(t, m, "f", fmt.Sprint(n, "/", i))
				if i%2 == 0 {
					h.route.Leave(h.req, context.Canceled)
				}
				<-h.done
				if h.err != nil && i%2 != 0 {
					t.Errorf("request %d: %v", i, h.err)
				}
			}
		})
	}
	wg.Wait()
}
