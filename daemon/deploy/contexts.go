package deploy

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// The filtered build context of every version is kept, content-addressed, so that the version can be
// rebuilt later without its author's machine. A context that no version has is swept.

const contextSuffix = ".tar.zst"

func (d *Deployer) contextDir() string { return filepath.Join(d.opts.Dir, "contexts") }

// storeContext writes the mirror as an archive named after its content and returns its digest. It is
// on disk when the call returns.
func (d *Deployer) storeContext(ctx context.Context, mirror string) (digest string, err error) {
	if err := os.MkdirAll(d.contextDir(), 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(d.contextDir(), ".new-*")
	if err != nil {
		return "", err
	}
	defer func() {
		f.Close()           //nolint:errcheck // closed below when it matters
		os.Remove(f.Name()) //nolint:errcheck // renamed when all went well
	}()
	sum := sha256.New()
	if err := writeContext(ctx, io.MultiWriter(f, sum), mirror); err != nil {
		return "", err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return "", err
	}
	digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	if err := os.Rename(f.Name(), d.contextPath(digest)); err != nil {
		return "", err
	}
	return digest, syncDir(d.contextDir())
}

// sumOf is the digest of what is read.
func sumOf(r io.Reader) (string, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

func (d *Deployer) contextPath(digest string) string {
	return filepath.Join(d.contextDir(), strings.TrimPrefix(digest, "sha256:")+contextSuffix)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// writeContext writes a tar of the folder, in the order of its paths and without owners and times, so
// that the same content has the same digest.
func writeContext(ctx context.Context, w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // read only
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	err = fs.WalkDir(root.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return addEntry(t, root, path, e)
	})
	return errors.Join(err, t.Close(), z.Close())
}

func addEntry(t *tar.Writer, root *os.Root, path string, e fs.DirEntry) error {
	fi, err := e.Info()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: path, Mode: int64(fi.Mode().Perm())}
	switch {
	case fi.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, path+"/"
	case fi.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = root.Readlink(path); err != nil {
			return err
		}
	case fi.Mode().IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	default:
		return fmt.Errorf("%s is neither a file, a folder nor a symbolic link", path)
	}
	if err := t.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := root.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	_, err = io.Copy(t, f)
	return err
}

// sweepContexts removes stored contexts that no version has.
func (d *Deployer) sweepContexts() {
	used := map[string]bool{}
	view := d.opts.Store.View()
	for _, env := range view.Environments() {
		for _, fn := range view.Functions(env.Environment) {
			for _, v := range fn.Versions {
				used[filepath.Base(d.contextPath(v.Image.Context))] = true
			}
		}
	}
	entries, err := os.ReadDir(d.contextDir())
	if err != nil {
		return // none yet
	}
	if d.running() > 1 {
		return // another deploy may have written one that is not recorded yet
	}
	for _, e := range entries {
		if !used[e.Name()] {
			os.Remove(filepath.Join(d.contextDir(), e.Name())) //nolint:errcheck // the next sweep tries again
		}
	}
}

// running counts the deploys in progress.
func (d *Deployer) running() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.busy)
}
