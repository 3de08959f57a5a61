package image

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits bounds what an image may be.
type Limits struct {
	// Layers is the largest number of layers.
	Layers int
	// Bytes bounds the sum of the layers, as they travel and as they are unpacked.
	Bytes int64
	// Entries bounds the files and folders (inodes) of all layers together once they are unpacked; 0 is no bound.
	Entries int64
	// Config and Manifest bound those two documents, in bytes.
	Config, Manifest int64
}

// DefaultLimits are Lambda's for the size, and what containerd and overlayfs bear for the rest.
func DefaultLimits() Limits {
	return Limits{Layers: 127, Bytes: 10 << 30, Entries: 500_000, Config: 4 << 20, Manifest: 4 << 20}
}

// Info describes one image for one platform.
type Info struct {
	// Name is the reference in the image store.
	Name string
	// Digest is the manifest's, also when the name stands for an index; ConfigDigest the config's.
	Digest, ConfigDigest digest.Digest
	// DiffIDs are the digests of the uncompressed layers, ChainID names their snapshot.
	DiffIDs []digest.Digest
	ChainID digest.Digest
	// Size is the sum of the layers in bytes, as stored.
	Size int64
	// Entrypoint, Cmd, Env and Workdir are the config's.
	Entrypoint, Cmd, Env []string
	Workdir              string
	// Architecture and OS are in OCI's words, as in amd64 and linux.
	Architecture, OS string
	// Labels are the config's, Annotations the manifest's.
	Labels, Annotations map[string]string
	// Created is the config's time; zero when it has none.
	Created time.Time
}

// layerTypes are the layers that containerd's overlayfs path applies: neither foreign layers, which
// would be fetched from elsewhere, nor encrypted ones.
var layerTypes = []string{
	ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
	images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerZstd,
}

var configTypes = []string{ocispec.MediaTypeImageConfig, images.MediaTypeDockerSchema2Config}

// reservedLabels are namespaces in which a label would mean something to the engine.
var reservedLabels = []string{"containerd.io/", "io.containerd.", "io.cri-containerd"}

// Inspect reads an image of the store and refuses what must not run: too many or too large layers,
// none at all, unknown media types, another platform. Of an index it takes the host's platform.
//
// Errors are of type *Error; the class is not found when the store does not have it.
func (s *Store) Inspect(ctx context.Context, ref string) (Info, error) {
	img, err := s.images.Get(ctx, ref)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return Info{}, missing(ref, err)
		}
		return Info{}, fmt.Errorf("read image %s: %w", ref, err)
	}
	info, _, err := s.inspect(ctx, ref, img.Target)
	return info, err
}

// inspect reads the manifest and config that a descriptor leads to.
func (s *Store) inspect(ctx context.Context, ref string, target ocispec.Descriptor) (Info, ocispec.Manifest, error) {
	desc, manifest, err := s.manifest(ctx, ref, target)
	if err != nil {
		return Info{}, ocispec.Manifest{}, err
	}
	if err := s.checkLayers(ref, manifest.Config, manifest.Layers); err != nil {
		return Info{}, ocispec.Manifest{}, err
	}
	var config ocispec.Image
	if err := s.readJSON(ctx, ref, manifest.Config, s.opts.Limits.Config, &config); err != nil {
		return Info{}, ocispec.Manifest{}, err
	}
	if err := s.checkConfig(ref, config, len(manifest.Layers)); err != nil {
		return Info{}, ocispec.Manifest{}, err
	}
	info := Info{
		Name: ref, Digest: desc.Digest, ConfigDigest: manifest.Config.Digest,
		DiffIDs: config.RootFS.DiffIDs, ChainID: identity.ChainID(config.RootFS.DiffIDs),
		Entrypoint: config.Config.Entrypoint, Cmd: config.Config.Cmd, Env: config.Config.Env, Workdir: config.Config.WorkingDir,
		Architecture: config.Architecture, OS: config.OS,
		Labels: config.Config.Labels, Annotations: manifest.Annotations,
	}
	for _, l := range manifest.Layers {
		info.Size += l.Size
	}
	if config.Created != nil {
		info.Created = *config.Created
	}
	return info, manifest, nil
}

