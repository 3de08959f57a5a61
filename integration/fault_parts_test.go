//go:build integration && faults

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
)

// TestMissingPartsHaveTheirOwnSentence starts lfxd on hosts that lack something. It must say what and what to do,
// end with an error and leave nothing.
func TestMissingPartsHaveTheirOwnSentence(t *testing.T) {
	f := prepareFaultDaemon(t, faultConfig{name: "lfxm"})
	text, err := os.ReadFile(f.config)
	if err != nil {
		t.Fatal(err)
	}
	configs := 0
	config := func(old, new string) string {
		configs++
		path := filepath.Join(f.state, fmt.Sprintf("broken%d.toml", configs))
		write(t, path, strings.Replace(string(text), old, new, 1))
		return path
	}
	for _, c := range []struct {
		name   string
		config string
		engine bool
		inside string // shell that runs first, in a mount namespace of its own
		as     uint32
		want   []string
	}{
		{name: "port taken", config: config(`tcp = ""`, `tcp = "127.0.0.1:9000"`), engine: true, want: []string{"127.0.0.1:9000", "stop the program that has the port"}},
		{name: "containerd down", config: config("[listen]", "[engine]\ncontainerd_address = \"/run/lfx-nowhere/containerd.sock\"\n[listen]"),
			want: []string{"containerd is not answering on /run/lfx-nowhere/containerd.sock", "start the containerd that engine.containerd_address names"}},
		{name: "engine missing", config: config(fmt.Sprintf("libexec_dir = %q", f.dir), `libexec_dir = "/usr/lib/lfx-nowhere"`), engine: true,
			want: []string{"/usr/lib/lfx-nowhere", "make engine"}},
		{name: "nft missing", config: config("", ""), engine: true, inside: "for d in /usr/sbin /sbin /usr/local/sbin /usr/bin /bin; do test -e $d/nft && mount --bind /dev/null $d/nft; done; true",
			want: []string{"nft", "install"}},
		{name: "cgroups read-only", config: config("", ""), engine: true, inside: "for m in $(awk '$5 ~ \"^/sys/fs/cgroup\" {print $5}' /proc/self/mountinfo); do mount -o remount,bind,ro $m || exit 9; done",
			want: []string{"cgroup", "read-only"}},
		{name: "overlayfs missing", config: config("", ""), engine: true, inside: "grep -v overlay /proc/filesystems >" + f.state + "/filesystems; mount --bind " + f.state + "/filesystems /proc/filesystems",
			want: []string{"overlayfs", "modprobe overlay"}},
		{name: "user namespaces off", config: config("", ""), engine: true, inside: "echo 0 >" + f.state + "/zero; mount --bind " + f.state + "/zero /proc/sys/user/max_user_namespaces",
			want: []string{"user namespaces", "switched off in /proc/sys/user/max_user_namespaces"}},
		{name: "not root", config: config("", ""), engine: true, as: 65534, want: []string{"root"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"--config", c.config}
			if c.engine {
				args = append(args, "--with-engine")
			}
			cmd := exec.Command(f.binary("lfxd"), args...)
			if c.inside != "" {
				script := c.inside + " && exec \"$0\" \"$@\""
				cmd = exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, f.binary("lfxd")}, args...)...)
			}
			if c.as != 0 {
				if err := os.Chmod(c.config, 0o644); err != nil {
					t.Fatal(err)
				}
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.as, Gid: c.as}}
			}
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			kill := time.AfterFunc(60*time.Second, func() { cmd.Process.Kill() }) //nolint:errcheck // it ended
			err := cmd.Wait()
			kill.Stop()
			last := out.String()[strings.LastIndex(strings.TrimSpace(out.String()), "\nlfxd:")+1:]
			if err == nil || cmd.ProcessState.ExitCode() < 1 || cmd.ProcessState.ExitCode() > 2 {
				t.Errorf("lfxd: %v\n%s", err, lastOf(out.String(), 2000))
			}
			for _, want := range c.want {
				if !strings.Contains(last, want) {
					t.Errorf("lfxd says %q, which lacks %q", lastOf(last, 1000), want)
				}
			}
		})
	}
}

