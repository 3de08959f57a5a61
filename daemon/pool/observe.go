package pool

import (
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// Observer is told what becomes of instances. Called from any goroutine, without locks of the pools; it
// must not block.
type Observer interface {
	// Started: an instance asked for its first event, took after its start began; phases says where the
	// time went and is not modified.
	Started(v *function.Version, took time.Duration, phases map[string]time.Duration)
	// StartFailed: a start gave no instance.
	StartFailed(v *function.Version)
	// Ended: an instance takes no more work. reason is one of the End constants.
	Ended(v *function.Version, reason string)
}

// Reasons for which an instance ends.
const (
	EndIdle    = "idle"    // it had no work for too long
	EndRoom    = "room"    // another function or version needed its place or its memory
	EndMemory  = "memory"  // the budget was nearly used up, or the host is short of memory
	EndRelease = "release" // no release needs its version any more
	EndFailed  = "failed"  // its process ended, or it was reset after a timeout or an error of the platform
)

// nobody is the Observer of those who name none.
type nobody struct{}

func (nobody) Started(*function.Version, time.Duration, map[string]time.Duration) {}
func (nobody) StartFailed(*function.Version)                                      {}
func (nobody) Ended(*function.Version, string)                                    {}

// end closes a worker that the pool has taken out of use. Called without locks.
func (p *Pool) end(s *slot, reason string) {
	p.opts.Observer.Ended(p.version, reason)
	s.worker.Close("spindown")
}

// queued and granted note a request's wait. One that found an idle worker has none.
func queued(req *invocation.Request) {
	if req.Trace.Queued.IsZero() {
		req.Trace.Queued = time.Now()
	}
}

func granted(req *invocation.Request) {
	if !req.Trace.Queued.IsZero() {
		req.Trace.Granted = time.Now()
	}
}

// Memory is what all instances together have and may have, in MiB.
type Memory struct {
	// Budget is what they may use; 0 when there is no bound. Used is what they use, as last read; 0 where it
	// is not read.
	Budget, Used int64
	// Reserved is the sum of their limits, Reservable what that may be; 0 when there is no bound.
	Reserved, Reservable int64
}

// Memory says how much memory the instances have.
func (m *Manager) Memory() Memory {
	l := m.memory
	l.mu.Lock()
	defer l.mu.Unlock()
	st := Memory{Budget: m.opts.MemoryMB, Reserved: l.used, Reservable: l.max}
	if l.gauge != nil {
		st.Used = l.gauge.used
	}
	return st
}

// States counts the pool's instances by state, and the requests that wait.
func (p *Pool) States() (states map[string]int, queued int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	states = map[string]int{StateStarting: p.starting, StateBusy: 0, StateIdle: 0, StateFrozen: 0, StateStopping: 0}
	for s := range p.slots {
		states[s.stateName()]++
	}
	return states, p.waiting
}
