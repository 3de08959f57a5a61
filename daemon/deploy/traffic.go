package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/internal/failpoint"
)

// What changes who gets the requests of an environment goes the same way everywhere: warm first, then one
// transaction that records it, then one step in memory. A crash between the two is the next start's, which
// brings back what is recorded. Whatever builds, warms or forgets holds the environment (claim); the
// transaction and the step after it hold Deployer.switching as well, which is all that promoting and aborting need,
// so that a canary can be aborted while a plan is being built.
//
//	rollback   rollback.checked, .prepared, .warmed, .activated, .switched
//	canary     deploy. or traffic. with .prepared, .warmed, .recorded-share, .shared
//	share      traffic.recorded-share, .shared
//	promote    promote.recorded, .switched
//	abort      abort.recorded, .switched

// drainTimeout bounds how long the images of an environment that is removed stay for its last requests.
const drainTimeout = 30 * time.Second

// noCanary refuses what cannot be done beside a canary.
func (d *Deployer) noCanary(env function.Environment) error {
	c := d.opts.Store.View().Canary(env)
	if c == nil {
		return nil
	}
	return &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf(
		"release %d of %s is a canary with %v %% of the requests: lfxctl promote or lfxctl abort it first", c.Release, env, function.Percent(c.Share))}
}

// canary returns the canary of the environment, which must have the number, if that is not 0.
func (d *Deployer) canary(env function.Environment, number int) (*function.Canary, error) {
	c := d.opts.Store.View().Canary(env)
	switch {
	case c == nil:
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no canary runs in %s: lfxctl deploy --canary starts one", env)}
	case number != 0 && c.Release != number:
		return nil, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("the canary of %s is release %d, not %d", env, c.Release, number)}
	}
	return c, nil
}

// kept returns a release that can get requests again: one that is kept and gets none now.
func (d *Deployer) kept(env function.Environment, number int) (*function.Release, error) {
	r := d.opts.Store.View().Release(env, number)
	switch {
	case r == nil:
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("release %d of %s is not kept: lfxctl releases shows those that are", number, env)}
	case r.State == function.ReleaseActive:
		return nil, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("release %d of %s is the active one: lfxctl releases shows the others", number, env)}
	case r.State != function.ReleaseSuperseded:
		return nil, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("release %d of %s is %s: lfxctl releases shows those that are kept", number, env, r.State)}
	}
	return r, nil
}

// warmed prepares a release and starts what it must have. On error nothing is left of it.
func (d *Deployer) warmed(ctx context.Context, what string, rel function.Release, versions map[string]*function.Version) (Candidate, error) {
	cand, err := d.opts.Releases.Prepare(rel, versions)
	if err != nil {
		return nil, err
	}
	failpoint.Here(what + ".prepared")
	warm, cancel := context.WithTimeoutCause(ctx, d.opts.WarmTimeout, fmt.Errorf("the instances were not ready within %s", d.opts.WarmTimeout))
	defer cancel()
	if err := cand.Warm(warm); err != nil {
		cand.Abort()
		return nil, err
	}
	failpoint.Here(what + ".warmed")
	return cand, nil
}

// switchTo warms a release and activates it.
func (d *Deployer) switchTo(ctx context.Context, what string, rel function.Release, versions map[string]*function.Version) error {
	cand, err := d.warmed(ctx, what, rel, versions)
	if err != nil {
		return err
	}
	d.switching.Lock()
	defer d.switching.Unlock()
	if err := d.opts.Store.Activate(context.WithoutCancel(ctx), rel.Environment, rel.Number); err != nil {
		cand.Abort()
		return err
	}
	failpoint.Here(what + ".activated")
	cand.Activate()
	failpoint.Here(what + ".switched")
	d.opts.Log.Info("release activated", "environment", rel.Environment.String(), "release", rel.Number)
	return nil
}

