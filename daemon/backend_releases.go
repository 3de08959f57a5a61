package daemon

import (
	"context"
	"fmt"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
)

// Releases implements server.Backend.
func (b *backend) Releases(filter function.Environment) []api.ReleaseInfo {
	view := b.store.View()
	out := []api.ReleaseInfo{}
	for _, e := range view.Environments() {
		if matches(filter, e.Environment) {
			out = append(out, b.releasesOf(view, e.Environment)...)
		}
	}
	return out
}

// releasesOf describes the releases of one environment in ascending order.
func (b *backend) releasesOf(view *store.Snapshot, env function.Environment) (out []api.ReleaseInfo) {
	inFlight, draining := map[int]int64{}, map[int]bool{}
	for _, live := range b.pools.Live(env) {
		n := live.InFlight()
		inFlight[live.ReleaseNumber()] += n
		draining[live.ReleaseNumber()] = draining[live.ReleaseNumber()] || n > 0 && !live.Kept()
	}
	canary := view.Canary(env)
	var before *function.Release
	for _, r := range view.Releases(env) {
		n := b.pools.Counters(env, r.Number)
		info := api.ReleaseInfo{
			Release: *r, Changed: changedFunctions(before, r), InFlight: inFlight[r.Number], Requests: n.Requests, Errors: n.Errors,
		}
		info.Status, info.Percent = statusOf(r, canary, draining[r.Number])
		if r.State != function.ReleaseFailed {
			before = r
		}
		out = append(out, info)
	}
	return out
}

// statusOf says how a release stands, for people, and its share of the requests in percent. canary may be nil.
func statusOf(r *function.Release, canary *function.Canary, bound bool) (status string, percent float64) {
	switch r.State {
	case function.ReleaseActive:
		if canary != nil {
			return api.StateActive, function.Percent(function.FullShare - canary.Share)
		}
		return api.StateActive, 100
	case function.ReleaseCanary:
		return api.StateCanary, function.Percent(canary.Share)
	case function.ReleaseFailed:
		return api.StateFailed, 0
	}
	if bound {
		return api.StateDraining, 0
	}
	return api.StateKept, 0
}

