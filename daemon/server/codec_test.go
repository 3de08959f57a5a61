package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
)

// script is a resolver whose routes do what its fields say.
type script struct {
	// begin takes the event; nil leaves it to invoke.
	begin func(req *invocation.Request, done invocation.Completion)
	// invoke runs on a goroutine of its own until it returns; Leave ends its context. nil answers with the
	// event.
	invoke func(ctx context.Context, req *invocation.Request) (*invocation.Outcome, error)
}

func (s *script) Resolve(_ context.Context, t gateway.Target) (invocation.Route, error) {
	v := &function.Version{Key: function.Key{Function: t.Ref.Name}, Number: 7}
	v.Config.Timeout = time.Minute
	r := &scripted{s: s, v: v}
	r.ctx, r.leave = context.WithCancelCause(context.Background())
	return r, nil
}

type scripted struct {
	s     *script
	v     *function.Version
	ctx   context.Context
	leave context.CancelCauseFunc
}

func (r *scripted) Version() *function.Version { return r.v }
func (r *scripted) ReleaseNumber() int         { return 3 }
func (r *scripted) Close()                     {}

func (r *scripted) Invoke(ctx context.Context, req *invocation.Request) (*invocation.Outcome, error) {
	if r.s.invoke == nil {
		return &invocation.Outcome{Payload: req.Payload}, nil
	}
	return r.s.invoke(ctx, req)
}

func (r *scripted) Begin(req *invocation.Request, done invocation.Completion) {
	if r.s.begin != nil {
		r.s.begin(req, done)
		return
	}
	go func() { done.Complete(r.Invoke(r.ctx, req)) }() // the connection waits for it
}

func (r *scripted) Leave(_ *invocation.Request, cause error) { r.leave(cause) }

// scene is a server on a listener of kind KindTCP whose functions follow a script.
type scene struct {
	t      testing.TB
	server *Server
	served *Served
	addr   string
	log    *syncBuffer
	stop   context.CancelCauseFunc // of the base context
}

func perform(t testing.TB, s *script, l net.Listener) *scene {
	t.Helper()
	sc := &scene{t: t, log: &syncBuffer{}}
	log := slog.New(slog.NewTextHandler(sc.log, nil))
	base, stop := context.WithCancelCause(context.Background())
	sc.stop = stop
	sc.server = New(Options{
		Gateway:     gateway.New(gateway.Options{Resolver: s, Region: "eu-west-1", Overhead: time.Minute, Log: log}),
		BaseContext: base, Backend: &fakeBackend{}, AllowedHosts: []string{"localhost"}, Log: log,
	})
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	sc.addr = l.Addr().String()
	var err error
	if sc.served, err = sc.server.Serve(l, KindTCP, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		sc.server.Shutdown(ctx)
		if err := sc.server.Wait(ctx); err != nil {
			t.Error(err)
		}
		stop(nil)
	})
	return sc
}

// client speaks raw bytes on one connection.
type client struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

func (sc *scene) dial() *client {
	sc.t.Helper()
	nc, err := net.Dial("tcp", sc.addr)
	if err != nil {
		sc.t.Fatal(err)
	}
	sc.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{sc.t, nc, bufio.NewReader(nc)}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, text); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) recv() answer {
	c.t.Helper()
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b), err}
}

// closed waits until the server closes the connection.
func (c *client) closed() {
	c.t.Helper()
	if b, err := io.ReadAll(c.br); err != nil || len(b) > 0 {
		c.t.Errorf("read %q, %v; want the end", b, err)
	}
}

func invokeText(event string, headers ...string) string {
	head := ""
	for _, h := range headers {
		head += h + "\r\n"
	}
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n%s", invokePath, head, len(event), event)
}

// chunkedText is invokeText in the form that is net/http's.
func chunkedText(event string, headers ...string) string {
	text := invokeText(event, append(headers, "Transfer-Encoding: chunked")...)
	return strings.Replace(text, fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(event), event), fmt.Sprintf("\r\n%x\r\n%s\r\n0\r\n\r\n", len(event), event), 1)
}

// later is a script whose events are answered by somebody else: they come out of the channel.
type later struct {
	script
	events chan event
}

type event struct {
	payload string
	done    invocation.Completion
}

func (e event) answer(payload string) {
	e.done.Complete(&invocation.Outcome{Payload: []byte(payload)}, nil)
}

