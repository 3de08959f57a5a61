package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// calls is an Observer that keeps what it is told.
type calls struct {
	mu  sync.Mutex
	all []invocation.Call
}

func (c *calls) Observe(o invocation.Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, o)
}

func observed(f *fake) (*Gateway, *calls) {
	c := &calls{}
	return New(Options{Resolver: f, Region: "eu-west-1", Overhead: time.Minute, Observer: c, Log: slog.New(slog.DiscardHandler)}), c
}

// one returns the only call that was observed.
func (c *calls) one(t *testing.T) invocation.Call {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) != 1 {
		t.Fatalf("%d calls were observed, want 1: %+v", len(c.all), c.all)
	}
	return c.all[0]
}

func TestEveryCallIsObservedOnce(t *testing.T) {
	answers := func(out *invocation.Outcome, err error) func(context.Context, *invocation.Request) (*invocation.Outcome, error) {
		return func(context.Context, *invocation.Request) (*invocation.Outcome, error) { return out, err }
	}
	key := function.Key{Environment: testEnv, Function: "hello"}
	for name, tt := range map[string]struct {
		f      *fake
		method string
		query  string
		body   string
		header http.Header
		scope  Scope
		want   invocation.Call
	}{
		"ok": {
			body: `{"n":1}`, query: "?Qualifier=7",
			want: invocation.Call{Function: key, Qualifier: "7", Release: 3, Status: 200, Trace: invocation.Trace{RequestBytes: 7, ResponseBytes: 7}},
		},
		"nested": {
			body: "1", scope: Scope{Environment: &testEnv, Parent: "the caller"},
			want: invocation.Call{Parent: "the caller", Function: key, Release: 3, Status: 200, Trace: invocation.Trace{RequestBytes: 1, ResponseBytes: 1}},
		},
		"function error": {
			f:    &fake{invoke: answers(&invocation.Outcome{Payload: []byte("no"), FunctionError: "Unhandled", ErrorType: "ValueError", Result: invocation.Failed}, nil)},
			want: invocation.Call{Function: key, Release: 3, Result: invocation.Failed, Status: 200, ErrorType: "ValueError", Trace: invocation.Trace{RequestBytes: 2, ResponseBytes: 2}},
		},
		"throttled": {
			f: &fake{invoke: answers(nil, &invocation.ThrottledError{Reason: "CallerRateLimitExceeded", Detail: "5 requests wait already"})},
			want: invocation.Call{Function: key, Release: 3, Result: invocation.Throttled, Status: 429, ErrorType: "TooManyRequestsException",
				Reason: "CallerRateLimitExceeded", Detail: "5 requests wait already", Trace: invocation.Trace{RequestBytes: 2}},
		},
		"unavailable": {
			f: &fake{invoke: answers(nil, &invocation.UnavailableError{Err: errors.New("containerd is away")})},
			want: invocation.Call{Function: key, Release: 3, Result: invocation.Unavailable, Status: 503, ErrorType: "ServiceException",
				Detail: "containerd is away", Trace: invocation.Trace{RequestBytes: 2}},
		},
		"no such function": {
			f:     &fake{resolve: func(Target) error { return NewError("ResourceNotFoundException", "Function not found") }},
			scope: Scope{Environment: &testEnv},
			want:  invocation.Call{Function: key, Result: invocation.Refused, Status: 404, ErrorType: "ResourceNotFoundException", Detail: "Function not found"},
		},
		"on a port of its own": {
			f:     &fake{resolve: func(Target) error { return NewError("ResourceNotFoundException", "Function not found") }},
			scope: Scope{Function: &key},
			want:  invocation.Call{Function: key, Result: invocation.Refused, Status: 404, ErrorType: "ResourceNotFoundException", Detail: "Function not found"},
		},
		"bad payload": {
			body: "{", want: invocation.Call{Function: key, Release: 3, Result: invocation.Refused, Status: 400, ErrorType: "InvalidRequestContentException", Detail: "Could not parse"},
		},
		"bad header": {
			header: http.Header{"X-Amz-Log-Type": {"Head"}},
			want:   invocation.Call{Function: key, Release: 3, Result: invocation.Refused, Status: 400, ErrorType: "ValidationException", Detail: "1 validation error"},
		},
		"wrong method": {
			method: http.MethodGet, want: invocation.Call{Result: invocation.Refused, Status: 405, ErrorType: "MethodNotAllowedException", Detail: "Invoke is a POST request"},
		},
		"dry run": {
			header: http.Header{"X-Amz-Invocation-Type": {"DryRun"}},
			want:   invocation.Call{Function: key, Release: 3, Status: 204, Trace: invocation.Trace{RequestBytes: 2}},
		},
		"panic": {
			f:    &fake{invoke: func(context.Context, *invocation.Request) (*invocation.Outcome, error) { panic("ouch") }},
			want: invocation.Call{Function: key, Release: 3, Result: invocation.Unavailable, Status: 500, ErrorType: "ServiceException", Detail: "the handler of the request failed", Trace: invocation.Trace{RequestBytes: 2}},
		},
		"panic of the resolver": {
			f:    &fake{resolve: func(Target) error { panic("ouch") }},
			want: invocation.Call{Function: function.Key{Function: "hello"}, Result: invocation.Unavailable, Status: 500, ErrorType: "ServiceException", Detail: "the handler of the request failed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := tt.f
			if f == nil {
				f = &fake{}
			}
			g, c := observed(f)
			method := tt.method
			if method == "" {
				method = http.MethodPost
			}
			r := httptest.NewRequestWithContext(t.Context(), method, InvokePrefix+"hello"+InvokeSuffix+tt.query, strings.NewReader(tt.body))
			for k, v := range tt.header {
				r.Header[k] = v
			}
			w := httptest.NewRecorder()
			before := time.Now()
			func() {
				defer func() {
					if v := recover(); (v != nil) != strings.HasPrefix(name, "panic") {
						t.Errorf("panic: %v", v)
					}
				}()
				g.ServeInvoke(w, r, tt.scope)
			}()
			got := c.one(t)
			// A client whose connection is cut learns no id.
			if id := w.Header().Get("X-Amzn-Requestid"); got.ID == "" || (got.ID != id && !strings.HasPrefix(name, "panic")) || (got.Version != nil) != (tt.want.Release != 0) {
				t.Errorf("request %s, version %v", got.ID, got.Version)
			}
			if got.Trace.Accepted.Before(before) || got.Ended.Before(got.Trace.Accepted) {
				t.Errorf("accepted %v, ended %v, begun at %v", got.Trace.Accepted, got.Ended, before)
			}
			if !strings.HasPrefix(got.Detail, tt.want.Detail) || (got.Detail == "") != (tt.want.Detail == "") {
				t.Errorf("detail %q, want %q", got.Detail, tt.want.Detail)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(invocation.Call{}, "ID", "Version", "Detail", "Ended", "Trace.Accepted")); diff != "" {
				t.Errorf("call (-want +got):\n%s", diff)
			}
		})
	}
}

