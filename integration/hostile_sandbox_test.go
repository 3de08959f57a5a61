//go:build integration && faults

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// harmless are system calls of the probe that may work, because what they do stays inside or is nothing.
var harmless = map[string]string{
	"setpriority":   "EACCES", // lowering is allowed, raising is not
	"migrate_pages": "", "move_pages": "", "kcmp": "", "memfd_secret": "", "pidfd_getfd": "",
}

// TestSystemCallsOfAnEscape: none of the calls that escapes are made of gets through.
func TestSystemCallsOfAnEscape(t *testing.T) {
	h := newHostile(t, "calls", "f timeout: 15s; concurrency: {max: 1}")
	t.Run("calls", func(t *testing.T) {
		var got map[string]string
		tell(t, "f", probeEvent{Do: "calls"}, &got)
		for name, e := range got {
			if _, ok := harmless[name]; !ok && e != "EPERM" && e != "ENOSYS" && e != "EACCES" {
				t.Errorf("%s: %s", name, e)
			}
		}
		if got["clone3"] != "ENOSYS" { // so that libc falls back to clone
			t.Errorf("clone3: %s", got["clone3"])
		}
	})
	t.Run("status", func(t *testing.T) {
		var got map[string]string
		tell(t, "f", probeEvent{Do: "status"}, &got)
		for key, want := range map[string]string{
			"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
			"NoNewPrivs": "1", "Seccomp": "2", "Uid": "1000\t1000\t1000\t1000", "Gid": "1000\t1000\t1000\t1000", "Groups": "",
		} {
			if got[key] != want {
				t.Errorf("%s: %q, want %q", key, got[key], want)
			}
		}
	})
	t.Run("socket families", func(t *testing.T) {
		var got struct {
			Socket     []string
			Socketpair map[string]string
		}
		tell(t, "f", probeEvent{Do: "families"}, &got)
		for _, s := range got.Socket {
			family, rest, _ := strings.Cut(s, "/")
			kind, protocol, _ := strings.Cut(rest, "/")
			switch {
			case family == "1", (family == "2" || family == "10") && (kind == "1" || kind == "2"):
			case family == "16" && protocol == "0":
			default:
				t.Errorf("a socket of family %s, type %s, protocol %s was opened", family, kind, protocol)
			}
		}
		for family, e := range got.Socketpair {
			if family != "1" {
				t.Errorf("socketpair of family %s reached the kernel: %s", family, e)
			}
		}
		if len(got.Socket) < 4 || got.Socketpair["1"] != "ok" {
			t.Errorf("what must work does not: %q, %v", got.Socket, got.Socketpair)
		}
	})
	t.Run("calls of other tables", func(t *testing.T) {
		var got map[string]string
		tell(t, "f", probeEvent{Do: "foreign"}, &got)
		dir := t.TempDir()
		for name, data := range probePrograms(t) {
			write(t, filepath.Join(dir, name), data)
			if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for how, outcome := range got {
			args := []string{filepath.Join(dir, "probe"), "call", how}
			if how == "program" {
				args = []string{filepath.Join(dir, "probe32")}
			}
			control, err := exec.Command(args[0], args[1:]...).CombinedOutput()
			if err != nil || strings.Contains(string(control), "ENOSYS") {
				t.Logf("%s: this kernel has no such calls: %s %v", how, control, err)
			}
			if strings.Contains(outcome, "answered") || strings.Contains(outcome, "family") || !strings.Contains(outcome, "signal: bad system call") && !strings.HasPrefix(outcome, "killed") {
				t.Errorf("%s: %s; want it to be killed", how, outcome)
			}
		}
	})
	t.Run("setuid program", func(t *testing.T) {
		var got string
		if tell(t, "f", probeEvent{Do: "exec", Paths: []string{"/suid", "uid"}}, &got); got != "1000 1000 1000 1000" {
			t.Errorf("a setuid program ran as %s", got)
		}
	})
	h.calm(t)
}

// TestNothingOfTheHostIsSeen: neither files of the host or of neighbours, nor kernel addresses, keys and messages.
func TestNothingOfTheHostIsSeen(t *testing.T) {
	h := newHostile(t, "seen", "a timeout: 15s; concurrency: {max: 1}", "b timeout: 15s; environment: {PASSWORD: b-secret}; concurrency: {max: 1}")
	var listening string
	tell(t, "b", probeEvent{Do: "listen"}, &listening) // writes /tmp/secret
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	tell(t, "a", probeEvent{Do: "read", Paths: []string{
		"/tmp", "/tmp/secret", "/run", "/run/secrets", "/proc", "/proc/1/environ", "/proc/1/root", "/proc/1/cwd", "/proc/1/fd", "/proc/1/maps", "/proc/1/mem", "/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/kallsyms",
		"/proc/timer_list", "/proc/sched_debug", "/proc/interrupts", "/proc/self/cgroup", "/proc/net/unix", "/proc/net/tcp", "/proc/net/arp", "/sys/kernel", "/sys/firmware", "/sys/fs/bpf", "/sys/fs/cgroup",
		"/dev", "/dev/shm", "/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/net/tun", "/dev/kvm", "/dev/vda", "/dev/sda", "/dev/pts", "/etc/shadow", "/etc/hostname", "/proc/sys/kernel/hostname",
		d.run, d.state, d.run + "/lfxd.sock", d.run + "/engine", "/proc/self/root" + d.state, "/proc/1/root" + d.state, "/proc/self/fd", "/proc/self/environ",
	}}, &got)
	for path, want := range map[string]string{
		"/tmp": "dir ", "/tmp/secret": "ENOENT", d.run: "ENOENT", d.state: "ENOENT", d.run + "/lfxd.sock": "ENOENT", d.run + "/engine": "ENOENT",
		"/proc/self/root" + d.state: "ENOENT", "/proc/1/environ": "EACCES", "/proc/1/root": "EACCES", "/proc/1/fd": "EACCES", "/proc/1/mem": "EACCES",
		"/sys/kernel": "dir ", "/sys/firmware": "dir ", "/proc/kmsg": "EACCES", "/dev/mem": "ENOENT", "/dev/kmsg": "ENOENT", "/dev/fuse": "ENOENT", "/dev/net/tun": "ENOENT", "/dev/kvm": "ENOENT", "/dev/vda": "ENOENT", "/dev/sda": "ENOENT", "/dev/shm": "dir ",
		"/run/secrets": "dir ",
	} {
		if got[path] != want && !(want == "EACCES" && (got[path] == "EPERM" || got[path] == "ENOENT" || got[path] == "data ")) {
			t.Errorf("%s: %.200s, want %s", path, got[path], want)
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/timer_list", "/proc/sched_debug", "/proc/interrupts"} {
		if strings.HasPrefix(got[path], "data ") && got[path] != "data " {
			t.Errorf("%s has %.100q", path, got[path])
		}
	}
	for path, text := range got {
		for _, leak := range []string{"b-secret", "lfxt", "containerd", "secret of a neighbour"} {
			if strings.Contains(text, leak) {
				t.Errorf("%s tells %q: %.300s", path, leak, text)
			}
		}
		if strings.TrimSpace(text) == "data "+host {
			t.Errorf("%s tells the host's name", path)
		}
	}
	if n := len(strings.Fields(got["/proc"])); n == 0 {
		t.Error("/proc is empty")
	}
	for _, field := range strings.Fields(got["/proc"]) {
		if len(field) > 3 && strings.Trim(field, "0123456789") == "" {
			t.Errorf("process %s of the host is seen", field)
		}
	}
	h.calm(t)
}

// hostCanary is a file of the host that no image may change.
type hostCanary struct{ dir, engine string }

func newCanary(t *testing.T) hostCanary {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lfx-canary")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) //nolint:errcheck // a leftover fails the check below
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "canary"), []byte("alive"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "canary"), 0o666); err != nil {
		t.Fatal(err)
	}
	return hostCanary{dir, programs(t)}
}

