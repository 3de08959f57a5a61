package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// sample makes a tree; a second call makes the same one with other times, owners' bits and order.
func sample(t *testing.T, extra ...string) string {
	t.Helper()
	dir := t.TempDir()
	files := []string{"etc/passwd", "usr/bin/tool", "b", "a"}
	for _, name := range append(files, extra...) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("content of "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Chmod(filepath.Join(dir, "usr/bin/tool"), 0o700|os.ModeSetuid),
		os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "a-link")),
		os.Symlink("usr/bin", filepath.Join(dir, "bin")),
		os.Mkdir(filepath.Join(dir, "tmp"), 0o700),
		os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.Chtimes(filepath.Join(dir, "b"), time.Now(), time.Now().Add(-time.Duration(len(dir))*time.Hour)),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

func build(t *testing.T, base, tree string) []byte {
	t.Helper()
	t.Setenv("SOURCE_DATE_EPOCH", "1000")
	dir := t.TempDir()
	config := filepath.Join(dir, "config.json")
	if err := os.WriteFile(config, []byte(`{"Entrypoint":["/e"],"Env":["A=b"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options{out: filepath.Join(dir, "x.tar"), ref: "localhost/x:1", base: base, tree: tree, config: config, arch: "amd64"}
	if err := run(o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(o.out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// untar returns a tar's content by name, and a line about each entry.
func untar(t *testing.T, r io.Reader) (map[string][]byte, []string) {
	t.Helper()
	content, lines := map[string][]byte{}, []string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return content, lines
		}
		if err != nil {
			t.Fatal(err)
		}
		if content[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 1000 {
			t.Errorf("%s: owner %d:%d, time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		line := strings.Join([]string{string(h.Typeflag), h.Name, os.FileMode(h.Mode & 0o777).String()}, " ")
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		lines = append(lines, line)
	}
}

func layers(t *testing.T, archive []byte) (ocispec.Image, [][]string) {
	t.Helper()
	files, _ := untar(t, bytes.NewReader(archive))
	var index ocispec.Index
	var manifest ocispec.Manifest
	var image ocispec.Image
	read := func(d digest.Digest, v any) {
		data := files["blobs/sha256/"+d.Encoded()]
		if digest.FromBytes(data) != d {
			t.Fatalf("blob %s is missing or has another content", d)
		}
		if err := json.Unmarshal(data, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if got := index.Manifests[0].Annotations[ocispec.AnnotationRefName]; got != "localhost/x:1" {
		t.Errorf("reference name = %q", got)
	}
	read(index.Manifests[0].Digest, &manifest)
	read(manifest.Config.Digest, &image)
	var out [][]string
	for i, l := range manifest.Layers {
		z, err := gzip.NewReader(bytes.NewReader(files["blobs/sha256/"+l.Digest.Encoded()]))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if digest.FromBytes(plain) != image.RootFS.DiffIDs[i] {
			t.Errorf("diff id of layer %d is wrong", i)
		}
		_, lines := untar(t, bytes.NewReader(plain))
		out = append(out, lines)
	}
	return image, out
}

func TestOneLayer(t *testing.T) {
	image, got := layers(t, build(t, "", sample(t)))
	want := [][]string{{
		"0 a -rw-r--r--",
		"1 a-link -rw-r--r-- -> a",
		"0 b -rw-r--r--",
		"2 bin -rwxrwxrwx -> usr/bin",
		"5 etc/ -rwxr-xr-x",
		"0 etc/passwd -rw-r--r--",
		"5 tmp/ -rwxrwxrwx",
		"5 usr/ -rwxr-xr-x",
		"5 usr/bin/ -rwxr-xr-x",
		"0 usr/bin/tool -rwxr-xr-x",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
	if !slices.Equal(image.Config.Entrypoint, []string{"/e"}) || image.OS != "linux" {
		t.Errorf("image = %+v", image)
	}
}

func TestUpperLayerHoldsOnlyWhatDiffers(t *testing.T) {
	base, tree := sample(t), sample(t, "usr/lib/new")
	if err := os.WriteFile(filepath.Join(tree, "etc/passwd"), []byte("other but of one length"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, got := layers(t, build(t, base, tree))
	want := []string{"5 etc/ -rwxr-xr-x", "0 etc/passwd -rw-r--r--", "5 usr/ -rwxr-xr-x", "5 usr/lib/ -rwxr-xr-x", "0 usr/lib/new -rw-r--r--"}
	if diff := cmp.Diff(want, got[1]); diff != "" {
		t.Errorf("upper layer (-want +got):\n%s", diff)
	}
}

func TestSameTreeSameBytes(t *testing.T) {
	if !bytes.Equal(build(t, sample(t), sample(t, "x")), build(t, sample(t), sample(t, "x"))) {
		t.Error("two archives of the same tree differ")
	}
}

func TestUpperTreeMustHoldTheLowerOne(t *testing.T) {
	base, tree := sample(t, "only/here"), sample(t)
	_, err := packLayers(options{base: base, tree: tree, epoch: time.Unix(0, 0)})
	if err == nil || !strings.Contains(err.Error(), "only is in "+base) {
		t.Errorf("packLayers = %v, want it to name what is missing", err)
	}
}

func TestMistakesLeaveNoArchive(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "c.json")
	if err := os.WriteFile(config, []byte(`{"Entrypoint":["/e"],"Entrpoint":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options{out: filepath.Join(dir, "x.tar"), ref: "x", tree: sample(t), config: config}
	for _, epoch := range []string{"", "soon", "1000"} {
		t.Setenv("SOURCE_DATE_EPOCH", epoch)
		if err := run(o); err == nil {
			t.Errorf("run with SOURCE_DATE_EPOCH=%q and a misspelt config succeeded", epoch)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "x.tar*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
}
