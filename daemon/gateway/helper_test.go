package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var testEnv = function.Environment{Project: "shop", Name: function.DefaultEnvironment}

// fake is a Resolver and all its routes; open counts the routes that were not closed.
type fake struct {
	resolve func(Target) error
	invoke  func(ctx context.Context, req *invocation.Request) (*invocation.Outcome, error)
	begin   func(req *invocation.Request, done invocation.Completion)
	timeout time.Duration

	open   atomic.Int64
	closed atomic.Int64
	calls  atomic.Int64
}

type fakeRoute struct {
	f       *fake
	version *function.Version
	done    atomic.Bool
}

func (f *fake) Resolve(_ context.Context, t Target) (invocation.Route, error) {
	if f.resolve != nil {
		if err := f.resolve(t); err != nil {
			return nil, err
		}
	}
	f.open.Add(1)
	v := &function.Version{Key: function.Key{Environment: testEnv, Function: t.Ref.Name}, Number: 7}
	v.Config.Timeout = max(f.timeout, time.Second)
	return &fakeRoute{f: f, version: v}, nil
}

func (r *fakeRoute) Version() *function.Version { return r.version }
func (r *fakeRoute) ReleaseNumber() int         { return 3 }

func (r *fakeRoute) Invoke(ctx context.Context, req *invocation.Request) (*invocation.Outcome, error) {
	r.f.calls.Add(1)
	if r.f.invoke != nil {
		return r.f.invoke(ctx, req)
	}
	return &invocation.Outcome{Payload: req.Payload}, nil
}

func (r *fakeRoute) Begin(req *invocation.Request, done invocation.Completion) {
	if r.f.begin == nil {
		done.Complete(r.Invoke(context.Background(), req))
		return
	}
	r.f.begin(req, done)
}

func (r *fakeRoute) Leave(*invocation.Request, error) {}

func (r *fakeRoute) Close() {
	if r.done.Swap(true) {
		panic("route closed twice")
	}
	r.f.open.Add(-1)
	r.f.closed.Add(1)
}

func newGateway(f *fake) *Gateway {
	return New(Options{Resolver: f, Region: "eu-west-1", Overhead: time.Minute, Log: slog.New(slog.DiscardHandler)})
}

// serve runs the gateway on a real server and checks at the end that every route was closed.
func serve(t testing.TB, f *fake) *httptest.Server {
	t.Helper()
	g := newGateway(f)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.ServeInvoke(w, r, Scope{}) }))
	t.Cleanup(func() {
		s.Close()
		if n := f.open.Load(); n != 0 {
			t.Errorf("%d routes were not closed", n)
		}
	})
	return s
}

// answer is one response as the client saw it.
type answer struct {
	status int
	header http.Header
	body   string
}

// message returns the error envelope's text and its key.
func (a answer) message() (text, key string) {
	var m map[string]string
	if json.Unmarshal([]byte(a.body), &m) != nil {
		return "", ""
	}
	for _, k := range []string{"message", "Message"} {
		if v, ok := m[k]; ok {
			return v, k
		}
	}
	return "", ""
}

type request struct {
	method, path, body string
	header             http.Header
}

func (r request) do(t testing.TB, s *httptest.Server) answer {
	t.Helper()
	method := r.method
	if method == "" {
		method = http.MethodPost
	}
	path := r.path
	if path == "" {
		path = InvokePrefix + "hello" + InvokeSuffix
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// raw is a client that sends what it likes.
type raw struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

func dial(t testing.TB, s *httptest.Server) *raw {
	t.Helper()
	nc, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	return &raw{t, nc, bufio.NewReader(nc)}
}

func (r *raw) send(text string) {
	r.t.Helper()
	if _, err := io.WriteString(r.nc, text); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) recv() answer {
	r.t.Helper()
	resp, err := http.ReadResponse(r.br, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}
