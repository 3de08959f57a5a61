package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// checkArchives reads the layers that are not unpacked yet and sums what they would take: a few megabytes can be
// a terabyte, or a million files.
func (s *Store) checkArchives(ctx context.Context, ref string, layers []ocispec.Descriptor, diffIDs []digest.Digest) error {
	sum := tally{limits: s.opts.Limits}
	for i, chain := range identity.ChainIDs(append([]digest.Digest(nil), diffIDs...)) {
		_, err := s.snapshots.Stat(ctx, chain.String())
		if err == nil {
			continue // what it takes is measured
		}
		if !errdefs.IsNotFound(err) {
			return fmt.Errorf("look for the layers of image %s: %w", ref, err)
		}
		if err := s.readLayer(ctx, layers[i], &sum); err != nil {
			var over overError
			if errors.As(err, &over) {
				return unsupported(ref, "%s", over.Error())
			}
			return fmt.Errorf("read layer %s of image %s: %w", layers[i].Digest, ref, err)
		}
	}
	return nil
}

func (s *Store) readLayer(ctx context.Context, desc ocispec.Descriptor, sum *tally) error {
	blob, err := s.content.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close() //nolint:errcheck // read only
	stream, err := compression.DecompressStream(content.NewReader(blob))
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // read only
	return sum.read(ctx, stream)
}

// tally counts what archives unpack to.
type tally struct {
	limits         Limits
	bytes, entries int64
}

// overError says which limit was passed.
type overError string

func (e overError) Error() string { return string(e) }

// read adds an archive, and stops where a limit is passed.
func (t *tally) read(ctx context.Context, r io.Reader) error {
	archive := tar.NewReader(r)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		t.entries++
		if h.Size > 0 {
			t.bytes += h.Size
		}
		switch most := t.limits.Entries; {
		case most > 0 && t.entries > most:
			return overError(fmt.Sprintf("Unpacked, it has more than %d files and folders.", most))
		case t.bytes > t.limits.Bytes || t.bytes < 0:
			return overError(fmt.Sprintf("Unpacked, it is larger than %d GiB.", t.limits.Bytes>>30))
		}
	}
}
