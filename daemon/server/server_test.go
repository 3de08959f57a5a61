package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
)

const invokePath = gateway.InvokePrefix + "hello" + gateway.InvokeSuffix

// TestEveryRouteOnEveryListener walks the table: what a kind does not grant answers 403, whatever the
// method, and never reaches a handler.
func TestEveryRouteOnEveryListener(t *testing.T) {
	for kind, name := range map[Kind]string{KindControl: "control", KindInvoke: "invoke", KindTCP: "tcp", KindPort: "port"} {
		t.Run(name, func(t *testing.T) {
			w := start(t, kind, func() *function.Key { return &function.Key{} })
			w.backend.function = func(string, function.Environment) (*api.FunctionDetail, error) { return &api.FunctionDetail{}, nil }
			w.backend.remove = func(string, function.Environment) (*api.RemoveResult, error) { return &api.RemoveResult{}, nil }
			w.backend.logs = func(context.Context, LogQuery, func(api.LogEntry) error) error { return nil }
			w.backend.deploy = func(context.Context, api.DeployRequest, func(api.DeployEvent)) (*api.DeployResult, error) {
				return &api.DeployResult{}, nil
			}
			for _, rt := range w.server.routes {
				path := rt.path
				if rt.sub {
					path += "/x"
				}
				path += "?project=shop&environment=default&function=f&name=a&from=1&to=2"
				allowed := grants[kind][rt.access]
				for _, method := range []string{"GET", "POST", "PUT", "DELETE", "OPTIONS"} {
					got := w.do(method, path, "{}")
					if forbidden := got.status == http.StatusForbidden; forbidden == allowed {
						t.Errorf("%s %s on %s: %d", method, path, name, got.status)
					}
					handled := strings.HasPrefix(rt.path, api.Prefix+"/debug/") // answers 404 for what it does not have
					if method == rt.method && allowed && !handled && got.status != http.StatusOK && got.status != http.StatusTeapot {
						t.Errorf("%s %s: %d %s", method, path, got.status, got.body)
					}
				}
			}
			for _, path := range []string{"/", "/lfx", "/lfx/v1", "/lfx/v1/functions/a/b", "/lfx/v1/version/", "/2015-03-31/functions", "/metrics/", "/debug/pprof/", "/lfx/v1/records", "/lfx/v1/records/a/b"} {
				want := http.StatusForbidden
				if kind == KindControl {
					want = http.StatusNotFound
				}
				if got := w.do("GET", path, ""); got.status != want {
					t.Errorf("GET %s on %s: %d, want %d", path, name, got.status, want)
				}
			}
			if got := w.do("POST", invokePath, "{}"); got.status != http.StatusConflict { // the resolver's
				t.Errorf("invoke on %s: %d %s", name, got.status, got.body)
			}
		})
	}
}

func TestWrongMethodSaysSo(t *testing.T) {
	w := start(t, KindControl, nil)
	got := w.do("PATCH", api.PathVersion, "")
	if got.status != http.StatusMethodNotAllowed || !strings.Contains(got.body, "PATCH is not possible on /lfx/v1/version") {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestBrowsersAreKeptOut(t *testing.T) {
	for name, tt := range map[string]struct {
		kind    Kind
		headers []string
		want    int
	}{
		"right host":             {KindTCP, []string{"Host: localhost:9000"}, http.StatusConflict},
		"environment host":       {KindTCP, []string{"Host: staging.shop.localhost"}, http.StatusConflict},
		"rebound host":           {KindTCP, []string{"Host: evil.example"}, http.StatusForbidden},
		"port, rebound host":     {KindPort, []string{"Host: evil.example:9001"}, http.StatusForbidden},
		"origin":                 {KindTCP, []string{"Host: localhost", "Origin: http://localhost"}, http.StatusForbidden},
		"null origin":            {KindPort, []string{"Host: localhost", "Origin: null"}, http.StatusForbidden},
		"socket, any host":       {KindInvoke, []string{"Host: lfx", "Origin: x"}, http.StatusConflict},
		"control, any host":      {KindControl, []string{"Host: whatever"}, http.StatusConflict},
		"suffix without a label": {KindTCP, []string{"Host: .localhost"}, http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, tt.kind, func() *function.Key { return &function.Key{} })
			if got := w.do("POST", invokePath, "{}", tt.headers...); got.status != tt.want {
				t.Errorf("got %d %s", got.status, got.body)
			} else if got.status == http.StatusForbidden && got.header.Get("X-Amzn-Requestid") == "" {
				t.Error("the refusal has no request id")
			}
		})
	}
}

