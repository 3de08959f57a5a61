package rapi

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func newCancel(t testing.TB) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(t.Context())
	t.Cleanup(func() { cancel(nil) })
	return ctx, cancel
}

func TestFixedAnswers(t *testing.T) {
	const host = " HTTP/1.1\r\nHost: x\r\n"
	uuid := "Lambda-Extension-Identifier: 01234567-89ab-cdef-0123-456789abcdef\r\n"
	for _, tc := range []struct{ name, raw, want string }{
		{"ping", "GET /2018-06-01/ping" + host + "\r\n", "200 pong"},
		{"unknown path", "GET /2018-06-01/nothing" + host + "\r\n", `404 {"errorMessage":"The Runtime API has no such path","errorType":"NotFound"}` + "\n"},
		{"no id", "POST /2018-06-01/runtime/invocation//response" + host + "Content-Length: 0\r\n\r\n", `404 {"errorMessage":"The Runtime API has no such path","errorType":"NotFound"}` + "\n"},
		{"restore", "GET /2018-06-01/runtime/restore/next" + host + "\r\n", `404 {"errorMessage":"The Runtime API has no such path","errorType":"NotFound"}` + "\n"},
		{"credentials", "GET /2021-04-23/credentials" + host + "\r\n", `404 {"errorMessage":"The Runtime API has no such path","errorType":"NotFound"}` + "\n"},
		{"wrong method", "POST /2018-06-01/runtime/invocation/next" + host + "Content-Length: 2\r\n\r\nxx", `405 {"errorMessage":"The Runtime API path does not have this method","errorType":"MethodNotAllowed"}` + "\n"},
		{"register", "POST /2020-01-01/extension/register" + host + "Content-Length: 2\r\n\r\n{}", `403 {"errorMessage":"Extension registration closed already","errorType":"Extension.RegistrationClosed"}` + "\n"},
		{"extension next", "GET /2020-01-01/extension/event/next" + host + "\r\n", `403 {"errorMessage":"Missing Lambda-Extension-Identifier header","errorType":"Extension.MissingExtensionIdentifier"}` + "\n"},
		{"extension next, bad id", "GET /2020-01-01/extension/event/next" + host + "Lambda-Extension-Identifier: x\r\n\r\n", `403 {"errorMessage":"Invalid Lambda-Extension-Identifier","errorType":"Extension.InvalidExtensionIdentifier"}` + "\n"},
		{"extension error", "POST /2020-01-01/extension/exit/error" + host + uuid + "Content-Length: 0\r\n\r\n", `403 {"errorMessage":"Unknown extension 01234567-89ab-cdef-0123-456789abcdef","errorType":"Extension.UnknownExtensionIdentifier"}` + "\n"},
		{"telemetry", "PUT /2022-07-01/telemetry" + host + "Content-Length: 2\r\n\r\n{}", `202 {"errorType":"Telemetry.NotSupported","errorMessage":"Telemetry API is not supported"}`},
		{"logs", "PUT /2020-08-15/logs" + host + "Content-Length: 2\r\n\r\n{}", `202 {"errorType":"Logs.NotSupported","errorMessage":"Logs API is not supported"}`},
		{"lambda api without fallback", "GET /2015-03-31/functions" + host + "\r\n", `404 {"errorMessage":"The Runtime API has no such path","errorType":"NotFound"}` + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := start(t, Options{})
			p := h.dial()
			for _, raw := range []string{tc.raw, strings.Replace(tc.raw, " HTTP/1.1", "?q HTTP/1.1", 1)} {
				for range 2 { // the connection stays usable
					if got := p.do(raw); fmt.Sprintf("%d %s", got.status, got.body) != tc.want {
						t.Errorf("got %d %q, want %q", got.status, got.body, tc.want)
					}
				}
			}
		})
	}
}

