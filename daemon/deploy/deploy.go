// Package deploy is the use case of a deploy: mirror the sources, build or pull every function,
// record versions and a release, warm what the release needs, and activate it. A failure before the
// activation leaves the running release untouched and undoes what the deploy made.
//
// Order, and what a crash at each step leaves for Recover:
//
//	intent       BeginDeploy: the id, from which the temporary image names are made
//	mirror       a folder per (environment, context, Dockerfile); kept, so that the next deploy is quick
//	build, pull  images under temporary names
//	record       versions and release, state recorded
//	tag          v<N> with annotations for new versions, r<N> for all
//	warm         instances of the candidate; they go with the process
//	activate     one transaction, then the switch in memory; for a canary the same gives it its share
//	forget       releases beyond the kept ones, and their images
package deploy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"

	"lfx.dev/lfxd/buildkit"
	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/internal/failpoint"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/internal/procs"
	"lfx.dev/lfxd/runtime/image"
)

// Builder builds images.
type Builder interface {
	Build(ctx context.Context, req buildkit.Request, progress func(*bkclient.SolveStatus)) (buildkit.Result, error)
}

// Sessions finds the client that offers the sources.
type Sessions interface {
	Caller(ctx context.Context, id string) (session.Caller, error)
}

// Images is the image store. Terms and errors are those of *image.Store.
type Images interface {
	Inspect(ctx context.Context, ref string) (image.Info, error)
	Annotate(ctx context.Context, ref string, annotations map[string]string, newName string) (image.Info, error)
	Tag(ctx context.Context, from, to string, labels map[string]string) error
	Remove(ctx context.Context, name string) error
	Unpack(ctx context.Context, ref string) error
	ResolvePin(ctx context.Context, ref string) (string, error)
	Pull(ctx context.Context, pinned string) (image.Info, error)
	Sweep(ctx context.Context, keep func(name string) bool) (removed []string, err error)
}

var _ Images = (*image.Store)(nil)

// Candidate is a release that was prepared and is not routed to yet.
type Candidate interface {
	// Warm starts the instances that the release must have, and blocks until they are ready.
	Warm(ctx context.Context) error
	// Activate routes new requests to the release; the one before it drains.
	Activate()
	// Share makes the release the environment's canary and routes a share of the new requests to it, out of
	// function.FullShare; again for another share. Ports stay those of the active release.
	Share(share int)
	// Abort drops it; a canary drains.
	Abort()
}

// Releaser makes candidates. Prepare also claims the ports of the release, so that a port that is
// taken is found before anything is switched.
type Releaser interface {
	Prepare(rel function.Release, versions map[string]*function.Version) (Candidate, error)
	// Canary returns the candidate that was shared to and neither activated nor aborted, if it has that
	// number, or nil.
	Canary(env function.Environment, number int) Candidate
	// Deactivate stops routing to an environment that has no functions any more. drained blocks until no
	// request is bound to what was routed to, or until its context ends.
	Deactivate(env function.Environment) (drained func(context.Context) error)
	// InUse says which of the environment's releases requests are or may be bound to at this moment: those that
	// live, and those with a version that a request asked for by number.
	InUse(env function.Environment) store.InUse
	// Forget says that of the environment's releases only those are left that keep names.
	Forget(env function.Environment, keep func(number int) bool)
}

// Options are the settings of a Deployer.
type Options struct {
	Store    *store.Store
	Sessions Sessions
	Builder  Builder
	Images   Images
	Releases Releaser
	// Dir holds the mirrors and the stored build contexts.
	Dir string
	// RegistryHost is the first part of every image name.
	RegistryHost string
	// BaseImages maps base image references to others; empty by default.
	BaseImages map[string]string
	// Keep is how many releases that are or were active stay, beside those that are in use.
	Keep         int
	MaxParallel  int
	BuildTimeout time.Duration
	WarmTimeout  time.Duration
	LogLimit     int64
	Limits       buildkit.Limits
	Log          *slog.Logger
}

// Deployer runs deploys, one at a time per environment.
type Deployer struct {
	opts Options

	// switching serialises what changes who gets the requests; comes after a claim. See traffic.go.
	switching sync.Mutex

	mu   sync.Mutex
	busy map[function.Environment]chan struct{}
}

// New makes a Deployer.
func New(opts Options) *Deployer {
	return &Deployer{opts: opts, busy: map[function.Environment]chan struct{}{}}
}

// job is one deploy in progress.
type job struct {
	*Deployer
	id    string
	req   api.DeployRequest
	share int // of a canary; 0 activates
	event func(api.DeployEvent)
	parts []*part // in the order of the request
}