func TestHostAllowed(t *testing.T) {
	s := &Server{opts: Options{AllowedHosts: []string{"localhost", "127.0.0.1", "[::1]", "*.localhost", "Box.Example"}}}
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST:9000": true, "127.0.0.1": true, "127.0.0.1:80": true, "[::1]": true, "[::1]:9000": true, "::1": true,
		"a.localhost": true, "a.b.LocalHost:1": true, "box.example": true,
		"": false, ":9000": false, ".localhost": false, "xlocalhost": false, "localhost.evil": false, "127.0.0.2": false, "evil.example": false,
		"evil/localhost": false, "localhost.": false,
	} {
		if got := s.hostAllowed(host); got != want {
			t.Errorf("hostAllowed(%q) = %v, want %v", host, got, want)
		}
	}
}

// FuzzHostAllowed: whatever passes ends with an allowed name or is one, and nothing panics.
func FuzzHostAllowed(f *testing.F) {
	for _, s := range []string{"localhost:9000", "[::1]:1", "[", "a.localhost", "[]]:", "localhost]", "::", "%31", "a.localhost:1:2"} {
		f.Add(s)
	}
	s := &Server{opts: Options{AllowedHosts: []string{"localhost", "[::1]", "*.localhost"}}}
	f.Fuzz(func(t *testing.T, host string) {
		if !s.hostAllowed(host) {
			return
		}
		name := host
		if h, _, err := net.SplitHostPort(host); err == nil {
			name = h
		}
		name = strings.ToLower(strings.Trim(name, "[]"))
		if name != "localhost" && name != "::1" && !(strings.HasSuffix(name, ".localhost") && len(name) > len(".localhost")) {
			t.Errorf("%q is allowed", host)
		}
	})
}

func TestPortNamesItsFunction(t *testing.T) {
	key := function.Key{Environment: function.Environment{Project: "shop", Name: "default"}, Function: "f"}
	w := start(t, KindPort, func() *function.Key { return &key })
	w.do("POST", gateway.InvokePrefix+"function"+gateway.InvokeSuffix, "{}")
	if got := w.echo.target(); got.Function == nil || *got.Function != key || got.Ref.Name != "function" {
		t.Errorf("target %+v", got)
	}
}

func TestInstanceSeesItsEnvironmentOnly(t *testing.T) {
	e := &echo{}
	g := gateway.New(gateway.Options{Resolver: e, Region: "eu-west-1", Log: start(t, KindControl, nil).server.opts.Log})
	env := function.Environment{Project: "shop", Name: "staging"}
	var bound invocation.Binding = fakeBinding(4)
	h := InstanceHandler(g, env, func() invocation.Caller { return invocation.Caller{Binding: bound, RequestID: "caller"} })
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("POST", invokePath, strings.NewReader("{}")))
	if got := e.target(); rec.Code != http.StatusConflict || *got.Environment != env || got.Caller != bound || got.Parent != "caller" {
		t.Errorf("%d, target %+v", rec.Code, got)
	}
	for _, path := range []string{"/lfx/v1/version", "/lfx/v1/deploys", "/", "/2018-06-01/ping"} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		if rec.Code != http.StatusNotFound {
			t.Errorf("GET %s inside an instance: %d", path, rec.Code)
		}
	}
}

type fakeBinding int

func (b fakeBinding) ReleaseNumber() int { return int(b) }