func newLater() *later {
	l := &later{events: make(chan event, 100)}
	l.begin = func(req *invocation.Request, done invocation.Completion) {
		l.events <- event{string(req.Payload), done}
	}
	return l
}

// next returns the next event.
func (l *later) next(t testing.TB) event {
	t.Helper()
	select {
	case e := <-l.events:
		return e
	case <-time.After(20 * time.Second):
		t.Fatal("no event within twenty seconds")
		panic("unreachable")
	}
}

func TestAnswerComesFromAnotherGoroutine(t *testing.T) {
	l := newLater()
	c := perform(t, &l.script, nil).dial()
	for i := range 3 {
		c.send(invokeText(fmt.Sprint(i)))
		e := l.next(t)
		freed := make(chan struct{})
		e.done.Complete(&invocation.Outcome{Payload: []byte(`"` + e.payload + `"`), Free: func() { close(freed) }}, nil)
		if got := c.recv(); got.status != 200 || got.body != fmt.Sprintf(`"%d"`, i) {
			t.Errorf("got %+v", got)
		}
		<-freed
	}
}

// TestPipelinedRequestsAreAnsweredInOrder: the next one is not begun before the one before is answered.
func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	l := newLater()
	c := perform(t, &l.script, nil).dial()
	const n = 20
	var all string
	for i := range n {
		all += invokeText(fmt.Sprintf(`"event %d"`, i))
	}
	c.send(all)
	for i := range n {
		e := l.next(t)
		if len(l.events) != 0 {
			t.Error("two requests of one connection run at a time")
		}
		if want := fmt.Sprintf(`"event %d"`, i); e.payload != want {
			t.Errorf("event %s, want %s", e.payload, want)
		}
		go e.answer(e.payload) // ends at once
		if got := c.recv(); got.body != e.payload {
			t.Errorf("got %+v, want %s", got, e.payload)
		}
	}
}

// TestEventStaysAsItIs while the client sends its next requests.
func TestEventStaysAsItIs(t *testing.T) {
	l := &later{events: make(chan event, 1)}
	var req *invocation.Request
	l.begin = func(r *invocation.Request, done invocation.Completion) {
		req = r
		l.events <- event{string(r.Payload), done}
	}
	c := perform(t, &l.script, nil).dial()
	c.send(invokeText(`"` + strings.Repeat("a", 500) + `"`))
	e := l.next(t)
	c.send(invokeText(`"` + strings.Repeat("b", 5000) + `"`))
	for deadline := time.Now().Add(200 * time.Millisecond); time.Now().Before(deadline); {
		if string(req.Payload) != e.payload {
			t.Fatal("the event has changed")
		}
	}
	e.answer("1")
	c.recv()
	e = l.next(t)
	if want := `"` + strings.Repeat("b", 5000) + `"`; e.payload != want {
		t.Errorf("the second event has %d bytes, want %d", len(e.payload), len(want))
	}
	e.answer("2")
	c.recv()
}

// TestHalfClosedClientGetsItsAnswer.
func TestHalfClosedClientGetsItsAnswer(t *testing.T) {
	l := newLater()
	c := perform(t, &l.script, nil).dial()
	c.send(invokeText("1"))
	e := l.next(t)
	if err := c.nc.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	e.answer(`"late"`)
	if got := c.recv(); got.body != `"late"` {
		t.Errorf("got %+v", got)
	}
	c.closed()
}

// TestClientThatLeavesTheQueue takes its request out of it.
func TestClientThatLeavesTheQueue(t *testing.T) {
	waiting, left := make(chan struct{}), make(chan error, 1)
	s := &script{invoke: func(ctx context.Context, _ *invocation.Request) (*invocation.Outcome, error) {
		close(waiting)
		<-ctx.Done()
		left <- context.Cause(ctx)
		return nil, context.Cause(ctx)
	}}
	c := perform(t, s, nil).dial()
	c.send(invokeText("1"))
	<-waiting
	c.nc.Close()
	select {
	case err := <-left:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cause: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the wait did not end")
	}
}

