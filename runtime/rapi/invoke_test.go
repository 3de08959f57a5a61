package rapi

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestInvokeCycle(t *testing.T) {
	idle := make(chan struct{}, 4)
	h := start(t, Options{OnIdle: func() { idle <- struct{}{} }})
	p := h.dial()
	p.send(rawNext)
	h.waitIdle()
	for _, id := range []string{"one", "two", "three"} {
		inv := event(id)
		inv.FunctionARN, inv.TraceID, inv.ClientContext = "arn:x", "Root=1", "{\"a\":\n1}"
		inv.CognitoIdentity, inv.TenantID, inv.Value = `{"cognitoIdentityId":"i"}`, "tenant", "release 7"
		c := h.invoke(t.Context(), inv)
		got := p.recv()
		want := answer{status: 200, header: map[string][]string{
			"Content-Type": {"application/json"}, "Content-Length": {got.header.Get("Content-Length")},
			"Lambda-Runtime-Aws-Request-Id": {id}, "Lambda-Runtime-Deadline-Ms": {"1700000000123"},
			"Lambda-Runtime-Invoked-Function-Arn": {"arn:x"}, "Lambda-Runtime-Trace-Id": {"Root=1"},
			"Lambda-Runtime-Client-Context": {`{"a": 1}`}, "Lambda-Runtime-Cognito-Identity": {`{"cognitoIdentityId":"i"}`},
			"Lambda-Runtime-Aws-Tenant-Id": {"tenant"},
		}, body: `{"id":"` + id + `"}`}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(answer{})); d != "" {
			t.Errorf("event (-want +got):\n%s", d)
		}
		if v, ok := h.Current(); v != "release 7" || !ok || h.CurrentRequestID() != id {
			t.Errorf("Current() = %v, %v, id %q", v, ok, h.CurrentRequestID())
		}
		if got := p.do(rawResponse(id, "answer "+id)); got.status != 202 || got.body != "{\"status\":\"OK\"}\n" {
			t.Errorf("post: %+v", got)
		}
		res, err := h.wait(c)
		if err != nil || string(res.Body) != "answer "+id || res.IsError || res.ContentType != "application/octet-stream" {
			t.Errorf("Invoke = %+v, %v", res, err)
		}
		if h.Idle() {
			t.Error("idle before next")
		}
		res.Release()
		p.send(rawNext)
		<-idle
		if _, ok := h.Current(); ok || h.CurrentRequestID() != "" || !h.Idle() {
			t.Error("an invocation is current although the runtime is back in next")
		}
	}
	select {
	case <-h.Ready():
	default:
		t.Error("not ready")
	}
}

func TestInvokeBeforeNext(t *testing.T) {
	order := make(chan string, 2)
	h := start(t, Options{OnReady: func() { order <- "ready" }, OnIdle: func() { order <- "idle" }})
	c := h.invoke(t.Context(), &Invocation{RequestID: "a"})
	until(t, "pending", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.flight != nil })
	p := h.dial()
	if got := p.do(rawNext); got.body != "{}" {
		t.Errorf("event without payload: %q", got.body)
	}
	p.do(rawError("a", `{"errorMessage":"x"}`, "Lambda-Runtime-Function-Error-Type: unhandled", "Content-Type: text/html"))
	res, err := h.wait(c)
	if err != nil || !res.IsError || res.ErrorType != "Runtime.Unknown" || string(res.Body) != `{"errorMessage":"x"}` {
		t.Errorf("Invoke = %+v, %v", res, err)
	}
	p.send(rawNext)
	h.waitIdle()
	until(t, "OnIdle", func() bool { return len(order) == 2 })
	if a, b := <-order, <-order; a != "ready" || b != "idle" {
		t.Errorf("callbacks: %s, %s", a, b)
	}
}

func TestOneInvocationAtATime(t *testing.T) {
	h := start(t, Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	c := h.invoke(ctx, event("a"))
	until(t, "pending", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.flight != nil })
	if _, err := h.Invoke(t.Context(), event("b")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second Invoke: %v", err)
	}
	cause := errors.New("too slow")
	cancel(cause)
	if _, err := h.wait(c); !errors.Is(err, cause) || !errors.Is(err, ErrNotDelivered) {
		t.Errorf("Invoke = %v", err)
	}
	p := h.dial() // the server is as before
	c = h.invoke(t.Context(), event("c"))
	p.do(rawNext)
	p.do(rawResponse("c", "fine"))
	if res, err := h.wait(c); err != nil || string(res.Body) != "fine" {
		t.Errorf("Invoke = %v, %v", res, err)
	}
}

