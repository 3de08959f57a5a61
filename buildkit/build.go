package buildkit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/codes"
)

const (
	defaultTimeout  = 15 * time.Minute
	defaultLogLimit = 8 << 20

	// sourceDateEpoch stands for every time in an image, in seconds: 2000-01-01. Zero would break
	// tools that cannot express times before 1980 (zip, and so Python wheels).
	sourceDateEpoch = 946684800

	// frontend is BuildKit's built-in Dockerfile frontend.
	frontend = "dockerfile.v0"
)

// Request is one build.
type Request struct {
	// ID names the function in progress and errors.
	ID string
	// ContextDir is the mirror to build from; it must not change during the build.
	ContextDir string
	// Dockerfile is a path inside of it; "Dockerfile" when empty.
	Dockerfile string
	// Target is the stage to build; the last one when empty.
	Target string
	// Args are build arguments, Labels go into the image's config and so into its identity.
	Args, Labels map[string]string
	// BaseImages maps references, as Dockerfiles write them, to the images that are used instead.
	BaseImages map[string]string
	// ImageName is the reference that the built image gets in containerd's image store.
	ImageName string
	// NoCache runs every step again.
	NoCache bool
	// Platform is what the image is for; the host's own when nil.
	Platform *ocispec.Platform
	// AllowRemote admits ADD from elsewhere, see CheckOptions.
	AllowRemote bool
	// LogLimit bounds the output that is passed on, in bytes; 8 MiB when zero.
	LogLimit int64
	// Timeout bounds the build; 15 minutes when zero.
	Timeout time.Duration
}

func (r *Request) dockerfile() string {
	if r.Dockerfile == "" {
		return defaultDockerfile
	}
	return path.Clean(r.Dockerfile)
}

// Result is a built image.
type Result struct {
	// Name is the request's ImageName, which the store knows the image by.
	Name string
	// Digest is the manifest's, ConfigDigest the config's.
	Digest, ConfigDigest digest.Digest
	// Bases are the images the build used, in order of appearance. Base is the one that the image
	// stands on; its name is empty for scratch.
	Bases []Base
	Base  Base
}

// Base is an image that a Dockerfile names.
type Base struct {
	// Name is the reference as the Dockerfile has it.
	Name string
	// Replacement is the reference that was used instead; empty when none was.
	Replacement string
	// Digest is what was used, of the index where there is one.
	Digest digest.Digest
}

// Build builds one image and returns when it is in containerd's image store, not yet unpacked.
// Several builds may run at a time.
//
// progress, which may be nil, is called from one goroutine with statuses that are its own to keep;
// steps are named after the request's ID and distinct from other builds' (see package progress).
// While it blocks the build makes no progress either.
//
// The same tree, arguments and base images give the same layers and config while BuildKit has its
// cache; without it, as far as the steps are reproducible.
//
// Errors: *DockerfileError (joined) for what is refused, *BuildError for a build that failed, class
// unavailable when buildkitd is not there, deadline exceeded after the timeout, and the context's
// cause when that ended.
func (c *Client) Build(ctx context.Context, req Request, progress func(*bkclient.SolveStatus)) (Result, error) {
	b, err := c.newBuild(req, progress)
	if err != nil {
		return Result{}, err
	}
	root, err := os.OpenRoot(req.ContextDir)
	if err != nil {
		return Result{}, fmt.Errorf("open the context of %s: %w", req.ID, err)
	}
	tree := fsutil.NewRoot(root)
	defer tree.Close()
	opt, err := b.solveOpt(tree)
	if err != nil {
		return Result{}, err
	}
	limit := cmp.Or(req.Timeout, defaultTimeout)
	buildCtx, cancel := context.WithTimeoutCause(ctx, limit, errTooLong)
	defer cancel()

	ch := make(chan *bkclient.SolveStatus)
	forwarded := make(chan struct{})
	go func() { // ends when BuildKit's client closes the channel, which it does before Build returns
		defer close(forwarded)
		for s := range ch {
			b.rec.status(s)
		}
	}()
	resp, err := c.bk.Build(buildCtx, opt, "lfxd", b.run, ch)
	<-forwarded
	if err != nil {
		return Result{}, b.explain(ctx, buildCtx, err)
	}
	return b.result(resp), nil
}

var errTooLong = errors.New("the build took too long")

// build is one build under way.
type build struct {
	client *Client
	req    Request
	df     *Dockerfile
	rec    *recorder
	attrs  map[string]string // for the frontend
	bases  []Base

	unresolved *unresolved // the base image that stopped the build, if one did
}

