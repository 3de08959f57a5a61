package pool

import (
	"time"

	"lfx.dev/lfxd/daemon/invocation"
)

// begun is a request that nobody waits for, with the one who learns its outcome.
type begun struct {
	pool *Pool
	req  *invocation.Request
	done invocation.Completion
}

// begin runs the request on the hottest idle worker, or leaves it in the queue to the worker that becomes
// free first: whoever frees it hands the event out. done is told the outcome.
func (p *Pool) begin(req *invocation.Request, done invocation.Completion) {
	if p.stopped() {
		done.Complete(nil, p.stoppedError())
		return
	}
	p.mu.Lock()
	if s := p.takeIdleLocked(req); s != nil {
		p.mu.Unlock()
		p.beginOn(s, req, done)
		return
	}
	w := &waiter{done: done, since: time.Now(), req: req}
	err := p.enqueueLocked(w)
	if err == nil {
		req.Ticket = w
		p.expireAtLocked(p.opts.QueueTimeout)
	}
	p.mu.Unlock()
	if err != nil {
		done.Complete(nil, err)
	}
}

// beginOn runs the request on a slot that was taken for it.
func (p *Pool) beginOn(s *slot, req *invocation.Request, done invocation.Completion) {
	if !p.thawed(s) {
		p.begin(req, done)
		return
	}
	if b, ok := s.worker.(Beginner); ok {
		s.running = begun{p, req, done}
		if b.Begin(req, s) {
			return
		}
		s.running = begun{}
	}
	p.group.Go(func() { // ends with the invocation
		begun{p, req, done}.ended(s, s.worker.Invoke(req))
	})
}

// Ended implements Done: the worker's outcome passes through the slot.
func (s *slot) Ended(out *invocation.Outcome) {
	b := s.running
	s.running = begun{}
	b.ended(s, out)
}

// ended tells the outcome, or tries another worker. The slot may serve the next request already.
func (b begun) ended(s *slot, out *invocation.Outcome) {
	if out == nil {
		b.pool.begin(b.req, b.done)
		return
	}
	s.answered.Store(time.Now().UnixNano())
	b.done.Complete(out, nil)
}

// grant ends a waiter's wait. No lock is held.
func (p *Pool) grant(w *waiter, g grant) {
	switch {
	case w.done == nil:
		w.ready <- g
	case g.slot != nil:
		granted(w.req)
		p.beginOn(g.slot, w.req, w.done)
	default:
		if g.err == nil {
			granted(w.req)
		}
		w.done.Complete(g.outcome, g.err)
	}
}

// leave takes a request out of the queue, if it is in there.
func (p *Pool) leave(req *invocation.Request, cause error) {
	p.mu.Lock()
	w, ok := req.Ticket.(*waiter)
	ok = ok && p.cancelLocked(w)
	p.mu.Unlock()
	if ok {
		w.done.Complete(nil, cause)
	}
}

// expireAtLocked sets the clock of the queue, unless it is set for earlier.
func (p *Pool) expireAtLocked(d time.Duration) {
	switch {
	case p.expiring:
		return
	case p.expiry == nil:
		p.expiry = time.AfterFunc(d, p.expire) // stopped by close
	default:
		p.expiry.Reset(d)
	}
	p.expiring = true
}

// expire refuses the requests that wait for too long. One clock is enough, because the oldest is first and all
// may wait equally long.
func (p *Pool) expire() {
	var late []*waiter
	p.mu.Lock()
	p.expiring = false
	for w, next := p.head, (*waiter)(nil); w != nil; w = next {
		next = w.next
		if w.done == nil {
			continue // it has a clock of its own
		}
		if left := p.opts.QueueTimeout - time.Since(w.since); left > 0 {
			p.expireAtLocked(left)
			break
		}
		p.cancelLocked(w)
		late = append(late, w)
	}
	p.mu.Unlock()
	for _, w := range late {
		w.done.Complete(nil, p.overdue())
	}
}