// programs describes the files that an escape through /proc/self/exe would overwrite.
func programs(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{"runc", "lfx-init", "containerd-shim-runc-v2"} {
		fi, err := os.Stat(filepath.Join(d.root, "build/engine", name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %d %s %d\n", name, fi.Size(), fi.ModTime(), fi.Sys().(*syscall.Stat_t).Ino)
	}
	return b.String()
}

func (c hostCanary) check(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "canary"))
	if err != nil || string(b) != "alive" {
		t.Errorf("the host's file is %q, %v", b, err)
	}
	if names := files(c.dir); !slices.Equal(names, []string{"canary"}) {
		t.Errorf("the host's folder has %q", names)
	}
	if diff := cmp.Diff(c.engine, programs(t)); diff != "" {
		t.Errorf("programs of the host changed:\n%s", diff)
	}
}

// TestHostileImages: what an image says about its user, labels, volumes and signals counts for nothing, and links in the
// place of what is mounted lead nowhere.
func TestHostileImages(t *testing.T) {
	canary := newCanary(t)
	up := strings.Repeat("../", 12) + canary.dir[1:]
	scratch := "FROM scratch\nCOPY --chmod=0755 probe /probe\nCOPY root/ /\nENTRYPOINT [\"/probe\"]\n"
	image := func(lines string) string {
		return "FROM scratch\nCOPY --chmod=0755 probe /probe\n" + lines + "\nENTRYPOINT [\"/probe\"]\n"
	}
	for _, c := range []struct {
		name, dockerfile, settings string
		links                      map[string]string
		refused                    string // what the deploy says, or the answer's error type
	}{
		{name: "user-root", dockerfile: image("USER 0:0")},
		{name: "user-name", dockerfile: image("USER root")},
		{name: "user-huge", dockerfile: image("USER 4294967296")},
		{name: "user-text", dockerfile: image("USER ../../etc/passwd")},
		{name: "volumes", dockerfile: image("VOLUME [\"/proc\", \"/tmp\", \"/var/run\", \"/\"]\nSTOPSIGNAL SIGSTOP\nEXPOSE 22\nHEALTHCHECK CMD [\"/probe\"]\nENV LD_PRELOAD=/evil.so PATH=/evil")},
		{name: "label-restart", dockerfile: image("LABEL containerd.io/restart.status=running containerd.io/restart.loguri=file:///" + canary.dir + "/canary"), refused: "reserved"},
		{name: "label-cri", dockerfile: image("LABEL io.cri-containerd.kind=sandbox"), refused: "reserved"},
		{name: "label-ours", dockerfile: image("LABEL dev.lfx.project=other dev.lfx.function=other")},
		{name: "workdir-proc", dockerfile: image("WORKDIR /proc/self/fd/7"), refused: "/proc"},
		{name: "workdir-dots", dockerfile: image("WORKDIR /x/../proc/self/fd/8"), refused: "/proc"},
		{name: "workdir-setting", dockerfile: image(""), settings: "workdir: /proc/self/fd/7", refused: "/proc"},
		{name: "workdir-link", dockerfile: scratch + "WORKDIR /wd\n", links: map[string]string{"wd": "/proc/self/fd/7"}, refused: "Runtime."},
		{name: "entrypoint-exe", dockerfile: "FROM scratch\nCOPY --chmod=0755 probe /probe\nENTRYPOINT [\"/proc/self/exe\"]\n", refused: "Runtime."},
		{name: "entrypoint-none", dockerfile: "FROM scratch\nCOPY --chmod=0755 probe /probe\n", refused: "entrypoint"},
		{name: "link-dev", dockerfile: scratch, links: map[string]string{"dev": canary.dir}},
		{name: "link-dev-up", dockerfile: scratch, links: map[string]string{"dev": up}},
		{name: "link-proc", dockerfile: scratch, links: map[string]string{"proc": canary.dir, "sys": up}},
		{name: "link-tmp", dockerfile: scratch, links: map[string]string{"tmp": up, "run": canary.dir}},
		{name: "link-files", dockerfile: scratch, links: map[string]string{"etc/resolv.conf": canary.dir + "/canary", "etc/hosts": up + "/canary", "run/secrets": up, "run/lfx": canary.dir}},
		{name: "link-in-dev", dockerfile: scratch, links: map[string]string{"dev/null": canary.dir + "/canary", "dev/pts": up, "dev/console": "/proc/sys/kernel/core_pattern", "dev/shm": up}},
		{name: "link-masked", dockerfile: scratch, links: map[string]string{"sys/kernel": up, "sys/firmware": canary.dir, "proc/kcore": canary.dir + "/canary"}},
		{name: "link-loop", dockerfile: scratch, links: map[string]string{"dev": "dev", "tmp": "/proc/self/cwd/tmp"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newProject(t, map[string]string{
				"lfx.yaml": manifest("images", "f timeout: 5s; "+c.settings), "f/Dockerfile": c.dockerfile, "f/probe": probePrograms(t)["probe"], "f/root/empty": "",
			})
			for name, target := range c.links {
				path := filepath.Join(p.dir, "f/root", name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(target, path); err != nil {
					t.Fatal(err)
				}
			}
			_, stderr, code := p.tryDeploy()
			if code != 0 {
				if c.refused == "" || !strings.Contains(stderr, c.refused) {
					t.Errorf("deploy: exit %d, want %q in\n%s", code, c.refused, stderr)
				}
				canary.check(t)
				return
			}
			a := post(t, invokeURL("f"), probeEvent{Do: "write", Paths: []string{
				"/", "/dev", "/dev/null", "/dev/pts", "/dev/console", "/proc/sys/kernel/core_pattern", "/sys/kernel", "/tmp/x", "/run", "/run/secrets", "/etc/resolv.conf", "/etc/hosts",
				"/proc/self/exe", "/proc/1/exe", "/run/lfx/lfx-init", canary.dir + "/canary", canary.dir + "/new",
			}}.String())
			canary.check(t)
			switch {
			case a.status == 200 && a.header.Get("X-Amz-Function-Error") == "" && c.refused == "":
				var status map[string]string
				if tell(t, "f", probeEvent{Do: "status"}, &status); status["Uid"] != "1000\t1000\t1000\t1000" || status["CapEff"] != "0000000000000000" || status["NoNewPrivs"] != "1" {
					t.Errorf("it runs as %q with %s", status["Uid"], status["CapEff"])
				}
				for _, path := range []string{"/dev", "/sys/kernel", "/run/secrets", "/etc/resolv.conf", "/etc/hosts", "/proc/self/exe", "/proc/1/exe", "/proc/sys/kernel/core_pattern"} {
					if strings.Contains(a.body, fmt.Sprintf("%q:\"ok\"", path)) {
						t.Errorf("%s can be written: %s", path, a.body)
					}
				}
			default:
				t.Logf("answered %d %.300s", a.status, a.body)
				if c.refused != "" && !strings.Contains(a.body, c.refused) {
					t.Errorf("want %q", c.refused)
				}
			}
		})
	}
	canary.check(t)
}