// unresolved is a base image that cannot be had, and why.
type unresolved struct {
	name string
	err  error
}

// newBuild checks the request.
func (c *Client) newBuild(req Request, progress func(*bkclient.SolveStatus)) (*build, error) {
	if req.ID == "" {
		return nil, fmt.Errorf("a build needs an id: %w", errdefs.ErrInvalidArgument)
	}
	if named, err := reference.ParseNormalizedNamed(req.ImageName); err != nil || named.String() != req.ImageName {
		return nil, fmt.Errorf("%q is no full image reference: %w", req.ImageName, errdefs.ErrInvalidArgument)
	}
	contents, err := ReadDockerfile(req.ContextDir, req.dockerfile())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.ID, err)
	}
	df, err := CheckDockerfile(contents, CheckOptions{
		Name: req.dockerfile(), Target: req.Target, Args: req.Args, Platform: req.Platform, AllowRemote: req.AllowRemote,
	})
	if err != nil {
		return nil, err
	}
	b := &build{client: c, req: req, df: df, rec: newRecorder(req.ID, cmp.Or(req.LogLimit, defaultLogLimit), progress)}
	b.attrs = b.frontendAttrs()
	return b, nil
}

func (b *build) platform() ocispec.Platform {
	if b.req.Platform != nil {
		return *b.req.Platform
	}
	return platforms.DefaultSpec()
}

// frontendAttrs are the Dockerfile frontend's options, apart from the base images.
func (b *build) frontendAttrs() map[string]string {
	attrs := map[string]string{
		"filename":                    b.req.dockerfile(),
		"platform":                    platforms.Format(b.platform()),
		"image-resolve-mode":          pb.AttrImageResolveModePreferLocal,
		"build-arg:SOURCE_DATE_EPOCH": strconv.Itoa(sourceDateEpoch),
	}
	if b.req.Target != "" {
		attrs["target"] = b.req.Target
	}
	if b.df.Syntax != "" {
		// The gateway is switched off; with cmdline set the built-in frontend takes itself for the
		// one that the syntax line asks for.
		attrs["cmdline"] = "docker/dockerfile:1"
	}
	if b.req.NoCache {
		attrs["no-cache"] = ""
	}
	for k, v := range b.req.Args {
		attrs["build-arg:"+k] = v
	}
	for k, v := range b.req.Labels {
		attrs["label:"+k] = v
	}
	return attrs
}

func (b *build) solveOpt(tree fsutil.Root) (bkclient.SolveOpt, error) {
	files, err := contextFS(tree)
	if err != nil {
		return bkclient.SolveOpt{}, fmt.Errorf("open the context of %s: %w", b.req.ID, err)
	}
	creds, err := b.client.credentials()
	if err != nil {
		return bkclient.SolveOpt{}, err
	}
	opt := bkclient.SolveOpt{
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
		// BuildKit keeps what it was sent under this key and asks only for what changed.
		SharedKey: "lfx:" + b.req.ContextDir,
		Session:   []session.Attachable{creds},
		Exports: []bkclient.ExportEntry{{Type: bkclient.ExporterImage, Attrs: map[string]string{
			"name":           b.req.ImageName,
			"oci-mediatypes": "true",
		}}},
		FrontendAttrs: maps.Clone(b.attrs),
	}
	if !b.req.AllowRemote {
		opt.SourcePolicy = denyRemote()
	}
	return opt, nil
}

// denyRemote denies what ADD fetches from elsewhere, whichever way it got into the build.
func denyRemote() *spb.Policy {
	p := &spb.Policy{Version: 1}
	for _, scheme := range []string{"http://*", "https://*", "git://*"} {
		p.Rules = append(p.Rules, &spb.Rule{
			Action:   spb.PolicyAction_DENY,
			Selector: &spb.Selector{Identifier: scheme, MatchType: spb.MatchType_WILDCARD},
		})
	}
	return p
}

// run is the build as BuildKit's gateway sees it: resolve the base images to digests, then let the
// Dockerfile frontend build from exactly those.
func (b *build) run(ctx context.Context, gw gwclient.Client) (*gwclient.Result, error) {
	attrs := maps.Clone(b.attrs)
	for _, name := range b.df.Bases {
		base, pinned, err := b.resolve(ctx, gw, name)
		if err != nil {
			b.unresolved = &unresolved{name, err}
			return nil, err
		}
		b.bases = append(b.bases, base)
		key, err := contextKey(name)
		if err != nil {
			return nil, err
		}
		if b.df.stages[strings.ToLower(key)] {
			// A named context of that name would replace the stage and not its base.
			if base.Replacement != "" {
				return nil, fmt.Errorf("a stage is named like its base image %s, which is to be replaced by %s: give the stage another name", name, base.Replacement)
			}
			continue
		}
		attrs["context:"+key] = "docker-image://" + pinned
	}
	return gw.Solve(ctx, gwclient.SolveRequest{Frontend: frontend, FrontendOpt: attrs})
}

