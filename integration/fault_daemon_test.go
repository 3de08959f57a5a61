//go:build integration && faults

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

// faultDaemon is an lfxd with failpoints beside the shared one: directories, bridges, table and engine of
// its own, no TCP, a subnet of 13 addresses, and an OCI runtime and a CNI plugin that fail on demand.
type faultDaemon struct {
	*daemonUnderTest
	t       *testing.T
	dir     string // of the binaries and the engine
	control string // of the failpoints
	before  hostState
	volumes []string // file systems that the test mounted in the state directory
}

// faultConfig is added to the fault daemon's configuration.
type faultConfig struct {
	name      string // part of every name on the host; short
	more      string // TOML tables
	top       string // TOML keys
	functions string // more keys of the table [functions]
	// volumes are mounted in the state directory before the first start: folder → size.
	volumes map[string]string
}

// sample is a part of all cases, chosen anew each time, or all of them with LFX_FAULTS=full (make test-faults).
func sample[T any](all []T, n int) []T {
	if os.Getenv("LFX_FAULTS") == "full" || n >= len(all) {
		return all
	}
	chosen := rand.Perm(len(all))[:n]
	slices.Sort(chosen)
	some := make([]T, n)
	for i, c := range chosen {
		some[i] = all[c]
	}
	return some
}

// newFaultDaemon builds and starts one; it is taken down when the test ends, and must leave nothing.
func newFaultDaemon(t *testing.T, c faultConfig) *faultDaemon {
	t.Helper()
	f := prepareFaultDaemon(t, c)
	if err := f.start(); err != nil {
		f.showLog()
		t.Fatal(err)
	}
	f.importPython()
	return f
}

func prepareFaultDaemon(t *testing.T, c faultConfig) *faultDaemon {
	t.Helper()
	id := fmt.Sprintf("%s%d", c.name, os.Getpid())
	f := &faultDaemon{t: t, before: hostWithoutVeths(), daemonUnderTest: &daemonUnderTest{
		root: d.root, state: "/var/lib/lfxd-" + id, run: "/run/" + id, cgroup: "/" + id,
		bridge: c.name + "0", table: c.name,
	}}
	f.config, f.log = filepath.Join(f.state, "config.toml"), filepath.Join(f.state, "lfxd.log")
	f.dir = filepath.Join(f.state, "libexec")
	f.bin, f.control = f.dir, filepath.Join(f.state, "failpoints")
	f.env = []string{"LFX_FAILPOINTS=" + f.control}
	if err := os.MkdirAll(f.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.takeDown)
	for name, size := range c.volumes {
		dir := filepath.Join(f.state, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
			t.Fatal(err)
		}
		f.volumes = append(f.volumes, dir)
	}
	f.installEngine()
	f.build("-tags", "failpoint", "./cmd/lfxd", "./cmd/lfxctl")
	write(t, f.config, f.faultTOML(c))
	var err error
	if f.client, err = client.New("unix://" + f.run + "/lfxd.sock"); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *faultDaemon) faultTOML(c faultConfig) string {
	return fmt.Sprintf(`state_dir = %q
run_dir = %q
libexec_dir = %q
cgroup_parent = %q
log_level = "debug"
%s

[listen]
tcp = ""
control_group = ""
invoke_group = ""

[network]
bridge = %q
build_bridge = %q
table = %q
subnet = "10.211.0.0/28"
build_subnet = "10.212.0.0/24"

[functions]
idle_timeout = "5m"
queue_limit = 50
queue_timeout = "10s"
spares = 0
sandboxes_ahead = 0
init_timeout = "5s"
%s

[logs]
journald = "off"

[base_images]
"public.ecr.aws/lambda/python:3.11" = "localhost/lfx-base/python:3.11"
%s`, f.state, f.run, f.dir, f.cgroup, c.top, f.bridge, f.table+"b0", f.table, c.functions, c.more)
}

// installEngine links the engine into the daemon's own folder and wraps runc and the bridge plugin.
func (f *faultDaemon) installEngine() {
	f.t.Helper()
	engine := filepath.Join(f.root, "build/engine")
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "buildkitd", "loopback", "host-local", "lfx-init"} {
		if err := os.Symlink(filepath.Join(engine, name), filepath.Join(f.dir, name)); err != nil {
			f.t.Fatal(err)
		}
	}
	f.build("./integration/testdata/fault/wrap")
	for _, name := range []string{"runc", "bridge"} {
		if err := os.Symlink(filepath.Join(engine, name), filepath.Join(f.dir, name+".real")); err != nil {
			f.t.Fatal(err)
		}
		if err := os.Link(filepath.Join(f.dir, "wrap"), filepath.Join(f.dir, name)); err != nil {
			f.t.Fatal(err)
		}
	}
}