// TestClientThatDoesNotRead must not hold up whoever has the answer.
func TestClientThatDoesNotRead(t *testing.T) {
	l := newLater()
	c := perform(t, &l.script, nil).dial()
	large := `"` + strings.Repeat("x", 6<<20) + `"`
	c.send(invokeText("1"))
	e := l.next(t)
	freed := make(chan struct{})
	begun := time.Now()
	e.done.Complete(&invocation.Outcome{Payload: []byte(large), Free: func() { close(freed) }}, nil)
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the answer took %s", took)
	}
	select {
	case <-freed:
		t.Error("the answer was given back before it was written")
	default:
	}
	c.send(invokeText("2")) // the next one waits behind
	if got := c.recv(); got.body != large {
		t.Errorf("got %d bytes", len(got.body))
	}
	<-freed
	l.next(t).answer("2")
	if got := c.recv(); got.body != "2" {
		t.Errorf("got %+v", got)
	}
}

func TestClientThatNeverReadsLosesItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, pl := newLater(), listenOnce()
		sc := perform(t, &l.script, pl)
		ours, theirs := net.Pipe()
		defer ours.Close()
		pl.conns <- theirs
		io.WriteString(ours, invokeText("1"))
		begun := time.Now()
		l.next(t).answer("1")
		freed := make(chan struct{})
		go func() { sc.server.Shutdown(context.Background()); close(freed) }() // ends with the connection
		<-freed
		if took := time.Since(begun); took != 10*time.Second {
			t.Errorf("the connection was kept for %s, want 10 s", took)
		}
	})
}

// TestTimesOfAConnection: no head in time, silence between requests, and the same after a request.
func TestTimesOfAConnection(t *testing.T) {
	for name, tt := range map[string]struct {
		send []string // with pauses of pause between
		want time.Duration
	}{
		"nothing":               {nil, readHeaderTimeout},
		"half a head":           {[]string{"POST /"}, readHeaderTimeout},
		"a head drop by drop":   {[]string{"P", "O", "S", "T", " "}, readHeaderTimeout},
		"silence":               {[]string{invokeText("1")}, idleTimeout},
		"two requests":          {[]string{invokeText("1"), invokeText("1"), invokeText("1")}, 2*pause + idleTimeout},
		"half a second request": {[]string{invokeText("1"), "POST"}, pause + readHeaderTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pl := listenOnce()
				perform(t, &script{}, pl)
				ours, theirs := net.Pipe()
				defer ours.Close()
				begun := time.Now()
				pl.conns <- theirs
				end := make(chan time.Duration, 1)
				go func() { io.Copy(io.Discard, ours); end <- time.Since(begun) }() // ends with the connection
				for i, text := range tt.send {
					if i > 0 {
						time.Sleep(pause)
					}
					if _, err := io.WriteString(ours, text); err != nil {
						break
					}
				}
				if took := <-end; took != tt.want {
					t.Errorf("the connection was kept for %s, want %s", took, tt.want)
				}
			})
		})
	}
}

const pause = 2 * time.Second

// TestStopWaitsForARequestOnItsWay: connections without a request are kept for a moment.
func TestStopWaitsForARequestOnItsWay(t *testing.T) {
	const before, after = 50 * time.Millisecond, 100 * time.Millisecond
	for name, tt := range map[string]struct {
		text func(event string, headers ...string) string
		idle time.Duration // before the stop
		send time.Duration // after it; 0 for nothing
		kept time.Duration // after it
	}{
		"no request":           {invokeText, before, 0, closingGrace},
		"a request":            {invokeText, before, after, after},
		"idle for a long time": {invokeText, 30 * time.Second, after, after},
		"net/http, no request": {chunkedText, before, 0, closingGrace},
		"net/http, a request":  {chunkedText, before, after, after},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pl := listenOnce()
				sc := perform(t, &script{}, pl)
				ours, theirs := net.Pipe()
				defer ours.Close()
				pl.conns <- theirs
				c := &client{t, ours, bufio.NewReader(ours)}
				c.send(tt.text("1"))
				c.recv()
				time.Sleep(tt.idle)
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() { sc.server.Shutdown(t.Context()) })
				stopped := time.Now()
				if tt.send > 0 {
					time.Sleep(tt.send)
					c.send(tt.text("2"))
					resp, err := http.ReadResponse(c.br, nil)
					if err != nil {
						t.Fatal(err)
					}
					if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "2" || !resp.Close {
						t.Errorf("got %q, %v; the client learns of the end: %t", b, err, resp.Close)
					}
				}
				c.closed()
				if kept := time.Since(stopped); kept != tt.kept {
					t.Errorf("the connection was kept for %s, want %s", kept, tt.kept)
				}
			})
		})
	}
}

