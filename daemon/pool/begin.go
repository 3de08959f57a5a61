package pool

import (
	"time"

	"lfx.dev/lfxd/daemon/invocation"
)

// begun is a request that nobody waits for, with the one who learns its outcome.
type begun struct {
	pool  *Pool
	req   *invocation.Request
	done  invocation.Completion
	since time.Time
}

// begin runs the request on the hottest idle worker, or leaves it in the queue to the worker that becomes
// free first: whoever frees it hands the event out. done is told the outcome.
func (p *Pool) begin(req *invocation.Request, done invocation.Completion) {
	if p.stopped() {
		done.Complete(nil, p.stoppedError())
		return
	}
	begun{p, req, done, time.Now()}.find()
}

// find is begin, and begin again.
func (b begun) find() {
	p := b.pool
	p.mu.Lock()
	if cause := b.req.Left; cause != nil { // while it was between two instances
		p.mu.Unlock()
		b.done.Complete(nil, cause)
		return
	}
	if s := p.takeIdleLocked(b.req); s != nil {
		p.mu.Unlock()
		b.on(s)
		return
	}
	w := &waiter{begun: b, since: time.Now(), req: b.req}
	err := p.enqueueLocked(w)
	if err == nil {
		b.req.Ticket = w
		p.expireAtLocked(p.opts.QueueTimeout)
	}
	p.mu.Unlock()
	if err != nil {
		b.done.Complete(nil, err)
	}
}

// on runs the request on a slot that was taken for it.
func (b begun) on(s *slot) {
	if !b.pool.thawed(s) {
		b.again()
		return
	}
	if w, ok := s.worker.(Beginner); ok && b.pool.atOnce > 1 {
		if w.Begin(b.req, &ticket{b, s}) {
			return
		}
	} else if ok {
		s.only = b
		if w.Begin(b.req, s) {
			return
		}
		s.only = begun{}
	}
	b.pool.group.Go(func() { // ends with the invocation
		b.ended(s, s.worker.Invoke(b.req))
	})
}

// again looks for another worker, since the event never reached the function, but not for ever: a runtime
// that exits as soon as it has asked for work would do so again and again.
func (b begun) again() {
	p := b.pool
	p.mu.Lock()
	left := b.req.Left != nil
	p.mu.Unlock()
	if !left && time.Since(b.since) >= p.opts.QueueTimeout {
		b.done.Complete(nil, p.overdue())
		return
	}
	b.find()
}

// Ended implements Done: the worker's outcome passes through the slot.
func (s *slot) Ended(out *invocation.Outcome) {
	b := s.only
	s.only = begun{}
	b.ended(s, out)
}

// ended tells the outcome, or tries another worker. The slot may serve the next request already.
func (b begun) ended(s *slot, out *invocation.Outcome) {
	many := b.pool.atOnce > 1
	if out == nil {
		if many {
			b.pool.release(s, false)
		}
		b.again()
		return
	}
	s.answered.Store(time.Now().UnixNano())
	back := out.Result != invocation.TimedOut
	b.done.Complete(out, nil) // out is the client's from here on
	if many {
		b.pool.release(s, back)
	}
}

// done is who learns the outcome of a request that nobody waits for; nil when somebody does.
func (w *waiter) done() invocation.Completion { return w.begun.done }

// grant ends a waiter's wait. No lock is held.
func (p *Pool) grant(w *waiter, g grant) {
	switch {
	case w.done() == nil:
		w.ready <- g
	case g.slot != nil:
		granted(w.req)
		w.begun.on(g.slot)
	default:
		if g.err == nil {
			granted(w.req)
		}
		w.done().Complete(g.outcome, g.err)
	}
}

// leave takes a request out of the queue. One that is not in there runs, and goes on, or is on its way to an instance: should
// that not take it, it does not come back into the queue.
func (p *Pool) leave(req *invocation.Request, cause error) {
	p.mu.Lock()
	w, ok := req.Ticket.(*waiter)
	ok = ok && p.cancelLocked(w)
	if !ok {
		req.Left = cause
	}
	p.mu.Unlock()
	if ok {
		w.done().Complete(nil, cause)
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
		if w.done() == nil {
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
		w.done().Complete(nil, p.overdue())
	}
}