// startCanary warms a release and gives it its share.
func (d *Deployer) startCanary(ctx context.Context, what string, rel function.Release, versions map[string]*function.Version, c function.Canary) error {
	cand, err := d.warmed(ctx, what, rel, versions)
	if err != nil {
		return err
	}
	d.switching.Lock()
	defer d.switching.Unlock()
	c.Release = rel.Number
	if err := d.opts.Store.StartCanary(context.WithoutCancel(ctx), rel.Environment, c, function.Decision{By: function.ByUser, Reason: shareOf(c.Share)}); err != nil {
		cand.Abort()
		return err
	}
	failpoint.Here(what + ".recorded-share")
	cand.Share(c.Share)
	failpoint.Here(what + ".shared")
	d.opts.Log.Info("canary started", "environment", rel.Environment.String(), "release", rel.Number, "percent", function.Percent(c.Share), "auto", c.Auto != nil)
	return nil
}

func shareOf(share int) string { return fmt.Sprintf("%v %% of the requests", function.Percent(share)) }

// Rollback activates a release that is kept, or the previous one: nothing is built, its instances are warm
// before the switch. Errors leave the running release as it is.
func (d *Deployer) Rollback(ctx context.Context, req api.RollbackRequest, event func(api.DeployEvent)) (*api.DeployResult, error) {
	env := req.Environment
	release, err := d.claim(ctx, env, req.Wait, event)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.noCanary(env); err != nil {
		return nil, err
	}
	view := d.opts.Store.View()
	number := req.Release
	if number == 0 {
		number = view.Previous(env)
	}
	if number == 0 {
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no release of %s was active before the one that is: lfxctl releases shows what is kept", env)}
	}
	rel, err := d.kept(env, number)
	if err != nil {
		return nil, err
	}
	if err := d.undoEarlier(ctx, env); err != nil {
		return nil, err
	}
	before, versions := view.ActiveRelease(env), d.versionsOf(*rel)
	event(api.DeployEvent{Step: fmt.Sprintf("checking the images of release %d", number)})
	if err := d.heal(ctx, rel, versions, event); err != nil {
		return nil, err
	}
	failpoint.Here("rollback.checked")
	event(api.DeployEvent{Step: fmt.Sprintf("starting what release %d keeps warm", number)})
	if err := d.switchTo(ctx, "rollback", *rel, versions); err != nil {
		return nil, err
	}
	return resultOf(*d.opts.Store.View().Release(env, number), versions, before), nil
}

// resultOf says what a release that is not deployed anew changes against the one before (nil for none).
func resultOf(rel function.Release, versions map[string]*function.Version, before *function.Release) *api.DeployResult {
	res := &api.DeployResult{Release: rel}
	if before != nil {
		res.Previous = before.Number
	}
	for _, name := range slices.Sorted(maps.Keys(rel.Versions)) {
		f := api.DeployFunction{Name: name, Version: rel.Versions[name], Change: change(before, name, rel.Versions[name]), Port: rel.Ports[name]}
		if v := versions[name]; v != nil {
			f.Digest, f.Base = v.Image.Digest, v.Image.BaseName
		}
		res.Functions = append(res.Functions, f)
	}
	res.Functions = append(res.Functions, removed(rel, before)...)
	return res
}

// heal makes sure that the images of a release that is kept are there: a version's name that is lost is taken
// from a release's name of the same image. What cannot be healed is one error.
func (d *Deployer) heal(ctx context.Context, rel *function.Release, versions map[string]*function.Version, event func(api.DeployEvent)) error {
	var lost []error
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		v := versions[name]
		there, err := d.hasImage(ctx, v.Image.Name, v)
		if err != nil {
			return err
		}
		if !there {
			if there, err = d.healFromReleases(ctx, v); err != nil {
				return err
			}
			if there {
				event(api.DeployEvent{Warning: fmt.Sprintf("the image name of %s was gone; it is back", v)})
			}
		}
		if !there {
			lost = append(lost, fmt.Errorf("the image of %s is gone from containerd", v))
			continue
		}
		if err := d.opts.Images.Unpack(ctx, v.Image.Name); err != nil {
			return fmt.Errorf("function %s: %w", name, err)
		}
	}
	if len(lost) > 0 {
		return &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("release %d of %s cannot come back: %v: deploy its source again", rel.Number, rel.Environment, errors.Join(lost...))}
	}
	return d.tagRelease(ctx, rel, versions)
}