// TestFullDiskAndStoppedReaders: no room for the state, no room for logs, and a reader who does not read.
func TestFullDiskAndStoppedReaders(t *testing.T) {
	f := newFaultDaemon(t, faultConfig{name: "lfxp", volumes: map[string]string{"state": "80m", "logs": "1m"}})
	empty := f.observe(t)
	dir := f.project(with(
		map[string]string{"lfx.yaml": manifest("disk", "talk timeout: 10s; concurrency: {min: 1, max: 1}")},
		python("talk", "def handler(event, context):\n    for i in range(event.get('lines', 0)): print('x' * 100)\n    return 'v1'\n"),
	))
	f.mustDeploy(dir)
	t.Run("socket not permitted", func(t *testing.T) {
		lfxctl := filepath.Join(t.TempDir(), "lfxctl") // the repository may lie where only root looks
		for dir := filepath.Dir(lfxctl); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command("cp", f.binary("lfxctl"), lfxctl).CombinedOutput(); err != nil {
			t.Fatal(err, string(out))
		}
		cmd := exec.Command(lfxctl, "ls")
		cmd.Env = []string{"LFX_HOST=unix://" + f.run + "/lfxd.sock", "HOME=/"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Fatalf("a stranger may use the control socket:\n%s", out)
		}
		for _, want := range []string{f.run + "/lfxd.sock", "not in group lfxd", "sudo usermod"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("lfxctl says %q, which lacks %q", out, want)
			}
		}
	})
	t.Run("state", func(t *testing.T) {
		full := filepath.Join(f.state, "state", "full")
		fill(t, full, 0)
		write(t, filepath.Join(dir, "talk/app.py"), "def handler(event, context):\n    for i in range(event.get('lines', 0)): print('x' * 100)\n    return 'v2'\n")
		_, stderr, code := f.deploy(dir)
		if code == 0 || !strings.Contains(stderr, "disk") || !strings.Contains(stderr, "free some space") {
			t.Errorf("exit %d, %s", code, lastOf(stderr, 1000))
		}
		if _, stderr, code := f.lfxctl("rm", "--yes", "talk"); code == 0 || !strings.Contains(stderr, "disk is full") {
			t.Logf("a removal on a full disk: exit %d, %s", code, lastOf(stderr, 1000)) // it fits or it does not
		} else {
			f.answers("talk", "{}", `"v1"`)
		}
		if err := os.Remove(full); err != nil {
			t.Fatal(err)
		}
		f.mustDeploy(dir)
		f.answers("talk", "{}", `"v2"`)
	})
	t.Run("logs", func(t *testing.T) {
		full := filepath.Join(f.state, "logs", "full")
		_, from := f.logged(0)
		fill(t, full, 0)
		for range 20 {
			if a, err := f.invoke("talk", `{"lines":300}`); err != nil || a.status != http.StatusOK || a.body != `"v2"` {
				t.Fatalf("%d %s, %v", a.status, a.body, err)
			}
		}
		f.awaitLog(t, from, "cannot be written to disk")
		if err := os.Remove(full); err != nil {
			t.Fatal(err)
		}
		f.awaitLog(t, from, "is written to disk again")
		if a, err := f.invoke("talk", `{"lines":1}`); err != nil || a.status != http.StatusOK {
			t.Errorf("%d %s, %v", a.status, a.body, err)
		}
	})
	t.Run("reader stopped", func(t *testing.T) {
		cmd := exec.Command(f.binary("lfxctl"), "logs", "talk", "-f")
		cmd.Env = append(os.Environ(), "LFX_HOST=unix://"+f.run+"/lfxd.sock")
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer pipe.Close() //nolint:errcheck // never read: that is the point
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()         //nolint:errcheck // killed
		defer cmd.Process.Kill() //nolint:errcheck // as above
		for range 10 {
			begin := time.Now()
			a, err := f.invoke("talk", `{"lines":5000}`)
			if err != nil || a.status != http.StatusOK || a.body != `"v2"` || time.Since(begin) > 10*time.Second {
				t.Fatalf("after %s: %d %.200s, %v", time.Since(begin), a.status, a.body, err)
			}
		}
	})
	f.removeAll(empty)
}

// fill takes all but some bytes of a file system.
func fill(t *testing.T, path string, leave int64) {
	t.Helper()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() //nolint:errcheck // it is garbage
	block := make([]byte, 64<<10)
	for len(block) > 0 {
		if _, err := out.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
	if leave > 0 {
		if fi, err := out.Stat(); err == nil {
			out.Truncate(fi.Size() - leave) //nolint:errcheck // then it is fuller
		}
	}
}

// awaitLog waits until the daemon has logged a text.
func (f *faultDaemon) awaitLog(t *testing.T, from int64, want string) {
	t.Helper()
	if err := poll(30*time.Second, func() error {
		if log, _ := f.logged(from); !strings.Contains(log, want) {
			return fmt.Errorf("the daemon has not logged %q", want)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
