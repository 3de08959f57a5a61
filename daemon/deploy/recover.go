package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
)

// What a deploy or a removal that was interrupted leaves is told from the record alone:
//
//	an intent                      its temporary images; the deploy never ended
//	a release in state recorded    it was not activated and never will be
//	an image name with our mark    that no version or release of the record has
//	a temporary lease with our mark, a stored context that no version has, a mirror of an environment
//	without releases, unpacked contexts of a rebuild
//
// Each is removed by name, so that an interrupted recovery is simply repeated.

// Recover removes all of it. Call it before any deploy. An error leaves the rest for Tidy.
func (d *Deployer) Recover(ctx context.Context) error {
	errs := []error{d.undoIntents(ctx, func(store.Deploy) bool { return true })}
	for _, env := range d.opts.Store.View().Environments() {
		errs = append(errs, d.failRecorded(ctx, env.Environment))
	}
	errs = append(errs, d.sweepImages(ctx), d.sweepMirrors(), os.RemoveAll(d.rebuildDir()))
	d.sweepContexts()
	return errors.Join(errs...)
}

// everywhere is claimed by Tidy: no environment has an empty name.
var everywhere = function.Environment{}

// Tidy is Recover while the daemon runs: it does nothing when a deploy is in progress, and a deploy
// that begins meanwhile waits for it. Call it after the engine was away.
func (d *Deployer) Tidy(ctx context.Context) error {
	d.mu.Lock()
	if len(d.busy) > 0 {
		d.mu.Unlock()
		return nil
	}
	done := make(chan struct{})
	d.busy[everywhere] = done
	d.mu.Unlock()
	defer d.unclaim(everywhere, done)
	return d.Recover(ctx)
}

// undoEarlier undoes a deploy of the environment, which the caller has claimed, whose clean-up did not
// succeed: the engine was away.
func (d *Deployer) undoEarlier(ctx context.Context, env function.Environment) error {
	return errors.Join(d.undoIntents(ctx, func(in store.Deploy) bool { return in.Environment == env }), d.failRecorded(ctx, env))
}

func (d *Deployer) undoIntents(ctx context.Context, which func(store.Deploy) bool) error {
	var errs []error
	for _, in := range d.opts.Store.View().Deploys() {
		if which(in) {
			errs = append(errs, d.undoIntent(ctx, in))
		}
	}
	return errors.Join(errs...)
}

func (d *Deployer) undoIntent(ctx context.Context, in store.Deploy) error {
	var errs []error
	for _, name := range in.Images {
		if err := d.opts.Images.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, d.failRecorded(ctx, in.Environment))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("undo deploy %s: %w", in.ID, err)
	}
	if err := d.opts.Store.EndDeploy(ctx, in.ID); err != nil {
		return err
	}
	d.opts.Log.Info("an interrupted deploy was undone", "environment", in.Environment.String(), "deploy", in.ID)
	return nil
}

// failRecorded fails the releases that were recorded and not activated.
func (d *Deployer) failRecorded(ctx context.Context, env function.Environment) error {
	var errs []error
	for _, r := range d.opts.Store.View().Releases(env) {
		if r.State == function.ReleaseRecorded {
			errs = append(errs, d.failRelease(ctx, *r))
		}
	}
	return errors.Join(errs...)
}

// sweepImages removes the names of ours that the record does not have.
func (d *Deployer) sweepImages(ctx context.Context) error {
	known := d.imageNames()
	removed, err := d.opts.Images.Sweep(ctx, func(name string) bool { return known[name] })
	if len(removed) > 0 {
		d.opts.Log.Info("removed image names that no release has", "images", removed)
	}
	return err
}

// imageNames are all names that the record has: of versions, and of releases that are or may become active.
func (d *Deployer) imageNames() map[string]bool {
	known := map[string]bool{}
	view := d.opts.Store.View()
	for _, env := range view.Environments() {
		for _, fn := range view.Functions(env.Environment) {
			for _, v := range fn.Versions {
				known[v.Image.Name] = true
				known[versionName(d.opts.RegistryHost, v)] = true
			}
		}
		for _, r := range view.Releases(env.Environment) {
			if r.State == function.ReleaseFailed {
				continue
			}
			for name := range r.Versions {
				known[releaseName(d.opts.RegistryHost, r, name)] = true
			}
		}
	}
	return known
}

// sweepMirrors removes the mirrors of environments that have no release.
func (d *Deployer) sweepMirrors() error {
	dirs, err := filepath.Glob(filepath.Join(d.opts.Dir, "mirrors", "*", "*"))
	if err != nil {
		return err
	}
	environments := d.opts.Store.View().Environments()
	var errs []error
	for _, dir := range dirs {
		known := slices.ContainsFunc(environments, func(e *store.Environment) bool { return d.mirrorRoot(e.Environment) == dir })
		if !known {
			errs = append(errs, os.RemoveAll(dir))
			os.Remove(filepath.Dir(dir)) //nolint:errcheck // other environments of the project have theirs there
		}
	}
	return errors.Join(errs...)
}
