package deploy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	bkclient "github.com/moby/buildkit/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"lfx.dev/lfxd/buildkit"
	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/internal/failpoint"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/runtime/image"
)

// Labels and annotations of our own. Labels are stable; the volatile ones are annotations, written
// after numbering, so that they never change a version's identity.
const (
	labelProject     = "dev.lfx.project"
	labelEnvironment = "dev.lfx.environment"
	labelFunction    = "dev.lfx.function"
	annotRelease     = "dev.lfx.release"
)

// mirrorDir is the folder of a build context's mirror. It is kept between deploys.
func (d *Deployer) mirrorDir(env function.Environment, b *function.Build) string {
	sum := sha256.Sum256([]byte(b.Context + "\x00" + b.Dockerfile))
	return filepath.Join(d.mirrorRoot(env), hex.EncodeToString(sum[:8]))
}

func (d *Deployer) mirrorRoot(env function.Environment) string {
	return filepath.Join(d.opts.Dir, "mirrors", env.Project, env.Name)
}

func (d *Deployer) removeMirrors(env function.Environment) {
	if err := os.RemoveAll(d.mirrorRoot(env)); err != nil {
		d.opts.Log.Warn("mirrors were not removed", "environment", env.String(), "error", err)
	}
}

// receive brings the mirrors in line with the client's folders.
func (j *job) receive(ctx context.Context) error {
	dirs := map[string]*function.Build{}
	for _, p := range j.parts {
		if p.spec.Build != nil {
			p.mirror = j.mirrorDir(j.req.Environment, p.spec.Build)
			dirs[p.mirror] = p.spec.Build
		}
	}
	if len(dirs) == 0 {
		return nil
	}
	caller, err := j.opts.Sessions.Caller(ctx, j.req.SessionID)
	if err != nil {
		return fmt.Errorf("the client's source session: %w", err)
	}
	j.step("reading %s", count(len(dirs), "source folder"))
	g, ctx := errgroup.WithContext(ctx)
	for dest, b := range dirs {
		g.Go(func() error {
			if err := os.MkdirAll(filepath.Dir(dest), 0o700); err != nil {
				return err
			}
			got, err := buildkit.Receive(ctx, caller, api.SourceDirName(b.Context), dest, buildkit.ReceiveOptions{Dockerfile: b.Dockerfile, Limits: j.opts.Limits})
			if err != nil {
				return fmt.Errorf("read the source folder %s: %w", b.Context, err)
			}
			j.opts.Log.Debug("mirrored", "context", b.Context, "entries", got.Entries, "bytes", got.Bytes, "transferred", got.Transferred)
			return nil
		})
	}
	return g.Wait()
}

// check reads every Dockerfile and reports everything that is wrong with any of them.
func (j *job) check() error {
	var errs []error
	for _, p := range j.parts {
		if p.spec.Build == nil {
			continue
		}
		b := p.spec.Build
		text, err := buildkit.ReadDockerfile(p.mirror, b.Dockerfile)
		if err == nil {
			name := path.Join(b.Context, orDefault(b.Dockerfile, "Dockerfile"))
			p.dockerfile, err = buildkit.CheckDockerfile(text, buildkit.CheckOptions{Name: name, Target: b.Target, Args: b.Args})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("function %s: %w", p.spec.Name, err))
		}
	}
	return invalid(errs)
}

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return s
}

