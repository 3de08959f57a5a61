package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// environment says who gets the requests of an environment.
type environment struct {
	mu      sync.Mutex // serialises changes; comes before Manager.mu
	routing atomic.Pointer[routing]
}

// routing is immutable: a change replaces it, so that a request sees one state of it.
type routing struct {
	active *Release
	// canary gets the share, out of function.FullShare, of the root requests; nil when there is none.
	canary *Release
	share  uint32
}

// draw chooses the release of a root request, once for the whole chain of calls that it makes. A function
// that only one of the two releases has is served by that one. nil when nothing is active.
func (rt *routing) draw(name string) *Release {
	if rt.canary == nil {
		return rt.active
	}
	r, other := rt.active, rt.canary
	if rand.Uint32N(function.FullShare) < rt.share {
		r, other = other, r
	}
	if r.pools[name] == nil && other.pools[name] != nil {
		return other
	}
	return r
}

// numbered returns the release with the number, nil when neither has it.
func (rt *routing) numbered(number int) *Release {
	for _, r := range []*Release{rt.active, rt.canary} {
		if r != nil && r.record.Number == number {
			return r
		}
	}
	return nil
}

// routes says whether requests may be given to the release.
func (rt *routing) routes(r *Release) bool { return r == rt.active || r == rt.canary }

// uses says whether one of the releases has the pool.
func (rt *routing) uses(name string, p *Pool) bool {
	return rt.active != nil && rt.active.pools[name] == p || rt.canary != nil && rt.canary.pools[name] == p
}

// hold binds a request to r, which rt routes to; false when requests are not given to it any more.
func (e *environment) hold(rt *routing, r *Release) bool {
	if !r.hold() {
		return false
	}
	if now := e.routing.Load(); now == rt || now.routes(r) {
		return true
	}
	r.unbind() // it stopped being routed to in this moment
	return false
}

// clear stops routing and returns the releases that drain now.
func (e *environment) clear() (old []*Release) {
	e.mu.Lock()
	defer e.mu.Unlock()
	rt := e.routing.Swap(&routing{})
	for _, r := range []*Release{rt.active, rt.canary} {
		if r != nil {
			r.retire()
			old = append(old, r)
		}
	}
	return old
}

// Release is a live release: active, a canary, being prepared, or draining.
type Release struct {
	manager  *Manager
	record   function.Release
	versions map[string]*function.Version
	pools    map[string]*Pool
	counters *counters
	kept     bool // a request asked for it by its number: it is not routed to

	inflight atomic.Int64 // requests bound to it, below zero once it has ended: then none can be
	retired  atomic.Bool
	done     chan struct{} // closed when drained
}

// ReleaseNumber implements invocation.Binding.
func (r *Release) ReleaseNumber() int { return r.record.Number }

// Record returns the release's record.
func (r *Release) Record() function.Release { return r.record }

// InFlight counts the requests bound to the release, at any depth.
func (r *Release) InFlight() int64 { return max(r.inflight.Load(), 0) }

// Kept says whether the release lives only for requests that ask for it by its number.
func (r *Release) Kept() bool { return r.kept }

// Drained is closed when the release was retired and no request is bound to it any more.
func (r *Release) Drained() <-chan struct{} { return r.done }

// Pool returns the pool of a function of the release, or nil.
func (r *Release) Pool(name string) *Pool { return r.pools[name] }

// Prepare makes the pools of a release without routing anything to it. Follow with Warm, then
// Activate, Share or Abort.
func (m *Manager) Prepare(record function.Release, versions map[string]*function.Version) (*Release, error) {
	return m.prepare(&Release{record: record, versions: versions})
}

