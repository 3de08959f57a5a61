package rapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// ErrNotDelivered is wrapped by Invoke's error when the event never reached the runtime: no handler
// code ran for it, so it may be given to another instance.
var ErrNotDelivered = errors.New("event was not handed out")

// ErrClosed is what Invoke returns after Close.
var ErrClosed = fmt.Errorf("the instance's Runtime API is closed: %w", errdefs.ErrUnavailable)

// failGrace is how long an answer that is being read may still arrive after the process died, and how
// long a broken answer waits for the news that the process died.
const failGrace = 250 * time.Millisecond

// Invocation is one event for the runtime. The caller owns it and must not change it, nor use it for a
// second event, until its end was reported; nothing of it is kept afterwards but RequestID and Value.
type Invocation struct {
	// RequestID is a UUID and unique among the instance's invocations.
	RequestID string
	// Deadline is wall-clock time, sent to the runtime as epoch milliseconds. Nothing here enforces
	// it: the caller does, with the context of Invoke or with Cancel.
	Deadline time.Time
	// FunctionARN, TraceID, ClientContext (decoded JSON), CognitoIdentity (JSON) and TenantID are
	// sent as headers when not empty; control characters in them become spaces.
	FunctionARN, TraceID, ClientContext, CognitoIdentity, TenantID string
	// ContentType defaults to application/json.
	ContentType string
	// Payload is the event; empty means {}.
	Payload []byte
	// Value is opaque; Current returns it while the runtime works on this invocation.
	Value any

	flight flight
}

// Completion is told how an invocation that Start began has ended.
type Completion interface {
	// Answered is called exactly once, with one of the two. It runs on the goroutine that learnt of the
	// end, with no lock held: the one that reads the runtime's connection, before the runtime
	// gets its 202, or the caller of Cancel, Fail or Close. It must not block.
	Answered(res *Result, err error)
}

// event returns the bytes that the runtime gets.
func (i *Invocation) event() []byte {
	if len(i.Payload) == 0 {
		return []byte(emptyEvent)
	}
	return i.Payload
}

func (i *Invocation) contentType() string {
	if i.ContentType == "" {
		return "application/json"
	}
	return i.ContentType
}

// Result is what the runtime answered. Body and the strings are valid until Release.
type Result struct {
	// Body is the payload for the client; for TooLarge, InvalidResponseMode and Truncated it is the
	// platform's error document.
	Body []byte
	// IsError says that the client has to see a function error (X-Amz-Function-Error: Unhandled).
	IsError bool
	// ErrorType is the normalised type of an error ("Runtime.Unknown" when the runtime gave none).
	ErrorType string
	// ContentType is what the runtime sent, application/octet-stream when it sent none.
	ContentType string
	// TooLarge: the answer was above MaxPayload. The instance goes on.
	TooLarge bool
	// InvalidResponseMode: the response-mode header was neither absent nor "streaming". The runtime is
	// stuck and the instance must be reset.
	InvalidResponseMode bool
	// Truncated: the answer's body ended early although the process lives. The instance goes on.
	Truncated bool
	// Streamed: the runtime chose the streaming response mode; the body was collected.
	Streamed bool
	// Delivered is when the event was handed out, Answered when the answer was complete.
	Delivered, Answered time.Time

	release func()
}

// maxPooledBody is the largest body buffer that Release keeps, in bytes.
const maxPooledBody = 256 << 10

var results = sync.Pool{New: func() any { return new(Result) }}

func newResult() *Result {
	r := results.Get().(*Result)
	if r.release == nil {
		r.release = r.Release
	}
	return r
}

// Free is Release as a function, which costs no allocation.
func (r *Result) Free() func() { return r.release }

// Release gives the result and its Body back. Neither may be used afterwards. Not calling it costs only
// the reuse.
func (r *Result) Release() {
	body := r.Body[:0]
	if cap(body) > maxPooledBody {
		body = nil
	}
	*r = Result{Body: body, release: r.release}
	results.Put(r)
}

