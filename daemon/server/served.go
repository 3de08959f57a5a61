package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
)

// Served is one listener that is being served. The codec (conn) answers plain Invoke requests; a
// connection on which anything else comes goes to net/http, with the bytes already read, and stays there.
type Served struct {
	server   *Server
	listener net.Listener
	fn       func() *function.Key
	// checked says that Host and Origin are; codec that the kind may invoke at all.
	checked, codec bool
	http           *http.Server
	handoff        *handoff
	slots          chan struct{} // one for each connection
	closing        atomic.Bool
	closed         time.Time      // when closing was set, before which it may not be read
	stop           func()         // see close; the second caller waits for the first one
	stopped        chan struct{}  // closed with the listener
	accepted       chan struct{}  // closed when nothing is taken from the backlog any more
	group          sync.WaitGroup // counts the connections, but for hijacked ones
	// forget ends the watch of the base context.
	forget func() bool

	mu    sync.Mutex
	conns map[*conn]struct{}
}

func newServed(s *Server, l net.Listener, kind Kind, fn func() *function.Key) *Served {
	v := &Served{
		server: s, listener: l, fn: fn, checked: checksHost(kind), codec: grants[kind][AccessInvoke],
		http: &http.Server{
			ReadHeaderTimeout: readHeaderTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			ErrorLog:          slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug),
			BaseContext:       func(net.Listener) context.Context { return s.opts.BaseContext },
		},
		handoff:  &handoff{conns: make(chan net.Conn), done: make(chan struct{}), addr: l.Addr()},
		slots:    make(chan struct{}, maxConnections),
		stopped:  make(chan struct{}),
		accepted: make(chan struct{}),
		conns:    map[*conn]struct{}{},
	}
	v.http.Handler = s.handler(kind, fn, &v.closing)
	v.stop = sync.OnceFunc(v.close)
	v.http.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed || state == http.StateHijacked {
			v.group.Done() // see serveConn
		}
	}
	v.forget = context.AfterFunc(s.opts.BaseContext, v.hurry)
	return v
}

// hurry tells the connections that the base context has ended: their requests leave the queues.
func (v *Served) hurry() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for c := range v.conns {
		c.hurry()
	}
}

// scope says where the listener's requests come from.
func (v *Served) scope() (scope gateway.Scope) {
	if v.fn != nil {
		scope.Function = v.fn()
	}
	return scope
}

// accept takes connections until the listener is closed. Where there are too many, the others wait in the
// backlog. One that was taken is served, also when the listener closes meanwhile: its client may have sent a
// request, which would be lost.
func (v *Served) accept() {
	defer close(v.accepted)
	for {
		select {
		case v.slots <- struct{}{}:
		case <-v.stopped:
			return
		}
		nc, err := v.acceptOne()
		if err != nil {
			if !v.closing.Load() {
				v.server.opts.Log.Error("listener failed", "address", v.listener.Addr().String(), "error", err)
			}
			return
		}
		v.admit(nc)
	}
}

// acceptOne waits for a connection and survives a shortage of descriptors.
func (v *Served) acceptOne() (net.Conn, error) {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		nc, err := v.listener.Accept()
		var temporary interface{ Temporary() bool }
		if err == nil || !errors.As(err, &temporary) || !temporary.Temporary() {
			return nc, err
		}
		v.server.opts.Log.Warn("cannot accept connections", "address", v.listener.Addr().String(), "error", err)
		select {
		case <-time.After(wait):
		case <-v.stopped:
			return nil, err
		}
	}
}

// admit starts a connection's goroutine.
func (v *Served) admit(nc net.Conn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := newConn(v, nc)
	v.conns[c] = struct{}{}
	v.group.Go(func() { v.serveConn(c) }) // ends with the connection, or when net/http has it
}

// serveConn runs one connection up to its end, or up to the first request that the codec does not take.
func (v *Served) serveConn(c *conn) {
	err := errFallback
	if v.codec {
		err = c.serve()
	}
	v.mu.Lock()
	delete(v.conns, c) // nobody wakes it any more
	v.mu.Unlock()
	rc := &resumed{Conn: c.nc, prefix: c.buf[c.r:c.w], slots: v.slots}
	if err == errFallback && c.nc.SetReadDeadline(time.Time{}) == nil { //nolint:errorlint // our own value
		v.group.Add(1)
		if v.handoff.take(rc) {
			return
		}
		v.group.Done()
	}
	if c.left > 0 {
		linger(c.nc)
	}
	rc.Close() //nolint:errcheck // it has ended
}

