package store

import (
	"context"
	"slices"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// BeginDeploy records a deploy before its first effect. One at a time per environment: ErrConflict
// when another one is recorded.
func (s *Store) BeginDeploy(ctx context.Context, d Deploy) error {
	if d.ID == "" || d.Project == "" || d.Environment.Name == "" {
		return invalid("a deploy needs an id, a project and an environment")
	}
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		for _, other := range v.deploys {
			switch {
			case other.ID == d.ID:
				return 0, conflict("deploy %s is already recorded", d.ID)
			case other.Environment == d.Environment:
				return 0, conflict("another deploy of %s is in progress since %s", d.Environment, other.Started.Format(time.RFC3339))
			}
		}
		return 0, statementError(s.conn.put(deployTable, d.ID, d.Project, d.Environment.Name, toNano(d.Started), toJSON(d.Images)))
	})
}

// EndDeploy forgets a deploy: it is done, or undone. Unknown ids are fine.
func (s *Store) EndDeploy(ctx context.Context, id string) error {
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		if !slices.ContainsFunc(v.deploys, func(d Deploy) bool { return d.ID == id }) {
			return 0, errUnchanged
		}
		return 0, statementError(s.conn.remove(deployTable, id))
	})
}

// RecordRelease numbers the release and the versions it needs and records them, in state recorded.
// What it will be can be seen before with Snapshot.NextRelease. Errors: ErrInvalidArgument,
// ErrConflict (a port belongs to another environment).
func (s *Store) RecordRelease(ctx context.Context, n NewRelease) (Recorded, error) {
	var p *plan
	err := s.write(ctx, func(v *Snapshot) (_ int64, err error) {
		if p, err = v.plan(n, time.Now().UTC()); err != nil {
			return 0, err
		}
		return p.env.id, statementError(s.conn.record(p))
	})
	if err != nil {
		return Recorded{}, err
	}
	return p.recorded, nil
}

// record writes the rows of a plan.
func (c conn) record(p *plan) error {
	r := &p.recorded.Release
	if err := c.putEnvironment(p.env); err != nil {
		return err
	}
	for _, f := range p.functions {
		if err := c.put(functionTable, f.id, p.env.id, f.Key.Function, int64(f.nextVersion), toNano(f.Created)); err != nil {
			return err
		}
	}
	for i, v := range p.recorded.Versions {
		if !p.recorded.New[i] {
			continue
		}
		if err := c.putVersion(p.ids[v.Function], v); err != nil {
			return err
		}
	}
	if err := c.putRelease(p.env.id, r); err != nil {
		return err
	}
	for name, number := range r.Versions {
		if err := c.put(memberTable, p.env.id, int64(r.Number), p.ids[name], int64(number), int64(r.Ports[name])); err != nil {
			return err
		}
	}
	return nil
}

func (c conn) putEnvironment(e *Environment) error {
	return c.put(environmentTable, e.id, e.Project, e.Name, e.Account, int64(e.nextRelease), toNano(e.Created))
}

func (c conn) putVersion(functionID int64, v *function.Version) error {
	return c.put(versionTable, functionID, int64(v.Number), v.Identity, toJSON(v.Image), toJSON(v.Config), toNano(v.Created))
}

func (c conn) putRelease(environmentID int64, r *function.Release) error {
	return c.put(releaseTable, environmentID, int64(r.Number), string(r.State), r.Default, toJSON(r.Source), toNano(r.Created), toNano(r.Activated))
}

// SetImages replaces the images of versions of one environment, all or none: annotations that carry a version's
// number are written after numbering and change the digest. Only while every release that has the
// version is still recorded; ErrFailedPrecondition later, because then the version is immutable. Errors too:
// ErrNotFound.
func (s *Store) SetImages(ctx context.Context, environment function.Environment, images []VersionImage) error {
	if len(images) == 0 {
		return nil
	}
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		env := v.all[environment]
		for _, i := range images {
			key := function.Key{Environment: environment, Function: i.Function}
			old := v.Version(key, i.Number)
			if old == nil {
				return 0, notFound("version %s:%d", key, i.Number)
			}
			for _, r := range env.releases {
				if n, ok := r.Versions[i.Function]; ok && n == i.Number && r.State != function.ReleaseRecorded {
					return 0, precondition("version %s is part of release %d, which is %s", old, r.Number, r.State)
				}
			}
			changed := *old
			changed.Image = i.Image
			if err := s.conn.putVersion(env.functions[i.Function].id, &changed); err != nil {
				return 0, statementError(err)
			}
		}
		return env.id, nil
	})
}

// VersionImage is the image of one version.
type VersionImage struct {
	Function string
	Number   int
	Image    function.Image
}

