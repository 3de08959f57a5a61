package worker

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/runtime/instance"
)

// completion takes one outcome and fails the test when a second one comes.
type completion struct {
	t     testing.TB
	times atomic.Int32
	out   chan *invocation.Outcome
}

func newCompletion(t testing.TB) *completion {
	return &completion{t: t, out: make(chan *invocation.Outcome, 2)}
}

func (c *completion) Ended(out *invocation.Outcome) {
	if c.times.Add(1) > 1 {
		c.t.Error("an invocation was completed twice")
	}
	c.out <- out
}

func (c *completion) wait() *invocation.Outcome {
	c.t.Helper()
	select {
	case out := <-c.out:
		return out
	case <-time.After(20 * time.Second):
		c.t.Fatal("no outcome within twenty seconds")
		return nil
	}
}

// begin starts an invocation as soon as the runtime is in next.
func begin(t testing.TB, w pool.Worker, req *invocation.Request) *completion {
	t.Helper()
	c := newCompletion(t)
	for deadline := time.Now().Add(20 * time.Second); !w.(pool.Beginner).Begin(req, c); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the worker does not take an event")
		}
	}
	return c
}

func TestBegin(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		r.serve(func(e event) string {
			r.print("line of " + e.id + "\n")
			return `"` + e.id + `"`
		})
	})
	wk := w.worker()
	var want []string
	for i, id := range []string{"first", "second"} {
		out := begin(t, wk, request(id)).wait()
		if got := text(out); got != `"`+id+`"||` {
			t.Errorf("%s: %s", id, got)
		}
		out.Free()
		w.await("idle", w.idle)
		rest := "\t"
		if i == 0 {
			rest = withInit + phases + "\t"
		}
		want = append(want, story(id, rest, "out|"+id+"|2|line of "+id)...)
	}
	w.wantLines(want...)
}

// TestBeginDoesNotWait for the runtime, nor for the log that a tail needs.
func TestBeginDoesNotWait(t *testing.T) {
	block := make(chan struct{})
	w := newWorld(t, func(r *runtime) {
		r.serve(func(event) string { <-block; return "1" })
	})
	wk := w.worker()
	tail := request("tail")
	tail.Tail = true
	if wk.(pool.Beginner).Begin(tail, newCompletion(t)) {
		t.Error("a request for a tail was taken")
	}
	c := begin(t, wk, request("a"))
	if wk.(pool.Beginner).Begin(request("b"), newCompletion(t)) {
		t.Error("a second request was taken")
	}
	close(block)
	c.wait()
	w.await("idle", w.idle)
}

func TestBeginEndsAsInvokeDoes(t *testing.T) {
	for name, tt := range map[string]struct {
		script func(*runtime)
		want   string
	}{
		"timeout": {func(r *runtime) { r.next(); r.wait() },
			`{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: a Error: Task timed out after 0.12 seconds"}|Unhandled|Sandbox.Timedout`},
		"exit": {func(r *runtime) { r.next(); r.exit(instance.Exit{Code: 3}) },
			`{"errorType":"Runtime.ExitError","errorMessage":"RequestId: a Error: Runtime exited with error: exit status 3"}|Unhandled|Runtime.ExitError`},
		"bad mode": {func(r *runtime) {
			e, _ := r.next()
			r.respond(e.id, "1", "Lambda-Runtime-Function-Response-Mode", "x")
			r.wait()
		}, `{"errorType":"Runtime.InvalidResponseModeHeader","errorMessage":"RequestId: a Error: Invalid function response mode"}|Unhandled|Runtime.InvalidResponseModeHeader`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.script)
			w.version.Config.Timeout = 120 * time.Millisecond
			if name != "timeout" {
				w.version.Config.Timeout = 20 * time.Second
			}
			wk := w.worker()
			if got := text(begin(t, wk, request("a")).wait()); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			w.ended()
			if out := wk.Invoke(request("b")); out != nil {
				t.Errorf("a dead worker answers %s", text(out))
			}
		})
	}
}

// TestOneOutcomeWhateverHappensAtOnce: answer, timeout, exit and close race; the client gets one of them.
func TestOneOutcomeWhateverHappensAtOnce(t *testing.T) {
	for i := range 60 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(r *runtime) {
				e, ok := r.next()
				if !ok {
					return
				}
				if i%3 == 0 {
					time.AfterFunc(time.Duration(i%7)*time.Millisecond, func() { r.exit(instance.Exit{Code: 1}) })
				}
				time.Sleep(time.Duration(i%5) * time.Millisecond) // somewhere around the others
				r.respond(e.id, "1")
			})
			w.version.Config.Timeout = time.Duration(1+i%6) * time.Millisecond
			wk, err := w.start(nil)
			if err != nil {
				t.Fatal(err)
			}
			c := begin(t, wk, request("a"))
			if i%4 == 0 {
				wk.Close("spindown")
			}
			c.wait()
			wk.Close("spindown")
			w.await("gone", w.gone)
		})
	}
}

// TestRuntimeThatDoesNotComeBack after its answer is replaced at the deadline, and not before.
func TestRuntimeThatDoesNotComeBack(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		e, _ := r.next()
		r.respond(e.id, "1")
		r.wait()
	})
	w.version.Config.Timeout = 100 * time.Millisecond
	wk := w.worker()
	begun := time.Now()
	begin(t, wk, request("a")).wait()
	w.ended()
	if took := time.Since(begun); took < settleTime {
		t.Errorf("it was replaced after %s, want %s or more", took, settleTime)
	}
}
