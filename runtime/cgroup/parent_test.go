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
	testWeighParent(t, r, parent)
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

// testWeighParent: both cgroups get the weight, also where it is asked for again, and what somebody has chosen stays.
func testWeighParent(t *testing.T, r *Root, parent string) {
	t.Helper()
	mount, file, chosen, want := r.v1["cpu"], "cpu.shares", uint64(700), uint64(3072)
	if r.use == 2 {
		mount, file, chosen, want = r.v2, "cpu.weight", 70, 300
	}
	t.Cleanup(func() { r.RemoveParent(filepath.Dir(parent)) })
	is := func(path string, want uint64) {
		t.Helper()
		if got, err := readUint(filepath.Join(mount, path), file); err != nil || got != want {
			t.Errorf("%s of %s is %d, %v; want %d", file, path, got, err, want)
		}
	}
	for range 2 {
		if err := r.WeighParent(parent, 3); err != nil {
			t.Fatal(err)
		}
		is(parent, want)
		is(filepath.Dir(parent), want)
	}
	if err := write(filepath.Join(mount, parent), file, fmt.Sprint(chosen)); err != nil {
		t.Fatal(err)
	}
	if err := r.WeighParent(parent, 4); err != nil {
		t.Fatal(err)
	}
	is(parent, chosen)
}
