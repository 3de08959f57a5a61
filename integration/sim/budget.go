package main

import "time"

// take reserves room for an instance of f. Idle instances of others give way when somebody waits for
// it; when that is not enough, f is noted as wanting.
func (h *host) take(f *fn, urgent bool, now time.Duration) bool {
	if h.budget == 0 {
		return true
	}
	need := f.need()
	if h.used+need > h.budget {
		if !urgent {
			return false
		}
		if h.used-h.unused+need > h.budget {
			if !f.wanting {
				f.wanting = true
				h.wants = append(h.wants, f)
			}
			return false
		}
		for h.used+need > h.budget && len(h.idlers) > 0 {
			h.evict(now)
		}
	}
	h.used += need
	h.Peak = max(h.Peak, h.used)
	return true
}

// sample is how many functions are compared for an eviction when there are too many to look at each.
const sample = 64

// evict ends the idle instance that is worth least: by the policy's score, else the longest unused.
func (h *host) evict(now time.Duration) {
	var victim *fn
	var least float64
	look := func(f *fn) {
		worth := f.idle[0].since.Seconds()
		if h.policy != nil {
			worth = h.policy.Score(&f.known, f.cost, f.busy+f.starting+len(f.idle), now-f.idle[0].since)
		}
		if victim == nil || worth < least {
			victim, least = f, worth
		}
	}
	if len(h.idlers) <= sample {
		for _, f := range h.idlers {
			look(f)
		}
	} else {
		for range sample {
			look(h.idlers[h.rng.IntN(len(h.idlers))])
		}
	}
	if now >= h.from {
		h.Evicted += victim.weight
	}
	victim.giveUp(now)
	if len(victim.idle) == 0 {
		victim.timer = never
		victim.plan(now, victim.window())
	}
	h.moved(victim)
}

// grant starts instances for the functions that want room, the oldest first, as far as it goes.
func (h *host) grant(now time.Duration) {
	for len(h.wants) > 0 {
		f := h.wants[0]
		if f.first < len(f.queue) && f.starting < len(f.queue)-f.first && h.used-h.unused+f.need() > h.budget {
			return
		}
		h.wants = h.wants[1:]
		f.wanting = false
		f.startForQueue(now)
		h.moved(f)
	}
}