// part is one function of a deploy.
type part struct {
	spec       function.Spec
	mirror     string // folder of the build context
	dockerfile *buildkit.Dockerfile
	temp       string // temporary image name
	pinned     string // name of a pulled image, by digest
	image      function.Image
	bases      []buildkit.Base
}

// undoTimeout bounds the clean-up after a deploy; what it cannot do is Recover's.
const undoTimeout = 30 * time.Second

// Deploy runs one deploy. Cancelling ctx before the activation undoes it.
func (d *Deployer) Deploy(ctx context.Context, req api.DeployRequest, event func(api.DeployEvent)) (res *api.DeployResult, err error) {
	share, err := validate(req)
	if err != nil {
		return nil, err
	}
	defer procs.Boost()() // reads and packs the sources
	if err := d.checkSpace(); err != nil {
		return nil, err
	}
	release, err := d.claim(ctx, req.Environment, req.Wait, event)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.mayRelease(req); err != nil {
		return nil, err
	}
	j := &job{Deployer: d, id: newID(), req: req, share: share, event: event}
	for _, s := range req.Functions {
		j.parts = append(j.parts, &part{spec: s, temp: j.tempName(s.Name)})
	}
	if err := d.undoEarlier(ctx, req.Environment); err != nil {
		return nil, err
	}
	if err := d.opts.Store.BeginDeploy(ctx, j.intent()); err != nil {
		return nil, err
	}
	failpoint.Here("deploy.intent")
	defer func() { err = errors.Join(err, j.cleanUp()) }()
	return j.run(ctx)
}

// mayRelease refuses a deploy, but for a plan, whose release could not get its requests.
func (d *Deployer) mayRelease(req api.DeployRequest) error {
	if req.Plan {
		return nil
	}
	if req.Canary != 0 && d.opts.Store.View().ActiveRelease(req.Environment) == nil {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%s has no active release that a canary could run beside: deploy without a canary first", req.Environment)}
	}
	return d.noCanary(req.Environment)
}

// validate checks everything that can be checked without a build, and reports all of it. It returns the
// share of a canary, 0 for none.
func validate(req api.DeployRequest) (share int, err error) {
	errs := []error{function.ValidateProject(req.Project), function.ValidateEnvironment(req.Environment.Name)}
	if fields := function.ValidateSpecs(req.Functions); len(fields) > 0 {
		errs = append(errs, fields)
	}
	for _, s := range req.Functions {
		if s.Build != nil && req.SessionID == "" {
			errs = append(errs, fmt.Errorf("function %s is built from source, but the request offers no session", s.Name))
		}
	}
	if req.Canary != 0 {
		share, err = function.ParseShare(req.Canary)
		errs = append(errs, err)
	}
	switch {
	case req.NoActivate && req.Canary != 0:
		errs = append(errs, errors.New("a release that is not activated gets no share of the requests: choose one of both"))
	case req.Auto != nil && req.Canary == 0:
		errs = append(errs, errors.New("only a canary is promoted by itself: give the release a share of the requests"))
	case req.Auto != nil:
		errs = append(errs, req.Auto.Validate())
	}
	return share, invalid(errs)
}

// invalid joins problems into one error of the API; nil when there are none.
func invalid(errs []error) error {
	var details []string
	for _, err := range errs {
		if err == nil {
			continue
		}
		var fields function.FieldErrors
		if errors.As(err, &fields) {
			for _, f := range fields {
				details = append(details, f.Error())
			}
			continue
		}
		details = append(details, err.Error())
	}
	switch len(details) {
	case 0:
		return nil
	case 1:
		return &api.Error{Code: api.CodeInvalid, Message: details[0]}
	}
	return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%d things are wrong with this deploy; nothing was changed", len(details)), Details: details}
}

