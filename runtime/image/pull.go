package image

import (
	"context"
	"errors"
	"fmt"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/nerdctl/v2/pkg/imgutil/dockerconfigresolver"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ResolvePin returns the reference, as people write it, pinned to the digest it has now:
// "repository@sha256:…". A name that the store has is not looked up elsewhere: only imports, builds
// and Tag make such names, and Pull does not. A reference with a digest is pinned already.
//
// Errors are of type *Error when the registry does not have the image or refuses it.
func (s *Store) ResolvePin(ctx context.Context, ref string) (string, error) {
	named, err := parse(ref)
	if err != nil {
		return "", err
	}
	if pinned, ok := named.(reference.Digested); ok {
		return pin(named, pinned.Digest().String())
	}
	named = reference.TagNameOnly(named)
	img, err := s.images.Get(ctx, named.String())
	switch {
	case err == nil:
		return pin(named, img.Target.Digest.String())
	case !errdefs.IsNotFound(err):
		return "", fmt.Errorf("look up image %s: %w", ref, err)
	}
	resolver, err := s.resolver(ctx, named)
	if err != nil {
		return "", err
	}
	_, desc, err := resolver.Resolve(ctx, named.String())
	if err != nil {
		return "", remoteError(ref, err)
	}
	return pin(named, desc.Digest.String())
}

// Pull fetches an image that is pinned by digest, for the host's platform, and stores it under that
// very reference. Nothing is fetched when the store has it. What Inspect refuses is refused as soon
// as the manifest is known, before the layers travel.
func (s *Store) Pull(ctx context.Context, pinned string) (Info, error) {
	named, err := parse(pinned)
	if err != nil {
		return Info{}, err
	}
	dgst, ok := named.(reference.Digested)
	if !ok {
		return Info{}, fmt.Errorf("%s is not pinned by a digest: %w", pinned, errdefs.ErrInvalidArgument)
	}
	name, err := pin(named, dgst.Digest().String())
	if err != nil {
		return Info{}, err
	}
	if have, err := s.adopt(ctx, name, dgst.Digest().String()); err != nil || have {
		if err != nil {
			return Info{}, err
		}
		return s.Inspect(ctx, name)
	}
	resolver, err := s.resolver(ctx, named)
	if err != nil {
		return Info{}, err
	}
	err = s.temporary(ctx, func(ctx context.Context) error { // Pull's own lease would outlive a crash by a day
		_, err := s.client.Pull(ctx, name,
			containerd.WithResolver(resolver),
			containerd.WithPlatformMatcher(s.opts.Platform),
			containerd.WithImageHandlerWrapper(s.guard(name)),
			containerd.WithMaxConcurrentDownloads(3),
			containerd.WithPullLabels(s.owned(nil)),
		)
		return err
	})
	if err != nil {
		if strings.Contains(err.Error(), "no match for platform") {
			return Info{}, unsupported(name, "It is not for this host's platform.")
		}
		return Info{}, remoteError(name, err)
	}
	return s.accept(ctx, name)
}

// accept inspects an image that has just arrived and drops its name when it is refused.
func (s *Store) accept(ctx context.Context, name string) (Info, error) {
	info, err := s.Inspect(ctx, name)
	var refused *Error
	if errors.As(err, &refused) {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoFor)
		defer cancel()
		err = errors.Join(err, s.Remove(undo, name))
	}
	return info, err
}

// adopt gives an image that the store has under any name its pinned name.
func (s *Store) adopt(ctx context.Context, name, dgst string) (bool, error) {
	have, err := s.images.List(ctx, "target.digest=="+dgst)
	if err != nil {
		return false, fmt.Errorf("look up image %s: %w", name, err)
	}
	if len(have) == 0 {
		return false, nil
	}
	for _, img := range have {
		if img.Name == name {
			return true, nil
		}
	}
	if err := s.put(ctx, images.Image{Name: name, Target: have[0].Target, Labels: s.owned(nil)}); err != nil {
		return false, fmt.Errorf("name image %s: %w", name, err)
	}
	return true, nil
}

// guard judges each manifest of a pull before its layers are fetched.
func (s *Store) guard(ref string) func(images.Handler) images.Handler {
	return func(next images.Handler) images.Handler {
		return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			document := images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType)
			if document && desc.Size > s.opts.Limits.Manifest {
				return nil, unsupported(ref, "Its manifest is larger than %d MiB.", s.opts.Limits.Manifest>>20)
			}
			children, err := next.Handle(ctx, desc)
			if err != nil || !images.IsManifestType(desc.MediaType) {
				return children, err
			}
			var m ocispec.Manifest
			if err := s.readJSON(ctx, ref, desc, s.opts.Limits.Manifest, &m); err != nil {
				return nil, err
			}
			return children, s.checkLayers(ref, m.Config, m.Layers)
		})
	}
}

// resolver finds the registry with the host's configuration and credentials, as nerdctl does.
func (s *Store) resolver(ctx context.Context, named reference.Named) (remotes.Resolver, error) {
	r, err := dockerconfigresolver.New(ctx, reference.Domain(named), dockerconfigresolver.WithHostsDirs(s.opts.HostsDirs))
	if err != nil {
		return nil, fmt.Errorf("read registry credentials for %s: %w", reference.Domain(named), err)
	}
	return r, nil
}

func parse(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, &Error{
			Message: fmt.Sprintf("Source image %s is not valid. Provide a valid source image.", ref),
			Detail:  err.Error(), class: errdefs.ErrInvalidArgument,
		}
	}
	return named, nil
}

func pin(named reference.Named, dgst string) (string, error) {
	out := reference.TrimNamed(named).String() + "@" + dgst
	if _, err := reference.Parse(out); err != nil {
		return "", fmt.Errorf("pin %s: %w", out, err)
	}
	return out, nil
}
