package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// labelPrefix is the only namespace of labels that we put on containerd's objects.
	labelPrefix = "dev.lfx."
	// leaseFor is how long what a dead process was creating survives it.
	leaseFor = time.Hour
	// undoFor bounds cleaning up after a call whose own context may be over.
	undoFor = 10 * time.Second

	labelOwner     = labelPrefix + "node"
	labelTemporary = labelPrefix + "temporary"

	gcRefConfig = "containerd.io/gc.ref.content.config"
	gcRefLayer  = "containerd.io/gc.ref.content.l.%d"
)

// Options configures a Store.
type Options struct {
	// Platform is what images must be for; the host's own when nil.
	Platform platforms.MatchComparer
	// Limits bounds images; DefaultLimits when zero.
	Limits Limits
	// Owner marks the names and leases that the store makes, so that Sweep finds them after a crash,
	// also beside those of another daemon on the same containerd. Nothing is marked when empty.
	Owner string
	// HostsDirs are directories with registry configuration (hosts.toml, certificates), as
	// containerd knows them: /etc/containerd/certs.d and the like.
	HostsDirs []string
}

// Store is containerd's images as functions need them. It is safe for concurrent use. Calls block
// on containerd and fail with class unavailable while it is away.
type Store struct {
	client      *containerd.Client
	images      images.Store
	content     content.Store
	leases      leases.Manager
	snapshots   snapshots.Snapshotter
	snapshotter string
	opts        Options
}

// New returns a store on a client whose default namespace it uses. An empty snapshotter means
// overlayfs.
func New(client *containerd.Client, snapshotter string, opts Options) *Store {
	if snapshotter == "" {
		snapshotter = "overlayfs"
	}
	if opts.Platform == nil {
		opts.Platform = platforms.Default()
	}
	if opts.Limits == (Limits{}) {
		opts.Limits = DefaultLimits()
	}
	return &Store{
		client: client, images: client.ImageService(), content: client.ContentStore(), leases: client.LeasesService(),
		snapshots: client.SnapshotService(snapshotter), snapshotter: snapshotter, opts: opts,
	}
}

// Snapshotter names the snapshotter that Unpack uses.
func (s *Store) Snapshotter() string { return s.snapshotter }

// temporary runs f under a lease that keeps what f creates until f has tied it to something. The
// lease expires by itself should the process die.
func (s *Store) temporary(ctx context.Context, f func(context.Context) error) (err error) {
	ctx, done, err := s.client.WithLease(ctx, leases.WithRandomID(), leases.WithExpiration(leaseFor),
		leases.WithLabels(s.owned(map[string]string{labelTemporary: "true"})))
	if err != nil {
		return fmt.Errorf("hold a lease: %w", err)
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoFor)
		defer cancel()
		err = errors.Join(err, done(undo))
	}()
	return f(ctx)
}

// Annotate writes a manifest that is the image's own with those annotations added, and names it
// newName. Layers and config stay as they are, and so does the image's identity. Of an index it
// takes the host's platform; Docker's media types become OCI's, because only those have annotations.
//
// The same annotations give the same digest; calling it again is harmless.
func (s *Store) Annotate(ctx context.Context, ref string, annotations map[string]string, newName string) (Info, error) {
	img, err := s.images.Get(ctx, ref)
	if err != nil {
		return Info{}, fmt.Errorf("annotate image %s: %w", ref, err)
	}
	_, manifest, err := s.inspect(ctx, ref, img.Target)
	if err != nil {
		return Info{}, err
	}
	manifest = asOCI(manifest)
	manifest.Annotations = maps.Clone(manifest.Annotations)
	if manifest.Annotations == nil {
		manifest.Annotations = map[string]string{}
	}
	maps.Copy(manifest.Annotations, annotations)
	err = s.temporary(ctx, func(ctx context.Context) error {
		desc, err := s.writeManifest(ctx, manifest)
		if err != nil {
			return err
		}
		return s.put(ctx, images.Image{Name: newName, Target: desc, Labels: s.owned(ours(img.Labels))})
	})
	if err != nil {
		return Info{}, fmt.Errorf("annotate image %s: %w", ref, err)
	}
	return s.Inspect(ctx, newName)
}