// claim makes sure that one deploy of an environment runs at a time.
func (d *Deployer) claim(ctx context.Context, env function.Environment, wait bool, event func(api.DeployEvent)) (release func(), err error) {
	for {
		d.mu.Lock()
		other, tidying := d.busy[everywhere]
		if !tidying {
			other = d.busy[env]
		}
		if other == nil {
			done := make(chan struct{})
			d.busy[env] = done
			d.mu.Unlock()
			return func() { d.unclaim(env, done) }, nil
		}
		d.mu.Unlock()
		if event == nil {
			event = func(api.DeployEvent) {}
		}
		if !wait && !tidying {
			return nil, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("another deploy of %s is running: wait for it, or use --wait", env)}
		}
		if !tidying {
			event(api.DeployEvent{Step: "waiting for another deploy of " + env.String()})
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (d *Deployer) unclaim(env function.Environment, done chan struct{}) {
	d.mu.Lock()
	delete(d.busy, env)
	d.mu.Unlock()
	close(done)
}

func newID() string {
	var b [6]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	return "d" + hex.EncodeToString(b[:])
}

func (j *job) step(format string, args ...any) {
	j.event(api.DeployEvent{Step: fmt.Sprintf(format, args...)})
}

func (j *job) key(name string) function.Key {
	return function.Key{Environment: j.req.Environment, Function: name}
}

// tempName is the image name of a function until its version has a number.
func (j *job) tempName(name string) string {
	return function.ImageRepository(j.opts.RegistryHost, j.key(name)) + ":" + j.id
}

// intent is what must be known after a crash.
func (j *job) intent() store.Deploy {
	in := store.Deploy{ID: j.id, Environment: j.req.Environment, Started: time.Now()}
	for _, p := range j.parts {
		in.Images = append(in.Images, p.temp)
	}
	return in
}

// cleanUp removes the temporary names and closes the intent.
func (j *job) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	for _, p := range j.parts {
		if err := j.opts.Images.Remove(ctx, p.temp); err != nil {
			j.opts.Log.Warn("temporary image was not removed; the next start does it", "image", p.temp, "error", err)
			return nil // the intent stays for Recover
		}
		if p.pinned == "" {
			continue
		}
		if err := j.opts.Images.Remove(ctx, p.pinned); err != nil { // its layers are held by the function's own names
			j.opts.Log.Warn("pulled name was not removed", "image", p.pinned, "error", err)
		}
	}
	failpoint.Here("deploy.cleaned")
	if err := j.opts.Store.EndDeploy(ctx, j.id); err != nil {
		return err
	}
	failpoint.Here("deploy.ended")
	return nil
}

// run does the deploy between its intent and its clean-up.
func (j *job) run(ctx context.Context) (*api.DeployResult, error) {
	if err := j.receive(ctx); err != nil {
		return nil, err
	}
	failpoint.Here("deploy.mirrored")
	if err := j.check(); err != nil {
		return nil, err
	}
	failpoint.Here("deploy.checked")
	if err := j.images(ctx); err != nil {
		return nil, err
	}
	failpoint.Here("deploy.built")
	wanted, err := j.wanted(ctx)
	if err != nil {
		return nil, err
	}
	preview, err := j.opts.Store.View().NextRelease(wanted)
	if err != nil {
		return nil, err
	}
	active := j.opts.Store.View().ActiveRelease(j.req.Environment)
	if active != nil && active.SameRouting(&preview.Release) {
		res := j.result(*active, j.versionsOf(*active), active)
		res.Unchanged = true
		return res, nil
	}
	if j.req.Plan {
		return j.result(preview.Release, j.byName(preview), active), nil
	}
	return j.release(ctx, wanted, active)
}

// wanted is the release that the deploy asks for.
func (j *job) wanted(ctx context.Context) (store.NewRelease, error) {
	n := store.NewRelease{Environment: j.req.Environment, Source: j.req.Source, Ports: map[string]int{}}
	for _, p := range j.parts {
		identity := function.Identity(p.image, p.spec.Config)
		lost, err := j.lost(ctx, p.spec.Name, identity)
		if err != nil {
			return n, err
		}
		n.Functions = append(n.Functions, store.NewFunction{
			Name: p.spec.Name, Image: p.image, Config: p.spec.Config, Identity: identity, Fresh: lost,
		})
		if p.spec.Default {
			n.Default = p.spec.Name
		}
		if p.spec.Port != 0 {
			n.Ports[p.spec.Name] = p.spec.Port
		}
	}
	return n, nil
}

// lost says whether there is a version of that identity whose image containerd does not have any more. A
// new version takes its place then, because a version's image is pinned by digest.
func (j *job) lost(ctx context.Context, name, identity string) (bool, error) {
	f := j.opts.Store.View().Function(j.key(name))
	if f == nil {
		return false, nil
	}
	for _, v := range slices.Backward(f.Versions) {
		if v.Identity != identity {
			continue
		}
		info, err := j.opts.Images.Inspect(ctx, v.Image.Name)
		if errdefs.IsNotFound(err) || err == nil && info.Digest.String() != v.Image.Digest {
			j.event(api.DeployEvent{Warning: fmt.Sprintf("the image of %s is gone from containerd; it gets a new version", v)})
			return true, nil
		}
		return false, err
	}
	return false, nil
}

// byName indexes recorded versions.
func (j *job) byName(r store.Recorded) map[string]*function.Version {
	out := make(map[string]*function.Version, len(r.Versions))
	for _, v := range r.Versions {
		out[v.Function] = v
	}
	return out
}

// versionsOf looks up the versions of a release.
func (d *Deployer) versionsOf(rel function.Release) map[string]*function.Version {
	view := d.opts.Store.View()
	out := make(map[string]*function.Version, len(rel.Versions))
	for name, n := range rel.Versions {
		if v := view.Version(function.Key{Environment: rel.Environment, Function: name}, n); v != nil {
			out[name] = v
		}
	}
	return out
}

// release records, tags, warms and activates.
func (j *job) release(ctx context.Context, wanted store.NewRelease, active *function.Release) (*api.DeployResult, error) {
	rec, err := j.opts.Store.RecordRelease(ctx, wanted)
	if err != nil {
		return nil, err
	}
	failpoint.Here("deploy.recorded")
	rel := rec.Release
	if err := j.publish(ctx, &rec); err != nil {
		return nil, j.fail(rel, err)
	}
	failpoint.Here("deploy.published")
	versions := j.versionsOf(rel)
	if err := j.route(ctx, rel, versions); err != nil {
		return nil, j.fail(rel, err)
	}
	if now := j.opts.Store.View().Release(rel.Environment, rel.Number); now != nil {
		rel = *now
	}
	j.forgetNow(rel.Environment)
	return j.result(rel, versions, active), nil
}

// route gives a recorded release the requests that the deploy asks for: all, a share, or none.
func (j *job) route(ctx context.Context, rel function.Release, versions map[string]*function.Version) error {
	switch {
	case j.req.NoActivate:
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := j.opts.Store.KeepRelease(context.WithoutCancel(ctx), rel.Environment, rel.Number); err != nil {
			return err
		}
		failpoint.Here("deploy.kept")
		return nil
	case j.share != 0:
		return j.startCanary(ctx, "deploy", rel, versions, function.Canary{Share: j.share, Auto: j.req.Auto})
	}
	return j.switchTo(ctx, "deploy", rel, versions)
}

// fail undoes a recorded release and returns the error with what could not be undone.
func (j *job) fail(rel function.Release, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	return errors.Join(cause, j.failRelease(ctx, rel))
}

// failRelease marks a release as failed and removes the images and contexts that only it had.
func (d *Deployer) failRelease(ctx context.Context, rel function.Release) error {
	dropped, err := d.opts.Store.FailRelease(ctx, rel.Environment, rel.Number)
	if err != nil {
		return err
	}
	dropped.Releases = append(dropped.Releases, &rel)
	d.removeImages(ctx, dropped)
	d.sweepContexts()
	return nil
}

// forgetNow is forget at the end of a deploy, whatever became of its context.
func (d *Deployer) forgetNow(env function.Environment) {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	d.forget(ctx, env)
}

// ForgetUnused forgets the releases beyond the kept ones that were still in use when they were superseded.
// Environments that a deploy works on are left to it. Call it now and then.
func (d *Deployer) ForgetUnused(ctx context.Context) {
	view := d.opts.Store.View()
	for _, e := range view.Environments() {
		if view.Surplus(e.Environment, d.opts.Keep, d.opts.Releases.InUse(e.Environment)) == 0 {
			continue
		}
		release, err := d.claim(ctx, e.Environment, false, nil)
		if err != nil {
			continue
		}
		d.forget(ctx, e.Environment)
		release()
	}
}

// forget drops releases of an environment, which the caller has claimed, beyond the kept ones. Failures are left to
// the next time.
func (d *Deployer) forget(ctx context.Context, env function.Environment) {
	dropped, err := d.opts.Store.ForgetReleases(ctx, env, d.opts.Keep, d.opts.Releases.InUse(env))
	if err != nil {
		d.opts.Log.Warn("old releases were not forgotten", "environment", env.String(), "error", err)
		return
	}
	failpoint.Here("deploy.forgotten")
	view := d.opts.Store.View()
	d.opts.Releases.Forget(env, func(number int) bool { return view.Release(env, number) != nil })
	// A request may have asked for one in the moment before it was forgotten: what it needs is the next sweep's.
	inUse := d.opts.Releases.InUse(env)
	if late := slices.ContainsFunc(dropped.Releases, inUse); late {
		d.opts.Log.Warn("a release was asked for while it was forgotten: its images stay until the next start", "environment", env.String())
		return
	}
	d.removeImages(ctx, dropped)
	d.sweepContexts()
}

// removeImages removes the names of what was forgotten.
func (d *Deployer) removeImages(ctx context.Context, dropped store.Dropped) {
	var names []string
	for _, v := range dropped.Versions {
		names = append(names, versionName(d.opts.RegistryHost, v))
	}
	for _, r := range dropped.Releases {
		for name := range r.Versions {
			names = append(names, releaseName(d.opts.RegistryHost, r, name))
		}
	}
	for _, n := range names {
		if err := d.removeImage(ctx, n); err != nil && !errdefs.IsNotFound(err) {
			d.opts.Log.Warn("image was not removed; the next start does it", "image", n, "error", err)
			if errors.Is(err, context.DeadlineExceeded) {
				return // so would the others be
			}
		}
	}
}

// removeImage does not wait for a containerd that hangs: ctx may have no end.
func (d *Deployer) removeImage(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	return d.opts.Images.Remove(ctx, name)
}

func versionName(host string, v *function.Version) string {
	return function.ImageRepository(host, v.Key) + ":" + function.VersionTag(v.Environment.Name, v.Number)
}

func releaseName(host string, r *function.Release, name string) string {
	key := function.Key{Environment: r.Environment, Function: name}
	return function.ImageRepository(host, key) + ":" + function.ReleaseTag(r.Environment.Name, r.Number)
}

// result says what the release changes against the one that was active before.
func (j *job) result(rel function.Release, versions map[string]*function.Version, before *function.Release) *api.DeployResult {
	res := &api.DeployResult{Release: rel, Plan: j.req.Plan}
	if before != nil {
		res.Previous = before.Number
	}
	for _, p := range j.parts {
		f := api.DeployFunction{Name: p.spec.Name, Version: rel.Versions[p.spec.Name], Port: p.spec.Port}
		f.Change = change(before, f.Name, f.Version)
		if v := versions[p.spec.Name]; v != nil {
			f.Digest, f.Base = v.Image.Digest, v.Image.BaseName
		}
		res.Functions = append(res.Functions, f)
	}
	res.Functions = append(res.Functions, removed(rel, before)...)
	return res
}

// change says what became of a function against the release before (nil for none).
func change(before *function.Release, name string, version int) string {
	if before == nil {
		return "created"
	}
	switch old, ok := before.Versions[name]; {
	case !ok:
		return "created"
	case old == version:
		return "unchanged"
	}
	return "updated"
}

// removed lists the functions of the release before (nil for none) that rel does not have.
func removed(rel function.Release, before *function.Release) (out []api.DeployFunction) {
	if before == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(before.Versions)) {
		if _, ok := rel.Versions[name]; !ok {
			out = append(out, api.DeployFunction{Name: name, Version: before.Versions[name], Change: "removed"})
		}
	}
	return out
}