// resolve returns what a base image is now, and the reference that pins it.
func (b *build) resolve(ctx context.Context, gw gwclient.Client, name string) (Base, string, error) {
	base := Base{Name: name, Replacement: b.replacement(name)}
	named, err := reference.ParseNormalizedNamed(cmp.Or(base.Replacement, name))
	if err != nil {
		return Base{}, "", fmt.Errorf("base image %s: %w", cmp.Or(base.Replacement, name), err)
	}
	named = reference.TagNameOnly(named)
	p := b.platform()
	_, dgst, _, err := gw.ResolveImageConfig(ctx, named.String(), sourceresolver.Opt{
		LogName:  "load metadata for " + reference.FamiliarString(named),
		ImageOpt: &sourceresolver.ResolveImageOpt{Platform: &p, ResolveMode: pb.AttrImageResolveModePreferLocal},
	})
	if err != nil {
		return Base{}, "", fmt.Errorf("base image %s cannot be used: %w", reference.FamiliarString(named), err)
	}
	base.Digest = dgst
	if _, pinned := named.(reference.Canonical); pinned {
		return base, named.String(), nil
	}
	pinned, err := reference.WithDigest(named, dgst)
	if err != nil {
		return Base{}, "", err
	}
	return base, pinned.String(), nil
}

// replacement looks a reference up in BaseImages, however either of them is spelled.
func (b *build) replacement(name string) string {
	want, err := contextKey(name)
	if err != nil {
		return ""
	}
	for _, from := range slices.Sorted(maps.Keys(b.req.BaseImages)) {
		if key, err := contextKey(from); err == nil && key == want {
			return b.req.BaseImages[from]
		}
	}
	return ""
}

func (b *build) result(resp *bkclient.SolveResponse) Result {
	r := Result{
		Name:         b.req.ImageName,
		Digest:       digest.Digest(resp.ExporterResponse[exptypes.ExporterImageDigestKey]),
		ConfigDigest: digest.Digest(resp.ExporterResponse[exptypes.ExporterImageConfigDigestKey]),
		Bases:        b.bases,
	}
	for _, base := range b.bases {
		if base.Name == b.df.Base {
			r.Base = base
		}
	}
	return r
}

// explain gives an error of BuildKit's its class. outer is the caller's context, inner the one with
// the build's own deadline.
func (b *build) explain(outer, inner context.Context, err error) error {
	switch {
	case outer.Err() != nil:
		return fmt.Errorf("build of %s: %w", b.req.ID, context.Cause(outer))
	case inner.Err() != nil:
		return fmt.Errorf("build of %s took longer than %s: make it faster or split it: %w",
			b.req.ID, cmp.Or(b.req.Timeout, defaultTimeout), context.DeadlineExceeded)
	case grpcerrors.Code(err) == codes.Unavailable:
		if _, reason, _ := b.rec.failure(); reason == "" {
			return fmt.Errorf("build of %s: %w", b.req.ID, b.client.unavailable(inner, err))
		}
	}
	return b.newBuildError(err)
}

// contextFS shows a mirror to BuildKit with every time set to sourceDateEpoch, so that layers do not
// depend on when files were written.
//
// BuildKit asks for a file again only when its size or time changed since the last build. Layers
// hold whole seconds (containerd's archive package truncates), so the true time lives on, hashed,
// in the nanoseconds.
func contextFS(tree fsutil.Root) (fsutil.FS, error) {
	return fsutil.NewFilterFS(fsutil.NewRootFS(tree), &fsutil.FilterOpt{
		Map: func(_ string, st *types.Stat) fsutil.MapResult {
			h := fnv.New64a()
			fmt.Fprintf(h, "%d %d", st.ModTime, st.Size)
			st.ModTime = sourceDateEpoch*int64(time.Second) + int64(h.Sum64()%uint64(time.Second))
			if os.FileMode(st.Mode).IsDir() {
				st.ModTime = sourceDateEpoch * int64(time.Second)
			}
			return fsutil.MapResultKeep
		},
	})
}
