//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/client"
)

// program runs a daemon of the test's until its end.
func program(t *testing.T, log, name string, args ...string) *exec.Cmd {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() //nolint:errcheck // the child has its own descriptor
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(d.root, "build/engine")+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)                                    //nolint:errcheck // it may have ended
		timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() }) //nolint:errcheck // as above
		defer timer.Stop()
		cmd.Wait() //nolint:errcheck // how it ends is of no interest
		if t.Failed() {
			text, _ := os.ReadFile(log) // shown as far as it can be read
			t.Logf("%s:\n%s", filepath.Base(name), text)
		}
	})
	return cmd
}

// TestHostsOwnEngine: lfxd drives a containerd and a buildkitd that it did not start, and leaves them
// as they were; nerdctl sees what runs.
func TestHostsOwnEngine(t *testing.T) {
	dir, run := fmt.Sprintf("/var/lib/lfxhost%d", os.Getpid()), fmt.Sprintf("/run/lfxh%d", os.Getpid())
	for _, p := range []string{dir, run} {
		if err := os.MkdirAll(p, 0o711); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(p) }) //nolint:errcheck // checked by the last test
	}
	socket, buildkit := run+"/host/containerd.sock", run+"/host/buildkitd.sock"
	hostContainerd(t, dir, run, socket)
	hostBuildkitd(t, dir, run, socket, buildkit)
	config := dir + "/lfxd.toml"
	write(t, config, fmt.Sprintf(`state_dir = %q
run_dir = %q
libexec_dir = %q
cgroup_parent = %q
[engine]
containerd_address = %q
buildkit_address = %q
[listen]
tcp = "127.0.0.1:9100"
control_group = ""
invoke_group = ""
[network]
bridge = "lfxh0"
build_bridge = "lfxhb0"
subnet = "10.211.0.0/16"
build_subnet = "10.212.0.0/16"
table = "lfxh"
[logs]
journald = "off"
[base_images]
"public.ecr.aws/lambda/python:3.11" = "localhost/lfx-base/python:3.11"
`, dir+"/state", run+"/lfxd", filepath.Join(d.root, "build/engine"), fmt.Sprintf("/lfxh%d", os.Getpid()), socket, buildkit))
	program(t, dir+"/lfxd.log", d.binary("lfxd"), "--config", config)
	control := "unix://" + run + "/lfxd/lfxd.sock"
	c, err := client.New(control)
	if err != nil {
		t.Fatal(err)
	}
	if err := poll(startTimeout, func() error { _, err := c.Version(t.Context()); return err }); err != nil {
		t.Fatal(err)
	}
	ctr := func(args ...string) string {
		t.Helper()
		out, err := output(filepath.Join(d.root, "build/engine/ctr"), append([]string{"--address", socket, "--namespace", "lfx"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ctr("images", "import", "--local", filepath.Join(d.root, "build/images/python.tar"))
	src := t.TempDir()
	for name, text := range with(map[string]string{"lfx.yaml": manifest("host", "h timeout: 5s")},
		python("h", "def handler(event, context): return 'host'\n")) {
		write(t, filepath.Join(src, name), text)
	}
	if stdout, stderr, code := lfxctl("--host", control, "deploy", src, "--progress", "plain"); code != 0 {
		t.Fatalf("deploy: %d\n%s%s", code, stdout, stderr)
	}
	a, err := try(http.DefaultClient, "POST", "http://localhost:9100/2015-03-31/functions/h/invocations", "{}")
	if err != nil || a.body != `"host"` {
		t.Fatalf("%+v, %v", a, err)
	}
	seenByNerdctl(t, socket)
	if out, err := output(d.binary("lfxd"), "down", "--config", config); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	if left := strings.TrimSpace(ctr("containers", "ls", "-q") + ctr("tasks", "ls", "-q")); left != "" {
		t.Errorf("lfxd left in the host's containerd: %s", left)
	}
	if _, err := os.Stat(run + "/lfxd"); err == nil {
		t.Errorf("%s is left: %v", run+"/lfxd", files(run+"/lfxd"))
	}
}

// hostContainerd starts a containerd that is configured as a host's own might be.
func hostContainerd(t *testing.T, dir, run, socket string) {
	t.Helper()
	write(t, dir+"/containerd.toml", fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = %q
[plugins."io.containerd.shim.v1.manager"]
socket_dir = %q
`, dir+"/containerd", run+"/c", socket, run+"/s"))
	program(t, dir+"/containerd.log", filepath.Join(d.root, "build/engine/containerd"), "--config", dir+"/containerd.toml")
	err := poll(30*time.Second, func() error {
		_, err := output(filepath.Join(d.root, "build/engine/ctr"), "--address", socket, "version")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// hostBuildkitd starts a buildkitd that builds in the host's containerd, in our namespace.
func hostBuildkitd(t *testing.T, dir, run, containerd, socket string) {
	t.Helper()
	write(t, dir+"/buildkitd.toml", fmt.Sprintf(`root = %q
[grpc]
address = ["unix://%s"]
[otel]
socketPath = %q
[worker.oci]
enabled = false
[worker.containerd]
enabled = true
address = %q
namespace = "lfx"
networkMode = "host"
`, dir+"/buildkit", socket, run+"/otel.sock", containerd))
	program(t, dir+"/buildkitd.log", filepath.Join(d.root, "build/engine/buildkitd"), "--config", dir+"/buildkitd.toml")
	err := poll(60*time.Second, func() error {
		_, err := output(filepath.Join(d.root, "build/engine/buildctl"), "--addr", "unix://"+socket, "debug", "workers")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// seenByNerdctl has nerdctl's own code list what runs.
func seenByNerdctl(t *testing.T, socket string) {
	t.Helper()
	ps := filepath.Join(t.TempDir(), "ps")
	cmd := exec.Command("go", "build", "-o", ps, ".")
	cmd.Dir = "nerdctl"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly -buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build nerdctl's list: %v\n%s", err, out)
	}
	out, err := output(ps, socket, "lfx")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"lfx-", "localhost:9100/host/h:v1", "Up"} {
		if !strings.Contains(out, want) {
			t.Errorf("nerdctl ps shows no %q:\n%s", want, out)
		}
	}
}
