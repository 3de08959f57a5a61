package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// serve runs a daemon's stand-in on a Unix socket and returns a client of it.
func serve(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	socket := filepath.Join(shortDir(t), "s.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}}
	server.Start()
	t.Cleanup(server.Close)
	c := newClient(t, "unix://"+socket)
	return c
}

func newClient(t *testing.T, addr string) *Client {
	t.Helper()
	c, err := New(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// shortDir is a temporary directory whose path leaves room for a socket's 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lfx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestNewReadsTheHost(t *testing.T) {
	tests := []struct {
		addr, host, base string
		err              string
	}{
		{addr: "", host: "/run/lfxd/lfxd.sock", base: "http://lfx"},
		{addr: "unix:///tmp/x.sock", host: "/tmp/x.sock", base: "http://lfx"},
		{addr: "/tmp/x.sock", host: "/tmp/x.sock", base: "http://lfx"},
		{addr: "http://localhost:9000", host: "http://localhost:9000", base: "http://localhost:9000"},
		{addr: "http://localhost:9000/", host: "http://localhost:9000", base: "http://localhost:9000"},
		{addr: "https://[::1]:9443", host: "https://[::1]:9443", base: "https://[::1]:9443"},
		{addr: "unix://tmp/x.sock", err: "three slashes"},
		{addr: "unix:x.sock", err: "three slashes"},
		{addr: "localhost:9000", err: "unknown scheme"},
		{addr: "http://", err: "a scheme, a name and a port only"},
		{addr: "http://user:pw@host", err: "a scheme, a name and a port only"},
		{addr: "http://host/path", err: "a scheme, a name and a port only"},
		{addr: "ssh://host", err: "ssh -L"},
		{addr: "http://\x7f", err: "is not a URL"},
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			c, err := New(tt.addr)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Host(); got != tt.host {
				t.Errorf("got host %q, want %q", got, tt.host)
			}
			if got := c.host.base.String(); got != tt.base {
				t.Errorf("got base %q, want %q", got, tt.base)
			}
		})
	}
}

func TestADaemonThatDoesNotRunIsNamedWithTheRemedy(t *testing.T) {
	dir := shortDir(t)
	absent := filepath.Join(dir, "absent.sock")
	dead := filepath.Join(dir, "dead.sock")
	listener, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	listener.Close()
	for _, socket := range []string{absent, dead} {
		c := newClient(t, socket)
		want := "lfxd is not answering on " + socket + ": start it with `systemctl start lfxd` or `make quickstart`"
		calls := map[string]func() error{
			"Version": func() error { _, err := c.Version(t.Context()); return err },
			"Invoke":  func() error { _, err := c.Invoke(t.Context(), InvokeRequest{Name: "x"}); return err },
			"Deploy":  func() error { _, err := c.Deploy(t.Context(), api.DeployRequest{}, nil); return err },
			"Logs":    func() error { return c.Logs(t.Context(), LogQuery{}, nil) },
		}
		for name, call := range calls {
			err := call()
			if err == nil || err.Error() != want {
				t.Errorf("%s: got %v, want %s", name, err, want)
			}
			if !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("%s: %v is not unavailable", name, err)
			}
		}
	}
}

func TestConnectErrorText(t *testing.T) {
	denied := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}
	tests := []struct {
		err   ConnectError
		want  string
		class error
	}{
		{ConnectError{"/s", true, denied}, "/s: you are not in group lfxd: run `sudo usermod -aG lfxd $USER` and log in again, or use sudo", errdefs.ErrPermissionDenied},
		{ConnectError{"/s", true, fs.ErrNotExist}, "lfxd is not answering on /s: start it with `systemctl start lfxd` or `make quickstart`", errdefs.ErrUnavailable},
		{ConnectError{"/s", true, errors.New("too many files")}, "lfxd is not answering on /s (too many files): start it with `systemctl start lfxd` or `make quickstart`", errdefs.ErrUnavailable},
		{ConnectError{"http://h", false, errors.New("no route")}, "lfxd is not answering on http://h (no route): check LFX_HOST, and `systemctl status lfxd` on that host", errdefs.ErrUnavailable},
	}
	for _, tt := range tests {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
		if !errors.Is(&tt.err, tt.class) {
			t.Errorf("%v is not %v", &tt.err, tt.class)
		}
	}
}

