package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
)

// recorder resolves every name, notes what it was asked and answers with the event. begin says whether
// that comes at once or from another goroutine.
type recorder struct {
	begin bool
	mu    sync.Mutex
	seen  []string
	open  int
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, fmt.Sprintf(format, args...))
}

func (r *recorder) Resolve(_ context.Context, t gateway.Target) (invocation.Route, error) {
	r.note("resolve %+v host %q", t.Ref, t.Host)
	if t.Ref.Name == "missing" {
		return nil, function.NotFound("eu-west-1", "1", t.Ref.Name, function.Latest)
	}
	r.mu.Lock()
	r.open++
	r.mu.Unlock()
	v := &function.Version{Key: function.Key{Function: strings.Clone(t.Ref.Name)}, Number: 7}
	v.Config.Timeout = time.Minute
	return &recorded{r, v}, nil
}

type recorded struct {
	r *recorder
	v *function.Version
}

func (r *recorded) Version() *function.Version { return r.v }
func (r *recorded) ReleaseNumber() int         { return 3 }
func (r *recorded) Close()                     { r.r.mu.Lock(); r.r.open--; r.r.mu.Unlock() }

func (r *recorded) Invoke(_ context.Context, req *invocation.Request) (*invocation.Outcome, error) {
	r.r.note("invoke %s payload %q context %q tenant %q tail %v trace %q", req.FunctionARN, req.Payload, req.ClientContext, req.TenantID, req.Tail, made.ReplaceAllString(req.TraceID, "made"))
	out := &invocation.Outcome{Payload: bytes.Clone(req.Payload), LogTail: []byte("tail")}
	if r.v.Function == "fails" {
		out.FunctionError = "Unhandled"
	}
	return out, nil
}

func (r *recorded) Begin(req *invocation.Request, done invocation.Completion) {
	out, err := r.Invoke(context.Background(), req)
	if r.r.begin {
		done.Complete(out, err)
		return
	}
	go done.Complete(out, err) // the connection waits for it
}

func (r *recorded) Leave(*invocation.Request, error) {}

// made matches what the gateway makes anew for each request.
var made = regexp.MustCompile(`(?i)root=1-[0-9a-f]{8}-[0-9a-f]{24}(;Parent=[0-9a-f]{16};Sampled=0)?`)

// fixedConn is a connection whose client has sent all it will.
type fixedConn struct {
	in   *bytes.Reader
	mu   sync.Mutex
	out  bytes.Buffer
	end  chan struct{}
	once sync.Once
}

func (c *fixedConn) Read(b []byte) (int, error) { return c.in.Read(b) }
func (c *fixedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(b)
}
func (c *fixedConn) Close() error                     { c.once.Do(func() { close(c.end) }); return nil }
func (c *fixedConn) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (c *fixedConn) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (c *fixedConn) SetDeadline(time.Time) error      { return nil }
func (c *fixedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *fixedConn) SetWriteDeadline(time.Time) error { return nil }

// fixedListener hands out one connection.
type fixedListener struct{ handoff }

func listenOnce() *fixedListener {
	return &fixedListener{handoff{conns: make(chan net.Conn, 1), done: make(chan struct{}), addr: &net.UnixAddr{}}}
}

// view is what one request came to, as its client saw it.
type view struct {
	status int
	header http.Header
	body   string
	end    bool // but for a body that was cut off, after which net/http closes without having said so
}

// heard parses what a server wrote; what differs from one request to the next is replaced.
func heard(t *testing.T, out []byte) (all []view) {
	br := bufio.NewReader(bytes.NewReader(out))
	for {
		if _, err := br.Peek(1); err != nil {
			return all
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("unreadable answer: %v: %q", err, out)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("unreadable body: %v: %q", err, out)
		}
		ids := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
		if id := resp.Header.Get("X-Amzn-Requestid"); ids.MatchString(id) {
			resp.Header.Set("X-Amzn-Requestid", "id")
		}
		if d := resp.Header.Get("Date"); d != "" {
			if _, err := http.ParseTime(d); err != nil {
				t.Errorf("Date: %v", err)
			}
			resp.Header.Set("Date", "now")
		}
		if tr := resp.Header.Get("X-Amzn-Trace-Id"); tr != "" {
			resp.Header.Set("X-Amzn-Trace-Id", made.ReplaceAllString(tr, "made"))
		}
		all = append(all, view{resp.StatusCode, resp.Header, string(body), resp.Close && resp.StatusCode != http.StatusRequestTimeout})
		if resp.StatusCode == http.StatusContinue {
			continue
		}
		if resp.Close {
			return all
		}
	}
}

// play sends data to a listener of kind KindTCP, with our codec before net/http or with net/http alone, and returns
// what the gateway was asked and what the client got.
func play(t *testing.T, data []byte, codec, begin bool) ([]string, []view) {
	r := &recorder{begin: begin}
	var text syncBuffer
	log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelError}))
	s := New(Options{
		Gateway: gateway.New(gateway.Options{Resolver: r, Region: "eu-west-1", Overhead: time.Minute, Log: log, Account: func(function.Environment) string { return "1" }}),
		Backend: &fakeBackend{}, BaseContext: t.Context(), AllowedHosts: []string{"localhost", "*.localhost"}, Log: log,
	})
	c := &fixedConn{in: bytes.NewReader(data), end: make(chan struct{})}
	l := listenOnce()
	l.conns <- c
	v := newServed(s, l, KindTCP, nil)
	var wg sync.WaitGroup
	if codec {
		wg.Go(v.accept)
		wg.Go(v.serveHTTP)
		<-c.end
		v.stop()
		v.finish(t.Context())
	} else {
		v.http.ConnState = nil // it counts what the codec hands over
		wg.Go(func() { v.http.Serve(l) })
		<-c.end
		v.http.Shutdown(t.Context())
		v.forget()
	}
	wg.Wait()
	s.Wait(t.Context())
	if r.open != 0 {
		t.Errorf("%d routes are open", r.open)
	}
	if strings.Contains(text.String(), "panic") {
		t.Errorf("log: %s", text.String())
	}
	return r.seen, heard(t, c.out.Bytes())
}

