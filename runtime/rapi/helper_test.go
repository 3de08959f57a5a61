package rapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain fails the package when a goroutine of ours outlives the tests.
func TestMain(m *testing.M) {
	if os.Getenv("LFX_TEST_RUNTIME") != "" {
		goRuntime()
		return
	}
	code := m.Run()
	if code == 0 {
		if left := leaked(); left != "" {
			fmt.Fprintln(os.Stderr, "goroutines left behind:\n"+left)
			code = 1
		}
	}
	os.Exit(code)
}

// leaked returns the stacks of this package's goroutines, after a while to let them end.
func leaked() string {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	var left []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		left = left[:0]
		for _, g := range strings.Split(string(buf), "\n\n") {
			if strings.Contains(g, "lfxd/runtime/rapi.") && !strings.Contains(g, "TestMain") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return ""
		}
	}
	return strings.Join(left, "\n\n")
}

// harness is a server on loopback that ends with its test.
type harness struct {
	*Server
	t    testing.TB
	addr string
}

func start(t testing.TB, opts Options) *harness {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts.Listener = l
	h := &harness{Server: New(opts), t: t, addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Serve(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		wg.Wait()
	})
	return h
}

// peer is a runtime that speaks raw bytes on one connection.
type peer struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

func (h *harness) dial() *peer {
	h.t.Helper()
	nc, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &peer{h.t, nc, bufio.NewReader(nc)}
}

func (p *peer) send(raw string) {
	p.t.Helper()
	if _, err := io.WriteString(p.nc, raw); err != nil {
		p.t.Errorf("send: %v", err)
	}
}

// answer is one response as the runtime saw it.
type answer struct {
	status int
	header http.Header
	body   string
}

func (p *peer) recv() answer {
	p.t.Helper()
	resp, err := http.ReadResponse(p.br, nil)
	if err != nil {
		p.t.Errorf("read response: %v", err)
		return answer{}
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Errorf("read response body: %v", err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func (p *peer) do(raw string) answer {
	p.t.Helper()
	p.send(raw)
	return p.recv()
}

const rawNext = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n\r\n"

func rawPost(path, body string, headers ...string) string {
	return "POST /2018-06-01/runtime/" + path + " HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n" + lines(headers) +
		fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

func lines(headers []string) (s string) {
	for _, h := range headers {
		s += h + "\r\n"
	}
	return s
}

func rawResponse(id, body string, headers ...string) string {
	return rawPost("invocation/"+id+"/response", body, headers...)
}

func rawError(id, body string, headers ...string) string {
	return rawPost("invocation/"+id+"/error", body, headers...)
}

// call is an Invoke that runs beside the test.
type call struct {
	done chan struct{}
	res  *Result
	err  error
}

func (h *harness) invoke(ctx context.Context, inv *Invocation) *call {
	c := &call{done: make(chan struct{})}
	go func() { // ends with Invoke; wait or the harness's Close see to that
		defer close(c.done)
		c.res, c.err = h.Invoke(ctx, inv)
	}()
	return c
}

func (h *harness) wait(c *call) (*Result, error) {
	h.t.Helper()
	select {
	case <-c.done:
	case <-time.After(10 * time.Second):
		h.t.Fatal("Invoke does not return")
	}
	return c.res, c.err
}

// until polls a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within ten seconds", what)
		}
	}
}

func (h *harness) waitIdle() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 10*time.Second)
	defer cancel()
	if err := h.WaitIdle(ctx); err != nil {
		h.t.Fatalf("WaitIdle: %v", err)
	}
}

func (h *harness) stateIs(want state) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state == want
}

func event(id string) *Invocation {
	return &Invocation{RequestID: id, Deadline: time.UnixMilli(1700000000123), Payload: []byte(`{"id":"` + id + `"}`)}
}
