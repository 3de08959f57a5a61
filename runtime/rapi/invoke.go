package rapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
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

// Invocation is one event for the runtime. The caller owns it and must not change it until Invoke
// returns; nothing of it is kept afterwards but RequestID and Value.
type Invocation struct {
	// RequestID is a UUID and unique among the instance's invocations.
	RequestID string
	// Deadline is wall-clock time, sent to the runtime as epoch milliseconds. Invoke does not enforce
	// it: its context does.
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
}

// maxPooledBody is the largest body buffer that Release keeps, in bytes.
const maxPooledBody = 256 << 10

var results = sync.Pool{New: func() any { return new(Result) }}

func newResult() *Result { return results.Get().(*Result) }

// Release gives the result and its Body back. Neither may be used afterwards. Not calling it costs only
// the reuse.
func (r *Result) Release() {
	body := r.Body[:0]
	if cap(body) > maxPooledBody {
		body = nil
	}
	*r = Result{Body: body}
	results.Put(r)
}

// Invoke hands the event to the runtime's parked next, or to the next one that arrives, and returns when
// the runtime has posted its response or error; it does not wait for the runtime to ask for more (see
// WaitIdle). One invocation at a time: a second one is refused with errdefs.ErrFailedPrecondition.
//
// When ctx ends first, Invoke returns its cause. If the event was handed out by then, the runtime is
// abandoned: a late answer is refused with 400, and no event will be handed out again. Otherwise the
// error wraps ErrNotDelivered and the server is as before.
//
// After Fail the error is the one given to Fail, after init/error a *RuntimeError; both wrap
// ErrNotDelivered when that is so.
func (s *Server) Invoke(ctx context.Context, inv *Invocation) (*Result, error) {
	s.mu.Lock()
	if err := s.admitLocked(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	f := flights.Get().(*flight)
	defer f.release()
	f.inv = inv
	s.flight = f
	w := s.parked
	if w == (waiter{}) {
		s.mu.Unlock()
		return s.await(ctx, f)
	}
	s.handOutLocked()
	if w.http != nil {
		w.http <- s.cloneEventLocked()
		s.mu.Unlock()
		return s.await(ctx, f)
	}
	w.conn.wmu.Lock() // free: a parked connection's goroutine does not write
	kick := w.conn.pipelined
	s.mu.Unlock()
	f.deliver(ctx, w.conn, kick)
	return s.await(ctx, f)
}

// flight is one running Invoke. Server.flight points to it from admission until its outcome is known.
type flight struct {
	inv *Invocation
	// answer carries the one answer; capacity 1. It is sent with Server.mu held and flight current.
	answer chan *Result
	// buf is the buffer for the head of the event.
	buf []byte
}

var flights = sync.Pool{New: func() any { return &flight{answer: make(chan *Result, 1)} }}

// release gives the flight back; Server.flight does not point to it any more and answer is empty.
func (f *flight) release() {
	f.inv = nil
	flights.Put(f)
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
}

// cloneEventLocked is the current event in memory of its own, because its writer may outlive Invoke.
func (s *Server) cloneEventLocked() *Invocation {
	clone := *s.flight.inv
	clone.Value = nil
	clone.Payload = bytes.Clone(clone.Payload)
	return &clone
}

// joinLimit is up to which size in bytes the payload is copied behind the head instead of being
// written with writev.
const joinLimit = 4 << 10

// deliver writes the event to a parked connection, whose wmu is held, and releases it. When the write
// fails the connection is closed and the event stays current: the next that follows gets it.
func (f *flight) deliver(ctx context.Context, c *conn, kick bool) {
	defer c.wmu.Unlock()
	head, payload := appendEvent(f.buf[:0], f.inv), f.inv.event()
	if len(payload) <= joinLimit {
		head, payload = append(head, payload...), nil
	}
	f.buf = head
	n, err := c.tryWrite(head, payload)
	if err == nil && n < len(head)+len(payload) {
		err = c.writeRest(ctx, head, payload, n)
	}
	if err == nil && kick {
		err = c.nc.SetReadDeadline(longAgo)
	}
	if err != nil {
		_ = c.nc.Close()
	}
}

// writeRest writes what the first attempt left over after n bytes, until ctx ends. wmu is held.
func (c *conn) writeRest(ctx context.Context, head, payload []byte, n int) error {
	bufs := make(net.Buffers, 0, 2)
	if n < len(head) {
		bufs = append(bufs, head[n:])
	}
	if rest := payload[max(n-len(head), 0):]; len(rest) > 0 {
		bufs = append(bufs, rest)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.nc.SetWriteDeadline(longAgo) })
	_, err := bufs.WriteTo(c.nc)
	if !stop() && err == nil {
		err = context.Cause(ctx) // the deadline may be set by now
	}
	return err
}

// await waits for the end of the invocation that Invoke began.
func (s *Server) await(ctx context.Context, f *flight) (*Result, error) {
	select {
	case r := <-f.answer:
		return s.conclude(r)
	case <-s.broken:
		return s.awaitBroken(ctx, f)
	case <-ctx.Done():
		return s.giveUp(f, context.Cause(ctx))
	}
}

// awaitBroken ends the invocation after Fail, Close or init/error. A report that is just being read
// wins if it is complete: the process wrote it before it died.
func (s *Server) awaitBroken(ctx context.Context, f *flight) (*Result, error) {
	s.mu.Lock()
	reading := s.reader != nil && s.flight == f
	if reading {
		s.reader.expire(failGrace)
	}
	s.mu.Unlock()
	if !reading {
		return s.giveUp(f, s.brokenCause())
	}
	select {
	case r := <-f.answer:
		return s.conclude(r)
	case <-s.initErrored:
		return s.giveUp(f, s.brokenCause())
	case <-ctx.Done():
		return s.giveUp(f, context.Cause(ctx))
	}
}

// brokenCause is why no answer can come; init/error comes before the exit that follows it.
func (s *Server) brokenCause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.initError != nil {
		return s.initError
	}
	return s.failure
}

// conclude takes an answer. A truncated one of a process that died is no answer.
func (s *Server) conclude(r *Result) (*Result, error) {
	if !r.Truncated {
		return r, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		r.Release()
		return nil, s.failure
	}
	return r, nil
}

// giveUp ends the invocation without an answer, unless one came in just now.
func (s *Server) giveUp(f *flight, cause error) (*Result, error) {
	s.mu.Lock()
	if s.flight != f {
		s.mu.Unlock()
		return s.conclude(<-f.answer)
	}
	defer s.mu.Unlock()
	s.flight = nil
	if !s.state.may(stateAbandoned) {
		return nil, fmt.Errorf("%w: %w", ErrNotDelivered, cause)
	}
	s.state = stateAbandoned
	s.requestID, s.value = "", nil
	if s.reader != nil {
		s.reader.expire(0)
	}
	return nil, cause
}

// Fail says that the instance's process has exited. A running Invoke returns err, unless a complete
// answer was posted before; every later one returns err at once. Only the first call counts. It
// does not block.
func (s *Server) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(err)
}

func (s *Server) failLocked(err error) {
	if s.failure != nil {
		return
	}
	s.failure = err
	s.breakLocked()
}

// breakLocked tells a waiting Invoke that no answer can come any more.
func (s *Server) breakLocked() {
	select {
	case <-s.broken:
	default:
		close(s.broken)
	}
}
