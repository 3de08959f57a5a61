package rapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Options say how a Server is made. Callbacks run on a connection's goroutine without any lock held;
// they must not block, nor call Invoke, WaitIdle or Close. OnIdle may call Start.
type Options struct {
	// Listener is where the instance reaches its Runtime API; the Server closes it.
	Listener net.Listener
	// Fallback serves every path that is not part of the Runtime, Extensions, Telemetry or Logs APIs;
	// nil answers 404. See Current for whose call it is.
	Fallback http.Handler
	// Log gets what an operator may want to know; nil discards it.
	Log *slog.Logger
	// MaxConns bounds the connections, 8 to 64, default 32. More wait in the listener's backlog.
	MaxConns int
	// Concurrency is how many invocations the instance runs at once; below 2 it is one.
	Concurrency int
	// OnReady is called once, when the runtime asked for its first next and before it gets an event.
	OnReady func()
	// OnIdle is called when the runtime is back in next after an answer and no event waits for it. That
	// can be before the Invoke that got the answer has returned; a new event is welcome all the same. With
	// Concurrency above 1 it is called for every next that is parked but the first of all.
	OnIdle func()
	// OnInitError is called once, when the runtime posted init/error and before it gets its 202.
	OnInitError func(*RuntimeError)
}

// RuntimeError is what the runtime posted to init/error.
type RuntimeError struct {
	// Type is the normalised error type.
	Type string
	// Body is the payload for the client, byte for byte; ContentType what the runtime called it.
	Body        []byte
	ContentType string
}

// Error names the type only: the body is the function's text and belongs to its caller.
func (e *RuntimeError) Error() string { return "the runtime reported an init error: " + e.Type }

// waiter is a parked next: one of a codec connection or of net/http.
type waiter struct {
	conn *conn
	// http takes the event (a clone) or nil when a newer next took the place; its capacity is 1.
	http chan *Invocation
}

// source is the body of a post, read by the codec or by net/http.
type source interface {
	Read(p []byte) (int, error)
	// length is the announced length in bytes, -1 when unknown.
	length() int64
	// trailers returns the error trailers after Read returned io.EOF.
	trailers() (errorType, errorBody string)
	// expire makes Read fail after d, from any goroutine.
	expire(d time.Duration)
}

// Server is the Runtime API of one instance. Create it with New, run Serve in a goroutine of the
// owner's, end it with Close.
type Server struct {
	opts  Options
	log   *slog.Logger
	ctx   context.Context
	stop  context.CancelCauseFunc
	slots chan struct{}
	// wg counts connections, including those of net/http, and the fallback server.
	wg sync.WaitGroup

	ready, initErrored, broken chan struct{}

	// took is how long the last answer took, in nanoseconds; 0 before the first.
	took atomic.Int64

	// mu guards what follows. It is taken before any conn.wmu and never held across I/O.
	mu    sync.Mutex
	state state
	// stuck says that an invalid response mode left the runtime in InvocationResponse for good.
	stuck  bool
	parked waiter
	// flight is the invocation whose outcome is open; its event is pending until state is Running.
	flight *flight
	// requestID and value belong to the invocation that was handed out last; cleared by the next next.
	requestID string
	value     any
	delivered time.Time
	// reader is the body that is being read for the current state.
	reader    source
	initError *RuntimeError
	failure   error
	idle      chan struct{}
	conns     map[net.Conn]connPhase
	http      *fallback
	httpConns int
	full      bool
	closed    bool
	// many is there when the instance runs several invocations at once; parked, flight, requestID, value, delivered
	// and the states behind Ready are not used then.
	many *many
}

// connPhase says who reads a connection.
type connPhase uint8

const (
	phaseCodec connPhase = iota
	phaseHTTP
	phaseHTTPIdle
)

// New returns a server that does not listen yet: call Serve.
func New(opts Options) *Server {
	if opts.MaxConns == 0 {
		opts.MaxConns = 32
	}
	opts.MaxConns = min(max(opts.MaxConns, 8), 64)
	if opts.Concurrency > 1 { // a next and an answer for each, and the calls that they make
		opts.MaxConns = max(opts.MaxConns, 3*opts.Concurrency+8)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		opts: opts, log: opts.Log,
		slots:       make(chan struct{}, opts.MaxConns),
		ready:       make(chan struct{}),
		initErrored: make(chan struct{}),
		broken:      make(chan struct{}),
		conns:       map[net.Conn]connPhase{},
	}
	if opts.Concurrency > 1 {
		s.many = newMany(opts.Concurrency)
	}
	s.ctx, s.stop = context.WithCancelCause(context.Background())
	return s
}

