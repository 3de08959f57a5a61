package pool

import (
	"time"

	"lfx.dev/lfxd/daemon/pool/policy"
)

// priceStep is by how much what an instance costs must differ until it counts: a quarter. The policy computes anew at each
// change.
const priceStep = 0.25

// priceLocked is what the policy weighs: what an idle instance of the pool holds, and what it takes to make one.
func (p *Pool) priceLocked(scarcity float64) policy.Cost {
	memory := p.idleMB
	if memory == 0 {
		memory = float64(own(p)) / 2 // not measured yet
	}
	if off(memory, p.price.MemoryMB) {
		p.price.MemoryMB = memory
	}
	if off(float64(p.cost), float64(p.price.Start)) {
		p.price.Start = p.cost
	}
	p.price.Scarcity = scarcity
	return p.price
}

// off says whether a differs from b by more than a step.
func off(a, b float64) bool { return a < b*(1-priceStep) || a > b*(1+priceStep) }

// levelLocked is how many instances are busy or start: the policy keeps the second for what the second is used, and so on.
func (p *Pool) levelLocked() int { return p.aliveLocked() - len(p.idle) + p.starting }

// windowLocked is how long the pool's coldest idle instance is kept, and when one is started ahead of need.
func (p *Pool) windowLocked() policy.Window {
	if p.opts.Policy == nil {
		return policy.Window{KeepFor: policy.Forever} // until the idle timeout
	}
	return p.opts.Policy.Window(&p.known, p.priceLocked(p.scarcity), p.levelLocked()+len(p.idle))
}

// idleSince is from when on the policy counts: an instance that was started ahead of need stands for one that was given up.
func (s *slot) idleSince() time.Time {
	if !s.standsFor.IsZero() {
		return s.standsFor
	}
	return s.used
}

// overLocked says whether the coldest idle slot has been idle for long enough.
func (p *Pool) overLocked(s *slot, now time.Time) bool {
	age := now.Sub(s.idleSince())
	return now.Sub(s.used) >= p.opts.IdleTimeout || age >= p.windowLocked().Until(age)
}

// tookLocked notes for the policy that an invocation took a slot that is no longer among the idle ones.
func (p *Pool) tookLocked(s *slot) {
	if p.opts.Policy != nil {
		p.known.Observe(p.levelLocked(), time.Since(s.idleSince()))
	}
	s.standsFor = time.Time{}
}

// missedLocked notes that a start was begun for a request; it is counted already.
func (p *Pool) missedLocked() {
	if p.opts.Policy != nil {
		p.known.Missed(p.levelLocked(), time.Now())
	}
}

// gaveUpLocked notes that the coldest idle slot is about to end because its time is over or its room is wanted.
func (p *Pool) gaveUpLocked(s *slot) {
	if p.opts.Policy != nil {
		p.known.GaveUp(p.levelLocked()+len(p.idle), s.idleSince())
	}
}

// prewarmLocked starts an instance ahead of need when a call is likely soon, none lives, and nobody has to give way for it.
func (p *Pool) prewarmLocked(now time.Time) {
	w := p.windowLocked()
	if w.PrewarmUntil == 0 || len(p.slots)+p.starting+p.waiting > 0 || p.stopped() || p.failures > 0 && now.Before(p.retryAt) {
		return
	}
	since, ok := p.known.Absent()
	if !ok || !w.Prewarm(now.Sub(since)) {
		return
	}
	for _, l := range p.limits() {
		if l.full(p) {
			return
		}
	}
	if p.beginLocked(false, since) {
		p.known.Prewarmed()
	}
}

// learn takes over what is known of the version before.
func (p *Pool) learn(before *Pool) {
	before.mu.Lock()
	known, cost, idleMB, parks := before.known, before.cost, before.idleMB, before.parks
	before.mu.Unlock()
	p.known, p.cost, p.idleMB = known, cost, idleMB
	if before.key.number == p.key.number {
		p.parks = parks
	}
}

// observeMemoryLocked notes what an idle instance holds, in bytes.
func (p *Pool) observeMemoryLocked(bytes int64) {
	if bytes > 0 {
		p.idleMB = max(1, float64(bytes)/(1<<20))
	}
}