// The answer is observed before the client can read it, so that a client that asks for the record of
// its request finds it.
func TestObservedBeforeAnswered(t *testing.T) {
	g, c := observed(&fake{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.ServeInvoke(w, r, Scope{}) }))
	defer s.Close()
	for range 50 {
		got := request{body: "1"}.do(t, s)
		c.mu.Lock()
		last := c.all[len(c.all)-1]
		c.mu.Unlock()
		if id := got.header.Get("X-Amzn-Requestid"); last.ID != id {
			t.Fatalf("the answer to %s came before it was observed", id)
		}
	}
}

func TestClientThatLeavesIsObserved(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g, c := observed(&fake{invoke: func(ctx context.Context, req *invocation.Request) (*invocation.Outcome, error) {
		req.Trace.Queued = time.Now()
		cancel()
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}})
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, InvokePrefix+"hello"+InvokeSuffix, strings.NewReader("{}"))
	func() {
		defer func() {
			if v := recover(); v != http.ErrAbortHandler { //nolint:errorlint // the value itself, as net/http compares it
				t.Errorf("the connection of a client that left is not cut: %v", v)
			}
		}()
		g.ServeInvoke(httptest.NewRecorder(), r, Scope{})
	}()
	got := c.one(t)
	if got.Result != invocation.Gone || got.Status != 0 || got.Queue() <= 0 {
		t.Errorf("got %+v, queue %s", got, got.Queue())
	}
}