// Serve accepts connections until Close; it then returns nil.
func (s *Server) Serve() error {
	for {
		nc, err := s.accept()
		switch {
		case s.ctx.Err() != nil:
			if err == nil {
				_ = nc.Close()
			}
			return nil
		case err != nil:
			return fmt.Errorf("accept on the Runtime API: %w", err)
		case !s.admit(nc):
			return nil
		}
	}
}

// accept waits for a connection and survives a shortage of descriptors.
func (s *Server) accept() (net.Conn, error) {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		nc, err := s.opts.Listener.Accept()
		var temporary interface{ Temporary() bool }
		if err == nil || !errors.As(err, &temporary) || !temporary.Temporary() {
			return nc, err
		}
		s.log.Warn("cannot accept on the runtime api", "error", err)
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return nil, err
		}
	}
}

// admit starts the connection's goroutine, when there is room: an idle connection of net/http gives way,
// else it waits. It returns false when the server is closed.
func (s *Server) admit(nc net.Conn) bool {
	select {
	case s.slots <- struct{}{}:
	default:
		s.makeRoom(true)
		select {
		case s.slots <- struct{}{}:
			s.makeRoom(false)
		case <-s.ctx.Done():
			_ = nc.Close()
			return false
		}
	}
	if tc, ok := nc.(*net.TCPConn); ok {
		_ = tc.SetKeepAlive(false) // loopback: a peer cannot vanish silently
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		_ = nc.Close()
		return false
	}
	s.conns[nc] = phaseCodec
	s.wg.Add(1) // ended by drop
	s.mu.Unlock()
	go s.serveConn(nc)
	return true
}

// serveConn runs one connection; Close waits for it.
func (s *Server) serveConn(nc net.Conn) {
	c := newConn(s, nc)
	if err := c.serve(); err == errFallback && s.hand(c) {
		return
	}
	_ = nc.Close()
	s.drop(nc)
}

// drop forgets a connection that has ended.
func (s *Server) drop(nc net.Conn) {
	s.mu.Lock()
	if s.conns[nc] != phaseCodec {
		s.httpConns--
	}
	delete(s.conns, nc)
	s.mu.Unlock()
	<-s.slots
	s.wg.Done()
}

// Close ends everything: it fails a running Invoke with ErrClosed, closes the listener and all
// connections, and waits for their goroutines, the calls in Fallback included. Further calls wait too.
func (s *Server) Close() error {
	s.stop(ErrClosed)
	err := s.opts.Listener.Close()
	s.mu.Lock()
	s.closed = true
	for nc := range s.conns {
		_ = nc.Close()
	}
	http := s.http
	s.mu.Unlock()
	s.Fail(ErrClosed)
	if http != nil {
		_ = http.srv.Close()
	}
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Ready is closed when the runtime asked for its first next.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// InitErrored is closed when the runtime has posted init/error.
func (s *Server) InitErrored() <-chan struct{} { return s.initErrored }

// InitError returns what the runtime posted to init/error, nil when it did not.
func (s *Server) InitError() *RuntimeError {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.initError
}

// CurrentRequestID is the request ID of the invocation that the runtime works on: from the moment the
// event is handed out until the runtime is back in next; "" otherwise. With Concurrency above 1 it is that of the
// only invocation whose end is not known, "" when there are several.
func (s *Server) CurrentRequestID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.many != nil {
		if inv := s.many.only(); inv != nil {
			return inv.RequestID
		}
	}
	return s.requestID
}

// Current returns Invocation.Value of the invocation that the runtime works on, in the bounds of
// CurrentRequestID; ok is false outside of them.
func (s *Server) Current() (value any, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.many != nil {
		if inv := s.many.only(); inv != nil {
			return inv.Value, true
		}
	}
	return s.value, s.requestID != ""
}

// Idle reports whether the runtime is parked in next with no event on its way: the instance may take
// an invocation or be frozen. With Concurrency above 1 it may take one, and others may be in progress.
func (s *Server) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idleLocked()
}

func (s *Server) idleLocked() bool {
	if m := s.many; m != nil {
		return len(m.parked) > 0 && len(m.pending) == 0 && s.failure == nil
	}
	return s.parked != waiter{} && s.flight == nil && s.failure == nil
}

// WaitIdle returns when the runtime is idle, with the cause when ctx ends, and with the error given to
// Fail when the process died.
func (s *Server) WaitIdle(ctx context.Context) error {
	for {
		s.mu.Lock()
		if s.idleLocked() {
			s.mu.Unlock()
			return nil
		}
		if s.idle == nil {
			s.idle = make(chan struct{})
		}
		idle := s.idle
		s.mu.Unlock()
		select {
		case <-idle:
		case <-s.broken:
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.brokenCauseLocked()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
