package pool

import (
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// Instances that run several invocations at once (concurrency.per_instance). A slot then has places: each is a next call
// that the runtime has parked, as far as the pool knows; Events.Idle brings one, a request takes one. So a runtime that
// parks fewer than the setting allows gets no more than it parks, and a place whose connection went away costs
// one attempt: the worker says that the request was not delivered, and the place is gone.
//
// A slot is busy while it runs something or has no place, and idle when it runs nothing and has one. The busy ones that
// have places are open: a request takes the hottest open slot, then the hottest idle one.

// keyOf is the pool of a version. Where instances run several invocations at once each release has its own, so
// that whatever calls made from inside an instance belong to, they belong to one release.
func keyOf(v *function.Version, b invocation.Binding) versionKey {
	k := versionKey{Key: v.Key, number: v.Number}
	if v.Config.Concurrency.AtOnce() > 1 {
		k.release = releaseNumber(b)
	}
	return k
}

// ticket is the Done of one of several requests of a slot.
type ticket struct {
	begun
	slot *slot
}

// Ended implements Done.
func (t *ticket) Ended(out *invocation.Outcome) { t.begun.ended(t.slot, out) }

// takePlaceLocked is takeIdleLocked.
func (p *Pool) takePlaceLocked(req *invocation.Request) *slot {
	var s *slot
	switch open, idle := len(p.open), len(p.idle); {
	case open > 0:
		s = p.open[open-1]
	case idle > 0:
		s = p.idle[idle-1]
	default:
		return nil
	}
	p.takeFromLocked(s, req.Binding)
	return s
}

// takeFromLocked gives a place of a slot that is open or idle to a request. When the slot was frozen it has
// no place for others until it is thawed.
func (p *Pool) takeFromLocked(s *slot, b invocation.Binding) {
	if s.state == idle {
		p.idle = without(p.idle, s)
		p.tookLocked(s)
		answered := s.answered.Load()
		s.takeLocked()
		s.answered.Store(answered)
		s.thawing = s.thaw
	}
	s.places--
	s.running++
	s.binding = b
	p.openLocked(s)
}

// without removes a slot from a stack and keeps the order.
func without(stack []*slot, s *slot) []*slot {
	for i := len(stack) - 1; i >= 0; i-- {
		if stack[i] == s {
			copy(stack[i:], stack[i+1:])
			stack[len(stack)-1] = nil
			return stack[:len(stack)-1]
		}
	}
	return stack
}

// openLocked puts a busy slot among the open ones, or takes it out.
func (p *Pool) openLocked(s *slot) {
	open := s.state == busy && s.places > 0 && !s.thawing && !s.yields && !p.closed
	switch {
	case open && !s.open:
		p.open = append(p.open, s)
	case !open && s.open:
		p.open = without(p.open, s)
	}
	s.open = open
}

// placeAgain is idleAgain: the runtime has parked a next.
func (p *Pool) placeAgain(s *slot) {
	p.mu.Lock()
	s.used = time.Now()
	s.owed = max(s.owed-1, 0)
	// The place may be back before the request that had it has told the pool of its end: so running is no bound here.
	s.places = min(s.places+1, p.atOnce)
	s.most = max(s.most, min(s.places+s.running, p.atOnce))
	p.settle(s)
}

// giveBack ends the hold of a request that did not use its place.
func (p *Pool) giveBack(s *slot) {
	p.mu.Lock()
	s.running--
	s.places++
	p.settle(s)
}

// release ends the hold of a request whose outcome is known. back says that the runtime is on its way back to next: it is not
// after a timeout, nor when there was no such place.
func (p *Pool) release(s *slot, back bool) {
	p.mu.Lock()
	s.running--
	if back {
		s.owed++
	}
	p.settle(s)
}

// settle decides what becomes of a slot after its places or its requests have changed: it serves the queue, is idle,
// or ends. mu is held and released.
func (p *Pool) settle(s *slot) {
	if s.state == leaving {
		p.mu.Unlock()
		return
	}
	if p.head != nil && s.places > 0 && !p.yieldingLocked() && p.starved() {
		s.yields = true // it takes nothing more, and ends with what it runs
	}
	var served []*waiter
	for s.places > 0 && !s.yields && !s.thawing {
		w := p.popLocked()
		if w == nil {
			break
		}
		s.standsFor = time.Time{}
		p.takeFromLocked(s, w.req.Binding)
		served = append(served, w)
	}
	reason, offer := "", false
	switch {
	case s.running > 0 || s.places == 0:
	case p.closed:
		reason = EndRelease
	case s.yields:
		reason = EndRoom
	case s.state == busy:
		s.state, offer = idle, true
		p.idle = append(p.idle, s)
	}
	if reason != "" {
		p.leaveLocked(s)
	}
	p.openLocked(s)
	p.mu.Unlock()
	for _, w := range served {
		p.grant(w, grant{slot: s})
	}
	switch {
	case reason != "":
		p.end(s, reason)
	case offer:
		p.offer()
	}
}

// yieldingLocked says whether an instance is on its way out for another pool already.
func (p *Pool) yieldingLocked() bool {
	for s := range p.slots {
		if s.yields && s.state != leaving {
			return true
		}
	}
	return false
}

// melted says that a slot which was taken frozen is thawed: its other places can be used.
func (p *Pool) melted(s *slot) {
	p.mu.Lock()
	s.thawing = false
	p.settle(s)
}

// parksLocked is how many requests one instance takes at once: what the instances of the pool have shown, and the setting as
// long as none has had the time to.
func (p *Pool) parksLocked() int {
	now := time.Now()
	for s := range p.slots {
		if !s.growing(now) {
			p.parks = max(p.parks, s.most)
		}
	}
	if p.parks == 0 {
		return p.atOnce
	}
	return p.parks
}

// growing says whether the runtime may just be about to park its further next calls: it gets as long for that as it took to
// park the first, at least settleTime, at most a second.
func (s *slot) growing(now time.Time) bool {
	return now.Sub(s.ready) < min(max(s.ready.Sub(s.begun), settleTime), time.Second)
}

// comingLocked is settlingLocked: how many places come back in a moment, and how many a new instance is about to show.
func (p *Pool) comingLocked() (n int) {
	now, parks := time.Now(), p.parksLocked()
	since := now.Add(-settleTime).UnixNano()
	for s := range p.slots {
		switch {
		case s.state == leaving || s.yields:
		case s.growing(now):
			n += max(parks-s.running-s.places, 0)
		case s.answered.Load() > since:
			n += min(s.owed, p.atOnce-s.running-s.places)
		}
		if s.thawing && s.state == busy {
			n += s.places
		}
	}
	return n
}

// shortLocked counts the instances that waiters need beyond those that start.
func (p *Pool) shortLocked(coming int) int {
	parks := p.parksLocked()
	return max(0, (p.waiting-coming+parks-1)/parks-p.starting)
}
