package rapi

import (
	"encoding/base64"
	"io"
	"slices"
	"strings"
	"time"
)

// verdict is what a next gets: an event, a refusal, a place to wait (parked), or nothing at all.
type verdict struct {
	event   *Invocation
	refusal *reply
	parked  bool
}

// next is the event "the runtime asks for work".
func (s *Server) next(w waiter) verdict {
	if s.many != nil {
		return s.nextOfMany(w)
	}
	s.mu.Lock()
	if s.state == stateStarted {
		s.state = stateReady
		s.mu.Unlock()
		close(s.ready)
		if s.opts.OnReady != nil {
			s.opts.OnReady()
		}
		s.mu.Lock()
	}
	answered := false
	switch {
	case s.failure != nil || s.state == stateAbandoned:
		s.mu.Unlock()
		return verdict{}
	case s.state == stateRunning:
		defer s.mu.Unlock()
		return verdict{event: s.cloneEventLocked()}
	case s.state == stateResponseSent:
		answered = true
		s.state, s.requestID, s.value = stateReady, "", nil
	case s.state != stateReady:
		defer s.mu.Unlock()
		return verdict{refusal: transitionReply(s.state, stateReady)}
	}
	if s.flight != nil {
		defer s.mu.Unlock()
		s.handOutLocked()
		return verdict{event: s.cloneEventLocked()}
	}
	s.parkLocked(w) // unlocks
	if answered && s.opts.OnIdle != nil {
		s.opts.OnIdle()
	}
	return verdict{parked: true}
}

// parkLocked makes w the parked next and refuses the one that was there before. It releases mu.
func (s *Server) parkLocked(w waiter) {
	old := s.parked
	s.parked = w
	if w.conn != nil {
		w.conn.pipelined = w.conn.r < w.conn.w
	}
	if s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
	switch {
	case old.http != nil:
		old.http <- nil
		s.mu.Unlock()
	case old.conn != nil:
		old.conn.wmu.Lock() // free: a parked connection's goroutine does not write
		kick := old.conn.pipelined
		s.mu.Unlock()
		old.conn.replace(kick)
	default:
		s.mu.Unlock()
	}
}

// replace tells a parked next that a newer one took its place. wmu is held and released. The runtime
// has a whole socket buffer of room; one that leaves none loses the connection.
func (c *conn) replace(kick bool) {
	defer c.wmu.Unlock()
	rep := transitionReply(stateReady, stateReady).wire
	n, err := c.nb.Try(rep, nil)
	if err == nil && n == len(rep) {
		if kick {
			_ = c.nc.SetReadDeadline(longAgo)
		}
		return
	}
	_ = c.nc.Close()
}

// unpark takes the connection's next back and reports whether it was still parked.
func (s *Server) unpark(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.many != nil {
		return s.many.remove(waiter{conn: c})
	}
	if s.parked.conn != c {
		return false
	}
	s.parked = waiter{}
	return true
}

// stillParked reports whether the connection's next waits, and notes that bytes arrived meanwhile.
func (s *Server) stillParked(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.many != nil && s.many.find(waiter{conn: c}) < 0 || s.many == nil && s.parked.conn != c {
		return false
	}
	c.pipelined = true
	return true
}

// responseMode is the value of the response-mode header.
type responseMode uint8

const (
	modeBuffered responseMode = iota
	modeStreaming
	modeInvalid
)

// postMeta is what the head of a post says about its body.
type postMeta struct {
	mode                   responseMode
	errorType, contentType string
}

// take copies what outlives the read buffer.
func (m *postMeta) take(h *head) {
	m.set(h.mode, strings.Clone(h.errorType), internType(h.contentType))
}

// set fills m from header values.
func (m *postMeta) set(mode, errorType, contentType string) {
	*m = postMeta{errorType: errorType, contentType: contentType}
	switch mode {
	case "":
	case "streaming":
		m.mode = modeStreaming
	default:
		m.mode = modeInvalid
	}
	if contentType == "" {
		m.contentType = "application/octet-stream"
	}
}

// internType copies a content type; the usual ones cost nothing.
func internType(t string) string {
	switch t {
	case "application/json":
		return "application/json"
	case "", "application/octet-stream":
		return "application/octet-stream"
	}
	return strings.Clone(t)
}

// post is response, error or init/error. When ok is false, what is left of the body must be dropped
// before the reply is written.
func (s *Server) post(r route, id string, m *postMeta, src source) (rep *reply, ok bool) {
	if r == routeInitError {
		return s.postInitError(m, src)
	}
	to := stateInvocationResponse
	if r == routeError {
		to = stateInvocationErrorResponse
	}
	st, rep := s.begin(to, id, src)
	if rep != nil {
		return rep, false
	}
	res := newResult()
	if r == routeResponse && m.mode == modeInvalid {
		res.InvalidResponseMode = true
		s.refuseResult(st, res, "Runtime.InvalidResponseModeHeader", "Invalid function response mode")
		return s.finish(st, res, replyInvalidMode)
	}
	switch collect(res, src) {
	case bodyTooLarge:
		res.TooLarge, res.IsError, res.ErrorType = true, true, "Function.ResponseSizeTooLarge"
		res.ContentType = "application/json"
		res.Body = append(res.Body[:0], tooLargeBody...)
		return s.finish(st, res, replyTooLarge)
	case bodyTruncated:
		s.awaitExit()
		res.Truncated = true
		s.refuseResult(st, res, "Runtime.TruncatedResponse", "HTTP request detected as truncated")
		return s.finish(st, res, replyTruncated)
	}
	res.describe(r == routeError, m, src)
	return s.finish(st, res, replyAccepted)
}

