package main

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageNameAnnotation carries the full name that containerd gives an imported image
// (containerd: core/images/archive, "io.containerd.image.name").
const imageNameAnnotation = "io.containerd.image.name"

// blob is one file of an OCI layout's blobs/sha256.
type blob struct {
	digest digest.Digest
	data   []byte
}

// writeArchive writes o.out through a temporary file beside it, so that a half-written archive is never found there.
func writeArchive(o options, cfg ocispec.ImageConfig, layers []layer) (err error) {
	blobs, index, err := assemble(o, cfg, layers)
	if err != nil {
		return err
	}
	f, err := os.Create(o.out + ".new")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	w := tar.NewWriter(f)
	put := func(name string, data []byte) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: o.epoch}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	for _, b := range blobs {
		if err := put("blobs/sha256/"+b.digest.Encoded(), b.data); err != nil {
			return err
		}
	}
	if err := put("index.json", index); err != nil {
		return err
	}
	if err := put(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+ocispec.ImageLayoutVersion+`"}`)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), o.out)
}

// assemble makes the image's config, manifest and index around its layers.
func assemble(o options, cfg ocispec.ImageConfig, layers []layer) ([]blob, []byte, error) {
	image := ocispec.Image{
		Created:  &o.epoch,
		Platform: ocispec.Platform{Architecture: o.arch, OS: "linux"},
		Config:   cfg,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	var blobs []blob
	for _, l := range layers {
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, l.diffID)
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.digest, Size: int64(len(l.blob)),
		})
		blobs = append(blobs, blob{l.digest, l.blob})
	}
	var err error
	add := func(mediaType string, v any) ocispec.Descriptor {
		data, merr := json.Marshal(v)
		if merr != nil && err == nil {
			err = fmt.Errorf("encode %s: %w", mediaType, merr)
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		blobs = append(blobs, blob{d.Digest, data})
		return d
	}
	manifest.Config = add(ocispec.MediaTypeImageConfig, image)
	desc := add(ocispec.MediaTypeImageManifest, manifest)
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: o.ref, imageNameAnnotation: o.ref}
	desc.Platform = &image.Platform
	if err != nil {
		return nil, nil, err
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{desc},
	})
	return blobs, index, err
}