func TestControlCallsUsePathsAndQueries(t *testing.T) {
	var got []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.RequestURI())
		if strings.HasPrefix(r.URL.Path, api.PathFunctions+"/") || r.URL.Path == api.PathVersion || r.URL.Path == api.PathDoctor {
			io.WriteString(w, "{}")
			return
		}
		io.WriteString(w, "[]")
	})
	ctx := t.Context()
	env := function.Environment{Project: "shop", Name: "staging"}
	key := function.Key{Environment: env, Function: "a b/c"}
	for _, call := range []func() error{
		func() error { _, err := c.Version(ctx); return err },
		func() error { _, err := c.Functions(ctx, function.Environment{}); return err },
		func() error { _, err := c.Functions(ctx, env); return err },
		func() error { _, err := c.Function(ctx, key); return err },
		func() error { _, err := c.RemoveFunction(ctx, key); return err },
		func() error { _, err := c.Releases(ctx, env); return err },
		func() error { _, err := c.Instances(ctx); return err },
		func() error { _, err := c.Doctor(ctx); return err },
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"GET /lfx/v1/version",
		"GET /lfx/v1/functions",
		"GET /lfx/v1/functions?environment=staging&project=shop",
		"GET /lfx/v1/functions/a%20b%2Fc?environment=staging&project=shop",
		"DELETE /lfx/v1/functions/a%20b%2Fc?environment=staging&project=shop",
		"GET /lfx/v1/releases?environment=staging&project=shop",
		"GET /lfx/v1/instances",
		"GET /lfx/v1/doctor",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestFailedControlCallsAreAPIErrors(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		want   api.Error
	}{
		{"ours", 409, `{"code":"conflict","message":"two","details":["a","b"]}`, api.Error{Code: "conflict", Message: "two", Details: []string{"a", "b"}}},
		{"AWS", 403, `{"Message":"not here"}`, api.Error{Code: "forbidden", Message: "not here"}},
		{"AWS lower case", 404, `{"message":"none"}`, api.Error{Code: "not_found", Message: "none"}},
		{"text", 500, "boom\n", api.Error{Code: "internal", Message: "the daemon answered 500 Internal Server Error: boom"}},
		{"HTML", 503, "<html>", api.Error{Code: "unavailable", Message: "the daemon answered 503 Service Unavailable"}},
		{"nothing", 400, "", api.Error{Code: "invalid", Message: "the daemon answered 400 Bad Request"}},
		{"redirect", 302, "", api.Error{Code: "internal", Message: "the daemon answered 302 Found"}},
		{"other JSON", 405, `["x"]`, api.Error{Code: "not_found", Message: `the daemon answered 405 Method Not Allowed: ["x"]`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.body)
			})
			_, err := c.Instances(t.Context())
			got, ok := errors.AsType[*api.Error](err)
			if !ok {
				t.Fatalf("got %v, want an *api.Error", err)
			}
			if diff := cmp.Diff(tt.want, *got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAControlCallOverTCPSaysWhereToGo(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `{"Message":"no"}`)
	}))
	t.Cleanup(server.Close)
	_, err := newClient(t, server.URL).Instances(t.Context())
	if err == nil || !strings.Contains(err.Error(), "unset LFX_HOST") {
		t.Errorf("got %v, want a hint at LFX_HOST", err)
	}
}

func TestACallThatEndsWithItsContextReturnsTheCause(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
	})
	t.Cleanup(func() { close(release) })
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-entered
		cancel(cause)
	}()
	if _, err := c.Invoke(ctx, InvokeRequest{Name: "x"}); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
}