// begin checks the request ID, then the state, and makes the move; without a reply the body may be read. The strand is
// the invocation where there are several, else nil.
func (s *Server) begin(to state, id string, src source) (*strand, *reply) {
	if s.many != nil {
		return s.beginOneOfMany(id, src)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" || id != s.requestID {
		return nil, replyInvalidID
	}
	if !s.state.may(to) {
		return nil, transitionReply(s.state, to)
	}
	s.state = to
	s.reader = src
	return nil, nil
}

// finish reports the result and says what the runtime gets; a result that comes too late is an answer
// for an unknown request. A truncated answer of a process that died is none.
func (s *Server) finish(st *strand, res *Result, rep *reply) (*reply, bool) {
	if st != nil {
		return s.finishOneOfMany(st, res, rep)
	}
	s.mu.Lock()
	s.reader = nil
	if s.state == stateAbandoned {
		s.mu.Unlock()
		res.Release()
		return replyInvalidID, false
	}
	if res.InvalidResponseMode {
		s.stuck = true
	} else {
		s.state = stateResponseSent
	}
	res.Delivered, res.Answered = s.delivered, time.Now()
	var err error
	if res.Truncated {
		err = s.failure
	}
	s.took.Store(int64(res.Answered.Sub(res.Delivered)))
	f := s.endLocked()
	s.mu.Unlock()
	if err != nil {
		res.Release()
		res = nil
	}
	f.done.Answered(res, err)
	return rep, rep == replyAccepted
}

// awaitExit gives the news that the process died the time to arrive: a body that ends early is usually
// the first sign of it.
func (s *Server) awaitExit() {
	t := time.NewTimer(failGrace)
	defer t.Stop()
	select {
	case <-s.broken:
	case <-t.C:
	}
}

// refuseResult turns res into a platform error about its request: that of st, else the current one.
func (s *Server) refuseResult(st *strand, res *Result, errorType, detail string) {
	var id string
	if st != nil {
		id = st.inv.RequestID
	} else {
		id = s.CurrentRequestID()
	}
	res.IsError, res.ErrorType, res.ContentType = true, errorType, "application/json"
	res.Body = append(res.Body[:0], platformError(errorType, id, detail)...)
}

// describe fills in what the head and the trailers say about a complete body.
func (r *Result) describe(isError bool, m *postMeta, src source) {
	r.ContentType = m.contentType
	r.Streamed = m.mode == modeStreaming
	if isError {
		r.IsError, r.ErrorType = true, normalErrorType(m.errorType)
		if m.contentType == errorCauseType {
			r.Body, r.ContentType = stripCause(r.Body)
		}
		return
	}
	trailerType, trailerBody := src.trailers()
	if trailerType == "" {
		return
	}
	r.IsError, r.ErrorType = true, normalErrorType(trailerType)
	if doc, err := base64.StdEncoding.DecodeString(trailerBody); err == nil && len(doc) > 0 {
		r.Body, r.ContentType = append(r.Body[:0], doc...), "application/json"
	}
}

// postInitError is init/error: the runtime could not initialise and is about to exit.
func (s *Server) postInitError(m *postMeta, src source) (*reply, bool) {
	s.mu.Lock()
	if !s.state.may(stateInitError) {
		defer s.mu.Unlock()
		return transitionReply(s.state, stateInitError), false
	}
	s.state = stateInitError
	s.reader = src
	s.mu.Unlock()
	var res Result
	end := collect(&res, src)
	e := &RuntimeError{Type: normalErrorType(m.errorType), Body: res.Body, ContentType: m.contentType}
	if m.contentType == errorCauseType && end == bodyComplete {
		e.Body, e.ContentType = stripCause(e.Body)
	}
	rep := replyAccepted
	switch end {
	case bodyTooLarge:
		e.Body, e.ContentType, rep = []byte(tooLargeBody), "application/json", replyTooLarge
	case bodyTruncated:
		rep = replyTruncated
	}
	s.publishInitError(e)
	return rep, rep == replyAccepted
}

// publishInitError tells everybody who waits for the end of init.
func (s *Server) publishInitError(e *RuntimeError) {
	s.mu.Lock()
	s.reader = nil
	s.initError = e
	ended := s.breakLocked()
	s.mu.Unlock()
	close(s.initErrored)
	for _, r := range ended {
		r.done.Answered(nil, r.err)
	}
	if s.opts.OnInitError != nil {
		s.opts.OnInitError(e)
	}
}

// bodyEnd says how a body ended.
type bodyEnd uint8

const (
	bodyComplete bodyEnd = iota
	bodyTooLarge
	bodyTruncated
)

const (
	// firstRead is the buffer in bytes for a body of unknown length.
	firstRead = 4 << 10
	// trustLength is up to which announced length in bytes the buffer is made at once; beyond it the
	// buffer grows with what really arrives.
	trustLength = 1 << 20
)

// collect reads the body into res.Body, at most MaxPayload bytes.
func collect(res *Result, src source) bodyEnd {
	length := src.length()
	if length > MaxPayload {
		return bodyTooLarge
	}
	want := int64(firstRead)
	if length >= 0 {
		want = min(length, trustLength)
	}
	b := slices.Grow(res.Body[:0], int(want))
	for int64(len(b)) != length {
		if len(b) == cap(b) {
			b = slices.Grow(b, len(b))
		}
		n, err := src.Read(b[len(b):min(cap(b), MaxPayload+1)])
		b = b[:len(b)+n]
		res.Body = b
		switch {
		case len(b) > MaxPayload:
			return bodyTooLarge
		case err == io.EOF && (length < 0 || int64(len(b)) == length):
			return bodyComplete
		case err != nil:
			return bodyTruncated
		}
	}
	res.Body = b
	return bodyComplete
}
