package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

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
	// retired are pools that nobody uses any more and whose instances are not all gone.
	retired map[*Pool]struct{}
	closed  bool
}

type versionKey struct {
	function.Key
	number int
}

// entry is a pool with the number of its users, guarded by Manager.mu.
type entry struct {
	pool *Pool
	refs int
	// pinned marks a pool that a request asked for by version number; it has one ref of its own
	// until a sweep finds it unused.
	pinned bool
}

type environment struct {
	active atomic.Pointer[Release]
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
	}
	m.host.fair, m.memory.fair = true, true
	if opts.MemoryUsed != nil && opts.MemoryMB > 0 {
		m.memory.gauge = &gauge{budget: opts.MemoryMB}
	}
	m.envs.Store(&map[function.Environment]*environment{})
	m.group.Go(m.sweepLoop)
	return m
}

// Release is a live release: active, being prepared, or draining.
type Release struct {
	manager  *Manager
	record   function.Release
	versions map[string]*function.Version
	pools    map[string]*Pool

	inflight atomic.Int64
	retired  atomic.Bool
	drained  sync.Once
	done     chan struct{} // closed when drained
}

// ReleaseNumber implements invocation.Binding.
func (r *Release) ReleaseNumber() int { return r.record.Number }

// Record returns the release's record.
func (r *Release) Record() function.Release { return r.record }

// InFlight counts the requests bound to the release, at any depth.
func (r *Release) InFlight() int64 { return r.inflight.Load() }

// Drained is closed when the release was retired and no request is bound to it any more.
func (r *Release) Drained() <-chan struct{} { return r.done }

// Pool returns the pool of a function of the release, or nil.
func (r *Release) Pool(name string) *Pool { return r.pools[name] }

