package rapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
)

// crowd is a server for four invocations at once with n parked next calls, in this order.
func crowd(t *testing.T, n int, opts Options, header string) (*harness, []*peer) {
	t.Helper()
	opts.Concurrency = 4
	h := start(t, opts)
	peers := make([]*peer, n)
	for i := range peers {
		peers[i] = h.dial()
		peers[i].send(strings.Replace(rawNext, "\r\n\r\n", "\r\n"+header+"\r\n", 1))
		until(t, "parked", func() bool { return h.counts() == fmt.Sprintf("%d 0 0", i+1) })
	}
	return h, peers
}

// counts are parked, in progress and pending.
func (h *harness) counts() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Sprintf("%d %d %d", len(h.many.parked), len(h.many.flights), len(h.many.pending))
}

// viaHTTP makes the codec leave the connection to net/http.
const viaHTTP = "Expect: 100-continue\r\n"

func TestFourAtOnceAnswerInAnyOrder(t *testing.T) {
	for name, header := range map[string]string{"codec": "", "net/http": viaHTTP} {
		t.Run(name, func(t *testing.T) {
			var idle atomic.Int32
			h, peers := crowd(t, 4, Options{OnIdle: func() { idle.Add(1) }}, header)
			calls := map[string]*call{}
			got := map[string]*peer{}
			for i, id := range []string{"a", "b", "c", "d"} {
				calls[id] = h.invoke(t.Context(), event(id))
				p := peers[3-i] // the newest next first
				if a := p.recv(); a.body != `{"id":"`+id+`"}` || a.header.Get("Lambda-Runtime-Aws-Request-Id") != id {
					t.Fatalf("event %+v", a)
				}
				got[id] = p
				if want := map[bool]string{true: "a"}[i == 0]; h.CurrentRequestID() != want {
					t.Errorf("current request %q, want %q", h.CurrentRequestID(), want)
				}
			}
			if h.Idle() {
				t.Error("idle with four in progress")
			}
			if _, err := h.Invoke(t.Context(), event("e")); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("a fifth: %v", err)
			}
			for i, id := range []string{"c", "a", "d", "b"} {
				p := got[map[int]string{0: "b", 1: "c", 2: "a", 3: "d"}[i]] // any connection may bring any answer
				if a := p.do(rawResponse(id, "answer "+id)); a.status != 202 {
					t.Errorf("post of %s: %+v", id, a)
				}
				if res, err := h.wait(calls[id]); err != nil || string(res.Body) != "answer "+id {
					t.Errorf("%s = %+v, %v", id, res, err)
				}
				if a := p.do(rawResponse(id, "again")); a.status != 400 || !strings.Contains(a.body, "InvalidRequestID") {
					t.Errorf("second answer of %s: %+v", id, a)
				}
			}
			for _, p := range peers {
				p.send(rawNext)
			}
			until(t, "all are parked again", func() bool { return h.counts() == "4 0 0" && idle.Load() == 7 })
			if a := h.dial().do(rawNext); a.status != 400 || !strings.Contains(a.body, "Runtime.TooManyIdleRuntimes") {
				t.Errorf("a fifth next: %+v", a)
			}
		})
	}
}

func TestOneOfSeveralEndsAlone(t *testing.T) {
	boom := errors.New("too late")
	for _, tc := range []struct {
		name string
		end  func(*harness, *peer, context.CancelCauseFunc)
		res  string // of the one that ends; "" when it ends with boom
	}{
		{"timeout", func(h *harness, p *peer, cancel context.CancelCauseFunc) {
			cancel(boom)
			until(h.t, "cancelled", func() bool { return h.counts() == "2 1 0" })
			for i, want := range []string{"410 Runtime.InvokeTimeout", "400 InvalidRequestID"} {
				status, typ, _ := strings.Cut(want, " ")
				if a := p.do(rawResponse("a", "late")); fmt.Sprint(a.status) != status || !strings.Contains(a.body, typ) {
					h.t.Errorf("late answer %d: %+v", i, a)
				}
			}
		}, ""},
		{"timeout while its answer is read", func(h *harness, p *peer, cancel context.CancelCauseFunc) {
			p.send("POST /2018-06-01/runtime/invocation/a/response HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
			until(h.t, "reading", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.many.flights["a"].reader != nil })
			if a := h.dial().do(rawResponse("a", "twice")); a.status != 400 {
				h.t.Errorf("second answer meanwhile: %+v", a)
			}
			cancel(boom)
			if a := p.recv(); a.status != 410 {
				h.t.Errorf("answer that was cut: %+v", a)
			}
		}, ""},
		{"error", func(h *harness, p *peer, _ context.CancelCauseFunc) {
			p.do(rawError("a", "oh", "Lambda-Runtime-Function-Error-Type: Function.Bad"))
		}, "oh"},
		{"wrong mode", func(h *harness, p *peer, _ context.CancelCauseFunc) {
			if a := p.do(rawResponse("a", "x", "Lambda-Runtime-Function-Response-Mode: odd")); a.status != 400 {
				h.t.Errorf("wrong mode: %+v", a)
			}
		}, `{"errorType":"Runtime.InvalidResponseModeHeader","errorMessage":"RequestId: a Error: Invalid function response mode"}`},
		{"too large", func(h *harness, p *peer, _ context.CancelCauseFunc) {
			if a := p.do(rawResponse("a", strings.Repeat("x", MaxPayload+1))); a.status != 413 {
				h.t.Errorf("too large: %+v", a)
			}
		}, tooLargeBody},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, peers := crowd(t, 4, Options{}, "")
			ctx, cancel := newCancel(t)
			a := h.invoke(ctx, event("a"))
			peers[3].recv()
			b := h.invoke(t.Context(), event("b"))
			peers[2].recv()
			tc.end(h, peers[3], cancel)
			res, err := h.wait(a)
			if tc.res == "" && !errors.Is(err, boom) || tc.res != "" && (err != nil || string(res.Body) != tc.res) {
				t.Errorf("a = %+v, %v", res, err)
			}
			if got := peers[2].do(rawResponse("b", "fine")); got.status != 202 {
				t.Errorf("post of b: %+v", got)
			}
			if res, err := h.wait(b); err != nil || string(res.Body) != "fine" {
				t.Errorf("b = %+v, %v", res, err)
			}
			c := h.invoke(t.Context(), event("c"))
			peers[1].recv()
			peers[1].do(rawResponse("c", "goes on"))
			if res, err := h.wait(c); err != nil || string(res.Body) != "goes on" {
				t.Errorf("c = %+v, %v", res, err)
			}
		})
	}
}