// Activate makes the release the active one; the one that was becomes superseded and the previous one, in
// the same transaction. Activating the active release changes nothing. Errors: ErrNotFound,
// ErrFailedPrecondition (it failed, or another release is the canary), ErrConflict (a port belongs to another
// environment by now).
func (s *Store) Activate(ctx context.Context, env function.Environment, number int) error {
	return s.activate(ctx, env, number, nil)
}

// Promote is Activate for the canary, with the decision, whose release and action are set here.
// ErrNotFound when the release is not the canary.
func (s *Store) Promote(ctx context.Context, env function.Environment, number int, d function.Decision) error {
	d.Release, d.Action = number, function.CanaryPromoted
	return s.activate(ctx, env, number, &d)
}

func (s *Store) activate(ctx context.Context, env function.Environment, number int, d *function.Decision) error {
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		r := v.Release(env, number)
		if r == nil {
			return 0, notFound("release %d of %s", number, env)
		}
		next, err := transition(r, function.ReleaseActive)
		if err != nil {
			return 0, err
		}
		e := v.all[env]
		switch isCanary := e.canary != nil && e.canary.Release == number; {
		case d != nil && !isCanary:
			return 0, notFound("release %d of %s is no canary", number, env)
		case r.State == function.ReleaseActive:
			return 0, errUnchanged
		case e.canary != nil && !isCanary:
			return 0, precondition("release %d of %s is a canary: promote it or abort it first", e.canary.Release, env)
		}
		if err := v.portsFree(r); err != nil {
			return 0, err
		}
		id, before := e.id, 0
		if previous := e.active; previous != nil {
			before = previous.Number
			superseded, err := transition(previous, function.ReleaseSuperseded)
			if err != nil {
				return 0, err
			}
			if err := s.conn.putRelease(id, &superseded); err != nil {
				return 0, statementError(err)
			}
		}
		next.Activated = time.Now().UTC()
		if err := s.conn.putRelease(id, &next); err != nil {
			return 0, statementError(err)
		}
		return id, statementError(s.conn.putTraffic(e, nil, before, d))
	})
}

// transition returns the release in its new state, or ErrFailedPrecondition when the diagram in the
// package's documentation has no such arrow.
func transition(r *function.Release, to function.ReleaseState) (function.Release, error) {
	from := r.State
	allowed := false
	switch to {
	case function.ReleaseActive:
		allowed = from != function.ReleaseFailed
	case function.ReleaseCanary:
		allowed = from == function.ReleaseRecorded || from == function.ReleaseSuperseded
	case function.ReleaseSuperseded:
		allowed = from == function.ReleaseActive || from == function.ReleaseCanary || from == function.ReleaseRecorded
	case function.ReleaseFailed:
		allowed = from == function.ReleaseRecorded || from == function.ReleaseFailed
	}
	if !allowed {
		return function.Release{}, precondition("release %d of %s is %s and cannot become %s", r.Number, r.Environment, from, to)
	}
	next := *r
	next.State = to
	return next, nil
}

// Dropped is what was forgotten, so that the caller can remove images. Its versions are in no
// release any more.
type Dropped struct {
	Versions []*function.Version
	Releases []*function.Release
}

// FailRelease marks a recorded release as failed. Versions that no other release has are forgotten;
// their numbers are not used again. Failing it twice changes nothing.
func (s *Store) FailRelease(ctx context.Context, env function.Environment, number int) (Dropped, error) {
	var dropped Dropped
	err := s.write(ctx, func(v *Snapshot) (int64, error) {
		r := v.Release(env, number)
		if r == nil {
			return 0, notFound("release %d of %s", number, env)
		}
		failed, err := transition(r, function.ReleaseFailed)
		if err != nil {
			return 0, err
		}
		if r.State == function.ReleaseFailed {
			return 0, errUnchanged
		}
		e := v.all[env]
		if err := s.conn.putRelease(e.id, &failed); err != nil {
			return 0, statementError(err)
		}
		others := func(o *function.Release) bool { return o != r }
		if err := s.conn.removeAliases(e, others); err != nil {
			return 0, statementError(err)
		}
		dropped.Versions, err = s.conn.forgetVersions(e, others)
		return e.id, statementError(err)
	})
	if err != nil {
		return Dropped{}, err
	}
	return dropped, nil
}

// InUse says whether requests are or may be bound to a release, which is then not forgotten. It must not call the
// store. Nil for none.
type InUse func(*function.Release) bool

// ForgetReleases keeps the active release, the canary, those still recorded, those that an alias names, those in
// use, the newest if it never was active, and of the others the previous one and the newest, so that at most keep
// (at least 1) are left beside the former; failed releases older than the oldest of them go too. Versions that are
// then in no release are forgotten, but for those that an alias of a function names that is still part of a release.
func (s *Store) ForgetReleases(ctx context.Context, env function.Environment, keep int, inUse InUse) (Dropped, error) {
	return s.forget(ctx, env, func(e *Environment) map[*function.Release]bool { return e.kept(max(keep, 1), inUse) })
}