// linger gives a client that still sends the time to read its answer, as net/http does: a close with unread
// bytes is a reset, which can overtake the answer.
func linger(nc net.Conn) {
	w, ok := nc.(interface{ CloseWrite() error })
	if !ok || w.CloseWrite() != nil || nc.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	io.CopyN(io.Discard, nc, 1<<20) //nolint:errcheck // it is closed either way
}

// lingerTime is net/http's.
const lingerTime = 500 * time.Millisecond

// serveHTTP serves what the codec hands over.
func (v *Served) serveHTTP() {
	if err := v.http.Serve(v.handoff); !errors.Is(err, http.ErrServerClosed) {
		v.server.opts.Log.Error("listener failed", "address", v.listener.Addr().String(), "error", err)
	}
}

// Retire closes the listener before it returns, so that its address can be bound again at once. The
// requests that run on it finish in the background, within the timeout; Shutdown and Wait wait for that
// too.
func (v *Served) Retire(timeout time.Duration) {
	v.stop()
	s := v.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return // Shutdown has taken over
	}
	s.group.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		v.finish(ctx)
		s.mu.Lock()
		delete(s.served, v)
		s.mu.Unlock()
	})
}

// close closes the listener, and lets the connections end that have no request within closingGrace: see conn.ready,
// and finish for those of net/http. Call stop.
func (v *Served) close() {
	v.closed = time.Now()
	v.closing.Store(true)
	close(v.stopped)
	v.listener.Close() //nolint:errcheck // closed already
	<-v.accepted
	v.mu.Lock()
	for c := range v.conns {
		c.retire()
	}
	v.mu.Unlock()
}

// finish lets requests end until ctx does, and then cuts the connections. net/http's own Shutdown would wait for it
// too, but drops requests that it reads meanwhile.
func (v *Served) finish(ctx context.Context) {
	ended := make(chan struct{})
	v.server.group.Go(func() { defer close(ended); v.group.Wait() })
	grace := time.NewTimer(closingGrace)
	defer grace.Stop()
	for idle := false; !idle; {
		select {
		case <-ended:
			idle = true
		case <-grace.C:
			v.http.SetKeepAlivesEnabled(false) // closes the idle ones, others after their request
		case <-ctx.Done():
			v.cut()
			idle = true
		}
	}
	v.http.Close()    //nolint:errcheck // nothing is left to do
	v.handoff.Close() //nolint:errcheck // never fails; net/http may not have known it yet
	v.forget()
}

// cut closes the codec's connections.
func (v *Served) cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for c := range v.conns {
		c.nc.Close() //nolint:errcheck // its goroutine ends when its request does
	}
}

// handoff is the listener of net/http: it hands out the connections that the codec gave up.
type handoff struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

// take gives a connection to net/http; false when that has stopped.
func (h *handoff) take(nc net.Conn) bool {
	select {
	case h.conns <- nc:
		return true
	case <-h.done:
		return false
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case nc := <-h.conns:
		return nc, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error   { h.once.Do(func() { close(h.done) }); return nil }
func (h *handoff) Addr() net.Addr { return h.addr }

// resumed is a connection that first returns the bytes the codec has read already, and that gives its
// place back when it is closed.
type resumed struct {
	net.Conn
	prefix []byte
	slots  chan struct{}
	once   sync.Once
}

// Read implements net.Conn.
func (r *resumed) Read(p []byte) (int, error) {
	if len(r.prefix) > 0 {
		n := copy(p, r.prefix)
		if r.prefix = r.prefix[n:]; len(r.prefix) == 0 {
			r.prefix = nil
		}
		return n, nil
	}
	return r.Conn.Read(p)
}

// Close implements net.Conn.
func (r *resumed) Close() error {
	err := r.Conn.Close()
	r.once.Do(func() { <-r.slots })
	return err
}
