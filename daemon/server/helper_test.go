package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// fakeBackend answers with what its fields say; a nil field answers with a zero value.
type fakeBackend struct {
	fakeReleases
	deploy   func(ctx context.Context, req api.DeployRequest, event func(api.DeployEvent)) (*api.DeployResult, error)
	function func(name string, f function.Environment) (*api.FunctionDetail, error)
	remove   func(name string, f function.Environment) (*api.RemoveResult, error)
	logs     func(ctx context.Context, q LogQuery, entry func(api.LogEntry) error) error
	filter   function.Environment // of the last list
}

func (b *fakeBackend) Version(context.Context) api.VersionInfo { return api.VersionInfo{Version: "1"} }
func (b *fakeBackend) Deploy(ctx context.Context, req api.DeployRequest, event func(api.DeployEvent)) (*api.DeployResult, error) {
	return b.deploy(ctx, req, event)
}
func (b *fakeBackend) Functions(f function.Environment) []api.FunctionSummary {
	b.filter = f
	return append([]api.FunctionSummary{}, one[api.FunctionSummary](&b.fakeReleases)...)
}
func (b *fakeBackend) Function(name string, f function.Environment) (*api.FunctionDetail, error) {
	return b.function(name, f)
}
func (b *fakeBackend) Remove(_ context.Context, name string, f function.Environment) (*api.RemoveResult, error) {
	return b.remove(name, f)
}
func (b *fakeBackend) Instances() []api.InstanceInfo {
	return append([]api.InstanceInfo{}, one[api.InstanceInfo](&b.fakeReleases)...)
}
func (b *fakeBackend) Logs(ctx context.Context, q LogQuery, entry func(api.LogEntry) error) error {
	return b.logs(ctx, q, entry)
}
func (b *fakeBackend) Doctor(context.Context) api.DoctorReport { return api.DoctorReport{} }

// echo resolves every name; its error says what the target was.
type echo struct {
	mu   sync.Mutex
	last gateway.Target
}

func (e *echo) Resolve(_ context.Context, t gateway.Target) (invocation.Route, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = t
	return nil, gateway.NewError("ResourceConflictException", "resolved "+t.Ref.Name)
}

func (e *echo) target() gateway.Target {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// world is a server with one listener of a kind on loopback.
type world struct {
	t       testing.TB
	server  *Server
	served  *Served
	backend *fakeBackend
	echo    *echo
	addr    string
	log     *syncBuffer
	client  *http.Client
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func start(t testing.TB, kind Kind, fn func() *function.Key) *world {
	t.Helper()
	w := &world{t: t, backend: &fakeBackend{fakeReleases: fakeReleases{projects: []string{"shop"}}}, echo: &echo{}, log: &syncBuffer{}, client: &http.Client{Transport: &http.Transport{}}}
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	g := gateway.New(gateway.Options{Resolver: w.echo, Region: "eu-west-1", Log: log})
	w.server = New(Options{
		Gateway: g, Backend: w.backend, BaseContext: context.Background(), AllowedHosts: []string{"localhost", "127.0.0.1", "[::1]", "*.localhost"}, Log: log,
		Sessions: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }),
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	if w.served, err = w.server.Serve(l, kind, fn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		w.server.Shutdown(ctx)
	})
	return w
}

type answer struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

// do sends one request; headers are "Name: value".
func (w *world) do(method, path, body string, headers ...string) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http://"+w.addr+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		if k == "Host" {
			req.Host = v
			continue
		}
		req.Header.Set(k, v)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b), err}
}

var errTest = errors.New("test")
