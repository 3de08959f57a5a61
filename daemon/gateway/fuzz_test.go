package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/invocation"
)

// pipeListener hands one end of a pipe to a server, once.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{} }

// byteConn is a connection whose client has sent all it will.
type byteConn struct {
	net.Conn
	in  *bytes.Reader
	mu  sync.Mutex
	out bytes.Buffer
	end chan struct{}
	one sync.Once
}

func (c *byteConn) Read(b []byte) (int, error) { return c.in.Read(b) }
func (c *byteConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(b)
}
func (c *byteConn) Close() error                     { c.one.Do(func() { close(c.end) }); return nil }
func (c *byteConn) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (c *byteConn) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (c *byteConn) SetDeadline(time.Time) error      { return nil }
func (c *byteConn) SetReadDeadline(time.Time) error  { return nil }
func (c *byteConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzInvokeRequest sends raw bytes to the gateway behind net/http. Whatever they are, it does not
// panic, closes every route, hands on only requests that keep the promises of invocation.Request, and
// answers with nothing but what the model has.
func FuzzInvokeRequest(f *testing.F) {
	const post = "POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost\r\n"
	for _, s := range []string{
		post + "Content-Length: 2\r\n\r\n{}",
		post + "Content-Length: 0\r\n\r\n" + post + "Content-Length: 1\r\n\r\n1",
		post + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		post + "X-Amz-Client-Context: " + base64.StdEncoding.EncodeToString([]byte(" ")) + "\r\n\r\n",
		post + "X-Amz-Client-Context: " + base64.StdEncoding.EncodeToString([]byte(`{"a":"ä"}`)) + "\r\n\r\n",
		post + "X-Amz-Invocation-Type: DryRun\r\n\r\n",
		post + "X-Amz-Invocation-Type: \"\xff\r\nContent-Length: 3\r\n\r\n{a}",
		post + "X-Amz-Log-Type: Tail\r\nX-Amzn-Trace-Id: Root=1-2;Parent=3\r\nX-Amz-Tenant-Id: t\r\nContent-Length: 5\r\n\r\n\"a\n\"",
		post + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
		"POST /2015-03-31/functions/arn:aws:lambda:eu-west-1:123456789012:function:f:$LATEST/invocations?Qualifier=%24LATEST HTTP/1.1\r\nHost: [::1]:9\r\n\r\n",
		"POST /2015-03-31/functions/%2e%2E%2f/invocations?Qualifier=1&Qualifier=2;%zz HTTP/1.0\r\n\r\n",
		"GET http://a.b.localhost/2015-03-31/functions/f/invocations HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fk := &fake{invoke: func(_ context.Context, req *invocation.Request) (*invocation.Outcome, error) {
			checkRequest(t, req)
			return &invocation.Outcome{Payload: req.Payload, LogTail: []byte("x")}, nil
		}}
		g := newGateway(fk)
		var panicked strings.Builder
		h := &http.Server{
			MaxHeaderBytes: 16 << 10,
			ErrorLog:       slog.NewLogLogger(slog.NewTextHandler(&panicked, nil), slog.LevelError),
			Handler:        http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.ServeInvoke(w, r, Scope{}) }),
		}
		l := &pipeListener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
		c := &byteConn{in: bytes.NewReader(data), end: make(chan struct{})}
		l.conns <- c
		served := make(chan struct{})
		go func() { defer close(served); h.Serve(l) }() // ends with Close
		<-c.end
		h.Close()
		<-served
		if strings.Contains(panicked.String(), "panic") {
			t.Fatalf("panic: %s", panicked.String())
		}
		if n := fk.open.Load(); n != 0 {
			t.Fatalf("%d routes were not closed", n)
		}
		checkAnswers(t, c.out.Bytes())
	})
}

// checkRequest holds what an instance is given against the contract.
func checkRequest(t *testing.T, req *invocation.Request) {
	if !uuidPattern.MatchString(req.ID) || len(req.Payload) == 0 || len(req.Payload) > invocation.MaxRequestBytes {
		t.Errorf("request %+v", req)
	}
	for name, v := range map[string]string{"trace": req.TraceID, "arn": req.FunctionARN, "context": req.ClientContext, "tenant": req.TenantID} {
		if strings.ContainsAny(v, "\r\n\x00") {
			t.Errorf("%s has a control character: %q", name, v)
		}
	}
}

// checkAnswers parses what the server wrote: each answer is a success, a modelled error, or net/http's
// own refusal of what is no HTTP.
func checkAnswers(t *testing.T, out []byte) {
	br := bufio.NewReader(bytes.NewReader(out))
	for {
		if _, err := br.Peek(1); err != nil {
			return
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("unreadable answer: %v: %q", err, out)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("unreadable body: %v: %q", err, out)
		}
		a := answer{resp.StatusCode, resp.Header, string(body)}
		switch {
		case a.header.Get("X-Amzn-Requestid") == "": // net/http's
			options := a.status == http.StatusOK && a.body == "" // of OPTIONS *
			if !options && a.status != http.StatusContinue && (a.status < 400 || a.status > 505) {
				t.Fatalf("an answer without a request id: %+v", a)
			}
		case a.status == 200, a.status == 204:
		default:
			checkEnvelope(t, a)
		}
		if resp.Request == nil && resp.StatusCode >= 400 && resp.Close {
			return
		}
	}
}
