package rapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

// goRuntime is what the test binary does when it is run as a Lambda function (see TestMain).
func goRuntime() {
	lambda.Start(func(ctx context.Context, in struct{ Name string }) (any, error) {
		lc, _ := lambdacontext.FromContext(ctx)
		switch in.Name {
		case "error":
			return nil, errors.New("boom")
		case "stream":
			return io.MultiReader(strings.NewReader("half"), failing{}), nil
		}
		return "hello " + in.Name + " " + lc.AwsRequestID, nil
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("stream broke") }

// run starts a real runtime client against the server; it is killed at the end of the test.
func (h *harness) run(name string, args ...string) {
	h.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "AWS_LAMBDA_RUNTIME_API="+h.addr, "LFX_TEST_RUNTIME=1")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	select {
	case <-h.Ready():
	case <-time.After(20 * time.Second):
		h.t.Fatal("the runtime does not ask for an event")
	}
}

// ask runs one invocation and returns its body and error type.
func (h *harness) ask(id, payload string) (body, errorType string) {
	h.t.Helper()
	res, err := h.wait(h.invoke(h.t.Context(), &Invocation{RequestID: id, Payload: []byte(payload), Deadline: time.Now().Add(time.Minute)}))
	if err != nil {
		h.t.Fatalf("Invoke: %v", err)
	}
	return string(res.Body), res.ErrorType
}

func TestGoClient(t *testing.T) {
	h := start(t, Options{})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h.run(exe)
	for i := range 20 {
		id := fmt.Sprintf("id-%d", i)
		if got, _ := h.ask(id, `{"name":"x"}`); got != `"hello x `+id+`"` {
			t.Errorf("got %s", got)
		}
	}
	body, errorType := h.ask("e", `{"name":"error"}`)
	if !strings.Contains(body, `"errorMessage":"boom"`) || errorType != "Runtime.Unknown" {
		t.Errorf("error: %s, %s", body, errorType)
	}
	body, errorType = h.ask("s", `{"name":"stream"}`)
	var doc struct{ ErrorMessage string }
	if err := json.Unmarshal([]byte(body), &doc); err != nil || doc.ErrorMessage != "stream broke" || errorType == "" {
		t.Errorf("trailers: %s, %s", body, errorType)
	}
	h.waitIdle()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.httpConns != 0 {
		t.Errorf("%d connections of the Go client fell back to net/http", h.httpConns)
	}
}

const pythonRuntime = `
import http.client, os
c = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
while True:
    c.request("GET", "/2018-06-01/runtime/invocation/next", headers={"User-Agent": "aws-lambda-python/3"})
    r = c.getresponse(); body = r.read(); rid = r.headers["Lambda-Runtime-Aws-Request-Id"]
    c.request("POST", "/2018-06-01/runtime/invocation/%s/response" % rid, body=b"py " + body, headers={"Content-Type": "application/json"})
    r = c.getresponse(); assert r.status == 202; r.read()
`

func TestPythonClient(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3")
	}
	h := start(t, Options{})
	h.run("python3", "-c", pythonRuntime)
	for i := range 5 {
		if got, _ := h.ask(fmt.Sprint("id", i), `{"n":1}`); got != `py {"n":1}` {
			t.Errorf("got %s", got)
		}
	}
	h.waitIdle()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.httpConns != 0 {
		t.Error("Python's client fell back to net/http")
	}
}

// TestParallelCycles runs 32 instances at once, each re-invoked from its OnIdle news, while Current is read.
func TestParallelCycles(t *testing.T) {
	var wg sync.WaitGroup
	for n := range 32 {
		idle := make(chan struct{}, 1)
		h := start(t, Options{OnIdle: func() { idle <- struct{}{} }})
		p, q := h.dial(), h.dial()
		wg.Go(func() {
			for i := range 30 {
				p.send(rawNext)
				got := p.recv()
				id := got.header.Get("Lambda-Runtime-Aws-Request-Id")
				if i%2 == 0 { // the answer on another connection
					q.do(rawResponse(id, got.body))
				} else {
					p.do(rawResponse(id, got.body))
				}
			}
			p.send(rawNext)
		})
		wg.Go(func() {
			for i := range 30 {
				inv := event(fmt.Sprintf("%d-%d", n, i))
				inv.Value = i
				res, err := h.Invoke(t.Context(), inv)
				if err != nil || string(res.Body) != string(inv.Payload) {
					t.Errorf("Invoke = %v, %v", res, err)
					return
				}
				h.Current()
				res.Release()
				<-idle
			}
		})
	}
	wg.Wait()
}

// closedListener accepts nothing.
type closedListener struct{}

func (closedListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (closedListener) Close() error              { return nil }
func (closedListener) Addr() net.Addr            { return &net.TCPAddr{} }

// piped is a server with one connection that lives in a synctest bubble.
func piped(t *testing.T) (*Server, net.Conn) {
	s := New(Options{Listener: closedListener{}})
	server, client := net.Pipe()
	if !s.admit(server) {
		t.Fatal("not admitted")
	}
	return s, client
}

func TestTimeouts(t *testing.T) {
	const post = "POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\n"
	for _, tc := range []struct {
		name, raw string
		want      time.Duration
	}{
		{"slow head", "GET /2018-06", headTimeout},
		{"slow init error", post + "Content-Length: 9\r\n\r\nab", bodyTimeout},
		{"slow refused body", strings.Replace(post, "init/error", "invocation/x/response", 1) + "Content-Length: 9\r\n\r\nab", bodyTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, client := piped(t)
				begin := time.Now()
				if _, err := io.WriteString(client, tc.raw); err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, client)
				if got := time.Since(begin).Truncate(time.Second); got != tc.want {
					t.Errorf("cut after %v, want %v", got, tc.want)
				}
				_ = s.Close()
			})
		})
	}
}

func TestNoTimeoutWhileParkedOrIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := piped(t)
		defer s.Close()
		defer client.Close()
		time.Sleep(24 * time.Hour) // idle
		if _, err := io.WriteString(client, rawNext); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour) // parked
		if !s.Idle() {
			t.Fatal("not idle")
		}
		got := make(chan *Result)
		go func() { // ends with the answer
			res, err := s.Invoke(t.Context(), event("a"))
			if err != nil {
				t.Error(err)
			}
			got <- res
		}()
		buf := make([]byte, 4096)
		if _, err := client.Read(buf); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(client, rawResponse("a", "late but fine")) }()
		if res := <-got; string(res.Body) != "late but fine" {
			t.Errorf("got %q", res.Body)
		}
	})
}