// TestPanicCutsOneConnectionOnly: a handler's panic ends its request, and the next one is served.
func TestPanicCutsOneConnectionOnly(t *testing.T) {
	w := start(t, KindControl, nil)
	w.backend.function = func(string, function.Environment) (*api.FunctionDetail, error) { panic("a bug") }
	resp, err := w.client.Get("http://" + w.addr + api.PathFunctions + "/f")
	if err == nil {
		resp.Body.Close()
		t.Errorf("answered with %d", resp.StatusCode)
	}
	if got := w.do("GET", api.PathVersion, ""); got.status != http.StatusOK {
		t.Errorf("the next request: %d", got.status)
	}
	if log := w.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "a bug") {
		t.Errorf("the panic is not in the log:\n%s", log)
	}
}

func TestClosedListenerLeavesOthers(t *testing.T) {
	w := start(t, KindControl, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other, err := w.server.Serve(l, KindInvoke, nil)
	if err != nil {
		t.Fatal(err)
	}
	other.Retire(time.Second)
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the closed listener accepts")
	}
	if got := w.do("GET", api.PathVersion, ""); got.status != http.StatusOK {
		t.Errorf("the other listener: %d", got.status)
	}
}

func TestRetireFreesTheAddressAndFinishesWhatRuns(t *testing.T) {
	w := start(t, KindControl, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	w.backend.function = func(string, function.Environment) (*api.FunctionDetail, error) {
		close(entered)
		<-leave
		return &api.FunctionDetail{}, nil
	}
	got := make(chan int, 1)
	go func() { // ends with the answer
		resp, err := w.client.Get("http://" + w.addr + api.PathFunctions + "/f")
		if err != nil {
			got <- 0
			return
		}
		resp.Body.Close()
		got <- resp.StatusCode
	}()
	<-entered
	w.served.Retire(time.Minute)
	l, err := net.Listen("tcp", w.addr)
	if err != nil {
		t.Fatalf("the address is not free: %v", err)
	}
	l.Close()
	close(leave)
	if status := <-got; status != http.StatusOK {
		t.Errorf("the request in progress: %d", status)
	}
}

func TestShutdownFinishesWhatRuns(t *testing.T) {
	w := start(t, KindControl, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	w.backend.function = func(string, function.Environment) (*api.FunctionDetail, error) {
		close(entered)
		<-leave
		return &api.FunctionDetail{}, nil
	}
	got := make(chan int, 1)
	go func() { // ends with the answer
		resp, err := w.client.Get("http://" + w.addr + api.PathFunctions + "/f")
		if err != nil {
			got <- 0
			return
		}
		resp.Body.Close()
		got <- resp.StatusCode
	}()
	<-entered
	done := make(chan struct{})
	go func() { defer close(done); w.server.Shutdown(context.Background()) }() // ends when the request has
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("it still listens")
		}
	}
	close(leave)
	if status := <-got; status != http.StatusOK {
		t.Errorf("the request in progress: %d", status)
	}
	<-done
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.server.Serve(l, KindControl, nil); err == nil {
		t.Error("a server that was shut down serves again")
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("its listener is open")
	}
}

// TestWaitGivesUp on a handler that does not mind that its connection is gone.
func TestWaitGivesUp(t *testing.T) {
	w := start(t, KindControl, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	w.backend.function = func(string, function.Environment) (*api.FunctionDetail, error) {
		close(entered)
		<-leave
		return &api.FunctionDetail{}, nil
	}
	go func() { // ends when the connection is cut
		if resp, err := w.client.Get("http://" + w.addr + api.PathFunctions + "/f"); err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	over, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	w.server.Shutdown(over)
	if err := w.server.Wait(over); !errors.Is(err, errTest) {
		t.Errorf("got %v", err)
	}
	close(leave)
	if err := w.server.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestShutdownCutsWhatDoesNotEnd within the given time.
func TestShutdownCutsWhatDoesNotEnd(t *testing.T) {
	w := start(t, KindControl, nil)
	entered := make(chan struct{})
	w.backend.logs = func(ctx context.Context, _ LogQuery, _ func(api.LogEntry) error) error {
		close(entered)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	go func() { // ends when the connection is cut
		if resp, err := w.client.Get("http://" + w.addr + api.PathLogs); err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	w.server.Shutdown(ctx)
}