// hasImage says whether the name stands for the version's image.
func (d *Deployer) hasImage(ctx context.Context, name string, v *function.Version) (bool, error) {
	info, err := d.opts.Images.Inspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil && info.Digest.String() == v.Image.Digest, err
}

func (d *Deployer) healFromReleases(ctx context.Context, v *function.Version) (bool, error) {
	for _, r := range d.opts.Store.View().Releases(v.Environment) {
		if r.State == function.ReleaseFailed || r.Versions[v.Function] != v.Number {
			continue
		}
		name := releaseName(d.opts.RegistryHost, r, v.Function)
		there, err := d.hasImage(ctx, name, v)
		if err != nil {
			return false, err
		}
		if there {
			return true, d.opts.Images.Tag(ctx, name, v.Image.Name, nil)
		}
	}
	return false, nil
}

// SetTraffic gives a release that is kept, or the canary, a share of the requests.
func (d *Deployer) SetTraffic(ctx context.Context, req api.TrafficRequest) error {
	share, err := function.ParseShare(req.Percent)
	if err != nil {
		return err
	}
	env := req.Environment
	if c := d.opts.Store.View().Canary(env); c != nil && c.Release == req.Release && d.reshare(ctx, env, req.Release, share, &err) {
		return err
	}
	release, err := d.claim(ctx, env, false, nil)
	if err != nil {
		return err
	}
	defer release()
	if c := d.opts.Store.View().Canary(env); c == nil || c.Release != req.Release {
		if err := d.noCanary(env); err != nil {
			return err
		}
		if _, err := d.kept(env, req.Release); err != nil {
			return err
		}
	}
	rel := d.opts.Store.View().Release(env, req.Release)
	versions := d.versionsOf(*rel)
	if err := d.heal(ctx, rel, versions, func(api.DeployEvent) {}); err != nil {
		return err
	}
	return d.startCanary(ctx, "traffic", *rel, versions, function.Canary{Share: share})
}

// reshare changes the share of a canary that runs; it reports whether there is one that runs, in memory as well.
func (d *Deployer) reshare(ctx context.Context, env function.Environment, number, share int, err *error) bool {
	d.switching.Lock()
	defer d.switching.Unlock()
	cand := d.opts.Releases.Canary(env, number)
	if cand == nil {
		return false
	}
	by := function.Decision{By: function.ByUser, Reason: shareOf(share)}
	if *err = d.opts.Store.StartCanary(ctx, env, function.Canary{Release: number, Share: share}, by); *err != nil {
		return true
	}
	failpoint.Here("traffic.recorded-share")
	cand.Share(share)
	failpoint.Here("traffic.shared")
	d.opts.Log.Info("canary's share changed", "environment", env.String(), "release", number, "percent", function.Percent(share))
	return true
}

// Promote makes the canary the active release. by says who decided and why; a canary that could not be brought back
// after a restart is warmed first.
func (d *Deployer) Promote(ctx context.Context, req api.ReleaseRequest, by function.Decision) error {
	env := req.Environment
	c, err := d.canary(env, req.Release)
	if err != nil {
		return err
	}
	var spare Candidate
	if d.opts.Releases.Canary(env, c.Release) == nil {
		rel := d.opts.Store.View().Release(env, c.Release)
		if spare, err = d.warmed(ctx, "promote", *rel, d.versionsOf(*rel)); err != nil {
			return err
		}
	}
	if err := d.promote(ctx, env, c.Release, by, spare); err != nil {
		return err
	}
	if release, err := d.claim(ctx, env, false, nil); err == nil { // else the deploy that runs forgets
		d.forgetNow(env)
		release()
	}
	return nil
}

