package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// MaxDecisions is how many decisions about canaries an environment keeps.
const MaxDecisions = 50

// Canary returns the release that gets a share of the environment's requests, or nil.
func (s *Snapshot) Canary(env function.Environment) *function.Canary {
	if e := s.all[env]; e != nil {
		return e.canary
	}
	return nil
}

// Previous returns the number of the release that was active before the one that is; 0 when there was
// none or it is forgotten.
func (s *Snapshot) Previous(env function.Environment) int {
	if e := s.all[env]; e != nil {
		return e.previous
	}
	return 0
}

// Decisions lists the newest decisions about canaries of the environment, newest last.
func (s *Snapshot) Decisions(env function.Environment) []function.Decision {
	if e := s.all[env]; e != nil {
		return e.decisions
	}
	return nil
}

// FunctionAlias returns the alias of that name, or nil.
func (s *Snapshot) FunctionAlias(key function.Key, name string) *function.FunctionAlias {
	if e := s.all[key.Environment]; e != nil {
		if f := e.functions[key.Function]; f != nil {
			return f.aliases[name]
		}
	}
	return nil
}

// FunctionAliases lists the aliases of a function by name.
func (s *Snapshot) FunctionAliases(key function.Key) []*function.FunctionAlias {
	e := s.all[key.Environment]
	if e == nil || e.functions[key.Function] == nil {
		return nil
	}
	var out []*function.FunctionAlias
	for _, a := range e.functions[key.Function].aliases {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *function.FunctionAlias) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// ReleaseAlias returns the release that an alias of the environment points to, or 0. The aliases that
// lfxd keeps itself, live and previous, are among them.
func (s *Snapshot) ReleaseAlias(env function.Environment, name string) int {
	e := s.all[env]
	switch {
	case e == nil:
		return 0
	case name == function.AliasPrevious:
		return e.previous
	case name != function.AliasLive:
		return e.aliases[name]
	case e.active == nil:
		return 0
	}
	return e.active.Number
}

// ReleaseAliases lists the aliases of the environment by name, without live and previous.
func (s *Snapshot) ReleaseAliases(env function.Environment) []function.ReleaseAlias {
	e := s.all[env]
	if e == nil {
		return nil
	}
	var out []function.ReleaseAlias
	for name, n := range e.aliases {
		out = append(out, function.ReleaseAlias{Environment: env, Name: name, Release: n})
	}
	slices.SortFunc(out, func(a, b function.ReleaseAlias) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// StartCanary gives a release a share of the requests beside the active one, in state canary, or, when it
// is the canary already, another share. d says who decided; its time, release and action are set here.
// Errors: ErrInvalidArgument, ErrNotFound, ErrFailedPrecondition (another canary runs, nothing is active, the
// release failed or is active).
func (s *Store) StartCanary(ctx context.Context, env function.Environment, c function.Canary, d function.Decision) error {
	if c.Share < 1 || c.Share >= function.FullShare {
		return invalid("a share of %v %% is not possible", function.Percent(c.Share))
	}
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		r := v.Release(env, c.Release)
		if r == nil {
			return 0, notFound("release %d of %s", c.Release, env)
		}
		e := v.all[env]
		d.Release, d.Action = c.Release, function.CanaryStarted
		switch {
		case e.active == nil:
			return 0, precondition("%s has no active release that a canary could run beside", env)
		case e.canary != nil && e.canary.Release != c.Release:
			return 0, precondition("release %d of %s is the canary already", e.canary.Release, env)
		case e.canary != nil: // only the share changes
			d.Action = function.CanaryShare
			c.Since, c.Auto = e.canary.Since, e.canary.Auto
			return e.id, statementError(s.conn.putTraffic(e, &c, e.previous, &d))
		}
		next, err := transition(r, function.ReleaseCanary)
		if err != nil {
			return 0, err
		}
		if err := v.portsFree(r); err != nil {
			return 0, err
		}
		if err := s.conn.putRelease(e.id, &next); err != nil {
			return 0, statementError(err)
		}
		c.Since = time.Now().UTC()
		return e.id, statementError(s.conn.putTraffic(e, &c, e.previous, &d))
	})
}

// EndCanary takes the share away from the canary: it becomes superseded, which is kept. Errors: ErrNotFound
// when that release is not the canary.
func (s *Store) EndCanary(ctx context.Context, env function.Environment, number int, d function.Decision) error {
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		r, e := v.Release(env, number), v.all[env]
		if r == nil || e.canary == nil || e.canary.Release != number {
			return 0, notFound("release %d of %s is no canary", number, env)
		}
		next, err := transition(r, function.ReleaseSuperseded)
		if err != nil {
			return 0, err
		}
		if err := s.conn.putRelease(e.id, &next); err != nil {
			return 0, statementError(err)
		}
		d.Release, d.Action = number, function.CanaryAborted
		return e.id, statementError(s.conn.putTraffic(e, nil, e.previous, &d))
	})
}