// Start hands the event to the runtime's parked next, or leaves it to the one that comes, and returns. done
// learns when the runtime has posted its response or error, which may be before Start returns. One
// invocation at a time, or Options.Concurrency: a further one, or one of a request ID that is in progress, is refused
// with errdefs.ErrFailedPrecondition. With an error nothing
// was begun, it wraps ErrNotDelivered when the instance has ended, and done is not called.
//
// An event that does not fit into the socket's buffer is written as the runtime reads it.
func (s *Server) Start(inv *Invocation, done Completion) error {
	if s.many != nil {
		return s.startOneOfMany(inv, done)
	}
	s.mu.Lock()
	if err := s.admitLocked(); err != nil {
		s.mu.Unlock()
		return err
	}
	inv.flight = flight{inv: inv, done: done}
	s.flight = &inv.flight
	w := s.parked
	if w == (waiter{}) {
		s.mu.Unlock()
		return nil
	}
	s.handOutLocked()
	if w.http != nil {
		w.http <- s.cloneEventLocked()
		s.mu.Unlock()
		return nil
	}
	w.conn.wmu.Lock() // free: a parked connection's goroutine does not write
	kick := w.conn.pipelined
	s.mu.Unlock()
	if s.deliver(inv, w.conn, kick) == nil { // else the next that follows gets it
		s.spin(w.conn)
	}
	return nil
}

// Invoke is Start and the wait for its end. It returns when the runtime has posted its response or error;
// it does not wait for the runtime to ask for more (see WaitIdle).
//
// When ctx ends first, Invoke returns its cause, as Cancel says.
//
// After Fail the error is the one given to Fail, after init/error a *RuntimeError; both wrap
// ErrNotDelivered when that is so.
func (s *Server) Invoke(ctx context.Context, inv *Invocation) (*Result, error) {
	a := awaits.Get().(*await)
	defer awaits.Put(a)
	stop := context.AfterFunc(ctx, func() { s.Cancel(inv, context.Cause(ctx)) })
	if err := s.Start(inv, a); err != nil {
		stop()
		return nil, err
	}
	if ctx.Err() != nil { // AfterFunc may have come before Start
		s.Cancel(inv, context.Cause(ctx))
	}
	e := <-a.end
	stop()
	return e.res, e.err
}

// await is the Completion of an Invoke.
type await struct {
	end chan ending // capacity 1
}

// ending is what a Completion is told.
type ending struct {
	res *Result
	err error
}

var awaits = sync.Pool{New: func() any { return &await{make(chan ending, 1)} }}

// Answered implements Completion.
func (a *await) Answered(res *Result, err error) {
	a.end <- ending{res, err}
	// The invoker is next on this processor: its client's answer leaves before our 202, 10 µs earlier.
	runtime.Gosched()
}

// flight is a begun invocation. Server.flight points to it from admission until its outcome is known; who
// clears that calls done.
type flight struct {
	inv  *Invocation
	done Completion
	// writing is the connection that the event is being written to, while that takes long. Guarded by
	// Server.mu.
	writing *conn
	// out says that the event was handed out.
	out bool
}

