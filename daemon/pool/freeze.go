package pool

import (
	"context"
	"time"
)

// Freezer is what a Worker may be able to do besides: stop its instance while it is idle. Calls are not made at the same time,
// except Close.
type Freezer interface {
	// Freeze stops the instance's processes. When ctx ends it returns soon; an error means that they run on.
	Freeze(ctx context.Context) error
	// Thaw lets them go on; it is no error when they were never stopped. An error means that the instance must not get an
	// event.
	Thaw() error
}

// Meter is what a Worker may be able to do besides: say how much memory its instance uses now, in bytes; zero when that is not
// known.
type Meter interface{ MemoryBytes() uint64 }

// freezeAgain is the pause before an instance that could not be frozen is tried again.
const freezeAgain = 30 * time.Second

// freezeLocked freezes what is idle for long enough, in the background. Only the sweeper calls it: a hot
// instance pays nothing.
func (p *Pool) freezeLocked(now time.Time) {
	if p.opts.FreezeAfter <= 0 || p.freezing || p.closed {
		return
	}
	var due []*slot
	for _, s := range p.idle {
		if !s.cold && now.Sub(s.used) >= p.opts.FreezeAfter && !now.Before(s.warmUntil) {
			due = append(due, s)
		}
	}
	if len(due) == 0 {
		return
	}
	p.freezing = true
	p.group.Go(func() {
		for _, s := range due {
			p.freeze(s, now)
		}
		p.mu.Lock()
		p.freezing = false
		p.mu.Unlock()
	})
}

// freeze freezes one slot unless it was taken since now. Whoever takes it meanwhile calls the freeze off
// and waits for its end.
func (p *Pool) freeze(s *slot, now time.Time) {
	f, ok := s.worker.(Freezer)
	if !ok {
		return
	}
	s.frost.Lock()
	defer s.frost.Unlock()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	p.mu.Lock()
	if s.state != idle || s.cold || s.used.After(now) {
		p.mu.Unlock()
		return
	}
	s.cold, s.callOff = true, cancel
	p.mu.Unlock()
	err := f.Freeze(ctx)
	var holds int64
	if err == nil && p.opts.Policy != nil {
		holds = s.memory()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.observeMemoryLocked(holds)
	s.callOff = nil
	if err != nil {
		s.cold = false
		s.warmUntil = time.Now().Add(freezeAgain)
		if ctx.Err() == nil && s.state == idle {
			p.log.Debug("instance was not frozen", "instance", s.worker.ID(), "function", p.version.Key.String(), "error", err)
		}
	}
}

// takeLocked makes an idle slot busy. When it is frozen, the taker must thaw it.
func (s *slot) takeLocked() {
	s.state = busy
	s.answered.Store(0)
	s.thaw, s.cold = s.cold, false
	if s.callOff != nil {
		s.callOff()
	}
}

// thawed thaws a slot that was taken frozen; false when it cannot serve any more.
func (p *Pool) thawed(s *slot) bool {
	if !s.thaw {
		return true
	}
	s.thaw = false
	s.frost.Lock()
	err := s.worker.(Freezer).Thaw()
	s.frost.Unlock()
	if err == nil {
		if p.atOnce > 1 {
			p.melted(s)
		}
		return true
	}
	p.mu.Lock()
	p.leaveLocked(s)
	p.mu.Unlock()
	p.log.Debug("instance ended while it was frozen", "instance", s.worker.ID(), "function", p.version.Key.String(), "error", err)
	p.opts.Observer.Ended(p.version, EndFailed)
	s.worker.Close("failure")
	return false
}

// memory is what the slot's instance uses now in bytes, zero when that is not known. Called without locks.
func (s *slot) memory() int64 {
	if m, ok := s.worker.(Meter); ok {
		return int64(m.MemoryBytes())
	}
	return 0
}