func (m *Manager) prepare(r *Release) (*Release, error) {
	r.manager, r.pools, r.done = m, make(map[string]*Pool, len(r.versions)), make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errors.New("the daemon is shutting down")
	}
	r.counters = m.countersLocked(releaseKey{r.record.Environment, r.record.Number})
	m.live[r] = struct{}{}
	for name, v := range r.versions {
		r.pools[name] = m.refLocked(v, r)
		if !r.kept { // else the function's maximum is the active release's alone
			r.pools[name].limit.raise(m.maxOf(v))
		}
	}
	return r, nil
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

// Activate routes new requests of the environment to r, whether it was prepared only or is the canary. The
// release that was active before is returned (nil if none); it drains on its own. A canary other than r keeps its
// share.
func (r *Release) Activate() *Release {
	e := r.manager.environment(r.record.Environment)
	e.mu.Lock()
	rt := e.routing.Load()
	next := &routing{active: r}
	if rt.canary != r {
		next.canary, next.share = rt.canary, rt.share
	}
	r.adopt(nil)
	if next.canary != nil {
		next.canary.adopt(r)
	}
	e.routing.Store(next)
	old := rt.active
	if old == r {
		old = nil
	}
	if old != nil {
		old.letGo(next)
		old.retire()
	}
	e.mu.Unlock()
	r.manager.unpin(r.record.Environment)
	return old
}

// Share routes a share, out of function.FullShare, of the new root requests to r, beside the active
// release; again for another share. A release that had it before drains.
func (r *Release) Share(share int) {
	e := r.manager.environment(r.record.Environment)
	e.mu.Lock()
	defer e.mu.Unlock()
	rt := e.routing.Load()
	next := &routing{active: rt.active, canary: r, share: uint32(min(max(share, 0), function.FullShare))}
	if rt.canary != r {
		r.adopt(rt.active)
	}
	e.routing.Store(next)
	if old := rt.canary; old != nil && old != r {
		old.letGo(next)
		old.retire()
		r.manager.restore(next)
	}
}

// adopt makes the pools serve r: their minimum, their function's maximum and the release that their instances
// start under. What beside (may be nil), which is active, shares stays its own, and a maximum is only raised.
func (r *Release) adopt(beside *Release) {
	for name, p := range r.pools {
		v := r.versions[name]
		p.mu.Lock()
		if beside == nil || beside.pools[name] != p {
			p.binding = r
		}
		p.min = v.Config.Concurrency.Min
		p.mu.Unlock()
		if beside == nil {
			p.limit.setMax(r.manager.maxOf(v))
			p.limit.stopped.Store(v.Config.Concurrency.Stopped)
		} else {
			p.limit.raise(r.manager.maxOf(v))
		}
	}
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
		if p := m.unrefLocked(k); p != nil {
			last = append(last, p)
		}
	}
	m.mu.Unlock()
	for _, p := range last {
		p.close()
	}
}

// letGo ends the warmth of pools that no release has which is routed to: they only serve the requests
// that are bound to r.
func (r *Release) letGo(next *routing) {
	for name, p := range r.pools {
		if !next.uses(name, p) {
			p.setMin(0)
		}
	}
}

// Abort drops a release that was prepared and not activated. A canary gets no more requests and drains.
func (r *Release) Abort() {
	e := r.manager.environment(r.record.Environment)
	e.mu.Lock()
	defer e.mu.Unlock()
	rt := e.routing.Load()
	if rt.canary == r {
		rt = &routing{active: rt.active}
		e.routing.Store(rt)
	}
	r.letGo(rt)
	r.retire()
	r.manager.restore(rt)
}

// restore sets the functions' maxima to what the releases ask for that are routed to: one that is not any more
// may have raised them.
func (m *Manager) restore(rt *routing) {
	for _, r := range []*Release{rt.active, rt.canary} {
		if r == nil {
			continue
		}
		for name, p := range r.pools {
			if most := m.maxOf(r.versions[name]); r == rt.active {
				p.limit.setMax(most)
			} else {
				p.limit.raise(most)
			}
		}
	}
}