// untilClose is ctx that a shutdown of the daemon ends as well, which undoes what is under way.
func (b *backend) untilClose(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(b.ctx, func() { cancel(context.Cause(b.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}

// Rollback implements server.Backend.
func (b *backend) Rollback(ctx context.Context, req api.RollbackRequest, event func(api.DeployEvent)) (*api.DeployResult, error) {
	ctx, done := b.untilClose(ctx)
	defer done()
	begun := time.Now()
	res, err := b.deployer.Rollback(ctx, req, event)
	b.metrics.Deployed(deployResult(ctx, res, err), time.Since(begun))
	if err != nil {
		return nil, err
	}
	res.Endpoints = b.endpoints(res.Release)
	return res, nil
}

// Traffic implements server.Backend.
func (b *backend) Traffic(filter function.Environment) []api.Traffic {
	view := b.store.View()
	out := []api.Traffic{}
	for _, e := range view.Environments() {
		if matches(filter, e.Environment) {
			out = append(out, *trafficOf(view, e.Environment))
		}
	}
	return out
}

func trafficOf(view *store.Snapshot, env function.Environment) *api.Traffic {
	t := &api.Traffic{Environment: env, Decisions: view.Decisions(env)}
	if r := view.ActiveRelease(env); r != nil {
		t.Active = r.Number
	}
	if c := view.Canary(env); c != nil {
		t.Canary = &api.Canary{Release: c.Release, Percent: function.Percent(c.Share), Since: c.Since, Auto: c.Auto}
	}
	return t
}

// byUser is a decision of whoever calls the control API.
var byUser = function.Decision{By: function.ByUser}

// SetTraffic implements server.Backend.
func (b *backend) SetTraffic(ctx context.Context, req api.TrafficRequest) (*api.Traffic, error) {
	ctx, done := b.untilClose(ctx)
	defer done()
	if err := b.deployer.SetTraffic(ctx, req); err != nil {
		return nil, err
	}
	return trafficOf(b.store.View(), req.Environment), nil
}

// Promote implements server.Backend.
func (b *backend) Promote(ctx context.Context, req api.ReleaseRequest) (*api.Traffic, error) {
	ctx, done := b.untilClose(ctx)
	defer done()
	if err := b.deployer.Promote(ctx, req, byUser); err != nil {
		return nil, err
	}
	return trafficOf(b.store.View(), req.Environment), nil
}

// Abort implements server.Backend.
func (b *backend) Abort(ctx context.Context, req api.ReleaseRequest) (*api.Traffic, error) {
	if err := b.deployer.Abort(ctx, req, byUser); err != nil {
		return nil, err
	}
	return trafficOf(b.store.View(), req.Environment), nil
}

// Diff implements server.Backend. A number of 0 means the active release.
func (b *backend) Diff(env function.Environment, from, to int) (*api.ReleaseDiff, error) {
	view := b.store.View()
	find := func(number int) (*function.Release, error) {
		r := view.Release(env, number)
		if number == 0 {
			r = view.ActiveRelease(env)
		}
		switch {
		case r == nil && number == 0:
			return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no release of %s is active: lfxctl releases shows those that there are", env)}
		case r == nil:
			return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("release %d of %s is not kept: lfxctl releases shows those that are", number, env)}
		}
		return r, nil
	}
	a, err := find(from)
	if err != nil {
		return nil, err
	}
	z, err := find(to)
	if err != nil {
		return nil, err
	}
	return diffReleases(view, a, z), nil
}

// Aliases implements server.Backend: those of one function, or, with an empty name, all: those that lfxd keeps
// itself, those of the environments and those of their functions.
func (b *backend) Aliases(filter function.Environment, fn string) ([]api.Alias, error) {
	view := b.store.View()
	out := []api.Alias{}
	found := fn == ""
	for _, e := range view.Environments() {
		if !matches(filter, e.Environment) {
			continue
		}
		if fn == "" {
			out = append(out, releaseAliases(view, e.Environment)...)
		}
		for _, f := range view.Functions(e.Environment) {
			if fn != "" && f.Key.Function != fn {
				continue
			}
			found = true
			for _, a := range view.FunctionAliases(f.Key) {
				out = append(out, functionAlias(a))
			}
		}
	}
	if !found {
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no function %s: lfxctl ls shows all", fn)}
	}
	return out, nil
}

// releaseAliases lists the aliases of an environment, those of lfxd's own first.
func releaseAliases(view *store.Snapshot, env function.Environment) (out []api.Alias) {
	for _, name := range []string{function.AliasLive, function.AliasPrevious} {
		if n := view.ReleaseAlias(env, name); n != 0 {
			out = append(out, api.Alias{Environment: env, Name: name, Release: n, Fixed: true})
		}
	}
	for _, a := range view.ReleaseAliases(env) {
		out = append(out, api.Alias{Environment: env, Name: a.Name, Release: a.Release})
	}
	return out
}

func functionAlias(a *function.FunctionAlias) api.Alias {
	out := api.Alias{Environment: a.Environment, Function: a.Function, Name: a.Name, Version: a.Version}
	if a.Extra != 0 {
		out.Weights = map[int]float64{a.Extra: a.Weight}
	}
	return out
}

// SetAlias implements server.Backend.
func (b *backend) SetAlias(ctx context.Context, a api.Alias) (*api.Alias, error) {
	invalid := func(format string, args ...any) error {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf(format, args...)}
	}
	if a.Function == "" {
		if a.Version != 0 || len(a.Weights) > 0 {
			return nil, invalid("alias %s is one of the environment %s: it points to a release, not to a version", a.Name, a.Environment)
		}
		if err := b.store.SetReleaseAlias(ctx, function.ReleaseAlias{Environment: a.Environment, Name: a.Name, Release: a.Release}); err != nil {
			return nil, err
		}
		return &api.Alias{Environment: a.Environment, Name: a.Name, Release: a.Release}, nil
	}
	if a.Release != 0 {
		return nil, invalid("alias %s is one of the function %s: it points to a version, not to a release", a.Name, a.Function)
	}
	if len(a.Weights) > 1 {
		return nil, invalid("alias %s of %s gives weights to %d versions: one besides its own is possible", a.Name, a.Function, len(a.Weights))
	}
	fa := function.FunctionAlias{Key: function.Key{Environment: a.Environment, Function: a.Function}, Name: a.Name, Version: a.Version}
	for extra, weight := range a.Weights {
		if extra < 1 {
			return nil, invalid("%d is no version's number", extra)
		}
		fa.Extra, fa.Weight = extra, weight
	}
	if err := b.store.SetFunctionAlias(ctx, fa); err != nil {
		return nil, err
	}
	out := functionAlias(&fa)
	return &out, nil
}

// DeleteAlias implements server.Backend. It returns what was removed.
func (b *backend) DeleteAlias(ctx context.Context, env function.Environment, fn, name string) (*api.Alias, error) {
	view := b.store.View()
	if fn != "" {
		key := function.Key{Environment: env, Function: fn}
		old := view.FunctionAlias(key, name)
		if err := b.store.RemoveFunctionAlias(ctx, key, name); err != nil {
			return nil, err
		}
		out := api.Alias{Environment: env, Function: fn, Name: name}
		if old != nil {
			out = functionAlias(old)
		}
		return &out, nil
	}
	if name == function.AliasLive || name == function.AliasPrevious {
		return nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("alias %s is kept by lfxd itself and cannot be removed", name)}
	}
	out := &api.Alias{Environment: env, Name: name, Release: view.ReleaseAlias(env, name)}
	return out, b.store.RemoveReleaseAlias(ctx, env, name)
}

// Environments implements server.Backend.
func (b *backend) Environments(filter function.Environment) []api.EnvironmentInfo {
	view := b.store.View()
	out := []api.EnvironmentInfo{}
	for _, e := range view.Environments() {
		if matches(filter, e.Environment) {
			out = append(out, b.environmentInfo(view, e))
		}
	}
	return out
}

func (b *backend) environmentInfo(view *store.Snapshot, e *store.Environment) api.EnvironmentInfo {
	info := api.EnvironmentInfo{Environment: e.Environment, Account: e.Account}
	if r := view.ActiveRelease(e.Environment); r != nil {
		info.Active, info.Functions, info.Deployed = r.Number, len(r.Versions), r.Activated
	}
	for _, p := range b.pools.Pools() {
		if p.Version().Environment == e.Environment {
			info.Instances += p.Stats().Instances
		}
	}
	return info
}

// RemoveEnvironment implements server.Backend. It returns the environment as it was.
func (b *backend) RemoveEnvironment(ctx context.Context, env function.Environment) (*api.EnvironmentInfo, error) {
	view := b.store.View()
	var info api.EnvironmentInfo
	if e := view.Environment(env.Project, env.Name); e != nil {
		info = b.environmentInfo(view, e)
	}
	if err := b.deployer.RemoveEnvironment(ctx, env); err != nil {
		return nil, err
	}
	return &info, nil
}
