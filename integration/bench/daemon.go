//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

// daemonUnderTest is one lfxd with an engine of its own.
type daemonUnderTest struct {
	o         options
	state     string
	run       string
	cgroup    string
	arms      string // volatile directory of the reference arms
	config    string
	log       string
	cmd       *exec.Cmd
	client    *client.Client
	spares    int // of each version, and on the host
	sandboxes int // for any function
}

const (
	startTimeout = 90 * time.Second
	warmCount    = 8 // instances of each warm function
	// defaultSandboxes is lfxd's own default of functions.sandboxes_ahead.
	defaultSandboxes = 4
)

func startDaemon(o options) (*daemonUnderTest, error) {
	d := &daemonUnderTest{
		o: o, state: fmt.Sprintf("/var/lib/lfxd-bench-%d", os.Getpid()), run: fmt.Sprintf("/run/lfxb%d", os.Getpid()),
		cgroup: fmt.Sprintf("/lfxb%d", os.Getpid()), arms: fmt.Sprintf("/run/lfxb%d-arms", os.Getpid()),
		sandboxes: defaultSandboxes,
	}
	d.config, d.log = filepath.Join(d.state, "config.toml"), filepath.Join(d.state, "lfxd.log")
	for _, need := range []string{
		filepath.Join(o.engine, "containerd"), filepath.Join(o.engine, "lfx-init"), filepath.Join(o.bin, "lfxd"), filepath.Join(o.bin, "lfxctl"),
		filepath.Join(o.root, "build/images/python.tar"), filepath.Join(o.root, "contrib/examples/lambda-go/bootstrap"),
	} {
		if _, err := os.Stat(need); err != nil {
			return nil, fmt.Errorf("%s is missing: run make engine build images examples first", need)
		}
	}
	for _, dir := range []string{d.state, d.arms} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(d.config, []byte(d.toml()), 0o600); err != nil {
		return nil, err
	}
	var err error
	if d.client, err = client.New("unix://" + d.run + "/lfxd.sock"); err != nil {
		return nil, err
	}
	if err := d.begin(); err != nil {
		d.showLog()
		return nil, errors.Join(err, d.finish())
	}
	return d, nil
}

// begin starts lfxd and gives it the base images.
func (d *daemonUnderTest) begin() error {
	if err := d.launch(); err != nil {
		return err
	}
	for _, name := range []string{"provided", "python", "nodejs"} {
		if _, err := d.ctr("images", "import", "--local", filepath.Join(d.o.root, "build/images", name+".tar")); err != nil {
			return err
		}
	}
	return nil
}

// toml is the default configuration but for private paths and the stand-ins for AWS's base images.
func (d *daemonUnderTest) toml() string {
	return fmt.Sprintf(`state_dir = %q
run_dir = %q
libexec_dir = %q
cgroup_parent = %q

[listen]
control_group = ""
invoke_group = ""

[logs]
journald = "off"

[functions]
spares = %d
sandboxes_ahead = %d

[base_images]
"public.ecr.aws/lambda/provided:al2023" = "localhost/lfx-base/provided:1"
"public.ecr.aws/lambda/python:3.11" = "localhost/lfx-base/python:3.11"
"public.ecr.aws/lambda/nodejs:18" = "localhost/lfx-base/nodejs:18"
`, d.state, d.run, d.o.engine, d.cgroup, d.spares, d.sandboxes)
}

func (d *daemonUnderTest) launch() error {
	out, err := os.Create(d.log)
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // the child has its own descriptor
	d.cmd = exec.Command(filepath.Join(d.o.bin, "lfxd"), "--with-engine", "--config", d.config)
	d.cmd.Stdout, d.cmd.Stderr = out, out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	return poll(startTimeout, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := d.client.Version(ctx)
		return err
	})
}

// restart ends lfxd, which takes its instances and its engine along, and starts it with so many spares and sandboxes.
func (d *daemonUnderTest) restart(spares, sandboxes int) error {
	progress("restarting lfxd with spares = %d, sandboxes_ahead = %d", spares, sandboxes)
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	d.cmd.Wait() //nolint:errcheck // the next start says what is wrong
	d.spares, d.sandboxes = spares, sandboxes
	if err := os.WriteFile(d.config, []byte(d.toml()), 0o600); err != nil {
		return err
	}
	return d.launch()
}

