package deploy

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/internal/failpoint"
)

// Containerd can lose images: its data was removed, its database did not survive a power cut. What was built is
// built again from the stored context, what was pulled is pulled again by its digest, and a new release with these
// versions takes over as after a deploy.

// rebuildDir holds contexts that are unpacked for a rebuild. Nothing in it outlives the rebuild.
func (d *Deployer) rebuildDir() string { return filepath.Join(d.opts.Dir, "rebuild") }

// Rebuilt is what Rebuild did to one environment.
type Rebuilt struct {
	function.Environment
	// Release is the one that took over.
	Release int
	// Functions got new versions.
	Functions []string
}

// Rebuild looks for functions of active releases whose images containerd does not have any more, and brings them back.
// missing counts those that it could not; err says why, for each environment. An environment that a deploy works
// on is left to it, and counts as missing when it lacks something.
func (d *Deployer) Rebuild(ctx context.Context) (rebuilt []Rebuilt, missing int, err error) {
	var errs []error
	for _, e := range d.opts.Store.View().Environments() {
		lost, err := d.lostOf(ctx, e.Environment)
		if err != nil {
			return rebuilt, missing, err // containerd does not answer: the caller tries again
		}
		if len(lost) == 0 {
			continue
		}
		res, err := d.rebuild(ctx, e.Environment)
		if err != nil {
			missing += len(lost)
			errs = append(errs, fmt.Errorf("bring images of %s back: %w", e.Environment, err))
		} else if res != nil {
			rebuilt = append(rebuilt, *res)
		}
	}
	return rebuilt, missing, errors.Join(errs...)
}

// lostOf lists the versions of the active release whose image is gone or another one, by function.
func (d *Deployer) lostOf(ctx context.Context, env function.Environment) (lost []*function.Version, err error) {
	active := d.opts.Store.View().ActiveRelease(env)
	if active == nil {
		return nil, nil
	}
	for _, v := range d.versionsOf(*active) {
		info, err := d.opts.Images.Inspect(ctx, v.Image.Name)
		switch {
		case errdefs.IsNotFound(err) || err == nil && info.Digest.String() != v.Image.Digest:
			lost = append(lost, v)
		case err != nil:
			return nil, err
		}
	}
	slices.SortFunc(lost, func(a, b *function.Version) int { return strings.Compare(a.Function, b.Function) })
	return lost, nil
}

// rebuild is a deploy of what an environment has lost, from what is stored here.
func (d *Deployer) rebuild(ctx context.Context, env function.Environment) (res *Rebuilt, err error) {
	if err := d.checkSpace(); err != nil {
		return nil, err
	}
	release, err := d.claim(ctx, env, false, nil)
	if err != nil {
		return nil, err
	}
	defer release()
	lost, err := d.lostOf(ctx, env) // a deploy may have been quicker
	if err != nil || len(lost) == 0 {
		return nil, err
	}
	if err := d.noCanary(env); err != nil { // whoever decides about it decides about the images, too
		return nil, err
	}
	if err := d.undoEarlier(ctx, env); err != nil {
		return nil, err
	}
	active := d.opts.Store.View().ActiveRelease(env)
	j := &job{
		Deployer: d, id: newID(), event: func(api.DeployEvent) {},
		req: api.DeployRequest{Environment: env, Source: active.Source},
	}
	for _, v := range lost {
		p, err := j.again(active, v)
		if err != nil {
			return nil, err
		}
		j.parts = append(j.parts, p)
	}
	if err := d.opts.Store.BeginDeploy(ctx, j.intent()); err != nil {
		return nil, err
	}
	failpoint.Here("rebuild.intent")
	defer func() { err = errors.Join(err, j.cleanUp()) }()
	return j.rebuild(ctx, active)
}

// rebuild builds, pulls, records and activates.
func (j *job) rebuild(ctx context.Context, active *function.Release) (*Rebuilt, error) {
	dir := filepath.Join(j.rebuildDir(), j.id)
	defer os.RemoveAll(dir) //nolint:errcheck // Recover removes the rest
	for i, p := range j.parts {
		if p.spec.Build == nil {
			continue
		}
		p.mirror = filepath.Join(dir, strconv.Itoa(i))
		v := j.opts.Store.View().Version(j.key(p.spec.Name), active.Versions[p.spec.Name])
		if err := j.unpackContext(ctx, v.Image.Context, p.mirror); err != nil {
			return nil, fmt.Errorf("function %s: %w", p.spec.Name, err)
		}
	}
	failpoint.Here("rebuild.unpacked")
	if err := j.check(); err != nil {
		return nil, err
	}
	if err := j.images(ctx); err != nil {
		return nil, err
	}
	wanted, err := j.wanted(ctx)
	if err != nil {
		return nil, err
	}
	wanted.KeepOthers = true
	res, err := j.release(ctx, wanted, active)
	if err != nil {
		return nil, err
	}
	out := &Rebuilt{Environment: j.req.Environment, Release: res.Release.Number}
	for _, p := range j.parts {
		out.Functions = append(out.Functions, p.spec.Name)
	}
	return out, nil
}

// again is the part of a deploy that makes a version's image again.
func (j *job) again(active *function.Release, v *function.Version) (*part, error) {
	spec := function.Spec{
		Name: v.Function, Config: v.Config, Default: active.Default == v.Function, Port: active.Ports[v.Function],
	}
	img := v.Image
	switch {
	case img.Context != "" && img.Build != nil:
		spec.Build = img.Build
	case img.Context != "":
		return nil, fmt.Errorf("how %s was built is not recorded: deploy the project again: %w", v, errdefs.ErrFailedPrecondition)
	case img.BaseName != "" && strings.Contains(img.BaseName, "@"):
		spec.Image = img.BaseName
	case img.BaseName != "" && img.BaseDigest != "":
		spec.Image = img.BaseName + "@" + img.BaseDigest
	default:
		return nil, fmt.Errorf("where the image of %s came from is not recorded: deploy the project again: %w", v, errdefs.ErrFailedPrecondition)
	}
	return &part{spec: spec, temp: j.tempName(v.Function)}, nil
}

// unpackContext makes a folder of a stored context. Its bytes must have the digest.
func (d *Deployer) unpackContext(ctx context.Context, digest, dir string) error {
	f, err := os.Open(d.contextPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("its stored sources are gone: deploy the project again: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := verify(f, digest); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing is buffered
	return readContext(ctx, f, root)
}

// verify reads the file and rewinds it.
func verify(f *os.File, digest string) error {
	got, err := sumOf(f)
	if err != nil {
		return err
	}
	if got != digest {
		return fmt.Errorf("its stored sources are damaged (%s): deploy the project again: %w", filepath.Base(f.Name()), errdefs.ErrDataLoss)
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// readContext is the reverse of writeContext. The times of files do not matter to a build.
func readContext(ctx context.Context, r io.Reader, root *os.Root) error {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	t := tar.NewReader(z)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := readEntry(t, h, root); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

func readEntry(t *tar.Reader, h *tar.Header, root *os.Root) error {
	name, mode := path.Clean(h.Name), fs.FileMode(h.Mode)&fs.ModePerm
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, mode|0o700); err != nil {
			return err
		}
		return root.Chmod(name, mode|0o700)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t) // as long as the header says: the archive is our own, and its digest was checked
		return errors.Join(err, f.Chmod(mode), f.Close())
	}
	return fmt.Errorf("an entry of type %q does not belong there: %w", h.Typeflag, errdefs.ErrDataLoss)
}