// TestAnswers drives one invocation per case; each case runs over the codec and over net/http.
func TestAnswers(t *testing.T) {
	chunked := func(path, headers, body string) string {
		return "POST /2018-06-01/runtime/invocation/a/" + path + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + headers + "\r\n" + body
	}
	const trailer = "Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n"
	doc := `{"errorMessage":"boom","errorType":"Foo"}`
	const octets = "application/octet-stream"
	for _, tc := range []struct {
		name, raw string
		status    int
		want      Result
	}{
		{"empty", rawResponse("a", ""), 202, Result{ContentType: octets}},
		{"chunked is buffered", chunked("response", trailer, "3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n"), 202, Result{Body: []byte("abcde"), ContentType: octets}},
		{"trailer", chunked("response", trailer, "3\r\nabc\r\n0\r\nLambda-Runtime-Function-Error-Type: Runtime.Foo\r\nlambda-runtime-function-error-body: "+base64.StdEncoding.EncodeToString([]byte(doc))+"\r\n\r\n"),
			202, Result{Body: []byte(doc), IsError: true, ErrorType: "Runtime.Foo", ContentType: "application/json"}},
		{"streaming", chunked("response", trailer+"Lambda-Runtime-Function-Response-Mode: streaming\r\n", "1\r\nx\r\n0\r\n\r\n"), 202, Result{Body: []byte("x"), ContentType: octets, Streamed: true}},
		{"invalid mode", rawResponse("a", "x", "Lambda-Runtime-Function-Response-Mode: Streaming"), 400,
			Result{Body: []byte(`{"errorType":"Runtime.InvalidResponseModeHeader","errorMessage":"RequestId: a Error: Invalid function response mode"}`), IsError: true, ErrorType: "Runtime.InvalidResponseModeHeader", InvalidResponseMode: true, ContentType: "application/json"}},
		{"error", rawError("a", doc, "Lambda-Runtime-Function-Error-Type: Function.Bad", "Content-Type: application/json"), 202,
			Result{Body: []byte(doc), IsError: true, ErrorType: "Function.Bad", ContentType: "application/json"}},
		{"error cause", rawError("a", `{"errorMessage":"m","errorType":"t","stackTrace":["s"],"errorCause":{"x":1}}`, "Content-Type: application/vnd.aws.lambda.error.cause+json"), 202,
			Result{Body: []byte(`{"errorMessage":"m","errorType":"t","stackTrace":["s"]}`), IsError: true, ErrorType: "Runtime.Unknown", ContentType: "application/json"}},
		{"error cause, broken", rawError("a", `{`, "Content-Type: application/vnd.aws.lambda.error.cause+json"), 202,
			Result{Body: []byte(`"Invalid error body"`), IsError: true, ErrorType: "Runtime.Unknown", ContentType: octets}},
		{"header of 1 MiB", rawError("a", doc, "Lambda-Runtime-Function-XRay-Error-Cause: "+strings.Repeat("x", 1<<20)), 202,
			Result{Body: []byte(doc), IsError: true, ErrorType: "Runtime.Unknown", ContentType: octets}},
		{"at the limit", rawResponse("a", strings.Repeat("x", MaxPayload)), 202, Result{Body: []byte(strings.Repeat("x", MaxPayload)), ContentType: octets}},
		{"above the limit", rawResponse("a", strings.Repeat("x", MaxPayload+1)), 413,
			Result{Body: []byte(tooLargeBody), IsError: true, ErrorType: "Function.ResponseSizeTooLarge", TooLarge: true, ContentType: "application/json"}},
		{"above the limit, chunked", chunked("response", "", strconv.FormatInt(7<<20, 16)+"\r\n"+strings.Repeat("x", 7<<20)+"\r\n0\r\n\r\n"), 413,
			Result{Body: []byte(tooLargeBody), IsError: true, ErrorType: "Function.ResponseSizeTooLarge", TooLarge: true, ContentType: "application/json"}},
		{"error above the limit", rawError("a", strings.Repeat("x", MaxPayload+1)), 413,
			Result{Body: []byte(tooLargeBody), IsError: true, ErrorType: "Function.ResponseSizeTooLarge", TooLarge: true, ContentType: "application/json"}},
		{"malformed chunk", chunked("response", "", "zz\r\n"), 400,
			Result{Body: []byte(`{"errorType":"Runtime.TruncatedResponse","errorMessage":"RequestId: a Error: HTTP request detected as truncated"}`), IsError: true, ErrorType: "Runtime.TruncatedResponse", Truncated: true, ContentType: "application/json"}},
	} {
		for _, via := range []string{"codec", "net/http"} {
			t.Run(tc.name+"/"+via, func(t *testing.T) {
				h := start(t, Options{})
				p := h.dial()
				c := h.invoke(t.Context(), event("a"))
				p.do(rawNext)
				raw := tc.raw
				if via == "net/http" {
					raw = strings.Replace(raw, " HTTP/1.1", "? HTTP/1.1", 1)
				}
				got := p.do(raw)
				if got.status != tc.status {
					t.Errorf("status %d, want %d: %s", got.status, tc.status, got.body)
				}
				res, err := h.wait(c)
				if err != nil {
					t.Fatal(err)
				}
				if res.Answered.Before(res.Delivered) || res.Delivered.IsZero() {
					t.Errorf("times %v, %v", res.Delivered, res.Answered)
				}
				want := tc.want
				res.Delivered, res.Answered = want.Delivered, want.Answered
				if string(res.Body) != string(want.Body) {
					t.Errorf("body %.200q (%d bytes), want %.200q", res.Body, len(res.Body), want.Body)
				}
				res.Body, want.Body = nil, nil
				if d := cmp.Diff(&want, res, cmpopts.IgnoreUnexported(Result{})); d != "" {
					t.Errorf("result (-want +got):\n%s", d)
				}
				if !tc.want.Truncated {
					h.afterwards(p, tc.want.InvalidResponseMode)
				}
			})
		}
	}
}