// NoteDecision records a decision that changes nothing about the traffic.
func (s *Store) NoteDecision(ctx context.Context, env function.Environment, d function.Decision) error {
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		e := v.all[env]
		if e == nil {
			return 0, notFound("environment %s", env)
		}
		return e.id, statementError(s.conn.putTraffic(e, e.canary, e.previous, &d))
	})
}

// KeepRelease keeps a recorded release without activating it: it becomes superseded.
func (s *Store) KeepRelease(ctx context.Context, env function.Environment, number int) error {
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		r := v.Release(env, number)
		if r == nil {
			return 0, notFound("release %d of %s", number, env)
		}
		if r.State == function.ReleaseSuperseded {
			return 0, errUnchanged
		}
		if r.State != function.ReleaseRecorded {
			return 0, precondition("release %d of %s is %s", number, env, r.State)
		}
		next, err := transition(r, function.ReleaseSuperseded)
		if err != nil {
			return 0, err
		}
		return v.all[env].id, statementError(s.conn.putRelease(v.all[env].id, &next))
	})
}

// putTraffic writes who gets the requests beside the active release, and what was decided (nil for
// nothing). Decisions beyond MaxDecisions are forgotten.
func (c conn) putTraffic(e *Environment, canary *function.Canary, previous int, d *function.Decision) error {
	next := e.nextDecision
	if d != nil {
		if d.Time.IsZero() {
			d.Time = time.Now().UTC()
		}
		if err := c.put(decisionTable, e.id, int64(next), toJSON(d)); err != nil {
			return err
		}
		if err := c.remove(decisionTable, e.id, int64(next-MaxDecisions)); err != nil {
			return err
		}
		next++
	}
	share, since, auto := 0, time.Time{}, ""
	if canary != nil {
		share, since = canary.Share, canary.Since
		if canary.Auto != nil {
			auto = toJSON(canary.Auto)
		}
	}
	return c.put(trafficTable, e.id, int64(previous), int64(share), toNano(since), auto, int64(next))
}

// notOwn refuses the names of the aliases that lfxd keeps itself, for functions as well as for environments.
func notOwn(alias string) error {
	if alias == function.AliasLive || alias == function.AliasPrevious {
		return invalid("alias %s is kept by lfxd itself: choose another name", alias)
	}
	return nil
}

// SetFunctionAlias makes an alias or changes it. live and previous are lfxd's own. Errors: ErrInvalidArgument, ErrNotFound (no such function or
// version, or one of a release that is not deployed yet).
func (s *Store) SetFunctionAlias(ctx context.Context, a function.FunctionAlias) error {
	if err := errors.Join(a.Validate(), notOwn(a.Name)); err != nil {
		return err
	}
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		e := v.all[a.Environment]
		if v.Function(a.Key) == nil {
			return 0, notFound("function %s", a.Key)
		}
		for _, n := range []int{a.Version, a.Extra} {
			if n != 0 && !e.deployed(a.Function, n) {
				return 0, notFound("version %d of %s", n, a.Key)
			}
		}
		if old := v.FunctionAlias(a.Key, a.Name); old != nil && *old == a {
			return 0, errUnchanged
		}
		weight := strconv.FormatFloat(a.Weight, 'g', -1, 64)
		return e.id, statementError(s.conn.put(fnAliasTable, e.functions[a.Function].id, a.Name, int64(a.Version), int64(a.Extra), weight))
	})
}

// deployed says whether the version is there and is not only part of releases that are being deployed.
func (e *Environment) deployed(name string, number int) bool {
	f := e.functions[name]
	if f == nil || f.version(number) == nil {
		return false
	}
	return f.aliased(number) || slices.ContainsFunc(e.releases, func(r *function.Release) bool {
		return r.Versions[name] == number && r.State != function.ReleaseRecorded && r.State != function.ReleaseFailed
	})
}

// aliased says whether an alias of the function points to the version.
func (f *Function) aliased(number int) bool {
	for _, a := range f.aliases {
		if a.Version == number || a.Extra == number {
			return true
		}
	}
	return false
}

// RemoveFunctionAlias removes an alias; ErrNotFound when there is none of that name.
func (s *Store) RemoveFunctionAlias(ctx context.Context, key function.Key, name string) error {
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		if v.FunctionAlias(key, name) == nil {
			return 0, notFound("alias %s of function %s", name, key)
		}
		e := v.all[key.Environment]
		return e.id, statementError(s.conn.remove(fnAliasTable, e.functions[key.Function].id, name))
	})
}

