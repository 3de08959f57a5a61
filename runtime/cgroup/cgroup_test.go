package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/internal/tmpdir"
)

func TestParseMountinfo(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:32 /x /else/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
broken
`
	got := parseMountinfo(hybrid)
	want := map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
		"memory": "/sys/fs/cgroup/memory", "name=systemd": "/sys/fs/cgroup/systemd"}
	if diff := cmp.Diff(want, got.v1); diff != "" {
		t.Errorf("controllers (-want +got):\n%s", diff)
	}
	if got.v2 != "/sys/fs/cgroup/unified" {
		t.Errorf("unified = %q", got.v2)
	}
	if n := len(got.mounts()); n != 4 {
		t.Errorf("%d mounts, want 4", n)
	}
}

func TestInGroup(t *testing.T) {
	const text = "4:memory:/lfx/fn/a\n0::/\n"
	for id, want := range map[string]bool{"a": true, "b": false, "": false} {
		if id == "" {
			continue
		}
		if got := InGroup(text, "/lfx/fn", id); got != want {
			t.Errorf("InGroup(%q) = %v", id, got)
		}
	}
	if InGroup("4:memory:/lfx/fn/ab\n", "/lfx/fn", "a") {
		t.Error("a prefix of a name is taken for the name")
	}
}

func TestFunctionMemory(t *testing.T) {
	m := Memory{Usage: 100, Cache: 30, Shmem: 20}
	for tmpfs, want := range map[uint64]uint64{0: 70, 10: 60, 20: 50, 1000: 50} {
		if got := m.Function(tmpfs); got != want {
			t.Errorf("Function(%d) = %d, want %d", tmpfs, got, want)
		}
	}
	if got := (Memory{Usage: 10, Cache: 30}).Function(0); got != 0 {
		t.Errorf("Function = %d, want 0", got)
	}
}

// TestV2Files drives the v2 implementation over plain files, where no v2 controllers are at hand.
func TestV2Files(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g := &v2{dir: dir}
	if _, err := g.Memory(); !errdefs.IsNotFound(err) {
		t.Errorf("memory of a cgroup that is gone: %v", err)
	}
	put("cpu.max", "max 100000")
	put("memory.current", "1000")
	put("memory.stat", "anon 500\nfile 400\nshmem 100\n")
	put("memory.max", "max")
	put("pids.max", "1024")
	put("memory.events", "low 0\noom 1\noom_kill 2\n")
	put("memory.high", "max")
	if err := g.SetCPU(0.5); err != nil {
		t.Fatal(err)
	}
	if got, err := g.CPUQuota(); err != nil || got != 0.5 {
		t.Errorf("quota = %v, %v", got, err)
	}
	if got, err := g.Memory(); err != nil || got != (Memory{Usage: 1000, Cache: 300, Shmem: 100}) {
		t.Errorf("memory = %+v, %v", got, err)
	}
	if m, p, err := g.Limits(); m != 0 || p != 1024 || err != nil {
		t.Errorf("limits = %d, %d, %v", m, p, err)
	}
	w, err := g.Watch(WatchOptions{MemoryLimit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	put("memory.events", "low 0\noom 1\noom_kill 3\n")
	select {
	case r := <-w.Fired():
		if r != OOMKilled {
			t.Errorf("reason %v", r)
		}
	case <-time.After(10 * time.Second):
		t.Error("the watch does not fire")
	}
}

// realGroup makes a cgroup on this machine with a process in it.
func realGroup(t *testing.T) (*Root, Group, *exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: cgroups")
	}
	r, err := Detect()
	if err != nil {
		t.Skip("needs cgroups:", err)
	}
	parent := fmt.Sprintf("/lfxtest-cgroup%d", os.Getpid())
	g := r.Open(parent, t.Name())
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
		r.RemoveParent(parent)
		if g.Exists() {
			t.Error("the cgroup is still there")
		}
	})
	for _, d := range r.dirs(parent, t.Name()) {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if filepath.Base(filepath.Dir(filepath.Dir(d))) == "cpuset" {
			continue // has no cpus yet
		}
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := r.Children(parent); err != nil || !cmp.Equal(ids, []string{t.Name()}) {
		t.Errorf("children = %v, %v", ids, err)
	}
	return r, g, cmd
}

func TestRealSteering(t *testing.T) {
	_, g, cmd := realGroup(t)
	if err := g.SetCPU(0.25); err != nil {
		t.Fatal(err)
	}
	if got, err := g.CPUQuota(); got != 0.25 || err != nil {
		t.Errorf("quota = %v, %v", got, err)
	}
	if err := g.SetCPU(0); err != nil {
		t.Fatal(err)
	}
	if got, err := g.CPUQuota(); got != 0 || err != nil {
		t.Errorf("quota = %v, %v", got, err)
	}
	if _, err := g.Memory(); err != nil {
		t.Error(err)
	}
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Errorf("OOM kills = %d, %v", n, err)
	}
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Pids(); err != nil || !cmp.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("pids = %v, %v", pids, err)
	}
	// A zombie stays in cgroup.procs' count until it is reaped; somebody must wait for it.
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		t.Error(err)
	}
	<-done
}

func TestUnifiedFreezeAndKill(t *testing.T) {
	r, _, cmd := realGroup(t)
	if r.v2 == "" {
		t.Skip("needs a mounted cgroup2 hierarchy")
	}
	g := &v2{dir: filepath.Join(r.v2, fmt.Sprintf("/lfxtest-cgroup%d", os.Getpid()), t.Name())}
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		t.Error(err)
	}
	<-done
}

// thawed says whether the kernel is asked to let the processes of a group run.
func thawed(t *testing.T, g Group) bool {
	t.Helper()
	dir, file, want := "", "cgroup.freeze", "0"
	switch g := g.(type) {
	case *v1:
		dir, file, want = g.dirs["freezer"], "freezer.state", "THAWED"
	case *v2:
		dir = g.dir
	}
	s, err := read(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.HasPrefix(s, want)
}

// TestFreezeThatIsCalledOffThaws: the files stand for a kernel that never says that the processes are stopped.
func TestFreezeThatIsCalledOffThaws(t *testing.T) {
	dir := tmpdir.New(t)
	for name, text := range map[string]string{
		"cgroup.freeze": "0\n", "cgroup.events": "populated 1\nfrozen 0\n",
		"freezer.state": "FREEZING\n", // longer than what is written over it, so it does not read FROZEN
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	called := errors.New("called off")
	for _, c := range []struct {
		group        Group
		file, frozen string
	}{
		{&v1{dirs: map[string]string{"freezer": dir}}, "freezer.state", "FROZEN"},
		{&v2{dir: dir}, "cgroup.freeze", "1"},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		done := make(chan error, 1)
		go func() { done <- c.group.Freeze(ctx) }() // ends with ctx
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			state, err := read(dir, c.file)
			if strings.HasPrefix(state, c.frozen) {
				break
			}
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("%T: %s is %q, %v", c.group, c.file, state, err)
			}
		}
		cancel(called)
		if err := <-done; !errors.Is(err, called) {
			t.Errorf("%T: err = %v, want the cause", c.group, err)
		}
		if !thawed(t, c.group) {
			t.Errorf("%T: it is left frozen", c.group)
		}
	}
}

// TestFreezeThatIsCalledOffLeavesProcessesRunning: whether the kernel was quicker or not.
func TestFreezeThatIsCalledOffLeavesProcessesRunning(t *testing.T) {
	_, g, cmd := realGroup(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 20 {
		err := g.Freeze(ctx)
		if err == nil { // it was done before it looked at ctx: then it is frozen and says so
			if thawed(t, g) {
				t.Fatal("it runs, and Freeze has not said so")
			}
			if err := g.Thaw(); err != nil {
				t.Fatal(err)
			}
		} else if !errors.Is(err, context.Canceled) {
			t.Fatalf("err = %v, want the cancellation", err)
		}
		if !thawed(t, g) {
			t.Fatalf("it is left frozen after %v", err)
		}
	}
	if doomed, err := g.Doomed(); doomed || err != nil {
		t.Errorf("doomed = %v, %v", doomed, err)
	}
	_ = cmd.Process.Kill()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }() // ends with the process
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("the process does not die: it is still frozen")
		_ = g.Thaw()
		<-done
	}
}

func TestKilledWhileFrozenIsDoomed(t *testing.T) {
	_, g, cmd := realGroup(t)
	if _, ok := g.(*v1); !ok {
		t.Skip("needs cgroup v1: on v2 SIGKILL ends frozen processes at once")
	}
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if doomed, err := g.Doomed(); doomed || err != nil {
		t.Errorf("before the signal: doomed = %v, %v", doomed, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if doomed, err := g.Doomed(); !doomed || err != nil {
		t.Errorf("after the signal: doomed = %v, %v", doomed, err)
	}
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if doomed, err := g.Doomed(); doomed || err != nil {
		t.Errorf("after the end: doomed = %v, %v", doomed, err)
	}
}

func TestKillPending(t *testing.T) {
	for _, c := range []struct {
		status string
		want   bool
	}{
		{"", false},
		{"Name:\tsleep\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n", false},
		{"SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", true},
		{"SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n", true},
		{"SigPnd:\t0000000000004000\nSigCgt:\t0000000000000100\n", false},
		{"SigPnd:\tnonsense\n", false},
	} {
		if got := killPending(c.status); got != c.want {
			t.Errorf("killPending(%q) = %v, want %v", c.status, got, c.want)
		}
	}
}

func TestMemoryAllowed(t *testing.T) {
	dir := tmpdir.New(t)
	put := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("v2/a.slice/memory.max", "max\n")
	put("v2/a.slice/b.slice/memory.max", "4096\n")
	put("v2/c/memory.max", "100\n")
	put("v2/c/d/memory.max", "4096\n")
	put("v1/lfx/memory.limit_in_bytes", "9223372036854771712\n")
	put("v1/lfx/fn/memory.limit_in_bytes", "8192\n")
	for _, c := range []struct {
		version int
		path    string
		want    uint64
	}{
		{2, "/a.slice/b.slice", 4096}, {2, "/a.slice", 0}, {2, "/c/d", 100}, {2, "/c/d/not/made/yet", 100}, {2, "/", 0},
		{1, "/lfx/fn", 8192}, {1, "/lfx", 0},
	} {
		r := &Root{v2: filepath.Join(dir, "v2"), v1: map[string]string{"memory": filepath.Join(dir, "v1")}, use: c.version}
		if got, err := r.MemoryAllowed(c.path); got != c.want || err != nil {
			t.Errorf("v%d %s: %d, %v, want %d", c.version, c.path, got, err, c.want)
		}
	}
}