func TestClassOfAnError(t *testing.T) {
	const payload = `{"errorMessage":"no","errorType":"ValueError"}`
	for name, tt := range map[string]struct {
		out  invocation.Outcome
		want string
	}{
		"the runtime says":       {invocation.Outcome{Result: invocation.Failed, ErrorType: "Function.MyError", Payload: []byte(payload)}, "Function.MyError"},
		"only the payload says":  {invocation.Outcome{Result: invocation.Failed, ErrorType: "Runtime.Unknown", Payload: []byte(payload)}, "ValueError"},
		"nobody says":            {invocation.Outcome{Result: invocation.Failed, ErrorType: "Runtime.Unknown", Payload: []byte(`{"errorType":7}`)}, "Runtime.Unknown"},
		"no JSON":                {invocation.Outcome{Result: invocation.Failed, Payload: []byte("oops")}, ""},
		"a large one":            {invocation.Outcome{Result: invocation.Failed, ErrorType: "Runtime.Unknown", Payload: append([]byte(payload), make([]byte, maxErrorPayload)...)}, "Runtime.Unknown"},
		"an answer is no error":  {invocation.Outcome{Payload: []byte(payload)}, ""},
		"timeouts are our words": {invocation.Outcome{Result: invocation.TimedOut, ErrorType: "Sandbox.Timedout", Payload: []byte(payload)}, "Sandbox.Timedout"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := errorType(&tt.out); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// reply is a Reply as package server's codec has one.
type reply struct {
	status int
	drops  int
}

func (r *reply) Send(a *Answer) { r.status = a.Status; a.release() }
func (r *reply) Drop()          { r.drops++ }

// TestCallsOfTheCodecAreObservedOnce: whatever their completion is told.
func TestCallsOfTheCodecAreObservedOnce(t *testing.T) {
	complete := func(out *invocation.Outcome, err error) func(*invocation.Request, invocation.Completion) {
		return func(req *invocation.Request, done invocation.Completion) {
			req.Trace.Instance = "lfx-1"
			done.Complete(out, err)
		}
	}
	for name, tt := range map[string]struct {
		f      *fake
		body   string
		want   invocation.Result
		status int // of the answer, 0 when the connection was cut
	}{
		"ok":                  {f: &fake{begin: complete(&invocation.Outcome{Payload: []byte("1")}, nil)}, status: 200},
		"error":               {f: &fake{begin: complete(&invocation.Outcome{Payload: []byte("1"), Result: invocation.Failed}, nil)}, want: invocation.Failed, status: 200},
		"waits":               {status: 200},
		"throttled":           {f: &fake{begin: complete(nil, &invocation.ThrottledError{Reason: "R"})}, want: invocation.Throttled, status: 429},
		"refused":             {body: "{", want: invocation.Refused, status: 400},
		"client leaves":       {f: &fake{begin: complete(nil, context.Canceled)}, want: invocation.Gone},
		"panic":               {f: &fake{begin: func(*invocation.Request, invocation.Completion) { panic("ouch") }}, want: invocation.Unavailable},
		"panic in the answer": {f: &fake{begin: complete(&invocation.Outcome{Free: func() { panic("ouch") }}, nil)}, want: invocation.OK, status: 200},
	} {
		t.Run(name, func(t *testing.T) {
			f := tt.f
			if f == nil {
				f = &fake{}
			}
			g, seen := observed(f)
			r := &reply{}
			body := tt.body
			if body == "" {
				body = "{}"
			}
			c := &Call{Request: Request{Method: http.MethodPost, Path: InvokePrefix + "hello" + InvokeSuffix, Length: int64(len(body)), Payload: []byte(body)}}
			func() {
				defer func() {
					if recover() != nil { // as the owner of the connection does
						c.Abort()
						r.Drop()
					}
				}()
				g.Serve(t.Context(), c, Scope{Parent: "p"}, r)
			}()
			got := seen.one(t)
			if got.Result != tt.want || r.status != tt.status || got.Parent != "p" || got.Version == nil {
				t.Errorf("answered %d, observed %+v; want %d, %s", r.status, got, tt.status, tt.want)
			}
			if tt.status != 0 && got.Status != tt.status {
				t.Errorf("observed status %d, want %d", got.Status, tt.status)
			}
			if cut := tt.status == 0 || name == "panic in the answer"; (r.drops == 1) != cut {
				t.Errorf("the connection was cut %d times", r.drops)
			}
			if n := f.open.Load(); n != 0 {
				t.Errorf("%d routes are open", n)
			}
		})
	}
}

// A Call is used again for the next request of its connection.
func TestCallIsUsedAgain(t *testing.T) {
	g, seen := observed(&fake{})
	r := &reply{}
	c := &Call{Request: Request{Method: http.MethodPost, Path: InvokePrefix + "hello" + InvokeSuffix, Query: "Qualifier=7", Length: 2, Payload: []byte("{}")}}
	g.Serve(t.Context(), c, Scope{Parent: "p"}, r)
	c.Query, c.Method = "", http.MethodGet
	g.Serve(t.Context(), c, Scope{}, r)
	if len(seen.all) != 2 || seen.all[0].ID == seen.all[1].ID {
		t.Fatalf("observed %+v", seen.all)
	}
	if o := seen.all[1]; o.Parent != "" || o.Qualifier != "" || o.Version != nil || o.Trace.RequestBytes != 0 || o.Function.Function != "" {
		t.Errorf("the second call has something of the first: %+v", o)
	}
}
