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