// afterwards checks that the connection and the state machine go on, or that the runtime is stuck.
func (h *harness) afterwards(p *peer, stuck bool) {
	h.t.Helper()
	if got := p.do(rawResponse("a", "again")); got.status != 403 {
		h.t.Errorf("second answer: %+v", got)
	}
	p.send(rawNext)
	if !stuck {
		h.waitIdle()
		return
	}
	if got := p.recv(); got.status != 403 {
		h.t.Errorf("next after an invalid mode: %+v", got)
	}
	if _, err := h.Invoke(h.t.Context(), event("b")); err == nil {
		h.t.Error("Invoke of a stuck runtime")
	}
}

func TestHalfClosedBodyIsTruncated(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	c := h.invoke(t.Context(), event("a"))
	p.do(rawNext)
	p.send("POST /2018-06-01/runtime/invocation/a/response HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
	_ = p.nc.(interface{ CloseWrite() error }).CloseWrite()
	want := "{\"errorMessage\":\"HTTP request detected as truncated\",\"errorType\":\"TruncatedHTTPRequest\"}\n"
	if got := p.recv(); got.status != 400 || got.body != want {
		t.Errorf("got %+v", got)
	}
	if res, err := h.wait(c); err != nil || !res.Truncated || res.ErrorType != "Runtime.TruncatedResponse" {
		t.Errorf("Invoke = %+v, %v", res, err)
	}
	h.dial().send(rawNext)
	h.waitIdle()
}

func TestNewestNextWins(t *testing.T) {
	for _, older := range []string{rawNext, strings.Replace(rawNext, " HTTP", "? HTTP", 1)} {
		h := start(t, Options{})
		a, b := h.dial(), h.dial()
		a.send(older)
		h.waitIdle()
		b.send(rawNext)
		if got := a.recv(); got.status != 403 || !strings.Contains(got.body, "from Ready to Ready") {
			t.Errorf("older next: %+v", got)
		}
		if got := a.do("GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n"); got.body != "pong" {
			t.Errorf("older connection afterwards: %+v", got)
		}
		c := h.invoke(t.Context(), event("x"))
		b.recv()
		b.do(rawResponse("x", "y"))
		if _, err := h.wait(c); err != nil {
			t.Error(err)
		}
	}
}

func TestParkedConnectionGoesAway(t *testing.T) {
	for _, raw := range []string{rawNext, strings.Replace(rawNext, " HTTP", "? HTTP", 1)} {
		h := start(t, Options{})
		a := h.dial()
		a.send(raw)
		h.waitIdle()
		_ = a.nc.Close()
		until(t, "unparked", func() bool { return !h.Idle() })
		c := h.invoke(t.Context(), event("x"))
		b := h.dial()
		if got := b.do(rawNext); got.body != `{"id":"x"}` {
			t.Errorf("event: %+v", got)
		}
		b.do(rawResponse("x", "y"))
		if _, err := h.wait(c); err != nil {
			t.Error(err)
		}
	}
}

func TestPipelined(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	const ping = "GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n"
	p.send(ping + ping + rawNext + ping) // the last one waits for its turn
	p.recv()
	p.recv()
	h.waitIdle()
	p.send(ping)
	for _, id := range []string{"a", "b"} {
		c := h.invoke(t.Context(), event(id))
		if got := p.recv(); got.body != `{"id":"`+id+`"}` {
			t.Fatalf("event: %+v", got)
		}
		for range 2 {
			if got := p.recv(); got.body != "pong" {
				t.Fatalf("pipelined: %+v", got)
			}
		}
		p.send(rawResponse(id, "x") + rawNext + ping + ping)
		p.recv()
		if _, err := h.wait(c); err != nil {
			t.Error(err)
		}
	}
}

func TestLargeEvents(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	p.send(rawNext)
	for i, size := range []int{joinLimit - 1, joinLimit + 1, 1 << 20, 6 << 20} {
		h.waitIdle()
		id := strconv.Itoa(i)
		inv := &Invocation{RequestID: id, Payload: []byte(strings.Repeat("e", size))}
		c := h.invoke(t.Context(), inv)
		if got := p.recv(); got.body != string(inv.Payload) {
			t.Errorf("event of %d bytes arrived as %d", size, len(got.body))
		}
		p.do(rawResponse(id, "x"))
		if _, err := h.wait(c); err != nil {
			t.Error(err)
		}
		p.send(rawNext)
	}
}

// TestUnreadEvent: a runtime that does not read its event cannot hold Invoke beyond its context.
func TestUnreadEvent(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	p.send(rawNext)
	h.waitIdle()
	ctx, cancel := newCancel(t)
	c := h.invoke(ctx, &Invocation{RequestID: "a", Payload: make([]byte, 64<<20)})
	until(t, "running", func() bool { return h.stateIs(stateRunning) })
	cancel(context.DeadlineExceeded)
	if _, err := h.wait(c); err != context.DeadlineExceeded {
		t.Errorf("Invoke = %v", err)
	}
}

func TestFallbackHandler(t *testing.T) {
	h := start(t, Options{Fallback: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL, body)
	})})
	for _, tc := range []struct{ raw, want string }{
		{"POST /2015-03-31/functions/f/invocations?x=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", "POST /2015-03-31/functions/f/invocations?x=1 {}"},
		{"GET /other HTTP/1.0\r\n\r\n", "GET /other "},
	} {
		p := h.dial()
		if got := p.do(tc.raw); got.body != tc.want {
			t.Errorf("got %+v, want %q", got, tc.want)
		}
	}
	p := h.dial()
	p.send("POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	if got := p.recv(); got.status != 100 {
		t.Errorf("got %+v, want 100", got)
	}
	if got := p.do("{}"); got.status != 202 {
		t.Errorf("got %+v, want 202", got)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	h := start(t, Options{MaxConns: 8})
	var ps []*peer
	for range 8 {
		p := h.dial()
		p.do("GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n")
		ps = append(ps, p)
	}
	late := h.dial()
	late.send("GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n")
	until(t, "full", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.full && len(h.conns) == 8 })
	_ = ps[0].nc.Close()
	if got := late.recv(); got.body != "pong" {
		t.Errorf("got %+v", got)
	}
	// Idle connections of net/http give way at once, and net/http leaves some to the codec.
	for i := range 4 {
		ps[i+1].do("GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	if got := ps[5].do("GET /x HTTP/1.1\r\nHost: x\r\n\r\n"); got.status != 503 {
		t.Errorf("got %+v, want 503", got)
	}
	for range 3 {
		if got := h.dial().do("GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n"); got.body != "pong" {
			t.Errorf("got %+v", got)
		}
	}
}