// retire lets the release drain; it ends when nothing is bound to it.
func (r *Release) retire() {
	r.retired.Store(true)
	r.endUnused()
}

// ended is what inflight becomes with the end of a release. Those that come too late and take their hold back
// never bring it near zero.
const ended = math.MinInt64 / 2

// hold counts a request that is bound to the release; false when it has ended.
func (r *Release) hold() bool {
	if r.inflight.Add(1) > 0 {
		return true
	}
	r.inflight.Add(-1)
	return false
}

func (r *Release) unbind() {
	if r.inflight.Add(-1) == 0 && r.retired.Load() {
		r.endUnused()
	}
}

// endUnused ends a retired release to which nothing is bound: from then on nothing can be.
func (r *Release) endUnused() {
	if r.inflight.CompareAndSwap(0, ended) {
		r.finish()
	}
}

// finish closes the pools that no other release uses. Nothing is bound to r, so none of them has a request that
// would be refused. Called once.
func (r *Release) finish() {
	m := r.manager
	var last []*Pool
	m.mu.Lock()
	delete(m.live, r)
	for name := range r.versions {
		if p := m.unrefLocked(r.pools[name].key); p != nil {
			last = append(last, p)
		}
	}
	m.mu.Unlock()
	for _, p := range last {
		p.close()
	}
	close(r.done)
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
	e.routing.Store(&routing{})
	next[env] = e
	m.envs.Store(&next)
	return e
}

// Deactivate stops routing to an environment. Its releases that are not finished yet are returned, each once: those
// that were routed to, those that drain since an earlier switch, and those that requests asked for by number. Used
// when nothing is left in it.
func (m *Manager) Deactivate(env function.Environment) (draining []*Release) {
	if e := (*m.envs.Load())[env]; e != nil {
		for _, r := range e.clear() {
			r.letGo(&routing{})
		}
	}
	m.unpin(env)
	return m.Live(env)
}

// route returns who gets the requests of an environment; never nil.
func (m *Manager) route(env function.Environment) *routing {
	if e := (*m.envs.Load())[env]; e != nil {
		return e.routing.Load()
	}
	return &routing{}
}

// Active returns the active release of an environment, or nil.
func (m *Manager) Active(env function.Environment) *Release { return m.route(env).active }

// Canary returns the release of an environment that gets a share of the requests, with that share out of
// function.FullShare, or nil.
func (m *Manager) Canary(env function.Environment) (*Release, int) {
	rt := m.route(env)
	return rt.canary, int(rt.share)
}

// Live lists the releases of an environment that are not finished: active, canary, being prepared, draining, and
// those that a request asked for by number.
func (m *Manager) Live(env function.Environment) (out []*Release) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for r := range m.live {
		if r.record.Environment == env {
			out = append(out, r)
		}
	}
	return out
}

// Bound is a request's hold on a release and on the pool that will serve it.
type Bound struct {
	release *Release
	pool    *Pool
	pinned  bool // pool is an extra reference to give back: its version is outside the release
	root    bool // no other invocation made it, and it runs what the release has

	// begun and done belong to the invocation that Begin began.
	begun time.Time
	done  invocation.Completion
}

var (
	_ invocation.Route      = (*Bound)(nil)
	_ invocation.Completion = (*Bound)(nil)
)

// ErrNoRelease says that an environment has no active release.
var ErrNoRelease = errors.New("no release is active")

// ErrNoFunction says that the release has no such function.
var ErrNoFunction = errors.New("the release has no such function")

// Bind binds a root request to a release of env: the active one, or the canary for its share.
func (m *Manager) Bind(env function.Environment, name string) (*Bound, error) {
	e := (*m.envs.Load())[env]
	if e == nil {
		return nil, ErrNoRelease
	}
	for {
		rt := e.routing.Load()
		r := rt.draw(name)
		if r == nil {
			return nil, ErrNoRelease
		}
		if e.hold(rt, r) {
			return r.bound(name, true)
		}
		if e.routing.Load() == rt { // it was made active after its end, which nobody should do
			return nil, ErrNoRelease
		}
	}
}

