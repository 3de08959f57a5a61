package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// tree is what a directory holds: every path of it that an image can carry, sorted.
type tree struct {
	root    string
	paths   []string // relative, slash separated, without the root itself
	entries map[string]entry
}

// entry is one path as it will be in the image.
type entry struct {
	mode   fs.FileMode // type and permissions after normalise
	target string      // of a symbolic link
	size   int64
	inode  uint64 // of a regular file with more than one name, else 0
}

// scan lists root. Device nodes, sockets and pipes are left out.
func scan(root string) (*tree, error) {
	t := &tree{root: root, entries: map[string]entry{}}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&(fs.ModeDevice|fs.ModeSocket|fs.ModeNamedPipe|fs.ModeIrregular) != 0 {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		e := entry{mode: normalise(info.Mode())}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if e.target, err = os.Readlink(path); err != nil {
				return err
			}
		case info.Mode().IsRegular():
			e.size = info.Size()
			if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
				e.inode = st.Ino
			}
		}
		t.entries[rel] = e
		t.paths = append(t.paths, rel)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", root, err)
	}
	slices.Sort(t.paths)
	return t, nil
}

// normalise drops set-user-ID and set-group-ID and makes the path readable (and a directory
// traversable) by everybody: functions run as an unprivileged user on a read-only root.
func normalise(m fs.FileMode) fs.FileMode {
	m &^= fs.ModeSetuid | fs.ModeSetgid
	switch {
	case m&fs.ModeSymlink != 0:
		return fs.ModeSymlink | 0o777
	case m.IsDir():
		return m | 0o555
	}
	m |= 0o444
	if m&0o100 != 0 {
		m |= 0o111
	}
	return m
}

// over returns the paths of t that base does not hold alike, with the directories above them.
func (t *tree) over(base *tree) ([]string, error) {
	for _, p := range base.paths {
		if _, ok := t.entries[p]; !ok {
			return nil, fmt.Errorf("%s is in %s but not in %s: the upper tree must hold everything of the lower one", p, base.root, t.root)
		}
	}
	want := map[string]bool{}
	for _, p := range t.paths {
		same, err := t.same(base, p)
		if err != nil {
			return nil, err
		}
		for q := p; !same && q != "." && !want[q]; q = filepath.Dir(q) {
			want[q] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(t.paths), func(p string) bool { return !want[p] }), nil
}

func (t *tree) same(base *tree, path string) (bool, error) {
	a, b := t.entries[path], base.entries[path]
	if a.mode != b.mode || a.target != b.target || a.size != b.size {
		return false, nil
	}
	if !a.mode.IsRegular() {
		return true, nil
	}
	left, err := os.ReadFile(filepath.Join(t.root, path))
	if err != nil {
		return false, err
	}
	right, err := os.ReadFile(filepath.Join(base.root, path))
	return err == nil && bytes.Equal(left, right), err
}

// layer is a gzip-compressed tar with its two digests.
type layer struct {
	blob   []byte
	digest digest.Digest // of blob
	diffID digest.Digest // of the tar
}

// packLayer writes the given paths of t. A further name of a file already written becomes a hard link.
func packLayer(t *tree, paths []string, mtime time.Time) (layer, error) {
	var blob bytes.Buffer
	zip := gzip.NewWriter(&blob)
	sum := sha256.New()
	w := tar.NewWriter(io.MultiWriter(zip, sum))
	links := map[uint64]string{}
	for _, p := range paths {
		if err := packEntry(w, t, p, links, mtime); err != nil {
			return layer{}, fmt.Errorf("pack %s: %w", p, err)
		}
	}
	if err := w.Close(); err != nil {
		return layer{}, err
	}
	if err := zip.Close(); err != nil {
		return layer{}, err
	}
	return layer{
		blob:   blob.Bytes(),
		digest: digest.FromBytes(blob.Bytes()),
		diffID: digest.NewDigest(digest.SHA256, sum),
	}, nil
}

func packEntry(w *tar.Writer, t *tree, path string, links map[uint64]string, mtime time.Time) error {
	e := t.entries[path]
	h := &tar.Header{Name: path, Mode: int64(e.mode.Perm()), ModTime: mtime, Format: tar.FormatPAX}
	if e.mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	switch {
	case e.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, path+"/"
	case e.mode&fs.ModeSymlink != 0:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.target
	case e.inode != 0 && links[e.inode] != "":
		h.Typeflag, h.Linkname = tar.TypeLink, links[e.inode]
	default:
		h.Typeflag, h.Size = tar.TypeReg, e.size
		if e.inode != 0 {
			links[e.inode] = path
		}
	}
	if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(filepath.Join(t.root, path))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