func TestGarbage(t *testing.T) {
	h := start(t, Options{})
	for _, raw := range []string{
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n\n", "GET /2018-06-01/ping HTTP/1.1\nHost: x\n\n", "\r\n\r\n",
		"GET  /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n", "GET /2018-06-01/ping HTTP/1.1\r\nHost : x\r\n\r\n",
		"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
		"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx",
		"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nx",
		"GET /2018-06-01/ping HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		p := h.dial()
		p.send(raw)
		_ = p.nc.(interface{ CloseWrite() error }).CloseWrite()
		_, _ = io.Copy(io.Discard, p.nc) // ends: the server closes
	}
	if !h.stateIs(stateStarted) {
		t.Error("garbage changed the state")
	}
}

// TestEndlessBody: a chunked answer without an end costs the runtime its connection and the client gets
// one outcome, at the limit.
func TestEndlessBody(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	c := h.invoke(t.Context(), event("a"))
	p.do(rawNext)
	p.send("POST /2018-06-01/runtime/invocation/a/response HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	chunk := "100000\r\n" + strings.Repeat("x", 1<<20) + "\r\n"
	sent := 0
	for ; sent < 200; sent++ {
		if _, err := io.WriteString(p.nc, chunk); err != nil {
			break
		}
	}
	if sent == 200 {
		t.Error("the server reads without end")
	}
	if res, err := h.wait(c); err != nil || !res.TooLarge {
		t.Errorf("Invoke = %v, %v", res, err)
	}
	h.dial().send(rawNext)
	h.waitIdle()
}
