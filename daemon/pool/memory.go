package pool

import (
	"time"

	"lfx.dev/lfxd/daemon/pool/policy"
)

// Memory is admitted by two rules, and both must hold:
//
//	book   the sum of what all instances may use (memory and /tmp, which is memory too) stays below
//	       budget × overcommit
//	gauge  what all of them really use, plus the memory of those that start and of the new one, stays
//	       below the budget
//
// The book is exact and known at once; the gauge is read by the sweeper. The wall behind both is the
// memory limit of the cgroup that holds all instances, which is the budget: when they grow together
// beyond it, functions are ended, and not the host.

// gauge is what the instances really use, in MiB. Its methods are called with the limit's mu held; a nil gauge has room for
// everything.
type gauge struct {
	budget int64
	used   int64 // at the last reading
	// young is the memory of instances that the reading does not have yet: they start, or have started since.
	young int64
	// settled is the part of young whose instances are ready: the next reading has them.
	settled int64
	// leaving is what evicted instances used and will give back.
	leaving int64
	// blind: the last reading failed. Until the next one succeeds only the book counts.
	blind bool
}

// memoryOf is what one instance takes in the book: the hard limit of its cgroup.
func memoryOf(p *Pool) int64 {
	return int64(p.version.Config.MemoryMB) + int64(p.version.Config.TmpMB)
}

// own is what one instance counts for until it was measured.
func own(p *Pool) int64 { return int64(p.version.Config.MemoryMB) }

// couldHold needs no reading: what is larger than the budget is so also while the gauge is blind.
func (g *gauge) couldHold(p *Pool) bool { return g == nil || own(p) <= g.budget }

func (g *gauge) hasRoom(p *Pool) bool {
	return g == nil || g.blind || g.used+g.young+own(p) <= g.budget
}

func (g *gauge) short(p *Pool) bool {
	return g != nil && !g.blind && g.used-g.leaving+g.young+own(p) > g.budget
}

func (g *gauge) begin(p *Pool) {
	if g != nil {
		g.young += own(p)
	}
}

func (g *gauge) failed(p *Pool) {
	if g != nil {
		g.young -= own(p)
	}
}

func (g *gauge) ready(p *Pool) { g.settled += own(p) }

// evicted notes that an instance which uses that much will leave, gone that it has left.
func (l *limit) evicted(mib int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gauge.leaving += mib
}

func (l *limit) gone(mib int64) {
	if mib == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gauge.leaving -= mib
	// A reading may have seen it go before: the next one corrects that.
	l.gauge.used = max(0, l.gauge.used-mib)
}

// read takes a reading. What became ready before it began is in it. A reading that fails leaves the gauge blind; what was ready
// is not young for ever because of that: the next good reading has it.
func (l *limit) read(bytes func() (int64, error)) error {
	l.mu.Lock()
	settled, idle := l.gauge.settled, l.used == 0
	l.mu.Unlock()
	var now int64
	var err error
	if !idle { // else there is nothing to measure
		now, err = bytes()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gauge.settled -= settled
	l.gauge.young -= settled
	if l.gauge.blind = err != nil; err == nil {
		l.gauge.used = now >> 20
	}
	return err
}

// Shares of the budget: above tight idle instances are ended until it is below relaxed.
const (
	tight   = 95
	relaxed = 90
)

// excess says how much is used above the given percentage of the budget, in MiB, once those that leave are gone.
func (l *limit) excess(percent int64) int64 {
	if l.gauge == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gauge.blind {
		return 0
	}
	return l.gauge.used - l.gauge.leaving - l.gauge.budget*percent/100
}

// scarcity says how dear memory is now.
func (l *limit) scarcity() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gauge == nil || l.gauge.blind {
		return policy.Scarcity(l.used, l.max)
	}
	return policy.Scarcity(l.gauge.used+l.gauge.young, l.gauge.budget)
}

// measure reads what the instances use and ends idle ones before the budget is used up.
func (m *Manager) measure() {
	if m.memory.gauge == nil {
		return
	}
	if err := m.memory.read(m.opts.MemoryUsed); err != nil {
		m.gaugeFault.Do(func() {
			m.opts.Log.Warn("the memory of all instances cannot be read; they are admitted by their limits only", "error", err)
		})
		return
	}
	if m.memory.excess(tight) <= 0 {
		return
	}
	if n := m.evictWhile(func(int) bool { return m.memory.excess(relaxed) > 0 }); n > 0 {
		m.opts.Log.Info("idle instances were ended: functions use nearly all of the memory budget", "instances", n)
	}
}

// Relieve ends a quarter of the idle instances above min, at least one, because the host is short of
// memory: those first that are worth least. It returns how many. Called again while it lasts.
func (m *Manager) Relieve(reason string) int {
	idle := 0
	for _, p := range m.Pools() {
		idle += p.Stats().Idle
	}
	n := m.evictWhile(func(n int) bool { return n < (idle+3)/4 })
	if n > 0 {
		m.opts.Log.Info("idle instances were ended: memory is short", "instances", n, "reason", reason)
	}
	return n
}

// evictWhile ends idle instances above min, those that are worth least first, as long as more says so; it is told how many it
// were. It returns how many.
func (m *Manager) evictWhile(more func(n int) bool) (n int) {
	for found := true; found && more(n); {
		found = false
		for _, p := range byWorth(m.Pools(), time.Now()) {
			if !more(n) {
				return n
			}
			if p.evictIdle(false, EndMemory) {
				n++
				found = true
			}
		}
	}
	return n
}

// worth says what the pool's coldest idle instance is worth: with a policy the waiting that it is likely to save for its
// memory, else the time to make another one over the time that it was not used. False when there is none.
func (p *Pool) worth(now time.Time) (float64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 || p.warming.Load() > 0 {
		return 0, false
	}
	if p.opts.Policy != nil {
		return p.opts.Policy.Score(&p.known, p.priceLocked(p.scarcity), p.levelLocked()+len(p.idle), now.Sub(p.idle[0].idleSince())), true
	}
	unused := max(now.Sub(p.idle[0].used), time.Millisecond)
	return float64(max(p.cost, time.Millisecond)) / float64(unused), true
}

// evictOne ends the coldest idle instance so that o has room; it reports whether there was one. min
// stays, except for another version of the function when somebody waits for that.
func (p *Pool) evictOne(o *Pool, urgent bool) bool {
	return p.evictIdle(urgent && o.version.Key == p.version.Key, EndRoom)
}

// evictIdle ends the coldest idle instance for a reason, those of min only when all is set.
func (p *Pool) evictIdle(all bool, reason string) bool {
	p.mu.Lock()
	keep := p.min
	if all {
		keep = 0
	}
	if len(p.idle) == 0 || p.warming.Load() > 0 || p.aliveLocked() <= keep {
		p.mu.Unlock()
		return false
	}
	s := p.idle[0]
	p.gaveUpLocked(s)
	p.leaveLocked(s)
	p.mu.Unlock()
	if p.memory.gauge != nil {
		s.freed.Store(max(1, s.memory()>>20)) // something, or all idle ones would follow
		p.memory.evicted(s.freed.Load())
	}
	p.end(s, reason)
	return true
}

// observe keeps a mean of what a start takes, in which the newest ones count most.
func (p *Pool) observeStartLocked(took time.Duration) {
	if p.cost == 0 {
		p.cost = took
		return
	}
	p.cost += (took - p.cost) / 4
}
