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

// Memory says how much of the host's budget the instances take, and the budget itself, in MiB; most
// is 0 when there is none.
func (m *Manager) Memory() (used, most int64) {
	m.memory.mu.Lock()
	defer m.memory.mu.Unlock()
	return m.memory.used, m.memory.max
}