// build compiles programs of this repository into the daemon's folder.
func (f *faultDaemon) build(args ...string) {
	f.t.Helper()
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-o", f.dir + "/"}, args...)...)
	cmd.Dir, cmd.Env = f.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("go build %v: %v\n%s", args, err, out)
	}
}

func (f *faultDaemon) importPython() {
	f.t.Helper()
	if _, err := f.ctr("images", "import", "--local", filepath.Join(f.root, "build/images/python.tar")); err != nil {
		f.t.Fatal(err)
	}
}

// takeDown ends everything and checks that the host is as it was.
func (f *faultDaemon) takeDown() {
	os.Remove(f.control) //nolint:errcheck // there may be none
	for _, name := range []string{"runc", "bridge"} {
		f.fault(name, "")
	}
	_, err := output(f.binary("lfxd"), "down", "--with-engine", "--config", f.config)
	for _, m := range f.volumes {
		err = errors.Join(err, syscall.Unmount(m, syscall.MNT_DETACH))
	}
	if err == nil {
		err = poll(30*time.Second, func() error { return f.before.diff(hostWithoutVeths(), f.daemonUnderTest) })
	}
	if err != nil {
		f.t.Errorf("after the last fault: %v", err)
	}
	if f.t.Failed() {
		f.showLog()
	}
	if os.Getenv("LFX_TEST_KEEP") == "" {
		if err := os.RemoveAll(f.state); err != nil {
			f.t.Error(err)
		}
	}
}

// hostWithoutVeths leaves out interfaces that come and go with the shared daemon's builds and instances; a bridge
// that is gone has taken its own with it.
func hostWithoutVeths() hostState {
	h := observeHost()
	h.links = slices.DeleteFunc(h.links, func(n string) bool { return strings.HasPrefix(n, "veth") })
	return h
}