// admitLocked says why no invocation can begin, or nil.
func (s *Server) admitLocked() error {
	switch {
	case s.initError != nil:
		return fmt.Errorf("%w: %w", ErrNotDelivered, s.initError)
	case s.failure != nil:
		return fmt.Errorf("%w: %w", ErrNotDelivered, s.failure)
	case s.flight != nil:
		return fmt.Errorf("the instance has an invocation already: %w", errdefs.ErrFailedPrecondition)
	case s.state == stateAbandoned || s.stuck:
		return fmt.Errorf("the instance must be reset before it gets another event: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// handOutLocked makes the pending invocation the current one: Ready to Running.
func (s *Server) handOutLocked() {
	s.parked = waiter{}
	s.state = stateRunning
	s.requestID, s.value = s.flight.inv.RequestID, s.flight.inv.Value
	s.delivered = time.Now()
	s.flight.out = true
	inFlight.Add(1)
}

// cloneEventLocked is the current event in memory of its own, because its writer may outlive Invoke.
func (s *Server) cloneEventLocked() *Invocation { return cloneEvent(s.flight.inv) }

func cloneEvent(inv *Invocation) *Invocation {
	clone := *inv
	clone.flight = flight{}
	clone.Value = nil
	clone.Payload = bytes.Clone(clone.Payload)
	return &clone
}

// joinLimit is up to which size in bytes the payload is copied behind the head instead of being
// written with writev.
const joinLimit = 4 << 10

// deliver writes the event to a parked connection, whose wmu is held, and releases it. When the write
// fails the connection is closed and the event stays current. The invocation may end meanwhile: a runtime can
// answer before it has read the event.
func (s *Server) deliver(inv *Invocation, c *conn, kick bool) error {
	defer c.wmu.Unlock()
	head, payload := appendEvent(c.out[:0], inv), inv.event()
	if len(payload) <= joinLimit {
		head, payload = append(head, payload...), nil
	}
	c.out = keep(head)
	n, err := c.nb.Try(head, payload)
	if err == nil && n < len(head)+len(payload) {
		err = s.writeRest(inv, c, head, payload, n)
	}
	if err == nil && kick {
		err = c.nc.SetReadDeadline(longAgo)
	}
	if err != nil {
		_ = c.nc.Close()
	}
	return err
}

// keepOut is the largest buffer for event heads that a connection keeps, in bytes.
const keepOut = joinLimit + 4<<10

// keep returns b to be used again, or nil when it has grown too large to be kept.
func keep(b []byte) []byte {
	if cap(b) > keepOut {
		return nil
	}
	return b
}

// writeRest writes what the first attempt left over after n bytes, until the invocation ends. wmu is held.
func (s *Server) writeRest(inv *Invocation, c *conn, head, payload []byte, n int) error {
	bufs := make(net.Buffers, 0, 2)
	if n < len(head) {
		bufs = append(bufs, head[n:])
	}
	if rest := payload[max(n-len(head), 0):]; len(rest) > 0 {
		bufs = append(bufs, rest)
	}
	s.mu.Lock()
	if !s.fliesLocked(inv) {
		s.mu.Unlock()
		return errEnded
	}
	inv.flight.writing = c
	s.mu.Unlock()
	_, err := bufs.WriteTo(c.nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	inv.flight.writing = nil
	if !s.fliesLocked(inv) && err == nil {
		err = errEnded // the deadline may be set by now
	}
	return err
}

// fliesLocked says whether the end of inv is open.
func (s *Server) fliesLocked(inv *Invocation) bool {
	if s.many != nil {
		return s.many.flies(inv)
	}
	return s.flight == &inv.flight
}

// errEnded says that nobody wants the event any more: its connection is closed.
var errEnded = errors.New("the invocation has ended")

// endLocked takes the flight out of the server. The caller reports the end after it has released mu.
func (s *Server) endLocked() *flight {
	f := s.flight
	s.flight = nil
	if f.out {
		inFlight.Add(-1)
	}
	if f.writing != nil {
		_ = f.writing.nc.SetWriteDeadline(longAgo)
	}
	return f
}

// Cancel ends an invocation without an answer, unless it has ended or its answer comes in just now. If the
// event was handed out, the runtime is abandoned: a late answer is refused with 400, and no event will be
// handed out again. Otherwise the error wraps ErrNotDelivered and the server is as before. With Options.Concurrency
// above 1 a late answer is refused with 410, and the other invocations go on.
func (s *Server) Cancel(inv *Invocation, cause error) {
	if s.many != nil {
		s.cancelOneOfMany(inv, cause)
		return
	}
	s.mu.Lock()
	if s.flight == nil || s.flight != &inv.flight {
		s.mu.Unlock()
		return
	}
	f, err := s.giveUpLocked(cause)
	s.mu.Unlock()
	f.done.Answered(nil, err)
}

// giveUpLocked ends the current invocation without an answer; the caller reports it.
func (s *Server) giveUpLocked(cause error) (*flight, error) {
	f := s.endLocked()
	if !s.state.may(stateAbandoned) {
		return f, fmt.Errorf("%w: %w", ErrNotDelivered, cause)
	}
	s.state = stateAbandoned
	s.requestID, s.value = "", nil
	if s.reader != nil {
		s.reader.expire(0)
	}
	return f, cause
}

// Fail says that the instance's process has exited. A running invocation ends with err, unless a complete
// answer was posted before; every later one is refused with err at once. Only the first call counts.
// It does not block.
func (s *Server) Fail(err error) {
	s.mu.Lock()
	if s.failure == nil {
		s.failure = err
	}
	ended := s.breakLocked()
	s.mu.Unlock()
	for _, e := range ended {
		e.done.Answered(nil, e.err)
	}
}

// report is the end of an invocation that is to be told.
type report struct {
	done Completion
	err  error
}

// breakLocked says that no answer can come any more: after Fail, Close or init/error. It returns the
// invocations that end so, for the caller to report. A report that is just being read wins if it is
// complete: the process wrote it before it died; finish tells.
func (s *Server) breakLocked() []report {
	select {
	case <-s.broken:
	default:
		close(s.broken)
	}
	switch {
	case s.many != nil:
		return s.breakManyLocked()
	case s.flight == nil:
		return nil
	case s.reader != nil:
		s.reader.expire(failGrace)
		return nil
	}
	f, err := s.giveUpLocked(s.brokenCauseLocked())
	return []report{{f.done, err}}
}

// brokenCauseLocked is why no answer can come; init/error comes before the exit that follows it.
func (s *Server) brokenCauseLocked() error {
	if s.initError != nil {
		return s.initError
	}
	return s.failure
}
