package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Environment of the re-executed test binary.
const (
	envInside = "LFX_ENGINE_TEST_INSIDE" // already in namespaces of its own
	envHelper = "LFX_ENGINE_TEST_HELPER" // be a daemon that starts an engine there and is killed
)

// TestMain runs the tests in network and mount namespaces of their own, where a bridge may appear
// and a mount may stay without anybody noticing.
func TestMain(m *testing.M) {
	if dir := os.Getenv(envHelper); dir != "" {
		startAndDie(dir)
	}
	if os.Getuid() != 0 || os.Getenv(envInside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envInside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
}

func startAndDie(dir string) {
	e, err := New(testConfig(dir))
	if err == nil {
		err = e.Start(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

func binDir() string {
	if dir := os.Getenv("LFX_ENGINE_DIR"); dir != "" {
		return dir
	}
	dir, _ := filepath.Abs("../../build/engine")
	return dir
}

// testConfig is an engine below dir with a bridge and a cgroup of its own.
func testConfig(dir string) Config {
	id := strings.TrimLeft(filepath.Base(dir), "lfx")
	return Config{
		BinDir: binDir(), StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"),
		BuildBridge: "lfxt0", CgroupParent: "/lfxt" + id, StartTimeout: 30 * time.Second,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// testEngine returns an engine in a short directory that is purged after the test, and fails the
// test if anything of it is left then.
func testEngine(t *testing.T) (*Engine, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	c := Config{BinDir: binDir()}
	if err := c.checkBinaries(); err != nil {
		t.Skip("needs the engine's programs: ", err)
	}
	dir, err := os.MkdirTemp("/tmp", "lfx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"containerd", "buildkitd"} {
				t.Logf("%s.log ends:\n%s", name, lastLines(filepath.Join(dir, "state/log", name+".log"), 0, 20))
			}
		}
		e := newEngine(t, dir)
		if err := e.Purge(testContext(t)); err != nil {
			t.Errorf("Purge: %v", err)
		}
		checkNothingLeft(t, dir, &e.cfg)
		os.RemoveAll(dir)
	})
	return newEngine(t, dir), dir
}

func newEngine(t *testing.T, dir string) *Engine {
	t.Helper()
	e, err := New(testConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func mustStart(t *testing.T, e *Engine) {
	t.Helper()
	if err := e.Start(testContext(t)); err != nil {
		t.Fatalf("Start: %v", err)
	}
}

// eventually polls until done returns true.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func checkNothingLeft(t *testing.T, dir string, c *Config) {
	t.Helper()
	if left := processesOf(dir); left != nil {
		t.Errorf("processes left: %q", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir+"/") {
		t.Errorf("mounts left below %s", dir)
	}
	if _, err := os.Stat(c.RunDir); !os.IsNotExist(err) {
		t.Errorf("run directory left: %v", err)
	}
	if _, err := netlink.LinkByName(c.BuildBridge); err == nil {
		t.Errorf("bridge %s left", c.BuildBridge)
	}
	for _, pattern := range []string{cgroupRoot + c.CgroupParent, cgroupRoot + "/*" + c.CgroupParent} {
		if left, _ := filepath.Glob(pattern); left != nil {
			t.Errorf("cgroups left: %q", left)
		}
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeSocket != 0 {
			t.Errorf("socket left: %s", path)
		}
		return nil
	})
}

// processesOf lists the command lines that mention dir.
func processesOf(dir string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if f == fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) {
			continue
		}
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), dir+"/") {
			found = append(found, strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return found
}

func TestStartAnswersAndCloses(t *testing.T) {
	e, dir := testEngine(t)
	mustStart(t, e)
	v, err := e.Versions(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckFloors(v); err != nil {
		t.Error(err)
	}
	if v.Containerd == "" || v.BuildKit == "" || v.Runc == "" || v.CNIPlugins == "" {
		t.Errorf("Versions() = %+v, some are empty", v)
	}
	s := e.State()
	if s.Containerd.Phase != Running || s.Buildkitd.Phase != Running || s.Containerd.PID == 0 || s.Containerd.Adopted {
		t.Errorf("State() = %+v, want both running and not adopted", s)
	}
	if err := e.Start(testContext(t)); err == nil {
		t.Error("a second Start did not fail")
	}
	checkPrivate(t, e)
	if err := e.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	e.Wait()
	if err := e.Close(testContext(t)); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if left := processesOf(dir); left != nil {
		t.Errorf("processes after Close: %q", left)
	}
	if s := e.State(); s.Containerd.Phase != Stopped || s.Buildkitd.PID != 0 {
		t.Errorf("State() after Close = %+v", s)
	}
}

// checkPrivate holds what makes the engine private: modes, and nothing outside its directories.
func checkPrivate(t *testing.T, e *Engine) {
	t.Helper()
	for path, want := range map[string]os.FileMode{
		e.cfg.socket("containerd"):       os.ModeSocket | 0o600,
		e.cfg.socket("containerd-ttrpc"): os.ModeSocket | 0o600,
		e.cfg.socket("buildkitd"):        os.ModeSocket | 0o600,
		filepath.Join(e.cfg.RunDir, "s"): os.ModeDir | 0o700,
		filepath.Join(e.cfg.RunDir, "c"): os.ModeDir | 0o711,
		e.cfg.etc("buildkitd.toml"):      0o600,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
		} else if info.Mode() != want {
			t.Errorf("mode of %s = %v, want %v", path, info.Mode(), want)
		}
	}
	if _, err := os.Stat(e.cfg.socket("otel")); !os.IsNotExist(err) {
		t.Errorf("the trace collector's socket is there: build steps would get it (%v)", err)
	}
	for _, c := range []*child{e.containerd, e.buildkitd} {
		for _, path := range openPaths(c.State().PID) {
			inside := strings.HasPrefix(path, e.cfg.StateDir) || strings.HasPrefix(path, e.cfg.RunDir)
			if strings.HasPrefix(path, "/") && !inside && !strings.HasPrefix(path, "/dev/") && !strings.HasPrefix(path, "/proc/") && !strings.HasPrefix(path, "/sys/") {
				t.Errorf("%s has %s open", c.name, path)
			}
		}
	}
	out, err := exec.Command(filepath.Join(binDir(), "ctr"), "--address", e.ContainerdAddress(), "plugins", "ls").Output()
	if err != nil {
		t.Fatalf("ctr plugins ls: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 4 && f[3] != "ok" && f[0] != "TYPE" {
			t.Errorf("a plugin is not in order: %s", line)
		}
		if len(f) > 1 && strings.Contains(strings.Join(disabledPlugins, " ")+" ", f[0]+"."+f[1]+" ") {
			t.Errorf("a disabled plugin runs: %s", line)
		}
	}
}

func openPaths(pid int) []string {
	var paths []string
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if p, err := os.Readlink(fd); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

func TestRestartsAChildThatDies(t *testing.T) {
	e, _ := testEngine(t)
	mustStart(t, e)
	defer e.Close(testContext(t))
	for _, c := range []*child{e.containerd, e.buildkitd} {
		before := c.State().PID
		if err := unix.Kill(before, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, c.name+" runs again", func() bool {
			s := c.State()
			return s.Phase == Running && s.PID != before
		})
		if s := c.State(); s.Restarts != 1 || !strings.Contains(s.LastError, "killed") {
			t.Errorf("state of %s = %+v, want one restart because it was killed", c.name, s)
		}
	}
	if _, err := e.Versions(testContext(t)); err != nil {
		t.Error(err)
	}
}

func TestAdoptsAfterDetach(t *testing.T) {
	e, dir := testEngine(t)
	mustStart(t, e)
	before := e.State()
	e.Detach()

	e = newEngine(t, dir)
	mustStart(t, e)
	after := e.State()
	if after.Containerd.PID != before.Containerd.PID || after.Buildkitd.PID != before.Buildkitd.PID {
		t.Errorf("pids changed from %d, %d to %d, %d", before.Containerd.PID, before.Buildkitd.PID, after.Containerd.PID, after.Buildkitd.PID)
	}
	if !after.Containerd.Adopted || !after.Buildkitd.Adopted {
		t.Errorf("State() = %+v, want both adopted", after)
	}
	// An adopted child is watched, and is ended by Close, like one of our own.
	unix.Kill(after.Buildkitd.PID, unix.SIGKILL)
	eventually(t, "the adopted buildkitd is replaced", func() bool {
		s := e.State().Buildkitd
		return s.Phase == Running && s.PID != after.Buildkitd.PID && !s.Adopted
	})
	if err := e.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if left := processesOf(dir); left != nil {
		t.Errorf("processes after Close: %q", left)
	}
}

func TestAdoptsAfterTheDaemonWasKilled(t *testing.T) {
	_, dir := testEngine(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envHelper+"="+dir)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the helper was not killed: %v\n%s", err, out)
	}
	pids := commandsWith("containerd", filepath.Join(dir, "state/etc/containerd.toml"))
	if len(pids) != 1 {
		t.Fatalf("containerd processes after the daemon was killed: %v, want one", pids)
	}
	e := newEngine(t, dir)
	mustStart(t, e)
	defer e.Close(testContext(t))
	if got := e.State().Containerd; got.PID != pids[0] || !got.Adopted {
		t.Errorf("containerd = %+v, want pid %d adopted", got, pids[0])
	}
}

func TestDoesNotAdoptUnderAnotherConfiguration(t *testing.T) {
	e, dir := testEngine(t)
	mustStart(t, e)
	before := e.State()
	e.Detach()

	cfg := testConfig(dir)
	cfg.DNS = []string{"192.0.2.1"}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustStart(t, e)
	defer e.Close(testContext(t))
	after := e.State()
	if after.Containerd.PID != before.Containerd.PID {
		t.Error("containerd was replaced although its configuration is the same")
	}
	if after.Buildkitd.PID == before.Buildkitd.PID || after.Buildkitd.Adopted {
		t.Errorf("buildkitd = %+v, want a new one", after.Buildkitd)
	}
	if pids := commandsWith("buildkitd", filepath.Join(dir, "state/etc/buildkitd.toml")); len(pids) != 1 {
		t.Errorf("buildkitd processes = %v, want one", pids)
	}
}

func TestAdoptsNobodyElse(t *testing.T) {
	e, dir := testEngine(t)
	if err := e.cfg.makeDirs(); err != nil {
		t.Fatal(err)
	}
	me, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]identity{
		"another start time": {PID: me.PID, StartTime: me.StartTime + 1, BootID: me.BootID, Executable: me.Executable},
		"another boot":       {PID: me.PID, StartTime: me.StartTime, BootID: "x", Executable: me.Executable},
		"another program":    {PID: me.PID, StartTime: me.StartTime, BootID: me.BootID, Executable: "/bin/true"},
	} {
		if _, err := adopt(id); err == nil {
			t.Errorf("adopted a process with %s", name)
		}
	}
	// A record that names this test: it must be neither adopted nor ended.
	me.ConfigHash = "x"
	if err := me.write(filepath.Join(dir, "run/containerd.json")); err != nil {
		t.Fatal(err)
	}
	mustStart(t, e)
	e.Close(testContext(t))
}

func TestPurgeEndsContainers(t *testing.T) {
	e, dir := testEngine(t)
	mustStart(t, e)
	rootfs := filepath.Join(dir, "rootfs")
	sleeper(t, filepath.Join(rootfs, "sleep"))
	ctr := exec.Command(filepath.Join(binDir(), "ctr"), "--address", e.ContainerdAddress(), "--namespace", "lfx", "run", "--detach",
		"--null-io", "--runc-root", e.RuncRoot(), "--runc-binary", e.RuncPath(), "--cgroup", e.cfg.buildCgroup()+"/c1", "--rootfs", rootfs, "c1", "/sleep", dir+"/marker")
	if out, err := ctr.CombinedOutput(); err != nil {
		t.Fatalf("ctr run: %v\n%s", err, out)
	}
	if err := e.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if left := strings.Join(processesOf(dir), "\n"); !strings.Contains(left, "/sleep") {
		t.Errorf("the container did not outlive Close; processes: %s", left)
	}
	if err := e.Purge(testContext(t)); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, dir, &e.cfg)
}

// sleeper builds a static program that sleeps.
func sleeper(t *testing.T, path string) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(src, []byte("package main\nimport \"time\"\nfunc main() { time.Sleep(time.Hour) }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", path, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
}

func TestStartSaysWhyAChildDoesNotStart(t *testing.T) {
	e, dir := testEngine(t)
	// A directory in the place of a file that containerd needs to write.
	if err := os.MkdirAll(filepath.Join(dir, "state/containerd/io.containerd.metadata.v1.bolt/meta.db"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := e.Start(testContext(t))
	if err == nil {
		e.Close(testContext(t))
		t.Fatal("Start succeeded")
	}
	if msg := err.Error(); !strings.Contains(msg, "containerd did not start") || !strings.Contains(msg, "meta.db") {
		t.Errorf("Start = %v, want what containerd said", err)
	}
	if left := processesOf(dir); left != nil {
		t.Errorf("processes after a failed Start: %q", left)
	}
}

func TestBuildCgroupIsLimited(t *testing.T) {
	_, dir := testEngine(t)
	cfg := testConfig(dir)
	cfg.BuildMemory, cfg.BuildPids = 256<<20, 77
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := limitBuilds(&e.cfg); err != nil {
		t.Skip("needs writable cgroups: ", err)
	}
	want := map[string]string{"pids.max": "77", "memory.limit_in_bytes": strconv.Itoa(256 << 20), "memory.max": strconv.Itoa(256 << 20)}
	found := 0
	for file, value := range want {
		for _, pattern := range []string{cgroupRoot + e.cfg.buildCgroup(), cgroupRoot + "/*" + e.cfg.buildCgroup()} {
			paths, _ := filepath.Glob(filepath.Join(pattern, file))
			for _, p := range paths {
				data, _ := os.ReadFile(p)
				if got := strings.TrimSpace(string(data)); got == value {
					found++
				} else {
					t.Errorf("%s = %s, want %s", p, got, value)
				}
			}
		}
	}
	if found < 2 {
		t.Errorf("found %d limits, want pids and memory", found)
	}
}