// points sets the control file of the failpoints; empty clears it.
func (f *faultDaemon) points(text string) {
	f.t.Helper()
	if err := os.WriteFile(f.control, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// hits returns the failpoints that were reached, in order, without repetitions, and forgets them.
func (f *faultDaemon) hits() (names []string) {
	data, err := os.ReadFile(f.control + ".hits")
	if err != nil {
		return nil
	}
	os.Remove(f.control + ".hits") //nolint:errcheck // read again otherwise
	seen := map[string]bool{}
	for _, n := range strings.Fields(string(data)) {
		if !seen[n] {
			seen[n] = true
			names = append(names, n)
		}
	}
	return names
}

// fault sets what the wrapper of a program does; empty clears it.
func (f *faultDaemon) fault(program, text string) {
	if err := os.WriteFile(filepath.Join(f.dir, program+".faults"), []byte(text), 0o600); err != nil {
		f.t.Error(err)
	}
}

// restart starts the daemon again, killing it first if it still lives.
func (f *faultDaemon) restart() {
	f.t.Helper()
	if err := f.signal(syscall.SIGKILL); err != nil && !strings.Contains(err.Error(), "already finished") {
		f.t.Fatal(err)
	}
	if err := f.start(); err != nil {
		f.showLog()
		f.t.Fatal(err)
	}
}

// awaitDeath waits for the daemon's end by its own failpoint.
func (f *faultDaemon) awaitDeath() {
	f.t.Helper()
	select {
	case err := <-f.end:
		f.end <- err
	case <-time.After(time.Minute):
		f.t.Fatal("the daemon did not die at the failpoint")
	}
}

// child is the pid of one of the engine's daemons, as lfxd recorded it.
func (f *faultDaemon) child(name string) int {
	f.t.Helper()
	var id struct {
		PID int `json:"pid"`
	}
	data, err := os.ReadFile(filepath.Join(f.run, "engine", name+".json"))
	if err == nil {
		err = json.Unmarshal(data, &id)
	}
	if err != nil || id.PID <= 1 {
		f.t.Fatalf("pid of %s: %q, %v", name, data, err)
	}
	return id.PID
}

// kill ends one of the engine's daemons and returns its pid.
func (f *faultDaemon) kill(name string) int {
	f.t.Helper()
	pid := f.child(name)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		f.t.Fatalf("kill %s: %v", name, err)
	}
	return pid
}

// engineBack waits until both of the engine's daemons answer.
func (f *faultDaemon) engineBack() {
	f.t.Helper()
	err := poll(60*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		v, err := f.client.Version(ctx)
		if err == nil && (v.Containerd == "" || v.Buildkit == "") {
			err = fmt.Errorf("the engine is not back: %+v", v)
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// invoke calls a function over the invoke socket.
func (f *faultDaemon) invoke(name, body string) (answer, error) {
	c := f.overSocket("invoke.sock")
	c.Timeout = 90 * time.Second
	defer c.CloseIdleConnections()
	return try(c, "POST", "http://lfx/2015-03-31/functions/"+name+"/invocations", body)
}

// answers waits until a function gives that answer.
func (f *faultDaemon) answers(name, body, want string) {
	f.t.Helper()
	err := poll(60*time.Second, func() error {
		a, err := f.invoke(name, body)
		if err == nil && (a.status != http.StatusOK || a.body != want) {
			err = fmt.Errorf("%s answered %d %s, want %s", name, a.status, a.body, want)
		}
		return err
	})
	if err != nil {
		f.t.Error(err)
	}
}

// project writes a project folder and returns it.
func (f *faultDaemon) project(files map[string]string) string {
	f.t.Helper()
	dir := f.t.TempDir()
	for name, text := range files {
		write(f.t, filepath.Join(dir, name), text)
	}
	return dir
}

func (f *faultDaemon) lfxctl(args ...string) (stdout, stderr string, code int) {
	return f.lfxctlIn("", nil, args...)
}

// deploy deploys a folder.
func (f *faultDaemon) deploy(dir string, args ...string) (deployResult, string, int) {
	var res deployResult
	stdout, stderr, code := f.lfxctl(append([]string{"deploy", dir, "-o", "json", "--progress", "plain"}, args...)...)
	if code == 0 {
		if err := json.Unmarshal([]byte(stdout), &res); err != nil {
			f.t.Fatalf("lfxctl deploy printed %q: %v", stdout, err)
		}
	}
	return res, stderr, code
}

// mustDeploy is deploy without a fault.
func (f *faultDaemon) mustDeploy(dir string, args ...string) deployResult {
	f.t.Helper()
	res, stderr, code := f.deploy(dir, args...)
	if code != 0 {
		f.t.Fatalf("lfxctl deploy: exit %d\n%s", code, stderr)
	}
	return res
}

// removeAll removes every function and waits until nothing of any is left but what the baseline has.
func (f *faultDaemon) removeAll(baseline world) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	all, err := f.client.Functions(ctx, function.Environment{})
	if err != nil {
		f.t.Errorf("list functions: %v", err)
		return
	}
	for _, fn := range all {
		if _, err := f.client.RemoveFunction(ctx, fn.Key); err != nil {
			f.t.Errorf("remove %s: %v", fn.Key, err)
		}
	}
	f.checkLeaks(f.t, baseline)
	for _, dir := range []string{"contexts", "mirrors/*"} {
		if left, _ := filepath.Glob(filepath.Join(f.state, dir, "*")); len(left) > 0 {
			f.t.Errorf("left in the state directory: %v", left)
		}
	}
}

// clean waits until the world is as the baseline says.
func (f *faultDaemon) clean(t *testing.T, baseline world) {
	t.Helper()
	f.checkLeaks(t, baseline)
}

// descriptors counts the daemon's open files.
func (f *faultDaemon) descriptors() int {
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(f.pid()), "fd"))
	if err != nil {
		f.t.Fatal(err)
	}
	return len(entries)
}

// goroutines asks the daemon for their number.
func (f *faultDaemon) goroutines() int {
	f.t.Helper()
	path := f.control + ".goroutines"
	os.Remove(path) //nolint:errcheck // there may be none
	if err := syscall.Kill(f.pid(), syscall.SIGUSR2); err != nil {
		f.t.Fatal(err)
	}
	var n int
	err := poll(10*time.Second, func() error {
		data, err := os.ReadFile(path)
		if err == nil {
			n, err = strconv.Atoi(string(bytes.TrimSpace(data)))
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// noGrowth waits until goroutines and descriptors are back near what they were, beside those that instances need.
func (f *faultDaemon) noGrowth(t *testing.T, goroutines, descriptors int) {
	t.Helper()
	err := poll(60*time.Second, func() error {
		g, fds, n := f.goroutines(), f.descriptors(), len(files(filepath.Join(f.run, "instances")))
		if g > goroutines+15+10*n || fds > descriptors+10+12*n {
			return fmt.Errorf("%d goroutines and %d descriptors, were %d and %d", g, fds, goroutines, descriptors)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// logged returns what the daemon has logged from an offset on, and the next offset.
func (f *faultDaemon) logged(from int64) (string, int64) {
	file, err := os.Open(f.log)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // read only
	data, err := io.ReadAll(io.NewSectionReader(file, from, 64<<20))
	if err != nil {
		f.t.Fatal(err)
	}
	return string(data), from + int64(len(data))
}