// asOCI translates Docker's media types; the blobs are the same.
func asOCI(m ocispec.Manifest) ocispec.Manifest {
	translate := map[string]string{
		images.MediaTypeDockerSchema2Config:    ocispec.MediaTypeImageConfig,
		images.MediaTypeDockerSchema2Layer:     ocispec.MediaTypeImageLayer,
		images.MediaTypeDockerSchema2LayerGzip: ocispec.MediaTypeImageLayerGzip,
		images.MediaTypeDockerSchema2LayerZstd: ocispec.MediaTypeImageLayerZstd,
	}
	to := func(d ocispec.Descriptor) ocispec.Descriptor {
		if t, ok := translate[d.MediaType]; ok {
			d.MediaType = t
		}
		return d
	}
	m.Versioned = specs.Versioned{SchemaVersion: 2}
	m.MediaType = ocispec.MediaTypeImageManifest
	m.Config = to(m.Config)
	layers := make([]ocispec.Descriptor, len(m.Layers))
	for i, l := range m.Layers {
		layers[i] = to(l)
	}
	m.Layers = layers
	return m
}

// writeManifest stores a manifest whose labels keep its config and layers.
func (s *Store) writeManifest(ctx context.Context, m ocispec.Manifest) (ocispec.Descriptor, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	labels := map[string]string{gcRefConfig: m.Config.Digest.String()}
	for i, l := range m.Layers {
		labels[fmt.Sprintf(gcRefLayer, i)] = l.Digest.String()
	}
	ref := "lfx-manifest-" + desc.Digest.String()
	if err := content.WriteBlob(ctx, s.content, ref, bytes.NewReader(data), desc, content.WithLabels(labels)); err != nil {
		return ocispec.Descriptor{}, err
	}
	// A blob that was there already kept its old labels.
	fields := make([]string, 0, len(labels))
	for k := range labels {
		fields = append(fields, "labels."+k)
	}
	_, err = s.content.Update(ctx, content.Info{Digest: desc.Digest, Labels: labels}, fields...)
	return desc, err
}

// put creates an image record or makes an existing one point elsewhere.
func (s *Store) put(ctx context.Context, img images.Image) error {
	if _, err := s.images.Create(ctx, img); !errdefs.IsAlreadyExists(err) {
		return err
	}
	_, err := s.images.Update(ctx, img, "target", "labels")
	return err
}

// ours drops labels that are not of our namespace.
func ours(labels map[string]string) map[string]string {
	kept := map[string]string{}
	for k, v := range labels {
		if strings.HasPrefix(k, labelPrefix) {
			kept[k] = v
		}
	}
	return kept
}

// owned returns the labels with the owner's mark.
func (s *Store) owned(labels map[string]string) map[string]string {
	if s.opts.Owner == "" {
		return labels
	}
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	out[labelOwner] = s.opts.Owner
	return out
}