func TestExitEndsAllOfSeveral(t *testing.T) {
	h, peers := crowd(t, 2, Options{}, "")
	exit := errors.New("exit")
	var calls []*call
	for i, id := range []string{"a", "b", "c"} {
		calls = append(calls, h.invoke(t.Context(), event(id)))
		if i < 2 {
			peers[1-i].recv()
		}
	}
	until(t, "one is pending", func() bool { return h.counts() == "0 2 1" })
	h.Fail(exit)
	for i, c := range calls {
		if _, err := h.wait(c); !errors.Is(err, exit) || errors.Is(err, ErrNotDelivered) != (i == 2) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if _, err := h.Invoke(t.Context(), event("d")); !errors.Is(err, exit) || !errors.Is(err, ErrNotDelivered) {
		t.Errorf("after the end: %v", err)
	}
}

// TestCompleteAnswerOutlivesTheExit: what the process wrote before it died counts, also where there are several.
func TestCompleteAnswerOutlivesTheExit(t *testing.T) {
	h, peers := crowd(t, 2, Options{}, "")
	a, b := h.invoke(t.Context(), event("a")), (*call)(nil)
	peers[1].recv()
	b = h.invoke(t.Context(), event("b"))
	peers[0].recv()
	peers[1].send("POST /2018-06-01/runtime/invocation/a/response HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nfu")
	until(t, "reading", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.many.flights["a"].reader != nil })
	h.Fail(errors.New("exit"))
	if _, err := h.wait(b); err == nil {
		t.Error("b has an answer")
	}
	peers[1].send("ll")
	if res, err := h.wait(a); err != nil || string(res.Body) != "full" {
		t.Errorf("a = %+v, %v", res, err)
	}
}

func TestNextThatWentAwayGetsNoEvent(t *testing.T) {
	for name, header := range map[string]string{"codec": "", "net/http": viaHTTP} {
		t.Run(name, func(t *testing.T) {
			h, peers := crowd(t, 2, Options{}, header)
			_ = peers[1].nc.Close()
			until(t, "unparked", func() bool { return h.counts() == "1 0 0" })
			a := h.invoke(t.Context(), event("a"))
			peers[0].recv()
			b := h.invoke(t.Context(), event("b"))
			until(t, "pending", func() bool { return h.counts() == "0 1 1" })
			ctx, cancel := newCancel(t)
			c := h.invoke(ctx, event("c"))
			until(t, "pending", func() bool { return h.counts() == "0 1 2" })
			cancel(errors.New("gone"))
			if _, err := h.wait(c); !errors.Is(err, ErrNotDelivered) {
				t.Errorf("c: %v", err)
			}
			if _, err := h.Invoke(t.Context(), event("b")); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("a request ID twice: %v", err)
			}
			p := h.dial() // it comes back, and takes what waits
			if got := p.do(rawNext); got.body != `{"id":"b"}` {
				t.Errorf("event %+v", got)
			}
			for id, c := range map[string]*call{"a": a, "b": b} {
				p.do(rawResponse(id, id))
				if res, err := h.wait(c); err != nil || string(res.Body) != id {
					t.Errorf("%s = %+v, %v", id, res, err)
				}
			}
		})
	}
}

// TestEventThatCannotBeWrittenGoesToAnother: a runtime that closes while a large event is written has not run its handler.
func TestEventThatCannotBeWrittenGoesToAnother(t *testing.T) {
	h, peers := crowd(t, 2, Options{}, "")
	inv := event("a")
	inv.Payload = []byte(`"` + strings.Repeat("x", 6<<20) + `"`)
	c := h.invoke(t.Context(), inv)
	until(t, "being written", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return inv.flight.writing != nil
	})
	_ = peers[1].nc.Close() // with unread bytes: a reset
	if got := peers[0].recv(); len(got.body) != len(inv.Payload) {
		t.Errorf("event of %d bytes, want %d", len(got.body), len(inv.Payload))
	}
	peers[0].do(rawResponse("a", "done"))
	if res, err := h.wait(c); err != nil || string(res.Body) != "done" {
		t.Errorf("a = %+v, %v", res, err)
	}
}

func TestLateAnswersAreForgottenInTheEnd(t *testing.T) {
	h, _ := crowd(t, 0, Options{}, "")
	p := h.dial()
	for i := range 3 * lateIDs * 4 {
		ctx, cancel := newCancel(t)
		c := h.invoke(ctx, event(fmt.Sprint(i)))
		p.do(rawNext)
		cancel(errors.New("late"))
		if _, err := h.wait(c); err == nil {
			t.Fatal("no error")
		}
	}
	h.mu.Lock()
	n := len(h.many.late)
	h.mu.Unlock()
	if n != lateIDs*4 {
		t.Errorf("%d late IDs are kept, want %d", n, lateIDs*4)
	}
}