// ctr runs containerd's own client against the engine.
func (d *daemonUnderTest) ctr(args ...string) (string, error) {
	all := append([]string{"--address", d.run + "/engine/sock/containerd.sock", "--namespace", "lfx"}, args...)
	return output("", filepath.Join(d.o.engine, "ctr"), all...)
}

// finish takes the daemon down with everything that it made.
func (d *daemonUnderTest) finish() error {
	_, err := output("", filepath.Join(d.o.bin, "lfxd"), "down", "--with-engine", "--config", d.config)
	if d.cmd != nil && d.cmd.Process != nil {
		if err != nil {
			d.cmd.Process.Kill() //nolint:errcheck // it has ended then
		}
		d.cmd.Wait() //nolint:errcheck // how it ended was said already
	}
	for _, dir := range cgroupDirs(d.cgroup + "-arms") {
		os.Remove(dir) //nolint:errcheck // it has none in this hierarchy
	}
	err = errors.Join(err, os.RemoveAll(d.arms))
	if d.o.keep {
		progress("kept %s", d.state)
		return err
	}
	return errors.Join(err, os.RemoveAll(d.state))
}

// showLog prints the end of the logs of lfxd and its engine.
func (d *daemonUnderTest) showLog() {
	for _, path := range []string{filepath.Join(d.state, "engine/log/containerd.log"), filepath.Join(d.state, "engine/log/buildkitd.log"), d.log} {
		if data, err := os.ReadFile(path); err == nil {
			fmt.Fprintf(os.Stderr, "--- %s\n%s---\n", path, data[max(0, len(data)-8<<10):])
		}
	}
}

// deploy deploys a folder.
func (d *daemonUnderTest) deploy(dir string) error {
	cmd := exec.Command(filepath.Join(d.o.bin, "lfxctl"), "deploy", dir, "--progress", "plain")
	cmd.Env = append(os.Environ(), "LFX_HOST=unix://"+d.run+"/lfxd.sock", "NO_COLOR=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("lfxctl deploy %s: %w\n%s", dir, err, out)
	}
	return nil
}

// deployCold deploys one function per runtime, none of them warm.
func (d *daemonUnderTest) deployCold() error {
	progress("deploying the functions for cold starts")
	return d.deployProject("cold", 2, "", map[string]string{"go": "lambda-go", "python": "lambda-python", "nodejs": "lambda-nodejs"})
}

// deployWarm deploys the two functions of the warm rounds, each with warmCount instances.
func (d *daemonUnderTest) deployWarm() error {
	progress("deploying the warm functions")
	return d.deployProject("warm", 1, fmt.Sprintf("concurrency: {min: %d, max: %d}", warmCount, warmCount), map[string]string{"go": "lambda-go", "raw": ""})
}

// deployProject deploys functions named project-name from folders of contrib/examples; the empty folder
// means the raw runtime client, which is built once. Each function gets the lines of extra, too.
func (d *daemonUnderTest) deployProject(project string, cores int, extra string, functions map[string]string) error {
	dir := filepath.Join(d.state, project)
	text := "project: " + project + "\nfunctions:\n"
	for _, name := range slices.Sorted(maps.Keys(functions)) {
		folder := functions[name]
		to := cmp.Or(folder, "raw")
		if _, err := os.Stat(filepath.Join(dir, to)); err == nil {
			// another function's, or of the deploy before
		} else if folder == "" {
			if err := d.rawFunction(filepath.Join(dir, to)); err != nil {
				return err
			}
		} else if err := os.CopyFS(filepath.Join(dir, to), os.DirFS(filepath.Join(d.o.root, "contrib/examples", folder))); err != nil {
			return err
		}
		text += fmt.Sprintf("  %s-%s:\n    build: ./%s\n    memory: 256MiB\n    cpu: %d\n    timeout: 10s\n", project, name, to, cores)
		if extra != "" {
			text += "    " + extra + "\n"
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lfx.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	return d.deploy(dir)
}

// numbered names n functions of the raw runtime client: 0001, 0002 and so on.
func numbered(n int) map[string]string {
	out := map[string]string{}
	for i := range n {
		out[fmt.Sprintf("%04d", i+1)] = ""
	}
	return out
}

// rawFunction builds the raw runtime client.
func (d *daemonUnderTest) rawFunction(to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := buildStatic(d.o.root, filepath.Join(to, "bootstrap")); err != nil {
		return err
	}
	file := "FROM public.ecr.aws/lambda/provided:al2023\nCOPY bootstrap ${LAMBDA_RUNTIME_DIR}/bootstrap\nCMD [\"raw\"]\n"
	return os.WriteFile(filepath.Join(to, "Dockerfile"), []byte(file), 0o644)
}

// buildStatic builds integration/bench/rawfn.
func buildStatic(root, to string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", to, "./integration/bench/rawfn")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the raw runtime client: %w\n%s", err, out)
	}
	return nil
}