func TestContextEndsWhileRunning(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	ctx, cancel := context.WithCancelCause(t.Context())
	c := h.invoke(ctx, event("a"))
	p.do(rawNext)
	cause := errors.New("task timed out")
	cancel(cause)
	if _, err := h.wait(c); err != cause {
		t.Errorf("Invoke = %v", err)
	}
	if got := p.do(rawResponse("a", "late")); got.status != 400 || !strings.Contains(got.body, "InvalidRequestID") {
		t.Errorf("late answer: %+v", got)
	}
	if _, err := h.Invoke(t.Context(), event("b")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Invoke after a timeout: %v", err)
	}
	p.send(rawNext)
	if h.Idle() {
		t.Error("an abandoned runtime must not become idle")
	}
}

func TestContextEndsInMidBody(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	ctx, cancel := context.WithCancelCause(t.Context())
	c := h.invoke(ctx, event("a"))
	p.do(rawNext)
	p.send("POST /2018-06-01/runtime/invocation/a/response HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nslow")
	until(t, "body", func() bool { return h.stateIs(stateInvocationResponse) })
	cause := errors.New("task timed out")
	cancel(cause)
	if _, err := h.wait(c); err != cause {
		t.Errorf("Invoke = %v", err)
	}
	if got := p.recv(); got.status != 400 {
		t.Errorf("slow answer: %+v", got)
	}
}

func TestFail(t *testing.T) {
	died := errors.New("exit status 1")
	t.Run("running", func(t *testing.T) {
		h := start(t, Options{})
		p := h.dial()
		c := h.invoke(t.Context(), event("a"))
		p.do(rawNext)
		h.Fail(died)
		h.Fail(errors.New("second"))
		if _, err := h.wait(c); err != died {
			t.Errorf("Invoke = %v", err)
		}
		if _, err := h.Invoke(t.Context(), event("b")); !errors.Is(err, died) || !errors.Is(err, ErrNotDelivered) {
			t.Errorf("later Invoke = %v", err)
		}
		if err := h.WaitIdle(t.Context()); err != died {
			t.Errorf("WaitIdle = %v", err)
		}
	})
	t.Run("pending", func(t *testing.T) {
		h := start(t, Options{})
		c := h.invoke(t.Context(), event("a"))
		h.Fail(died)
		if _, err := h.wait(c); !errors.Is(err, died) || !errors.Is(err, ErrNotDelivered) {
			t.Errorf("Invoke = %v", err)
		}
	})
	t.Run("in mid body", func(t *testing.T) {
		h := start(t, Options{})
		p := h.dial()
		c := h.invoke(t.Context(), event("a"))
		p.do(rawNext)
		p.send("POST /2018-06-01/runtime/invocation/a/response HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\npart")
		until(t, "body", func() bool { return h.stateIs(stateInvocationResponse) })
		_ = p.nc.Close()
		h.Fail(died)
		if _, err := h.wait(c); err != died {
			t.Errorf("Invoke = %v", err)
		}
	})
	t.Run("the answer was complete", func(t *testing.T) {
		h := start(t, Options{})
		p := h.dial()
		c := h.invoke(t.Context(), event("a"))
		p.do(rawNext)
		p.send("POST /2018-06-01/runtime/invocation/a/response HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
		until(t, "body", func() bool { return h.stateIs(stateInvocationResponse) })
		p.send("half")
		_ = p.nc.Close()
		h.Fail(died)
		if res, err := h.wait(c); err != nil || string(res.Body) != "halfhalf" {
			t.Errorf("Invoke = %v, %v", res, err)
		}
	})
}

func TestInitError(t *testing.T) {
	posted := make(chan *RuntimeError, 1)
	h := start(t, Options{OnInitError: func(e *RuntimeError) { posted <- e }})
	c := h.invoke(t.Context(), event("a"))
	until(t, "pending", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.flight != nil })
	p := h.dial()
	got := p.do(rawPost("init/error", `{"errorMessage":"no module"}`, "Lambda-Runtime-Function-Error-Type: Runtime.ImportModuleError", "Content-Type: application/json"))
	if got.status != 202 {
		t.Errorf("init/error: %+v", got)
	}
	want := &RuntimeError{Type: "Runtime.ImportModuleError", Body: []byte(`{"errorMessage":"no module"}`), ContentType: "application/json"}
	if d := cmp.Diff(want, <-posted); d != "" {
		t.Errorf("OnInitError (-want +got):\n%s", d)
	}
	h.Fail(errors.New("exit status 1"))
	_, err := h.wait(c)
	var re *RuntimeError
	if !errors.As(err, &re) || !errors.Is(err, ErrNotDelivered) || cmp.Diff(want, re) != "" {
		t.Errorf("Invoke = %v", err)
	}
	if d := cmp.Diff(want, h.InitError()); d != "" {
		t.Errorf("InitError (-want +got):\n%s", d)
	}
	<-h.InitErrored()
	if _, err := h.Invoke(t.Context(), event("b")); !errors.As(err, &re) {
		t.Errorf("later Invoke = %v", err)
	}
}

func TestCloseWhileRunning(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	c := h.invoke(t.Context(), event("a"))
	p.do(rawNext)
	if err := h.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := h.wait(c); !errors.Is(err, ErrClosed) {
		t.Errorf("Invoke = %v", err)
	}
}