// Prepare makes the pools of a release without routing anything to it. Follow with Warm, then
// Activate or Abort.
func (m *Manager) Prepare(record function.Release, versions map[string]*function.Version) (*Release, error) {
	r := &Release{manager: m, record: record, versions: versions, pools: make(map[string]*Pool, len(versions)), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errors.New("the daemon is shutting down")
	}
	for name, v := range versions {
		r.pools[name] = m.refLocked(v, r)
		r.pools[name].limit.raise(m.maxOf(v))
	}
	return r, nil
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
	k := versionKey{v.Key, v.Number}
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
		binding: b, closed: m.closed,
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
func (m *Manager) unrefLocked(v *function.Version) *Pool {
	k := versionKey{v.Key, v.Number}
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

// Warm starts concurrency.min instances of every version of the release, as far as they do not run
// already, and blocks until each of them asked for its first event. A function that could never run on
// this host is an error too. The error names the function.
func (r *Release) Warm(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(r.pools)) {
		if err := r.pools[name].tooLarge(); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range slices.Sorted(maps.Keys(r.pools)) {
		p, least := r.pools[name], r.versions[name].Config.Concurrency.Min
		if least == 0 {
			continue
		}
		g.Go(func() error {
			if err := p.warm(ctx, least); err != nil {
				return fmt.Errorf("function %s, version %d, does not start: %w", name, p.version.Number, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Activate routes new requests of the environment to r. The release that was active before is
// returned (nil if none); it drains on its own.
func (r *Release) Activate() *Release {
	m := r.manager
	for name, p := range r.pools {
		p.mu.Lock()
		p.binding = r
		p.min = r.versions[name].Config.Concurrency.Min
		p.mu.Unlock()
		p.limit.setMax(m.maxOf(r.versions[name]))
		p.limit.stopped.Store(r.versions[name].Config.Concurrency.Stopped)
	}
	old := m.environment(r.record.Environment).active.Swap(r)
	if old != nil {
		old.letGo(r)
		old.retire()
	}
	m.unpin(r.record.Environment)
	return old
}

// unpin lets go of the pools that were asked for by version number: their versions may be forgotten
// with the switch. They go when no request uses them.
func (m *Manager) unpin(env function.Environment) {
	var last []*Pool
	m.mu.Lock()
	for k, e := range m.pools {
		if k.Environment != env || !e.pinned {
			continue
		}
		e.pinned = false
		if p := m.unrefLocked(e.pool.version); p != nil {
			last = append(last, p)
		}
	}
	m.mu.Unlock()
	for _, p := range last {
		p.close()
	}
}

// letGo ends the warmth of pools that next (may be nil) does not have: they only serve the requests
// that are bound to r.
func (r *Release) letGo(next *Release) {
	for name, p := range r.pools {
		if next == nil || next.pools[name] != p {
			p.setMin(0)
		}
	}
}

// Abort drops a release that was prepared and never activated.
func (r *Release) Abort() {
	r.retire()
	if active := r.manager.Active(r.record.Environment); active != nil {
		for name, p := range active.pools { // Prepare may have raised it
			p.limit.setMax(r.manager.maxOf(active.versions[name]))
		}
	}
}

// retire lets the release drain; it ends when nothing is bound to it.
func (r *Release) retire() {
	r.retired.Store(true)
	if r.inflight.Load() == 0 {
		r.finish()
	}
}

// finish closes the pools that no other release uses.
func (r *Release) finish() {
	r.drained.Do(func() {
		m := r.manager
		var last []*Pool
		m.mu.Lock()
		for _, v := range r.versions {
			if p := m.unrefLocked(v); p != nil {
				last = append(last, p)
			}
		}
		m.mu.Unlock()
		for _, p := range last {
			p.close()
		}
		close(r.done)
	})
}

// environment returns the entry of an environment, made when missing.
func (m *Manager) environment(env function.Environment) *environment {
	if e := (*m.envs.Load())[env]; e != nil {
		return e
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := (*m.envs.Load())[env]; e != nil {
		return e
	}
	next := maps.Clone(*m.envs.Load())
	e := &environment{}
	next[env] = e
	m.envs.Store(&next)
	return e
}

// Deactivate stops routing to an environment; its release drains. Used when nothing is left in it.
func (m *Manager) Deactivate(env function.Environment) {
	if e := (*m.envs.Load())[env]; e != nil {
		if old := e.active.Swap(nil); old != nil {
			old.letGo(nil)
			old.retire()
		}
	}
	m.unpin(env)
}

// Active returns the active release of an environment, or nil.
func (m *Manager) Active(env function.Environment) *Release {
	if e := (*m.envs.Load())[env]; e != nil {
		return e.active.Load()
	}
	return nil
}

// bind counts a request into a release; false when it stopped being active in this moment.
func (m *Manager) bindActive(env function.Environment) *Release {
	e := (*m.envs.Load())[env]
	if e == nil {
		return nil
	}
	for {
		r := e.active.Load()
		if r == nil {
			return nil
		}
		r.inflight.Add(1)
		if e.active.Load() == r {
			return r
		}
		r.unbind()
	}
}

func (r *Release) unbind() {
	if r.inflight.Add(-1) == 0 && r.retired.Load() {
		r.finish()
	}
}

// Bound is a request's hold on a release and on the pool that will serve it.
type Bound struct {
	release *Release
	pool    *Pool
	pinned  *function.Version // an extra reference to give back, for versions outside the release
}

var _ invocation.Route = (*Bound)(nil)

// ErrNoRelease says that an environment has no active release.
var ErrNoRelease = errors.New("no release is active")

// ErrNoFunction says that the release has no such function.
var ErrNoFunction = errors.New("the release has no such function")

// Bind binds a request to the active release of env.
func (m *Manager) Bind(env function.Environment, name string) (*Bound, error) {
	r := m.bindActive(env)
	if r == nil {
		return nil, ErrNoRelease
	}
	return r.bound(name)
}

// Bind binds a further request to the release of one that is in flight: a call made from inside an
// instance stays on its caller's release. ErrNoRelease when the release has drained: an instance that
// later releases share can call while it has no invocation.
func (r *Release) Bind(name string) (*Bound, error) {
	r.inflight.Add(1)
	select {
	case <-r.done:
		r.unbind()
		return nil, ErrNoRelease
	default:
	}
	return r.bound(name)
}

func (r *Release) bound(name string) (*Bound, error) {
	p := r.pools[name]
	if p == nil {
		r.unbind()
		return nil, ErrNoFunction
	}
	return &Bound{release: r, pool: p}, nil
}

// At moves the request to another version of the same function, which need not be part of the
// release; calls that it makes stay on the release.
func (b *Bound) At(v *function.Version) {
	if v.Number == b.pool.version.Number && v.Key == b.pool.version.Key {
		return
	}
	m := b.release.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	b.pool = m.refLocked(v, b.release)
	b.pinned = v
	if e := m.pools[versionKey{v.Key, v.Number}]; !e.pinned {
		e.pinned = true
		e.refs++ // kept until a sweep finds it unused
	}
}

// BindKept binds a request to a release that is neither active nor draining, by its record. Its
// pools live as long as requests are bound to it.
func (m *Manager) BindKept(record function.Release, versions map[string]*function.Version, name string) (*Bound, error) {
	r, err := m.Prepare(record, versions)
	if err != nil {
		return nil, err
	}
	r.inflight.Add(1)
	r.retired.Store(true)
	return r.bound(name)
}

// Version implements invocation.Route.
func (b *Bound) Version() *function.Version { return b.pool.version }

// ReleaseNumber implements invocation.Route.
func (b *Bound) ReleaseNumber() int { return b.release.record.Number }

// Invoke implements invocation.Route.
func (b *Bound) Invoke(ctx context.Context, req *invocation.Request) (*invocation.Outcome, error) {
	req.Binding = b.release
	return b.pool.invoke(ctx, req)
}

// Begin implements invocation.Route.
func (b *Bound) Begin(req *invocation.Request, done invocation.Completion) {
	req.Binding = b.release
	b.pool.begin(req, done)
}

// Leave implements invocation.Route.
func (b *Bound) Leave(req *invocation.Request, cause error) { b.pool.leave(req, cause) }

// Close implements invocation.Route.
func (b *Bound) Close() {
	if b.pinned != nil {
		m := b.release.manager
		m.mu.Lock()
		last := m.unrefLocked(b.pinned)
		m.mu.Unlock()
		if last != nil {
			last.close()
		}
	}
	b.release.unbind()
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
		if r := e.active.Swap(nil); r != nil {
			old = append(old, r)
			r.retire()
		}
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
