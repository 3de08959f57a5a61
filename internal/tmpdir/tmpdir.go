// Package tmpdir makes folders for tests that write durably and do not care where: on a tmpfs an fsync
// costs nothing. Only tests import it.
package tmpdir

import (
	"os"
	"testing"
)

// New returns an empty folder that goes with the test: in /dev/shm where that is possible, else t.TempDir.
func New(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lfx-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}