func checkLabels(labels map[string]string) error {
	for k := range labels {
		if !strings.HasPrefix(k, labelPrefix) {
			return fmt.Errorf("label %q is outside of %s*: %w", k, labelPrefix, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Tag gives an image a further name, or makes that name point to it, with those dev.lfx.* labels on
// the record.
func (s *Store) Tag(ctx context.Context, from, to string, labels map[string]string) error {
	if err := checkLabels(labels); err != nil {
		return err
	}
	img, err := s.images.Get(ctx, from)
	if err != nil {
		return fmt.Errorf("tag image %s as %s: %w", from, to, err)
	}
	if err := s.put(ctx, images.Image{Name: to, Target: img.Target, Labels: s.owned(labels)}); err != nil {
		return fmt.Errorf("tag image %s as %s: %w", from, to, err)
	}
	return nil
}

// Remove deletes a name. What no other name, lease or snapshot needs is collected later. A name
// that is not there is no error.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := s.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	return nil
}

// Sweep removes the owner's names that keep refuses, and its temporary leases, which a process that
// was killed left. Call it only while nothing else works with the store. It returns what it removed,
// goes on after errors and returns them all.
func (s *Store) Sweep(ctx context.Context, keep func(name string) bool) (removed []string, err error) {
	if s.opts.Owner == "" {
		return nil, fmt.Errorf("sweep images: the store marks nothing as its own: %w", errdefs.ErrFailedPrecondition)
	}
	mine := map[string]string{labelOwner: s.opts.Owner}
	all, err := s.List(ctx, "", mine)
	errs := []error{err}
	for _, r := range all {
		if keep(r.Name) {
			continue
		}
		errs = append(errs, s.Remove(ctx, r.Name))
		removed = append(removed, r.Name)
	}
	mine[labelTemporary] = "true"
	held, err := s.Leases(ctx, mine)
	errs = append(errs, err)
	for id := range held {
		errs = append(errs, s.Unlease(ctx, id))
	}
	return removed, errors.Join(errs...)
}

// Record is a name in the store.
type Record struct {
	Name   string
	Digest digest.Digest
	Labels map[string]string
}

// List returns the records whose name begins with prefix and that carry all those labels.
func (s *Store) List(ctx context.Context, prefix string, labels map[string]string) ([]Record, error) {
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []Record
	for _, img := range all {
		if strings.HasPrefix(img.Name, prefix) && carries(img.Labels, labels) {
			out = append(out, Record{Name: img.Name, Digest: img.Target.Digest, Labels: ours(img.Labels)})
		}
	}
	return out, nil
}

func carries(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// Import reads an archive (OCI layout or docker save) into the store and returns the names that are
// in it, existing ones then pointing to the new images. Names of images that Inspect refuses are
// dropped again.
func (s *Store) Import(ctx context.Context, archive io.Reader) ([]string, error) {
	imgs, err := s.client.Import(ctx, archive, containerd.WithImportPlatform(s.opts.Platform))
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	var names []string
	for _, img := range imgs {
		if _, err := s.accept(ctx, img.Name); err != nil {
			return names, fmt.Errorf("import images: %w", err)
		}
		names = append(names, img.Name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("the archive names no image: %w", errdefs.ErrInvalidArgument)
	}
	return names, nil
}

// Unpack makes the image's snapshot, unless it is there, and proves that it can be mounted. It
// needs the rights to mount. An image that unpacks to more bytes or more entries than the limits is refused, before
// anything of it is written when it is to be unpacked here and not by a build.
func (s *Store) Unpack(ctx context.Context, ref string) error {
	img, err := s.images.Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return missing(ref, err)
	}
	if err != nil {
		return fmt.Errorf("unpack image %s: %w", ref, err)
	}
	info, manifest, err := s.inspect(ctx, ref, img.Target)
	if err != nil {
		return err
	}
	return s.temporary(ctx, func(ctx context.Context) error {
		if err := s.checkArchives(ctx, ref, manifest.Layers, info.DiffIDs); err != nil {
			return err
		}
		for again := unpackAgain; ; again-- {
			err := s.unpackOnce(ctx, img, ref, info)
			if again == 0 || !errdefs.IsNotFound(err) {
				return err
			}
		}
	})
}

// unpackAgain is how often an image is unpacked again whose snapshots went away meanwhile: containerd takes a
// snapshot that is there for unpacked before it ties it to the image, and its garbage collector, which runs after
// the last other image with these layers was removed, may come in between.
const unpackAgain = 3

// unpackOnce unpacks an image and holds what came of it against the limits.
func (s *Store) unpackOnce(ctx context.Context, img images.Image, ref string, info Info) error {
	if err := containerd.NewImageWithPlatform(s.client, img, s.opts.Platform).Unpack(ctx, s.snapshotter); err != nil {
		return fmt.Errorf("unpack image %s: %w", ref, err)
	}
	if err := s.checkUsage(ctx, ref, info.DiffIDs); err != nil {
		return err
	}
	return s.probe(ctx, ref, info.ChainID)
}

// checkUsage sums what the layers take unpacked, in bytes and in entries of the file system.
func (s *Store) checkUsage(ctx context.Context, ref string, diffIDs []digest.Digest) error {
	var sum, entries int64
	most := s.opts.Limits.Entries
	for _, chain := range identity.ChainIDs(append([]digest.Digest(nil), diffIDs...)) {
		u, err := s.snapshots.Usage(ctx, chain.String())
		if err != nil {
			return fmt.Errorf("measure image %s: %w", ref, err)
		}
		if sum += u.Size; sum > s.opts.Limits.Bytes {
			return unsupported(ref, "Unpacked, it is larger than %d GiB.", s.opts.Limits.Bytes>>30)
		}
		if entries += u.Inodes; most > 0 && entries > most {
			return unsupported(ref, "Unpacked, it has more than %d files and folders.", most)
		}
	}
	return nil
}

// probe mounts a view of the snapshot and looks into it.
func (s *Store) probe(ctx context.Context, ref string, chain digest.Digest) (err error) {
	key := "lfx-probe-" + uuid.NewString()
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoFor)
		defer cancel()
		if rerr := s.snapshots.Remove(undo, key); rerr != nil && !errdefs.IsNotFound(rerr) {
			err = errors.Join(err, rerr)
		}
	}()
	mounts, err := s.snapshots.View(ctx, key, chain.String())
	if err != nil {
		return fmt.Errorf("mount image %s: %w", ref, err)
	}
	err = mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		_, err := os.ReadDir(filepath.Clean(root))
		return err
	})
	if err != nil {
		return fmt.Errorf("mount image %s: %w", ref, err)
	}
	return nil
}