// Surplus counts the releases that ForgetReleases would forget.
func (s *Snapshot) Surplus(env function.Environment, keep int, inUse InUse) int {
	e := s.all[env]
	if e == nil {
		return 0
	}
	return len(e.releases) - len(e.kept(max(keep, 1), inUse))
}

// RemoveEnvironment forgets all releases, versions and aliases of the environment. Its account id and its
// counters stay, so that no number is used twice if it comes back. Unknown environments are fine.
func (s *Store) RemoveEnvironment(ctx context.Context, env function.Environment) (Dropped, error) {
	return s.forget(ctx, env, func(*Environment) map[*function.Release]bool { return nil })
}

// forget removes the releases that kept does not return.
func (s *Store) forget(ctx context.Context, env function.Environment, kept func(*Environment) map[*function.Release]bool) (Dropped, error) {
	var dropped Dropped
	err := s.write(ctx, func(v *Snapshot) (int64, error) {
		e := v.all[env]
		if e == nil {
			return 0, errUnchanged
		}
		keep := kept(e)
		for _, r := range e.releases {
			if keep[r] {
				continue
			}
			dropped.Releases = append(dropped.Releases, r)
		}
		if dropped.Releases == nil {
			return 0, errUnchanged
		}
		var err error
		dropped.Versions, err = s.conn.forgetOthers(e, keep)
		return e.id, statementError(err)
	})
	if err != nil {
		return Dropped{}, err
	}
	return dropped, nil
}

// forgetOthers removes the releases that are not kept, with what only they had.
func (c conn) forgetOthers(e *Environment, keep map[*function.Release]bool) (dropped []*function.Version, err error) {
	counts := func(r *function.Release) bool { return keep[r] }
	if err := c.removeTraffic(e, keep); err != nil {
		return nil, err
	}
	if err := c.removeAliases(e, counts); err != nil {
		return nil, err
	}
	if dropped, err = c.forgetVersions(e, counts); err != nil {
		return nil, err
	}
	for _, r := range e.releases {
		if keep[r] {
			continue
		}
		if err := c.removeRelease(e.id, r.Number); err != nil {
			return nil, err
		}
	}
	return dropped, nil
}

// kept chooses the releases that ForgetReleases leaves.
func (e *Environment) kept(n int, inUse InUse) map[*function.Release]bool {
	kept := make(map[*function.Release]bool)
	if e.active != nil {
		kept[e.active] = true
		n--
	}
	oldest := e.nextRelease
	if e.active != nil {
		oldest = e.active.Number
	}
	if r := e.release(e.previous); r != nil && n > 0 {
		kept[r] = true
		n--
		oldest = min(oldest, r.Number)
	}
	for _, number := range e.aliases {
		kept[e.release(number)] = true
	}
	if r := e.candidate(); r != nil {
		kept[r] = true
	}
	for _, r := range slices.Backward(e.releases) {
		switch {
		case kept[r]:
		case r.State == function.ReleaseRecorded, r.State == function.ReleaseCanary:
			kept[r] = true
		case r.State == function.ReleaseSuperseded && n > 0:
			kept[r] = true
			n--
			oldest = min(oldest, r.Number)
		case r.State == function.ReleaseSuperseded && inUse != nil && inUse(r):
			kept[r] = true
		}
	}
	for _, r := range e.releases {
		if r.State == function.ReleaseFailed && r.Number > oldest {
			kept[r] = true
		}
	}
	return kept
}

// candidate returns the newest release that has not failed, if it never was active: whoever deployed it without
// activating it has yet to decide about it. Else nil.
func (e *Environment) candidate() *function.Release {
	for _, r := range slices.Backward(e.releases) {
		switch {
		case r.State == function.ReleaseFailed:
		case r.Activated.IsZero():
			return r
		default:
			return nil
		}
	}
	return nil
}

func (c conn) removeRelease(environmentID int64, number int) error {
	if err := c.remove(memberTable, environmentID, int64(number)); err != nil {
		return err
	}
	return c.remove(releaseTable, environmentID, int64(number))
}

// forgetVersions removes the versions of the environment that no release uses for which counts is
// true and which has not failed, and that no alias keeps.
func (c conn) forgetVersions(e *Environment, counts func(*function.Release) bool) (dropped []*function.Version, err error) {
	for _, f := range e.sorted {
		for _, v := range f.Versions {
			used := slices.ContainsFunc(e.releases, func(r *function.Release) bool {
				return counts(r) && r.State != function.ReleaseFailed && r.Versions[f.Key.Function] == v.Number
			})
			if used || f.aliased(v.Number) && e.has(f, counts) {
				continue
			}
			if err := c.remove(versionTable, f.id, int64(v.Number)); err != nil {
				return nil, err
			}
			dropped = append(dropped, v)
		}
	}
	return dropped, nil
}