// Remove takes one function out of an environment: it makes and activates a release without it.
func (d *Deployer) Remove(ctx context.Context, key function.Key) (*api.RemoveResult, error) {
	release, err := d.claim(ctx, key.Environment, false, nil)
	if err != nil {
		return nil, err
	}
	defer release()
	active := d.opts.Store.View().ActiveRelease(key.Environment)
	if active == nil || active.Versions[key.Function] == 0 { // it was removed since the caller looked
		return nil, fmt.Errorf("%s is not deployed: %w", key, errdefs.ErrNotFound)
	}
	if err := d.noCanary(key.Environment); err != nil {
		return nil, err
	}
	if len(active.Versions) == 1 {
		return d.removeLast(ctx, key)
	}
	n := store.NewRelease{Environment: key.Environment, KeepOthers: true, Remove: []string{key.Function}, Source: active.Source}
	rec, err := d.opts.Store.RecordRelease(ctx, n)
	if err != nil {
		return nil, err
	}
	failpoint.Here("remove.recorded")
	versions := d.versionsOf(rec.Release)
	if err := errors.Join(d.tagRelease(ctx, &rec.Release, versions), ctx.Err()); err != nil {
		return nil, errors.Join(err, d.failRelease(context.WithoutCancel(ctx), rec.Release))
	}
	if err := d.switchTo(ctx, "remove", rec.Release, versions); err != nil {
		return nil, errors.Join(err, d.failRelease(context.WithoutCancel(ctx), rec.Release))
	}
	d.forgetNow(key.Environment)
	return &api.RemoveResult{Key: key, Release: rec.Release.Number}, nil
}

// removeLast empties an environment.
func (d *Deployer) removeLast(ctx context.Context, key function.Key) (*api.RemoveResult, error) {
	if err := d.removeAll(ctx, key.Environment); err != nil {
		return nil, err
	}
	return &api.RemoveResult{Key: key}, nil
}
