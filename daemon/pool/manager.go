package pool

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/pool/policy"
)

// Options are the settings of a Manager.
type Options struct {
	Starter Starter
	// DefaultMax caps the instances of a function whose version sets no maximum.
	DefaultMax func(*function.Version) int
	// QueueLimit bounds the requests that wait for one version; QueueTimeout bounds each wait.
	QueueLimit   int
	QueueTimeout time.Duration
	// IdleTimeout is how long an instance above min stays idle.
	IdleTimeout time.Duration
	// Policy says how long an idle instance is kept within IdleTimeout, which go first, and when one is started
	// ahead of need; nil keeps all for IdleTimeout.
	Policy *policy.Policy
	// FreezeAfter is how long an instance is idle before its processes are stopped; 0 means never.
	FreezeAfter time.Duration
	// MaxInstances caps the instances of all functions together; 0 means no cap.
	MaxInstances int64
	// MemoryMB is the budget of all instances together, in MiB; 0 means no bound. The sum of their limits stays below
	// MemoryMB × Overcommit (below 1 counts as 1).
	MemoryMB   int64
	Overcommit float64
	// MemoryUsed reads what all instances really use, in bytes, without page cache. It may be nil: then only their limits
	// count. It is called by one goroutine, about once a second.
	MemoryUsed func() (int64, error)
	// Observer is told what becomes of instances; may be nil.
	Observer Observer
	Log      *slog.Logger
}

// Manager holds the pools of all versions and the live releases of all environments.
type Manager struct {
	opts    Options
	ctx     context.Context
	cancel  context.CancelCauseFunc
	group   sync.WaitGroup // sweeper and starts
	workers sync.WaitGroup // instances that are not gone

	// envs is copied on write, so that binding a request takes no lock.
	envs atomic.Pointer[map[function.Environment]*environment]

	host   *limit // instances of all pools
	memory *limit // of all pools

	gaugeFault sync.Once // reading the memory has failed

	mu     sync.Mutex
	pools  map[versionKey]*entry
	limits map[function.Key]*limit
	newest map[function.Key]*Pool // made last, while it is in pools
	// live are the releases that are not finished; counters are of those that are kept, by number.
	live     map[*Release]struct{}
	counters map[releaseKey]*counters
	// retired are pools that nobody uses any more and whose instances are not all gone.
	retired map[*Pool]struct{}
	closed  bool
}

// versionKey names a pool. release is zero except where instances run several invocations at once; see keyOf.
type versionKey struct {
	function.Key
	number, release int
}

// entry is a pool with the number of its users, guarded by Manager.mu.
type entry struct {
	pool *Pool
	refs int
	// pinned marks a pool that a request asked for by version number; it has one ref of its own
	// until a sweep finds it unused.
	pinned bool
}