// images builds or pulls every function's image, several at a time.
func (j *job) images(ctx context.Context) error {
	j.step("building %s", count(len(j.parts), "function"))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, j.opts.MaxParallel))
	var mu sync.Mutex
	for _, p := range j.parts {
		g.Go(func() error {
			err := j.image(ctx, p, func(s *bkclient.SolveStatus) {
				b, err := json.Marshal(s)
				if err != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				j.event(api.DeployEvent{Build: b})
			})
			if err != nil {
				return fmt.Errorf("function %s: %w", p.spec.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// image makes one function's image under its temporary name and reads what a version must know.
func (j *job) image(ctx context.Context, p *part, progress func(*bkclient.SolveStatus)) error {
	if p.spec.Build == nil {
		return j.pull(ctx, p)
	}
	b := p.spec.Build
	failpoint.Here("deploy.building")
	res, err := j.opts.Builder.Build(ctx, buildkit.Request{
		ID: p.spec.Name, ContextDir: p.mirror, Dockerfile: b.Dockerfile, Target: b.Target, Args: b.Args,
		Labels: j.labels(p), BaseImages: j.opts.BaseImages, ImageName: p.temp, NoCache: j.req.NoCache,
		LogLimit: j.opts.LogLimit, Timeout: j.opts.BuildTimeout,
	}, progress)
	if err != nil {
		return err
	}
	p.bases = res.Bases
	if res.Base.Name != "" {
		p.bases = append([]buildkit.Base{res.Base}, p.bases...)
	}
	return j.inspect(ctx, p)
}

// pull fetches an image that is not built here, pinned to the digest that its tag has now.
func (j *job) pull(ctx context.Context, p *part) error {
	pinned, err := j.opts.Images.ResolvePin(ctx, p.spec.Image)
	if err != nil {
		return err
	}
	info, err := j.opts.Images.Pull(ctx, pinned)
	if err != nil {
		return err
	}
	p.pinned = pinned
	if err := j.opts.Images.Tag(ctx, info.Name, p.temp, nil); err != nil {
		return err
	}
	p.bases = []buildkit.Base{{Name: p.spec.Image, Digest: info.Digest}}
	return j.inspect(ctx, p)
}

// labels are the stable facts that go into the image's config.
func (j *job) labels(p *part) map[string]string {
	l := map[string]string{
		ocispec.AnnotationTitle: p.spec.Name,
		labelProject:            j.req.Project,
		labelEnvironment:        j.req.Environment.Name,
		labelFunction:           p.spec.Name,
	}
	if base := p.dockerfile.Base; base != "" {
		l[ocispec.AnnotationBaseImageName] = orDefault(j.opts.BaseImages[base], base)
	}
	return l
}

// inspect fills in the domain's view of the image.
func (j *job) inspect(ctx context.Context, p *part) error {
	info, err := j.opts.Images.Inspect(ctx, p.temp)
	if err != nil {
		return err
	}
	p.image = domainImage(info)
	if argv := (&function.Version{Image: p.image, Config: p.spec.Config}).Argv(); len(argv) == 0 || argv[0] == "" {
		return fmt.Errorf("the image has neither an entrypoint nor a command: give it an ENTRYPOINT, or the function an entrypoint in lfx.yaml: %w", errdefs.ErrInvalidArgument)
	}
	if len(p.bases) > 0 {
		p.image.BaseName = orDefault(p.bases[0].Replacement, p.bases[0].Name)
		p.image.BaseDigest = p.bases[0].Digest.String()
	}
	return nil
}

func domainImage(info image.Info) function.Image {
	img := function.Image{
		Name: info.Name, Digest: info.Digest.String(), Size: info.Size,
		Entrypoint: info.Entrypoint, Cmd: info.Cmd, Env: info.Env, Workdir: info.Workdir,
	}
	for _, d := range info.DiffIDs {
		img.DiffIDs = append(img.DiffIDs, d.String())
	}
	return img
}

// publish gives new versions their final images (annotated, named v<N>, context stored, unpacked) and
// every function of the release its r<N> name.
func (j *job) publish(ctx context.Context, rec *store.Recorded) error {
	var images []store.VersionImage
	contexts := map[string]string{} // by mirror: functions often share a folder
	for i, v := range rec.Versions {
		if !rec.New[i] {
			continue
		}
		img, err := j.publishVersion(ctx, j.parts[i], v, rec.Release, contexts)
		if err != nil {
			return fmt.Errorf("function %s: %w", v.Function, err)
		}
		images = append(images, store.VersionImage{Function: v.Function, Number: v.Number, Image: img})
	}
	if err := j.opts.Store.SetImages(ctx, rec.Release.Environment, images); err != nil {
		return err
	}
	return j.tagRelease(ctx, &rec.Release, j.versionsOf(rec.Release))
}

// publishVersion makes the final image of one version. contexts has the digests of the mirrors that are stored.
func (j *job) publishVersion(ctx context.Context, p *part, v *function.Version, rel function.Release, contexts map[string]string) (img function.Image, err error) {
	name := versionName(j.opts.RegistryHost, v)
	info, err := j.opts.Images.Annotate(ctx, p.temp, j.annotations(p, v, rel), name)
	if err != nil {
		return img, err
	}
	failpoint.Here("deploy.annotated")
	img = p.image
	img.Name, img.Digest = name, info.Digest.String()
	if p.mirror != "" {
		if contexts[p.mirror] == "" {
			if contexts[p.mirror], err = j.storeContext(ctx, p.mirror); err != nil {
				return img, fmt.Errorf("store the build context: %w", err)
			}
		}
		img.Context = contexts[p.mirror]
		img.Build = p.spec.Build
	}
	failpoint.Here("deploy.stored")
	if err := j.opts.Images.Unpack(ctx, name); err != nil {
		return img, err
	}
	return img, failpoint.Error("deploy.unpacked")
}

// annotations are the facts of the manifest: the stable ones again, and the volatile ones.
func (j *job) annotations(p *part, v *function.Version, rel function.Release) map[string]string {
	a := map[string]string{
		ocispec.AnnotationCreated: time.Now().UTC().Format(time.RFC3339),
		ocispec.AnnotationTitle:   v.Function,
		ocispec.AnnotationVersion: strconv.Itoa(v.Number),
		ocispec.AnnotationRefName: function.VersionTag(v.Environment.Name, v.Number),
		labelProject:              v.Project,
		labelEnvironment:          v.Environment.Name,
		labelFunction:             v.Function,
		annotRelease:              strconv.Itoa(rel.Number),
	}
	for k, val := range map[string]string{
		ocispec.AnnotationSource:          j.req.Source.Dir,
		ocispec.AnnotationRevision:        j.req.Source.Revision,
		ocispec.AnnotationBaseImageName:   p.image.BaseName,
		ocispec.AnnotationBaseImageDigest: p.image.BaseDigest,
	} {
		if val != "" {
			a[k] = val
		}
	}
	return a
}

// tagRelease names the image of every function of a release r<N>.
func (d *Deployer) tagRelease(ctx context.Context, rel *function.Release, versions map[string]*function.Version) error {
	failpoint.Here("deploy.image-set")
	for name, v := range versions {
		if err := d.opts.Images.Tag(ctx, v.Image.Name, releaseName(d.opts.RegistryHost, rel, name), nil); err != nil {
			return errors.Join(fmt.Errorf("name the image of %s for release %d", name, rel.Number), err)
		}
	}
	return nil
}
