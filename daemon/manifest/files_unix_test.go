//go:build unix

package manifest

import (
	"path/filepath"
	"syscall"
	"testing"
)

// A pipe without a writer must not make the reader wait.
func TestLoadDoesNotWaitForAPipe(t *testing.T) {
	dir := write(t, "shop", nil)
	if err := syscall.Mkfifo(filepath.Join(dir, "lfx.yaml"), 0o600); err != nil {
		t.Skipf("no pipes: %v", err)
	}
	_, err := Load(dir, Options{})
	checkError(t, err, "lfx.yaml: is a special file, not a regular file")
}