// NewManager starts a manager; Close ends it.
func NewManager(opts Options) *Manager {
	if opts.Observer == nil {
		opts.Observer = nobody{}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	m := &Manager{
		opts: opts, ctx: ctx, cancel: cancel,
		host: newLimit(opts.MaxInstances, one), memory: newLimit(int64(float64(opts.MemoryMB)*max(opts.Overcommit, 1)), memoryOf),
		pools: map[versionKey]*entry{}, limits: map[function.Key]*limit{}, newest: map[function.Key]*Pool{}, retired: map[*Pool]struct{}{},
		live: map[*Release]struct{}{}, counters: map[releaseKey]*counters{},
	}
	m.host.fair, m.memory.fair = true, true
	if opts.MemoryUsed != nil && opts.MemoryMB > 0 {
		m.memory.gauge = &gauge{budget: opts.MemoryMB}
	}
	m.envs.Store(&map[function.Environment]*environment{})
	m.group.Go(m.sweepLoop)
	return m
}

// maxOf is the cap on the instances of a version's function.
func (m *Manager) maxOf(v *function.Version) int64 {
	if most := v.Config.Concurrency.Max; most != 0 {
		return int64(most)
	}
	return int64(max(m.opts.DefaultMax(v), v.Config.Concurrency.Min))
}

// refLocked returns the pool of a version with one more reference.
func (m *Manager) refLocked(v *function.Version, b invocation.Binding) *Pool {
	k := keyOf(v, b)
	e := m.pools[k]
	if e == nil {
		e = &entry{pool: m.newPoolLocked(v, b)}
		m.pools[k] = e
	}
	e.refs++
	return e.pool
}

func (m *Manager) newPoolLocked(v *function.Version, b invocation.Binding) *Pool {
	l := m.limits[v.Key]
	if l == nil {
		l = newLimit(m.maxOf(v), one)
		m.limits[v.Key] = l
	}
	p := &Pool{
		version: v, starter: m.opts.Starter, limit: l, host: m.host, memory: m.memory, opts: m.opts, log: m.opts.Log,
		ctx: m.ctx, group: &m.group, workers: &m.workers, slots: map[*slot]struct{}{}, starts: map[*beginning]struct{}{},
		binding: b, closed: m.closed, key: keyOf(v, b), atOnce: v.Config.Concurrency.AtOnce(),
	}
	for _, l := range p.limits() {
		l.join(p)
	}
	if before := m.newest[v.Key]; before != nil {
		p.learn(before)
	}
	m.newest[v.Key] = p
	return p
}

// unrefLocked drops one reference and returns the pool when that was the last.
func (m *Manager) unrefLocked(k versionKey) *Pool {
	e := m.pools[k]
	if e == nil {
		return nil
	}
	if e.refs--; e.refs > 0 {
		return nil
	}
	m.removeLocked(k, e)
	return e.pool
}

// removeLocked forgets a pool that nobody uses; the caller closes it.
func (m *Manager) removeLocked(k versionKey, e *entry) {
	delete(m.pools, k)
	if m.newest[k.Key] == e.pool {
		delete(m.newest, k.Key)
	}
	m.retired[e.pool] = struct{}{}
	for _, l := range e.pool.limits() {
		l.leave(e.pool)
	}
}

// sweepLoop ends idle instances and retries what could not start.
func (m *Manager) sweepLoop() {
	every := min(time.Second, m.opts.IdleTimeout/4+time.Millisecond)
	if m.opts.FreezeAfter > 0 {
		every = min(every, max(m.opts.FreezeAfter, 100*time.Millisecond))
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case now := <-tick.C:
			m.sweep(now)
		}
	}
}

func (m *Manager) sweep(now time.Time) {
	var all, last []*Pool
	m.mu.Lock()
	for k, e := range m.pools {
		all = append(all, e.pool)
		if e.pinned && e.refs == 1 {
			if st := e.pool.Stats(); st.Instances+st.Queued == 0 {
				m.removeLocked(k, e)
				last = append(last, e.pool)
			}
		}
	}
	for p := range m.retired {
		if p.live.Load() == 0 {
			delete(m.retired, p)
		}
	}
	m.mu.Unlock()
	m.measure()
	scarcity := m.memory.scarcity()
	m.host.offer(nil)
	m.memory.offer(nil)
	for _, p := range all {
		p.sweep(now, scarcity)
	}
	for _, p := range last {
		p.close()
	}
}

// Pools lists all pools, those of draining releases too.
func (m *Manager) Pools() []*Pool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*Pool, 0, len(m.pools))
	for _, e := range m.pools {
		out = append(out, e.pool)
	}
	return out
}

// all lists the pools and those that are retired.
func (m *Manager) all() []*Pool {
	out := m.Pools()
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.retired {
		out = append(out, p)
	}
	return out
}

// Close stops all environments, waits for the requests in flight until ctx ends, then ends every
// instance and waits until nothing is left of them.
func (m *Manager) Close(ctx context.Context) {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	var old []*Release
	for _, e := range *m.envs.Load() {
		old = append(old, e.clear()...)
	}
	for _, r := range old {
		select {
		case <-r.Drained():
		case <-ctx.Done():
		}
	}
	m.cancel(errors.New("the daemon is shutting down"))
	for _, p := range m.all() {
		p.close()
		p.kill("spindown")
	}
	m.group.Wait()
	for _, p := range m.all() {
		p.kill("spindown") // what a start that was under way still brought
	}
	m.workers.Wait()
}