// TestStopOfAConnectionThatIsWrittenTo: it is not kept for long afterwards either. The second request ends at the end
// of the buffer, so that nothing is read, and no deadline looked at, until its answer is written.
func TestStopOfAConnectionThatIsWrittenTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, pl := newLater(), listenOnce()
		sc := perform(t, &l.script, pl)
		ours, theirs := net.Pipe()
		defer ours.Close()
		pl.conns <- theirs
		c := &client{t, ours, bufio.NewReader(ours)}
		c.send(invokeText("1"))
		l.next(t).answer("1")
		c.recv()
		text := invokeText(strings.Repeat("1", connBuffer))
		text = invokeText(strings.Repeat("1", 2*connBuffer-len(text)))
		c.send(text)
		l.next(t).answer("2") // net.Pipe takes nothing before it is read: the connection's goroutine writes it
		synctest.Wait()
		sc.server.Stop()
		c.recv()
		stopped := time.Now()
		c.closed()
		if kept := time.Since(stopped); kept > closingGrace {
			t.Errorf("the connection was kept for %s, want %s", kept, closingGrace)
		}
	})
}

// TestLongInvocationOnASilentConnection is not ended by the idle time, which begins with its answer.
func TestLongInvocationOnASilentConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, pl := newLater(), listenOnce()
		perform(t, &l.script, pl)
		ours, theirs := net.Pipe()
		defer ours.Close()
		pl.conns <- theirs
		io.WriteString(ours, invokeText("1"))
		e := l.next(t)
		time.Sleep(14 * time.Minute)
		begun := time.Now()
		e.answer(`"done"`)
		br := bufio.NewReader(ours)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("got %v, %v", resp, err)
		}
		io.Copy(io.Discard, br)
		if took := time.Since(begun); took != idleTimeout {
			t.Errorf("the connection was kept for %s after the answer, want %s", took, idleTimeout)
		}
	})
}

func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pl := listenOnce()
		perform(t, &script{}, pl)
		ours, theirs := net.Pipe()
		defer ours.Close()
		pl.conns <- theirs
		br := bufio.NewReader(ours)
		event := `"slow"`
		head, _, _ := strings.Cut(invokeText(event), event)
		io.WriteString(ours, head)
		for _, b := range []byte(event) {
			time.Sleep(4 * time.Second)
			ours.Write([]byte{b})
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("slow, but fast enough: %v, %v", resp, err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != event {
			t.Errorf("got %q", b)
		}
		io.WriteString(ours, head) // and nothing follows
		if resp, err = http.ReadResponse(br, nil); err != nil || resp.StatusCode != http.StatusRequestTimeout || !resp.Close {
			t.Fatalf("too slow: %v, %v", resp, err)
		}
	})
}

func TestShutdownFinishesInvocations(t *testing.T) {
	l := newLater()
	sc := perform(t, &l.script, nil)
	idle, busy := sc.dial(), sc.dial()
	idle.send(invokeText("1"))
	l.next(t).answer("1")
	idle.recv()
	busy.send(invokeText("2"))
	e := l.next(t)
	done := make(chan struct{})
	go func() { defer close(done); sc.server.Shutdown(context.Background()) }() // ends with the request
	idle.closed()
	select {
	case <-done:
		t.Error("Shutdown did not wait for the request")
	default:
	}
	e.answer("2")
	if got := busy.recv(); got.body != "2" || got.header.Get("Connection") != "" && got.header.Get("Connection") != "close" {
		t.Errorf("got %+v", got)
	}
	busy.closed()
	<-done
}