// SetReleaseAlias makes an alias of the environment or changes it. live and previous are lfxd's own.
// Errors: ErrInvalidArgument, ErrNotFound.
func (s *Store) SetReleaseAlias(ctx context.Context, a function.ReleaseAlias) error {
	if err := errors.Join(function.ValidateAlias(a.Name), notOwn(a.Name)); err != nil {
		return err
	}
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		r := v.Release(a.Environment, a.Release)
		if r == nil || r.State == function.ReleaseRecorded || r.State == function.ReleaseFailed {
			return 0, notFound("release %d of %s", a.Release, a.Environment)
		}
		if v.ReleaseAlias(a.Environment, a.Name) == a.Release {
			return 0, errUnchanged
		}
		e := v.all[a.Environment]
		return e.id, statementError(s.conn.put(relAliasTable, e.id, a.Name, int64(a.Release)))
	})
}

// RemoveReleaseAlias removes an alias of the environment; ErrNotFound when there is none of that name.
func (s *Store) RemoveReleaseAlias(ctx context.Context, env function.Environment, name string) error {
	return s.write(ctx, func(v *Snapshot) (int64, error) {
		e := v.all[env]
		if e == nil || e.aliases[name] == 0 {
			return 0, notFound("alias %s of %s", name, env)
		}
		return e.id, statementError(s.conn.remove(relAliasTable, e.id, name))
	})
}

// loadTraffic reads what beside the releases decides who gets the requests.
func (c conn) loadTraffic(e *Environment) error {
	share, since, auto := 0, time.Time{}, ""
	e.nextDecision = 1
	e.previous = e.lastSuperseded()
	err := c.each(trafficTable, []any{e.id}, func(r row) error {
		e.previous, share, since, auto, e.nextDecision = int(r.number(1)), int(r.number(2)), fromNano(r.number(3)), r.text(4), int(r.number(5))
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range e.releases {
		if r.State == function.ReleaseCanary {
			e.canary = &function.Canary{Release: r.Number, Share: share, Since: since}
		}
	}
	if e.canary != nil && auto != "" {
		if err := json.Unmarshal([]byte(auto), &e.canary.Auto); err != nil {
			return err
		}
	}
	if (share > 0) != (e.canary != nil) {
		return damagedRow("the canary of %s has a share of %d", e, share)
	}
	err = c.each(decisionTable, []any{e.id}, func(r row) error {
		e.decisions = append(e.decisions, function.Decision{})
		return json.Unmarshal([]byte(r.text(2)), &e.decisions[len(e.decisions)-1])
	})
	if err != nil {
		return err
	}
	return c.each(relAliasTable, []any{e.id}, func(r row) error {
		e.aliases[r.text(1)] = int(r.number(2))
		return nil
	})
}

// lastSuperseded returns the release that was active before, as far as the releases alone tell; 0 for none. It is what
// holds until the environment has a row about its traffic, which schema 1 did not have.
func (e *Environment) lastSuperseded() int {
	var last *function.Release
	for _, r := range e.releases {
		if r.State == function.ReleaseSuperseded && !r.Activated.IsZero() && (last == nil || r.Activated.After(last.Activated)) {
			last = r
		}
	}
	if last == nil {
		return 0
	}
	return last.Number
}

func (c conn) loadFunctionAliases(f *Function) error {
	return c.each(fnAliasTable, []any{f.id}, func(r row) error {
		a := &function.FunctionAlias{Key: f.Key, Name: r.text(1), Version: int(r.number(2)), Extra: int(r.number(3))}
		var err error
		if a.Weight, err = strconv.ParseFloat(r.text(4), 64); err != nil {
			return err
		}
		if f.version(a.Version) == nil || a.Extra != 0 && f.version(a.Extra) == nil {
			return damagedRow("alias %s of %s points to a version that is gone", a.Name, f.Key)
		}
		f.aliases[a.Name] = a
		return nil
	})
}

// removeAliases removes the aliases of functions that no release has for which counts is true and which has
// not failed.
func (c conn) removeAliases(e *Environment, counts func(*function.Release) bool) error {
	for _, f := range e.functions {
		if len(f.aliases) == 0 || e.has(f, counts) {
			continue
		}
		if err := c.remove(fnAliasTable, f.id); err != nil {
			return err
		}
	}
	return nil
}

// has says whether a release has the function for which counts is true and which has not failed.
func (e *Environment) has(f *Function, counts func(*function.Release) bool) bool {
	return slices.ContainsFunc(e.releases, func(r *function.Release) bool {
		return counts(r) && r.State != function.ReleaseFailed && r.Versions[f.Key.Function] != 0
	})
}

// removeTraffic forgets what names releases that are not kept: the previous one, or, when nothing is kept,
// everything about the environment's traffic.
func (c conn) removeTraffic(e *Environment, keep map[*function.Release]bool) error {
	if len(keep) == 0 {
		for _, t := range []table{trafficTable, decisionTable, relAliasTable} {
			if err := c.remove(t, e.id); err != nil {
				return err
			}
		}
		return nil
	}
	if previous := e.release(e.previous); previous != nil && !keep[previous] {
		return c.putTraffic(e, e.canary, 0, nil)
	}
	return nil
}
