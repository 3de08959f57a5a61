//go:build integration

package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bootTimeout bounds a boot and a shutdown; both take a second or two on a quiet machine.
const bootTimeout = 90 * time.Second

// machine is a Debian with systemd as PID 1.
type machine struct {
	t       *testing.T
	root    string // its tree
	name    string
	folders map[string]string // of the host, and where they are seen inside
	*nspawn
}

// nspawn is the process that the machine lives in; there is another one after each reboot.
type nspawn struct {
	cmd *exec.Cmd
	end chan error
	out *bytes.Buffer // console; read after the end only
}

// newMachine unpacks the tree and boots it. Folders of the host are seen inside, read-only, under the names given.
// When the test ends the machine is gone.
func newMachine(t *testing.T, tree string, folders map[string]string) *machine {
	t.Helper()
	m := &machine{t: t, name: fmt.Sprintf("lfxsd%d", os.Getpid()), folders: folders, nspawn: &nspawn{}}
	var err error
	if m.root, err = os.MkdirTemp(filepath.Dir(tree), m.name+"-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.remove)
	host(t, "tar", "-xf", tree, "-C", m.root)
	m.boot()
	return m
}

// boot starts systemd-nspawn from a cgroup of its own in every hierarchy, because the machine takes the cgroup it
// starts in for the root.
func (m *machine) boot() {
	m.t.Helper()
	args := []string{
		"--quiet", "--directory=" + m.root, "--machine=" + m.name, "--register=no", "--keep-unit",
		"--private-network", "--private-users=no", "--capability=all", "--system-call-filter=@known",
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe", "--kill-signal=SIGRTMIN+3",
	}
	for from, to := range m.folders {
		args = append(args, "--bind-ro="+from+":"+to)
	}
	for _, dir := range m.cgroups() {
		if err := m.makeCgroup(dir); err != nil {
			m.t.Fatal(err)
		}
	}
	join := `for f in "$@"; do shift; [ "$f" = -- ] && break; echo $$ >"$f/cgroup.procs" || exit 1; done; exec systemd-nspawn "$@"`
	all := append(append([]string{"-c", join, "sh"}, m.cgroups()...), "--")
	m.cmd = exec.Command("sh", append(append(all, args...), "/sbin/lfx-test-init")...)
	m.out = new(bytes.Buffer)
	m.cmd.Stdout, m.cmd.Stderr = m.out, m.out
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.end = make(chan error, 1)
	go func() { m.end <- m.cmd.Wait() }() // ends with the process, for which remove waits
	m.awaitBoot()
}

// reboot as the machine itself does it. systemd-nspawn then ends with the status 133, which asks its service manager to
// start it again.
func (m *machine) reboot() {
	m.t.Helper()
	m.try("systemctl", "reboot") //nolint:errcheck // the connection goes away with it
	select {
	case err := <-m.end:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 133 {
			m.end <- err
			m.t.Fatalf("systemd-nspawn ended with %v instead of asking for a reboot\n%s", err, m.out)
		}
	case <-time.After(bootTimeout):
		m.t.Fatalf("the machine did not go down within %s", bootTimeout)
	}
	m.boot()
}

func (m *machine) awaitBoot() {
	m.t.Helper()
	m.poll("the machine to boot", bootTimeout, func() error {
		select {
		case err := <-m.end:
			m.end <- err
			return final{fmt.Errorf("systemd-nspawn ended: %v\n%s", err, m.out)}
		default:
		}
		out, err := m.try("systemctl", "is-system-running")
		if state := strings.TrimSpace(out); state != "running" && state != "degraded" {
			return fmt.Errorf("it is %q (%w)", state, err)
		}
		return nil
	})
}

// cgroups lists the machine's cgroup in every hierarchy.
func (m *machine) cgroups() []string {
	procs, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs") // a fixed pattern
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		procs = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	var dirs []string
	for _, p := range procs {
		dirs = append(dirs, filepath.Join(filepath.Dir(p), m.name))
	}
	return dirs
}

// makeCgroup makes one; a cpuset of cgroup v1 must be filled before anybody can join.
func (m *machine) makeCgroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			continue // not a cpuset, or cgroup v2's, which inherits
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
			return err
		}
	}
	// systemd makes cgroups below ours, which must inherit these.
	err := os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0o644)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // cgroup v2
	}
	return err
}

// leader is the host's process id of the machine's PID 1; it changes with a reboot.
func (m *machine) leader() (int, error) {
	pid := m.cmd.Process.Pid
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	children := strings.Fields(string(data))
	if len(children) == 0 {
		return 0, errors.New("systemd-nspawn has no child now")
	}
	return strconv.Atoi(children[len(children)-1])
}