func TestShutdownCutsInvocationsThatDoNotEnd(t *testing.T) {
	l := newLater()
	sc := perform(t, &l.script, nil)
	c := sc.dial()
	c.send(invokeText("1"))
	e := l.next(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	sc.server.Shutdown(ctx)
	c.closed()
	e.answer("1") // nobody is there; Wait, in the scene's end, returns
}

// TestRestartLosesNoConnection: as with a socket of systemd's, which outlives the server. What a server took from the
// backlog it answers, by its codec or by net/http; the rest waits for the next server.
func TestRestartLosesNoConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := &script{} // answers with the event
	addr := l.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	requests := []string{invokeText("1"), chunkedText("1")}
	for i := range 8 {
		clients.Go(func() { // ends with the test, or with the first request that gets no answer
			for ctx.Err() == nil {
				if err := askOnce(addr, requests[i%2]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 200 {
		sc := perform(t, s, l)
		if l, err = net.FileListener(f); err != nil {
			t.Fatal(err)
		}
		if err := askOnce(addr, requests[0]); err != nil { // it serves, and others' requests are under way
			t.Fatal(err)
		}
		sc.server.Shutdown(t.Context())
		if err := sc.server.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			break
		}
	}
	perform(t, s, l) // answers what still waits
}

// askOnce sends a request on a connection of its own and reads the answer.
func askOnce(addr, text string) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(nc, text); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	b, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || string(b) != "1") {
		err = fmt.Errorf("%q: %d %s", text, resp.StatusCode, b)
	}
	return err
}

// TestWaitersLearnOfTheEndOfTheDaemon: their clients may try again elsewhere.
func TestWaitersLearnOfTheEndOfTheDaemon(t *testing.T) {
	waiting := make(chan struct{})
	s := &script{invoke: func(ctx context.Context, _ *invocation.Request) (*invocation.Outcome, error) {
		close(waiting)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}
	sc := perform(t, s, nil)
	c := sc.dial()
	c.send(invokeText("1"))
	<-waiting
	sc.stop(errors.New("the daemon is shutting down"))
	if got := c.recv(); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "shutting down") {
		t.Errorf("got %+v", got)
	}
}

// TestEventThatArrivesAtTheEndOfTheDaemon is taken whole.
func TestEventThatArrivesAtTheEndOfTheDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pl := listenOnce()
		sc := perform(t, &script{}, pl)
		ours, theirs := net.Pipe()
		defer ours.Close()
		pl.conns <- theirs
		c := &client{t, ours, bufio.NewReader(ours)}
		text := invokeText("1234")
		c.send(text[:len(text)-2])
		synctest.Wait()
		sc.server.Stop()
		sc.stop(errors.New("the daemon is shutting down"))
		synctest.Wait()
		c.send(text[len(text)-2:])
		if got := c.recv(); got.status != http.StatusOK || got.body != "1234" {
			t.Errorf("got %+v", got)
		}
		c.closed()
	})
}

// TestPanicsEndTheirConnectionOnly, wherever they come up.
func TestPanicsEndTheirConnectionOnly(t *testing.T) {
	boom := func(req *invocation.Request) bool { return string(req.Payload) == `"boom"` }
	for name, s := range map[string]*script{
		"begin": {begin: func(req *invocation.Request, done invocation.Completion) {
			if boom(req) {
				panic("a bug")
			}
			done.Complete(&invocation.Outcome{Payload: req.Payload}, nil)
		}},
		"answer": {begin: func(req *invocation.Request, done invocation.Completion) {
			var wg sync.WaitGroup
			wg.Go(func() {
				out := &invocation.Outcome{Payload: req.Payload}
				if boom(req) {
					out.Free = func() { panic("a bug") }
				}
				done.Complete(out, nil)
			})
			wg.Wait()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			sc := perform(t, s, nil)
			c := sc.dial()
			c.send(invokeText(`"boom"`))
			io.Copy(io.Discard, c.br)
			c = sc.dial()
			c.send(invokeText("1"))
			if got := c.recv(); got.body != "1" {
				t.Errorf("got %+v", got)
			}
			if log := sc.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "a bug") {
				t.Errorf("the panic is not in the log: %s", log)
			}
		})
	}
}

// TestConnectionMovesToNetHTTP with what was read, and serves both APIs' refusals there.
func TestConnectionMovesToNetHTTP(t *testing.T) {
	sc := perform(t, &script{}, nil)
	c := sc.dial()
	c.send(invokeText("1") + "GET /lfx/v1/version HTTP/1.1\r\nHost: localhost\r\n\r\n" + invokeText("2", "Connection: close"))
	for i, want := range []int{200, http.StatusForbidden, 200} {
		if got := c.recv(); got.status != want {
			t.Errorf("answer %d: %+v", i, got)
		}
	}
	c.closed()
}