// FuzzCodec sends the same bytes to the codec and to net/http alone. The gateway must be asked the same, and
// the client must get the same, on every way through the codec.
func FuzzCodec(f *testing.F) {
	const post = "POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost\r\n"
	ok := post + "Content-Length: 2\r\n\r\n{}"
	for _, s := range []string{
		ok, ok + ok, ok + "\r\n" + ok + "\n\r\r\n\n" + ok, ok + "\r00 * HTTP/0.0\r\n\r\n", ok + ok[:len(ok)-3], post + "\r\n" + ok, ok + "GET /lfx/v1/version HTTP/1.1\r\nHost: localhost\r\n\r\n" + ok,
		post + "Content-Length: 3\r\n\r\n{a}", post + "Content-Length: 20\r\n\r\n{}", post + "content-length: 2\r\nCONTENT-LENGTH: 2\r\n\r\n{}",
		post + "Content-Length: +2\r\n\r\n{}", post + "Content-Length: 2 \r\n\r\n{}", post + "Content-Length: 99999999999999999999\r\n\r\n{}",
		post + "Content-Length: 6291457\r\n\r\n{}", post + "Content-Length: 2\nX: y\r\n\r\n{}", post + "Content-Length: 2\r\nX: a\r\n b\r\n\r\n{}",
		post + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", post + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		post + "Connection: close\r\nContent-Length: 2\r\n\r\n{}" + ok, post + "Connection: keep-alive, x\r\nContent-Length: 2\r\n\r\n{}",
		post + "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", post + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", post + "Host: localhost\r\n\r\n",
		post + "Origin: http://x\r\n\r\n", post + "Origin:\r\nOrigin: x\r\nContent-Length: 2\r\n\r\n{}", post + "X-Amz-Log-Type: Tail\r\nX-Amz-Log-Type: x\r\n\r\n",
		post + "X-Amz-Invocation-Type: DryRun\r\n\r\n" + ok, post + "X-Amz-Invocation-Type: Event\r\n\r\n", post + "X-Amz-Invocation-Type: \"\xff\r\n\r\n",
		post + "X-Amz-Client-Context: eyJhIjoxfQ==\r\nX-Amz-Tenant-Id: t\r\nX-Amzn-Trace-Id: Root=1-2;Parent=3\r\nContent-Length: 1\r\n\r\n1",
		post + "X-Amz-Client-Context: \t e30= \r\nX-Amzn-Trace-Id: a\x01b\r\n\r\n", post + "X : y\r\n\r\n", post + "X\xc3: y\r\n\r\n", post + ": y\r\n\r\n",
		strings.Replace(ok, "hello", "missing", 1), strings.Replace(ok, "hello", "fails", 1), strings.Replace(ok, "hello", "a%20b", 1), strings.Replace(ok, "hello", "a%2", 1),
		strings.Replace(ok, "hello", "arn%3Aaws:lambda:eu-west-1:123456789012:function:f:$LATEST", 1), strings.Replace(ok, "hello", "..", 1), strings.Replace(ok, "hello", "a/b", 1),
		strings.Replace(ok, "invocations ", "invocations?Qualifier=%24LATEST&x ", 1), strings.Replace(ok, "invocations ", "invocations?Qualifier=1;%zz ", 1), strings.Replace(ok, "invocations ", "invocations?#a ", 1),
		strings.Replace(ok, "localhost", "evil.example", 1), strings.Replace(ok, "localhost", "Staging.Shop.LocalHost:9000", 1), strings.Replace(ok, "localhost", "", 1), strings.Replace(ok, "Host: localhost\r\n", "", 1),
		strings.Replace(ok, "/2015", "http://localhost/2015", 1), strings.Replace(ok, "HTTP/1.1", "HTTP/1.0", 1), strings.Replace(ok, "POST", "GET", 1), strings.Replace(ok, "POST ", "POST  ", 1),
		strings.ReplaceAll(ok, "\r\n", "\n"), "\r\n" + ok, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", post + strings.Repeat("a: b\r\n", 70) + "\r\n",
		post + "A: " + strings.Repeat("x", 17<<10) + "\r\n\r\n", post + "A: " + strings.Repeat("x", 30<<10) + "\r\n\r\n" + ok, post + "Content-Length: 5000\r\n\r\n\"" + strings.Repeat("x", 4998) + "\"" + ok,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		wantAsked, want := play(t, data, false, false)
		for name, begin := range map[string]bool{"at once": true, "later": false} {
			asked, got := play(t, data, true, begin)
			if d := cmp.Diff(wantAsked, asked); d != "" {
				t.Errorf("%s: the gateway was asked (-net/http +codec):\n%s\n%q", name, d, data)
			}
			if d := cmp.Diff(want, got, cmp.AllowUnexported(view{})); d != "" {
				t.Errorf("%s: the client got (-net/http +codec):\n%s\n%q", name, d, data)
			}
		}
	})
}