// manifest follows a descriptor to the manifest for the host's platform.
func (s *Store) manifest(ctx context.Context, ref string, desc ocispec.Descriptor) (ocispec.Descriptor, ocispec.Manifest, error) {
	if images.IsIndexType(desc.MediaType) {
		var index ocispec.Index
		if err := s.readJSON(ctx, ref, desc, s.opts.Limits.Manifest, &index); err != nil {
			return desc, ocispec.Manifest{}, err
		}
		var err error
		if desc, err = s.choose(ref, index); err != nil {
			return desc, ocispec.Manifest{}, err
		}
	}
	if !images.IsManifestType(desc.MediaType) {
		return desc, ocispec.Manifest{}, unsupported(ref, "Its manifest is of type %q.", desc.MediaType)
	}
	var doc struct {
		ocispec.Manifest
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := s.readJSON(ctx, ref, desc, s.opts.Limits.Manifest, &doc); err != nil {
		return desc, ocispec.Manifest{}, err
	}
	if doc.Manifests != nil || doc.MediaType != "" && doc.MediaType != desc.MediaType {
		return desc, ocispec.Manifest{}, unsupported(ref, "Its manifest claims to be of two types.")
	}
	return desc, doc.Manifest, nil
}

// choose picks the best match for the host out of an index. Attestations have an unknown platform
// and never match.
func (s *Store) choose(ref string, index ocispec.Index) (ocispec.Descriptor, error) {
	var fit []ocispec.Descriptor
	var offered []string
	for _, d := range index.Manifests {
		if d.Platform == nil {
			continue
		}
		offered = append(offered, platforms.Format(*d.Platform))
		if s.opts.Platform.Match(*d.Platform) && images.IsManifestType(d.MediaType) {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return ocispec.Descriptor{}, unsupported(ref, "It is for %s, and this host runs %s.", strings.Join(offered, ", "), platforms.Format(platforms.DefaultSpec()))
	}
	sort.SliceStable(fit, func(i, j int) bool { return s.opts.Platform.Less(*fit[i].Platform, *fit[j].Platform) })
	return fit[0], nil
}

// checkLayers judges a manifest by what it declares, before anything of it is read or fetched.
func (s *Store) checkLayers(ref string, config ocispec.Descriptor, layers []ocispec.Descriptor) error {
	l := s.opts.Limits
	if !slices.Contains(configTypes, config.MediaType) {
		return unsupported(ref, "Its config is of type %q.", config.MediaType)
	}
	if config.Size > l.Config {
		return unsupported(ref, "Its config is larger than %d MiB.", l.Config>>20)
	}
	if len(layers) == 0 {
		return unsupported(ref, "It has no layers.")
	}
	if len(layers) > l.Layers {
		return unsupported(ref, "It has %d layers, and %d are allowed.", len(layers), l.Layers)
	}
	var sum int64
	for _, d := range layers {
		if !slices.Contains(layerTypes, d.MediaType) {
			return unsupported(ref, "It has a layer of type %q.", d.MediaType)
		}
		if d.Size < 0 || sum+d.Size > l.Bytes {
			return unsupported(ref, "Its layers are larger than %d GiB.", l.Bytes>>30)
		}
		sum += d.Size
	}
	return nil
}

func (s *Store) checkConfig(ref string, config ocispec.Image, layers int) error {
	if !s.opts.Platform.Match(config.Platform) {
		return unsupported(ref, "It is for %s, and this host runs %s.", platforms.Format(config.Platform), platforms.Format(platforms.DefaultSpec()))
	}
	if len(config.RootFS.DiffIDs) != layers {
		return unsupported(ref, "Its config lists %d layers and its manifest %d.", len(config.RootFS.DiffIDs), layers)
	}
	for _, d := range config.RootFS.DiffIDs {
		if d.Validate() != nil {
			return unsupported(ref, "Its config lists the layer %q.", d)
		}
	}
	if err := checkProcess(ref, config.Config); err != nil {
		return err
	}
	for key := range config.Config.Labels {
		for _, prefix := range reservedLabels {
			if strings.HasPrefix(key, prefix) {
				return unsupported(ref, "Its label %q is reserved for the engine.", key)
			}
		}
	}
	return nil
}

// checkProcess judges what of the config the process is made from: what no instance could be started with is refused
// now and not by every invocation.
func checkProcess(ref string, config ocispec.ImageConfig) error {
	if dir := config.WorkingDir; dir != "" {
		if !path.IsAbs(dir) || strings.ContainsRune(dir, 0) {
			return unsupported(ref, "Its working directory %q is no absolute path.", dir)
		}
		// Below these it can be a descriptor of the host (CVE-2024-21626).
		for _, kernel := range []string{"/proc/", "/sys/", "/dev/"} {
			if strings.HasPrefix(path.Clean(dir)+"/", kernel) {
				return unsupported(ref, "Its working directory %q is below %s, which is the kernel's.", dir, strings.TrimSuffix(kernel, "/"))
			}
		}
	}
	for _, e := range config.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" || strings.ContainsRune(e, 0) {
			return unsupported(ref, "Its environment has %q.", e)
		}
	}
	for _, a := range slices.Concat(config.Entrypoint, config.Cmd) {
		if strings.ContainsRune(a, 0) {
			return unsupported(ref, "Its entrypoint or command has a NUL byte in %q.", a)
		}
	}
	return nil
}

// readJSON decodes a blob of at most limit bytes.
func (s *Store) readJSON(ctx context.Context, ref string, desc ocispec.Descriptor, limit int64, v any) error {
	data, err := s.readBlob(ctx, ref, desc, limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return unsupported(ref, "%s is not what it says: %v.", desc.Digest, err)
	}
	return nil
}

// readBlob reads a blob whose true size, and not only the declared one, is within the limit.
func (s *Store) readBlob(ctx context.Context, ref string, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Digest.Validate() != nil {
		return nil, unsupported(ref, "It refers to %q.", desc.Digest)
	}
	info, err := s.content.Info(ctx, desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("read %s of image %s: %w", desc.Digest, ref, err)
	}
	if info.Size > limit {
		return nil, unsupported(ref, "%s is larger than %d KiB.", desc.Digest, limit>>10)
	}
	desc.Size = info.Size
	data, err := content.ReadBlob(ctx, s.content, desc)
	if err != nil {
		return nil, fmt.Errorf("read %s of image %s: %w", desc.Digest, ref, err)
	}
	return data, nil
}