// command prepares a command inside, as root.
func (m *machine) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	pid, err := m.leader()
	if err != nil {
		return nil, err
	}
	enter := []string{"-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--",
		"/usr/bin/env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...), nil
}

// try runs a command inside and returns what it prints on standard output; the error has the rest.
func (m *machine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd, err := m.command(ctx, args...)
	if err != nil {
		return "", err
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// run is try for what must succeed.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// sh runs a shell line inside.
func (m *machine) sh(line string) string {
	m.t.Helper()
	return m.run("sh", "-c", line)
}

// on makes failures those of a subtest.
func (m *machine) on(t *testing.T) *machine {
	c := *m
	c.t = t
	return &c
}

// poll calls f until it succeeds or the time is over.
func (m *machine) poll(what string, timeout time.Duration, f func() error) {
	m.t.Helper()
	deadline := time.Now().Add(timeout)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		var stop final
		if errors.As(err, &stop) || time.Now().After(deadline) {
			m.t.Fatalf("waiting %s for %s: %v", timeout, what, err)
		}
		time.Sleep(pause)
	}
}

// final is an error that polling does not get over.
type final struct{ error }

// remove ends the machine and everything of it on the host.
func (m *machine) remove() {
	if m.t.Failed() {
		m.showLogs()
	}
	if m.cmd != nil {
		m.try("systemctl", "poweroff") //nolint:errcheck // it may be gone; what follows ends it in any case
		select {
		case <-m.end:
		case <-time.After(bootTimeout):
			m.t.Errorf("the machine did not power off within %s", bootTimeout)
			m.kill()
			<-m.end
		}
	}
	for _, dir := range m.cgroups() {
		removeCgroup(dir)
		if _, err := os.Stat(dir); err == nil {
			m.t.Errorf("the cgroup %s is left", dir)
		}
	}
	// nspawn wants these on a tmpfs, which /run is not everywhere, and leaves them otherwise.
	os.Remove("/run/systemd/nspawn/propagate/" + m.name)      //nolint:errcheck // usually gone
	os.RemoveAll("/run/systemd/nspawn/unix-export/" + m.name) //nolint:errcheck // usually gone
	if locks, _ := filepath.Glob("/run/systemd/nspawn/locks/*"); len(locks) == 0 {
		os.Remove("/run/systemd/nspawn/locks") //nolint:errcheck // somebody else's, then
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), m.root) {
		m.t.Errorf("mounts below %s are left (%v)", m.root, err)
		return // and so is the tree: nothing below a mount may be removed
	}
	if os.Getenv("LFX_TEST_KEEP") != "" {
		m.t.Logf("kept: %s", m.root)
		return
	}
	if err := os.RemoveAll(m.root); err != nil {
		m.t.Error(err)
	}
}

// showLogs prints what the machine says of its failure.
func (m *machine) showLogs() {
	for _, args := range [][]string{
		{"systemctl", "--no-pager", "--failed"},
		{"journalctl", "--no-pager", "-b", "-n", "150", "-o", "short-precise", "-t", "lfxd", "-t", "systemd", "--grep", "^(?!.*(mount: Deact|left-over|unclean term))"},
		{"journalctl", "--no-pager", "-b", "-n", "20", "-o", "short-precise", "-p", "warning", "-u", "lfx-containerd", "-u", "lfx-buildkitd"},
	} {
		if out, err := m.try(args...); err == nil {
			m.t.Logf("--- %s\n%s", strings.Join(args, " "), out)
		}
	}
}

// kill ends every process in the machine's cgroups.
func (m *machine) kill() {
	for _, dir := range m.cgroups() {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // what is gone needs no killing
			if err == nil && d.Name() == "cgroup.procs" {
				data, _ := os.ReadFile(path)
				for _, f := range strings.Fields(string(data)) {
					if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
						syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // as above
					}
				}
			}
			return nil
		})
	}
}

// removeCgroup removes a cgroup with everything below it; what still has processes stays.
func removeCgroup(dir string) {
	var dirs []string
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // the caller looks
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, d := range slices.Backward(dirs) {
		for range 50 {
			if err := syscall.Rmdir(d); !errors.Is(err, syscall.EBUSY) {
				break
			}
			time.Sleep(20 * time.Millisecond) // the last process has died, the kernel has not noticed yet
		}
	}
}

// host runs a command of the host.
func host(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return strings.TrimSpace(out.String())
}