func TestAnAnswerThatIsCutIsUnavailable(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "[")
		panic(http.ErrAbortHandler)
	})
	if _, err := c.Instances(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
	if _, err := c.Invoke(t.Context(), InvokeRequest{Name: "x"}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
}

func TestInvoke(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		want := "POST /2015-03-31/functions/123456789012:function:hello/invocations?Qualifier=r3 Tail RequestResponse {}"
		got := fmt.Sprint(r.Method, " ", r.URL.RequestURI(), " ", r.Header.Get("X-Amz-Log-Type"), " ", r.Header.Get("X-Amz-Invocation-Type"), " ", string(body))
		if got != want {
			t.Errorf("got request %s, want %s", got, want)
		}
		w.Header().Set("X-Amz-Function-Error", "Unhandled")
		w.Header().Set("X-Amz-Executed-Version", "2")
		w.Header().Set("X-Lfx-Release", "3")
		w.Header().Set("X-Amz-Log-Result", "aGk=")
		w.Header().Set("x-amzn-RequestId", "id")
		io.WriteString(w, `{"errorMessage":"x"}`)
	})
	got, err := c.Invoke(t.Context(), InvokeRequest{
		Name: "123456789012:function:hello", Qualifier: "r3", Payload: []byte("{}"), LogTail: true, Type: RequestResponse,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &InvokeResult{
		Status: 200, Payload: []byte(`{"errorMessage":"x"}`), FunctionError: "Unhandled",
		ExecutedVersion: "2", Release: "3", LogTail: []byte("hi"), RequestID: "id",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

func TestInvokeErrors(t *testing.T) {
	tests := []struct {
		status int
		header http.Header
		body   string
		want   InvokeError
		class  error
	}{
		{
			404, http.Header{"X-Amzn-Errortype": {"ResourceNotFoundException"}, "X-Amzn-Requestid": {"id"}},
			`{"Type":"User","Message":"Function not found: x"}`,
			InvokeError{Status: 404, Type: "ResourceNotFoundException", Message: "Function not found: x", RequestID: "id"}, errdefs.ErrNotFound,
		},
		{
			429, http.Header{"X-Amzn-Errortype": {"TooManyRequestsException:http://x"}, "Retry-After": {"2"}},
			`{"Type":"User","message":"Rate Exceeded.","Reason":"ConcurrentInvocationLimitExceeded"}`,
			InvokeError{Status: 429, Type: "TooManyRequestsException", Message: "Rate Exceeded.", Reason: "ConcurrentInvocationLimitExceeded", RetryAfter: 2 * time.Second}, errdefs.ErrResourceExhausted,
		},
		{400, nil, `{"__type":"InvalidRequestContentException","message":"no"}`, InvokeError{Status: 400, Type: "InvalidRequestContentException", Message: "no"}, errdefs.ErrInvalidArgument},
		{403, nil, `{}`, InvokeError{Status: 403, Message: "the daemon answered 403 Forbidden: {}"}, errdefs.ErrPermissionDenied},
		{409, nil, `{"message":"m"}`, InvokeError{Status: 409, Message: "m"}, errdefs.ErrConflict},
		{502, nil, `{"message":"m"}`, InvokeError{Status: 502, Message: "m"}, errdefs.ErrUnavailable},
		{500, nil, `{"Message":"m"}`, InvokeError{Status: 500, Message: "m"}, errdefs.ErrInternal},
	}
	for _, tt := range tests {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			for k, v := range tt.header {
				w.Header()[k] = v
			}
			w.WriteHeader(tt.status)
			io.WriteString(w, tt.body)
		})
		_, err := c.Invoke(t.Context(), InvokeRequest{Name: "x"})
		got, ok := errors.AsType[*InvokeError](err)
		if !ok {
			t.Fatalf("got %v, want an *InvokeError", err)
		}
		if diff := cmp.Diff(tt.want, *got); diff != "" {
			t.Errorf("error (-want +got):\n%s", diff)
		}
		if !errors.Is(err, tt.class) {
			t.Errorf("%v is not %v", err, tt.class)
		}
	}
}

// An invocation may have run when the connection dies: it must not be sent a second time.
func TestInvokeIsNeverSentTwice(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if calls.Add(1) == 1 {
			io.WriteString(w, "1") // leaves an idle connection behind
			return
		}
		conn, _, _ := w.(http.Hijacker).Hijack()
		conn.Close()
	})
	for range 2 {
		_, _ = c.Invoke(t.Context(), InvokeRequest{Name: "x", Payload: []byte("{}")})
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("got %d requests for 2 invocations", n)
	}
}

func TestLogs(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		want := "environment=default&function=hello&limit=5&project=shop&request_id=r-1&since=2026-01-02T03%3A04%3A05Z"
		if got := r.URL.RawQuery; got != want {
			t.Errorf("got query %s, want %s", got, want)
		}
		for _, m := range []string{"one", "two"} {
			json.NewEncoder(w).Encode(api.LogEntry{Message: m})
		}
	})
	var got []string
	query := LogQuery{Key: function.Key{Environment: function.Environment{Project: "shop", Name: "default"}, Function: "hello"}, Since: since, Limit: 5, RequestID: "r-1"}
	if err := c.Logs(t.Context(), query, func(e api.LogEntry) { got = append(got, e.Message) }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"one", "two"}, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestFollowedLogsEndWithTheContextOrAnError(t *testing.T) {
	stop := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("follow") != "1" {
			t.Errorf("got query %s, want follow=1", r.URL.RawQuery)
		}
		json.NewEncoder(w).Encode(api.LogEntry{Message: "x"})
		w.(http.Flusher).Flush()
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	})
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := c.Logs(ctx, LogQuery{Follow: true}, func(api.LogEntry) { cancel(cause) }); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
	close(stop)
	err := c.Logs(t.Context(), LogQuery{Follow: true}, func(api.LogEntry) {})
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "ended the log stream") {
		t.Errorf("got %v, want that the daemon ended the stream", err)
	}
}