// BindNumber binds a request to the active release or the canary, whichever has the number. root says that no
// other invocation made the request. ErrNoRelease when neither has it.
func (m *Manager) BindNumber(env function.Environment, number int, name string, root bool) (*Bound, error) {
	e := (*m.envs.Load())[env]
	if e == nil {
		return nil, ErrNoRelease
	}
	for {
		rt := e.routing.Load()
		r := rt.numbered(number)
		if r == nil {
			return nil, ErrNoRelease
		}
		if e.hold(rt, r) {
			return r.bound(name, root)
		}
		if e.routing.Load() == rt {
			return nil, ErrNoRelease
		}
	}
}

// Bind binds a further request to the release of one that is in flight: a call made from inside an
// instance stays on its caller's release. ErrNoRelease when the release has drained: an instance that
// later releases share can call while it has no invocation.
func (r *Release) Bind(name string) (*Bound, error) {
	if !r.hold() {
		return nil, ErrNoRelease
	}
	return r.bound(name, false)
}

func (r *Release) bound(name string, root bool) (*Bound, error) {
	p := r.pools[name]
	if p == nil {
		r.unbind()
		return nil, ErrNoFunction
	}
	return &Bound{release: r, pool: p, root: root}, nil
}

// At moves the request to another version of the same function, which need not be part of the
// release; calls that it makes stay on the release.
func (b *Bound) At(v *function.Version) {
	if v.Number == b.pool.version.Number && v.Key == b.pool.version.Key {
		return
	}
	b.root = false // what this version does is not the release's
	m := b.release.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	b.pool = m.refLocked(v, b.release)
	b.pinned = true
	if e := m.pools[b.pool.key]; !e.pinned {
		e.pinned = true
		e.refs++ // kept until a sweep finds it unused
	}
}

// BindKept binds a request to a release that is neither active nor draining, by its record. Its
// pools live as long as requests are bound to it.
func (m *Manager) BindKept(record function.Release, versions map[string]*function.Version, name string) (*Bound, error) {
	r, err := m.prepare(&Release{record: record, versions: versions, kept: true})
	if err != nil {
		return nil, err
	}
	r.hold() // it cannot have ended
	r.retired.Store(true)
	return r.bound(name, false)
}

// Version implements invocation.Route.
func (b *Bound) Version() *function.Version { return b.pool.version }

// ReleaseNumber implements invocation.Route.
func (b *Bound) ReleaseNumber() int { return b.release.record.Number }

// Invoke implements invocation.Route.
func (b *Bound) Invoke(ctx context.Context, req *invocation.Request) (*invocation.Outcome, error) {
	req.Binding = b.release
	start := time.Now()
	outcome, err := b.pool.invoke(ctx, req)
	b.release.counters.end(b.root, time.Since(start), outcome, err)
	return outcome, err
}

// Begin implements invocation.Route.
func (b *Bound) Begin(req *invocation.Request, done invocation.Completion) {
	req.Binding = b.release
	b.begun, b.done = time.Now(), done
	b.pool.begin(req, b)
}

// Complete implements invocation.Completion for what Begin began: it counts and hands the outcome on.
func (b *Bound) Complete(out *invocation.Outcome, err error) {
	b.release.counters.end(b.root, time.Since(b.begun), out, err)
	b.done.Complete(out, err)
}

// Leave implements invocation.Route.
func (b *Bound) Leave(req *invocation.Request, cause error) { b.pool.leave(req, cause) }

// Close implements invocation.Route.
func (b *Bound) Close() {
	if b.pinned {
		m := b.release.manager
		m.mu.Lock()
		last := m.unrefLocked(b.pool.key)
		m.mu.Unlock()
		if last != nil {
			last.close()
		}
	}
	b.release.unbind()
}