// instances lists the instances of one function but for spares; the empty name stands for all functions.
func (d *daemonUnderTest) instances(name string) ([]api.InstanceInfo, error) {
	all, err := d.list(name)
	return slices.DeleteFunc(all, func(i api.InstanceInfo) bool { return i.State == "spare" }), err
}

// list lists the instances of one function, or of all, with spares.
func (d *daemonUnderTest) list(name string) ([]api.InstanceInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	all, err := d.client.Instances(ctx)
	return slices.DeleteFunc(all, func(i api.InstanceInfo) bool { return name != "" && i.Function != name }), err
}

// version returns the active version of a function.
func (d *daemonUnderTest) version(name string) (*function.Version, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f, err := d.client.Function(ctx, function.Key{Function: name})
	if err != nil {
		return nil, err
	}
	return &f.Active, nil
}

// favour gives the cgroup of all instances the weight that nice -15 has, because a cgroup has a weight of its own.
func (d *daemonUnderTest) favour() {
	if !d.o.favour {
		return
	}
	for file, value := range map[string]string{"cpu/" + d.cgroup + "/cpu.shares": "29154", d.cgroup + "/cpu.weight": "2847"} {
		os.WriteFile("/sys/fs/cgroup/"+file, []byte(value), 0) //nolint:errcheck // one of the two exists
	}
}

// endInstances kills the instances of a function, or of all, and waits until nothing is left of them. Spares stay.
func (d *daemonUnderTest) endInstances(name string) error {
	killed := map[string]bool{}
	return poll(60*time.Second, func() error {
		all, err := d.instances(name)
		if err != nil {
			return err
		}
		for _, i := range all { // also what was only starting a moment ago
			killed[i.ID] = true
			for _, pid := range pidsOf(d.cgroup, i.ID) {
				syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it has ended then
			}
			d.thaw(i.ID)
		}
		left := 0
		for _, id := range files(filepath.Join(d.run, "instances")) {
			if killed[id] {
				left++
			}
		}
		if len(all)+left > 0 {
			return fmt.Errorf("%d instances of %s are still there, and something of %d", len(all), cmp.Or(name, "all functions"), left)
		}
		return nil
	})
}

// cgroupDirs lists the directories that a cgroup may have, on v1 and v2.
func cgroupDirs(name string) []string {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + name) // a fixed pattern
	return append(dirs, "/sys/fs/cgroup"+name)
}

// pidsOf lists the processes of an instance by its cgroup, on v1 and v2.
func pidsOf(parent, id string) (pids []int) {
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		data, err := os.ReadFile(filepath.Join(dir, parent, "fn", id, "cgroup.procs"))
		if err != nil {
			continue
		}
		for f := range strings.FieldsSeq(string(data)) {
			var pid int
			if _, err := fmt.Sscan(f, &pid); err == nil {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	return nil
}

// thaw lets a frozen instance take the signal that ends it; v2 does that by itself.
func (d *daemonUnderTest) thaw(id string) {
	state := filepath.Join("/sys/fs/cgroup/freezer", d.cgroup, "fn", id, "freezer.state")
	if _, err := os.Stat(state); err == nil {
		os.WriteFile(state, []byte("THAWED"), 0) //nolint:errcheck // it has ended then
	}
}

func files(dir string) (names []string) {
	entries, _ := os.ReadDir(dir) // a missing one is empty
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// output runs a command and returns what it prints; the error has it too.
func output(dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// poll calls f until it succeeds or the time is over; its last error is returned.
func poll(timeout time.Duration, f func() error) error {
	deadline := time.Now().Add(timeout)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}
