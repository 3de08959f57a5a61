package deploy

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// MinFree is the free space in bytes below which no deploy begins: the record, what runs and the removal
// of what is old need room too.
const MinFree = 64 << 20

// Free returns the free space of a folder's file system in bytes, as far as root may use it.
func Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look at the free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// checkSpace refuses a deploy while there is no room for it.
func (d *Deployer) checkSpace() error {
	for _, dir := range []string{d.opts.Dir, filepath.Join(d.opts.Dir, "state")} {
		free, err := Free(dir)
		if err == nil && free < MinFree {
			return fmt.Errorf("the disk of %s is full (%d MiB free): free some space, or remove functions or old images, and deploy again: %w",
				dir, free>>20, errdefs.ErrUnavailable)
		}
	}
	return nil
}