// promote is the switch; spare (may be nil) is used when the canary does not live.
func (d *Deployer) promote(ctx context.Context, env function.Environment, number int, by function.Decision, spare Candidate) (err error) {
	d.switching.Lock()
	defer d.switching.Unlock()
	cand := d.opts.Releases.Canary(env, number)
	switch {
	case cand == nil:
		cand, spare = spare, nil
	case spare != nil:
		defer spare.Abort()
	}
	if cand == nil {
		return &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("release %d of %s is no canary any more: lfxctl traffic shows what is", number, env)}
	}
	if err := d.opts.Store.Promote(context.WithoutCancel(ctx), env, number, by); err != nil {
		if d.opts.Releases.Canary(env, number) == nil {
			cand.Abort()
		}
		return err
	}
	failpoint.Here("promote.recorded")
	cand.Activate()
	failpoint.Here("promote.switched")
	d.opts.Log.Info("canary promoted", decisionLog(env, number, by)...)
	return nil
}

// Abort takes its share from the canary; it is kept, and drains.
func (d *Deployer) Abort(ctx context.Context, req api.ReleaseRequest, by function.Decision) error {
	env := req.Environment
	d.switching.Lock()
	defer d.switching.Unlock()
	c, err := d.canary(env, req.Release)
	if err != nil {
		return err
	}
	if err := d.opts.Store.EndCanary(context.WithoutCancel(ctx), env, c.Release, by); err != nil {
		return err
	}
	failpoint.Here("abort.recorded")
	if cand := d.opts.Releases.Canary(env, c.Release); cand != nil {
		cand.Abort()
	}
	failpoint.Here("abort.switched")
	d.opts.Log.Info("canary aborted", decisionLog(env, c.Release, by)...)
	return nil
}

// decisionLog is a decision as facts of a log line.
func decisionLog(env function.Environment, number int, by function.Decision) []any {
	out := []any{"environment", env.String(), "release", number, "by", by.By, "reason", by.Reason}
	for name, f := range map[string]*function.Figures{"canary": by.Canary, "active": by.Active} {
		if f != nil {
			out = append(out, name+"_requests", f.Requests, name+"_error_rate", f.ErrorRate, name+"_p99", f.P99)
		}
	}
	return out
}

// RemoveEnvironment removes all of an environment: its releases drain, and versions, aliases, images, stored
// contexts and mirrors go. It refuses while a deploy of it runs.
func (d *Deployer) RemoveEnvironment(ctx context.Context, env function.Environment) error {
	release, err := d.claim(ctx, env, false, nil)
	if err != nil {
		return err
	}
	defer release()
	if d.opts.Store.View().Environment(env.Project, env.Name) == nil {
		return &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("environment %s is not deployed: lfxctl env ls shows those that are", env)}
	}
	if err := d.undoEarlier(ctx, env); err != nil {
		return err
	}
	return d.removeAll(ctx, env)
}

// removeAll empties an environment, which the caller has claimed. Once the record is gone it goes on to the
// end, for what then is left of images is only found by the next start.
func (d *Deployer) removeAll(ctx context.Context, env function.Environment) error {
	d.switching.Lock()
	dropped, err := d.opts.Store.RemoveEnvironment(ctx, env)
	if err != nil {
		d.switching.Unlock()
		return err
	}
	failpoint.Here("remove.committed")
	drained := d.opts.Releases.Deactivate(env)
	d.switching.Unlock()
	failpoint.Here("remove.deactivated")
	ctx = context.WithoutCancel(ctx)
	drain, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if err := drained(drain); err != nil {
		d.opts.Log.Warn("requests of an environment that is removed are still under way", "environment", env.String(), "error", err)
	}
	d.removeImages(ctx, dropped)
	failpoint.Here("remove.images")
	d.removeMirrors(env)
	failpoint.Here("remove.mirrors")
	d.sweepContexts()
	return nil
}
