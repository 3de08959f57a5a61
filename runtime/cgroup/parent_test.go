package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestLimitParent: the bound is there, also a second time with other values, and holds for what is below.
func TestLimitParent(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	r, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	parent := fmt.Sprintf("/lfx-test-parent-%d/fn", os.Getpid())
	t.Cleanup(func() { r.RemoveParent(parent) })
	for _, memory := range []int64{64 << 20, 256 << 20, 32 << 20} {
		if err := r.LimitParent(parent, memory, 100); err != nil {
			t.Fatal(err)
		}
		gotMemory, gotPids, err := r.Open(filepath.Dir(parent), filepath.Base(parent)).Limits()
		if err != nil || gotMemory != uint64(memory) || gotPids != 100 {
			t.Errorf("limits are %d bytes and %d processes, %v; want %d and 100", gotMemory, gotPids, err, memory)
		}
	}
	child := r.Open(parent, "child")
	dir := filepath.Join(r.v1["memory"], parent, "child")
	if r.use == 2 {
		dir = filepath.Join(r.v2, parent, "child")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer child.Remove() //nolint:errcheck // the parent's removal would tell
	out, err := exec.Command("sh", "-c", "echo $$ >"+dir+"/cgroup.procs && exec head -c 128M /dev/zero | tail").CombinedOutput()
	if err == nil && !strings.Contains(string(out), "ill") {
		t.Error("128 MiB were used below a parent that may have 32 MiB")
	}
}
