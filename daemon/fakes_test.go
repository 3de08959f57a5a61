package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/metrics"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/daemon/records"
	"lfx.dev/lfxd/daemon/server"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/internal/tmpdir"
)

// starter makes instances that answer at once; failing holds functions that do not start, broken is the
// version whose invocations end in an error.
type starter struct {
	mu      sync.Mutex
	failing map[string]error
	broken  string
}

func (s *starter) Start(_ context.Context, req pool.StartRequest) (pool.Worker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing[req.Version.Function]; err != nil {
		return nil, err
	}
	return &fakeWorker{s: s, version: req.Version, events: req.Events}, nil
}

type fakeWorker struct {
	s       *starter
	version *function.Version
	events  pool.Events
	once    sync.Once
}

func (i *fakeWorker) ID() string            { return i.version.String() }
func (i *fakeWorker) Info() pool.WorkerInfo { return pool.WorkerInfo{ID: i.ID()} }
func (i *fakeWorker) Invoke(req *invocation.Request) *invocation.Outcome {
	go i.events.Idle() // ends at once
	out := &invocation.Outcome{Payload: fmt.Appendf(nil, "%s r%d", i.version, req.Binding.ReleaseNumber())}
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	if i.s.broken == i.version.String() {
		out.FunctionError = "Unhandled"
	}
	return out
}

func (i *fakeWorker) Close(string) {
	i.once.Do(func() {
		go func() { // ends at once
			i.events.Dying()
			i.events.Gone()
		}()
	})
}

// world is a store, pools, the gateway, a server and a releaser: the daemon without an engine.
type world struct {
	t        testing.TB
	store    *store.Store
	pools    *pool.Manager
	starter  *starter
	server   *server.Server
	ports    *ports
	releaser *releaser
	resolver *resolver
	metrics  *metrics.Registry
	records  *records.Store
}

func newWorld(t testing.TB) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	w := &world{t: t, starter: &starter{failing: map[string]error{}}, metrics: metrics.New(), records: records.New(100)}
	var err error
	if w.store, err = store.Open(t.Context(), tmpdir.New(t), log); err != nil {
		t.Fatal(err)
	}
	w.pools = pool.NewManager(pool.Options{
		Starter: w.starter, DefaultMax: func(*function.Version) int { return 4 }, QueueLimit: 10, QueueTimeout: 10 * time.Second, IdleTimeout: time.Hour, MemoryMB: 1024,
		Observer: w.metrics, Log: log,
	})
	w.resolver = &resolver{store: w.store, pools: w.pools, region: "eu-west-1"}
	g := gateway.New(gateway.Options{Resolver: w.resolver, Region: "eu-west-1", Overhead: time.Minute, Observer: observer{w.metrics, w.records}, Log: log})
	w.server = server.New(server.Options{Gateway: g, BaseContext: context.Background(), AllowedHosts: []string{"127.0.0.1"}, Log: log, Backend: (*backend)(nil)})
	w.ports = newPorts("127.0.0.1", w.server)
	w.releaser = newReleaser(w.pools, w.ports)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		w.server.Shutdown(ctx)
		w.pools.Close(ctx)
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// fn is one function of a release; the digest makes its version.
func fn(name, digest string) store.NewFunction {
	return store.NewFunction{
		Name: name, Identity: "id-" + digest, Image: function.Image{Name: "localhost/" + name, Digest: "sha256:" + digest},
		Config: function.DefaultConfig(),
	}
}

// record records a release without activating it.
func (w *world) record(n store.NewRelease) function.Release {
	w.t.Helper()
	rec, err := w.store.RecordRelease(w.t.Context(), n)
	if err != nil {
		w.t.Fatal(err)
	}
	return rec.Release
}

func (w *world) prepare(rel function.Release) (*candidate, error) {
	c, err := w.releaser.Prepare(rel, versionsOf(w.store.View(), &rel))
	if err != nil {
		return nil, err
	}
	return c.(*candidate), nil
}

// release records and activates one.
func (w *world) release(n store.NewRelease) function.Release {
	w.t.Helper()
	rel := w.record(n)
	c, err := w.prepare(rel)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.Activate(w.t.Context(), rel.Environment, rel.Number); err != nil {
		w.t.Fatal(err)
	}
	c.Activate()
	return rel
}

// post calls a function over TCP and returns the status and the body; 0 when nothing listens.
func (w *world) post(port int, name string) (int, string) {
	w.t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := c.Post(fmt.Sprintf("http://127.0.0.1:%d%s%s%s", port, gateway.InvokePrefix, name, gateway.InvokeSuffix), "", strings.NewReader("{}"))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// freePort finds a port that nobody has now.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
