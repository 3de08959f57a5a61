package rapi

import (
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// many is what a Server has whose instance runs several invocations at once. Guarded by Server.mu.
type many struct {
	limit int
	// parked are the next calls that wait, oldest first; the newest gets the next event.
	parked []waiter
	// flights are the invocations that were handed out and have not ended, by request ID.
	flights map[string]*strand
	// pending are those that found no next parked, oldest first.
	pending []*strand
	// late are the request IDs of the invocations that ended without an answer last, oldest first.
	late []string
}

// strand is one of several invocations.
type strand struct {
	inv       *Invocation
	done      Completion
	delivered time.Time
	// reader is the body of its answer, while it is read.
	reader source
}

// lateIDs is how many invocations without an answer are remembered for each that may run at once.
const lateIDs = 4

func newMany(limit int) *many { return &many{limit: limit, flights: make(map[string]*strand, limit)} }

// nextOfMany is next.
func (s *Server) nextOfMany(w waiter) verdict {
	s.mu.Lock()
	first := s.state == stateStarted
	if first {
		s.state = stateReady
		s.mu.Unlock()
		close(s.ready)
		if s.opts.OnReady != nil {
			s.opts.OnReady()
		}
		s.mu.Lock()
	}
	m := s.many
	switch {
	case s.failure != nil:
		s.mu.Unlock()
		return verdict{}
	case s.state != stateReady:
		defer s.mu.Unlock()
		return verdict{refusal: transitionReply(s.state, stateReady)}
	case len(m.pending) > 0:
		defer s.mu.Unlock()
		st := m.pending[0]
		m.pending = slices.Delete(m.pending, 0, 1)
		m.handOut(st)
		return verdict{event: cloneEvent(st.inv)}
	case len(m.parked) >= m.limit:
		s.mu.Unlock()
		return verdict{refusal: replyTooManyIdle}
	}
	m.parked = append(m.parked, w)
	if w.conn != nil {
		w.conn.pipelined = w.conn.r < w.conn.w
	}
	if s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
	s.mu.Unlock()
	if !first && s.opts.OnIdle != nil {
		s.opts.OnIdle()
	}
	return verdict{parked: true}
}

// find returns the place of a parked next, -1 when it is not parked.
func (m *many) find(w waiter) int { return slices.Index(m.parked, w) }

// remove takes a parked next back and reports whether it was still parked.
func (m *many) remove(w waiter) bool {
	i := m.find(w)
	if i >= 0 {
		m.parked = slices.Delete(m.parked, i, i+1)
	}
	return i >= 0
}

// handOut makes the invocation one that the runtime works on.
func (m *many) handOut(st *strand) {
	st.delivered = time.Now()
	m.flights[st.inv.RequestID] = st
}

// flies says whether the event of inv was handed out and its end is not known.
func (m *many) flies(inv *Invocation) bool {
	st := m.flights[inv.RequestID]
	return st != nil && st.inv == inv
}

// startOneOfMany is Start.
func (s *Server) startOneOfMany(inv *Invocation, done Completion) error {
	s.mu.Lock()
	if err := s.admitOneOfManyLocked(inv); err != nil {
		s.mu.Unlock()
		return err
	}
	inv.flight = flight{}
	s.many.pending = append(s.many.pending, &strand{inv: inv, done: done})
	s.giveOut() // unlocks
	return nil
}

// admitOneOfManyLocked says why the invocation cannot begin, or nil.
func (s *Server) admitOneOfManyLocked(inv *Invocation) error {
	m := s.many
	waits := slices.ContainsFunc(m.pending, func(st *strand) bool { return st.inv.RequestID == inv.RequestID })
	switch {
	case s.initError != nil:
		return fmt.Errorf("%w: %w", ErrNotDelivered, s.initError)
	case s.failure != nil:
		return fmt.Errorf("%w: %w", ErrNotDelivered, s.failure)
	case len(m.flights)+len(m.pending) >= m.limit:
		return fmt.Errorf("the instance has %d invocations already: %w", m.limit, errdefs.ErrFailedPrecondition)
	case waits || m.flights[inv.RequestID] != nil:
		return fmt.Errorf("the instance has an invocation of the request ID %s already: %w", inv.RequestID, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// giveOut hands pending events to parked next calls, until one of the two runs out. mu is held and released. A
// connection that cannot be written to is closed, and its event is given to another: its handler cannot have run.
func (s *Server) giveOut() {
	for m := s.many; len(m.pending) > 0 && len(m.parked) > 0; s.mu.Lock() {
		st, w := m.pending[0], m.parked[len(m.parked)-1]
		m.pending = slices.Delete(m.pending, 0, 1)
		m.parked = slices.Delete(m.parked, len(m.parked)-1, len(m.parked))
		m.handOut(st)
		if w.http != nil {
			w.http <- cloneEvent(st.inv)
			s.mu.Unlock()
			continue
		}
		w.conn.wmu.Lock() // free: a parked connection's goroutine does not write
		kick := w.conn.pipelined
		s.mu.Unlock()
		if s.deliver(st.inv, w.conn, kick) == nil {
			continue
		}
		s.mu.Lock()
		m.takeBack(st)
		s.mu.Unlock()
	}
	s.mu.Unlock()
}

// takeBack makes an invocation pending again whose event did not arrive.
func (m *many) takeBack(st *strand) {
	if st != nil && st.reader == nil && m.flights[st.inv.RequestID] == st {
		delete(m.flights, st.inv.RequestID)
		m.pending = slices.Insert(m.pending, 0, st)
	}
}

// unparkOneOfMany takes back the next of a connection of net/http that ended; an event that it was given meanwhile goes to
// another. mu is held and released.
func (s *Server) unparkOneOfMany(ch chan *Invocation) {
	if !s.many.remove(waiter{http: ch}) {
		select {
		case inv := <-ch:
			s.many.takeBack(s.many.flights[inv.RequestID])
		default:
		}
	}
	s.giveOut()
}

// beginOneOfMany is begin: it finds the invocation by its request ID.
func (s *Server) beginOneOfMany(id string, src source) (*strand, *reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.many.flights[id]
	switch {
	case st == nil && s.many.wasLate(id):
		return nil, replyLate
	case st == nil || st.reader != nil:
		return nil, replyInvalidID
	}
	st.reader = src
	return st, nil
}

// wasLate reports whether the invocation ended without an answer, and forgets it.
func (m *many) wasLate(id string) bool {
	i := slices.Index(m.late, id)
	if i >= 0 {
		m.late = slices.Delete(m.late, i, i+1)
	}
	return i >= 0
}

// finishOneOfMany is finish.
func (s *Server) finishOneOfMany(st *strand, res *Result, rep *reply) (*reply, bool) {
	s.mu.Lock()
	m, id := s.many, st.inv.RequestID
	if m.flights[id] != st {
		late := m.wasLate(id)
		s.mu.Unlock()
		res.Release()
		if late {
			return replyLate, false
		}
		return replyInvalidID, false
	}
	m.drop(st)
	res.Delivered, res.Answered = st.delivered, time.Now()
	var err error
	if res.Truncated {
		err = s.failure
	}
	s.mu.Unlock()
	if err != nil {
		res.Release()
		res = nil
	}
	st.done.Answered(res, err)
	return rep, rep == replyAccepted
}

// drop takes an invocation out whose end is known; the caller reports it.
func (m *many) drop(st *strand) {
	delete(m.flights, st.inv.RequestID)
	if c := st.inv.flight.writing; c != nil {
		_ = c.nc.SetWriteDeadline(longAgo)
	}
}

// giveUp ends an invocation that was handed out without an answer: a late one is refused. The others go on.
func (m *many) giveUp(st *strand) {
	m.drop(st)
	if len(m.late) >= lateIDs*m.limit {
		m.late = slices.Delete(m.late, 0, 1)
	}
	m.late = append(m.late, st.inv.RequestID)
	if st.reader != nil {
		st.reader.expire(0)
	}
}

// cancelOneOfMany is Cancel.
func (s *Server) cancelOneOfMany(inv *Invocation, cause error) {
	s.mu.Lock()
	m := s.many
	st := m.flights[inv.RequestID]
	if st != nil && st.inv == inv {
		m.giveUp(st)
		s.mu.Unlock()
		st.done.Answered(nil, cause)
		return
	}
	i := slices.IndexFunc(m.pending, func(st *strand) bool { return st.inv == inv })
	if i < 0 {
		s.mu.Unlock()
		return
	}
	st = m.pending[i]
	m.pending = slices.Delete(m.pending, i, i+1)
	s.mu.Unlock()
	st.done.Answered(nil, fmt.Errorf("%w: %w", ErrNotDelivered, cause))
}

// breakManyLocked is breakLocked: it ends all invocations but those whose answer is just being read.
func (s *Server) breakManyLocked() (out []report) {
	m, cause := s.many, s.brokenCauseLocked()
	for _, st := range m.flights {
		if st.reader != nil {
			st.reader.expire(failGrace)
			continue
		}
		m.giveUp(st)
		out = append(out, report{st.done, cause})
	}
	for _, st := range m.pending {
		out = append(out, report{st.done, fmt.Errorf("%w: %w", ErrNotDelivered, cause)})
	}
	m.pending = nil
	return out
}

// only returns the invocation in progress when it is the only one, else nil.
func (m *many) only() *Invocation {
	if len(m.flights) != 1 {
		return nil
	}
	for _, st := range m.flights {
		return st.inv
	}
	return nil
}
