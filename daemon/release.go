package daemon

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"lfx.dev/lfxd/daemon/deploy"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/daemon/store"
)

// releaser joins the pools and the ports for deploys: a candidate has both.
type releaser struct {
	pools *pool.Manager
	ports *ports

	mu       sync.Mutex
	active   map[function.Environment]function.Release // whose ports are claimed
	canaries map[function.Environment]*candidate
}

var _ deploy.Releaser = (*releaser)(nil)

func newReleaser(pools *pool.Manager, ports *ports) *releaser {
	return &releaser{
		pools: pools, ports: ports,
		active: map[function.Environment]function.Release{}, canaries: map[function.Environment]*candidate{},
	}
}

// Prepare implements deploy.Releaser.
func (r *releaser) Prepare(rel function.Release, versions map[string]*function.Version) (deploy.Candidate, error) {
	if err := r.ports.claim(rel); err != nil {
		return nil, err
	}
	live, err := r.pools.Prepare(rel, versions)
	if err != nil {
		r.ports.unclaim(rel)
		return nil, err
	}
	return &candidate{releaser: r, record: rel, live: live}, nil
}

// Restore is Prepare for a release that was active, or the canary, before a restart: a port that another
// program has taken meanwhile does not keep the functions down. taken says which ports are missing.
func (r *releaser) Restore(rel function.Release, versions map[string]*function.Version) (c *candidate, taken, err error) {
	var missing []error
	held := rel
	held.Ports = maps.Clone(rel.Ports)
	for name, number := range rel.Ports {
		one := rel
		one.Ports = map[string]int{name: number}
		if err := r.ports.claim(one); err != nil {
			missing = append(missing, err)
			delete(held.Ports, name)
		}
	}
	live, err := r.pools.Prepare(held, versions)
	if err != nil {
		r.ports.unclaim(held)
		return nil, nil, err
	}
	return &candidate{releaser: r, record: held, live: live}, errors.Join(missing...), nil
}

// Canary implements deploy.Releaser.
func (r *releaser) Canary(env function.Environment, number int) deploy.Candidate {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.canaries[env]; c != nil && c.record.Number == number {
		return c
	}
	return nil
}

// Deactivate implements deploy.Releaser.
func (r *releaser) Deactivate(env function.Environment) (drained func(context.Context) error) {
	draining := r.pools.Deactivate(env)
	r.mu.Lock()
	old, ok := r.active[env]
	canary := r.canaries[env]
	delete(r.active, env)
	delete(r.canaries, env)
	r.mu.Unlock()
	if ok {
		r.ports.unclaim(old)
	}
	if canary != nil {
		r.ports.unclaim(canary.record)
	}
	r.pools.Forget(env, func(int) bool { return false })
	return func(ctx context.Context) error {
		for _, rel := range draining {
			select {
			case <-rel.Drained():
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		r.pools.Forget(env, func(int) bool { return false })
		return nil
	}
}

// InUse implements deploy.Releaser.
func (r *releaser) InUse(env function.Environment) store.InUse {
	extra := map[function.Key][]int{} // versions with a pool that no live release explains
	for _, p := range r.pools.Pools() {
		if v := p.Version(); v.Environment == env {
			extra[v.Key] = append(extra[v.Key], v.Number)
		}
	}
	live := map[int]bool{}
	for _, rel := range r.pools.Live(env) {
		record := rel.Record()
		live[record.Number] = true
		for name, number := range record.Versions {
			key := function.Key{Environment: env, Function: name}
			extra[key] = slices.DeleteFunc(extra[key], func(n int) bool { return n == number })
		}
	}
	return func(rel *function.Release) bool {
		if live[rel.Number] {
			return true
		}
		for name, number := range rel.Versions {
			if slices.Contains(extra[function.Key{Environment: env, Function: name}], number) {
				return true
			}
		}
		return false
	}
}

// Forget implements deploy.Releaser.
func (r *releaser) Forget(env function.Environment, keep func(number int) bool) {
	r.pools.Forget(env, keep)
}

// candidate is a prepared release, or the canary.
type candidate struct {
	releaser *releaser
	record   function.Release
	live     *pool.Release
}

// Warm implements deploy.Candidate.
func (c *candidate) Warm(ctx context.Context) error { return c.live.Warm(ctx) }

// Activate implements deploy.Candidate.
func (c *candidate) Activate() {
	c.live.Activate()
	c.releaser.ports.assign(c.record)
	r := c.releaser
	r.mu.Lock()
	old, ok := r.active[c.record.Environment]
	r.active[c.record.Environment] = c.record
	c.leaveLocked()
	r.mu.Unlock()
	if ok {
		r.ports.unclaim(old)
	}
}

// Share implements deploy.Candidate. The ports stay those of the active release until the candidate is activated:
// one that only the candidate has is bound and refuses requests.
func (c *candidate) Share(share int) {
	c.live.Share(share)
	c.releaser.mu.Lock()
	defer c.releaser.mu.Unlock()
	c.releaser.canaries[c.record.Environment] = c
}

// Abort implements deploy.Candidate.
func (c *candidate) Abort() {
	c.live.Abort()
	c.releaser.mu.Lock()
	c.leaveLocked()
	c.releaser.mu.Unlock()
	c.releaser.ports.unclaim(c.record)
}

// leaveLocked ends the time as a canary.
func (c *candidate) leaveLocked() {
	if c.releaser.canaries[c.record.Environment] == c {
		delete(c.releaser.canaries, c.record.Environment)
	}
}
