package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/engine"
)

// minFree is the free space below which a state directory is worth a warning.
const minFree = 1 << 30

// Doctor implements server.Backend: it looks at everything that functions need, and says what to do
// about what is missing.
func (b *backend) Doctor(ctx context.Context) api.DoctorReport {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var r report
	r.engine(ctx, b)
	r.network(b)
	r.kernel()
	r.disk(b.cfg.StateDir)
	r.groups(b.cfg.Listen.ControlGroup, b.cfg.Listen.InvokeGroup)
	r.files(b)
	return api.DoctorReport{Checks: r.checks}
}

type report struct{ checks []api.DoctorCheck }

func (r *report) add(name, status, detail, remedy string) {
	r.checks = append(r.checks, api.DoctorCheck{Name: name, Status: status, Detail: detail, Remedy: remedy})
}

// check adds "ok" with detail, or "fail" with the error and the remedy.
func (r *report) check(name string, err error, detail, remedy string) {
	if err != nil {
		r.add(name, "fail", err.Error(), remedy)
		return
	}
	r.add(name, "ok", detail, "")
}

func (r *report) engine(ctx context.Context, b *backend) {
	v := b.Version(ctx)
	restart := "start it: lfxd --with-engine restarts its own; see the log in " + filepath.Join(b.cfg.StateDir, "engine", "log")
	for _, part := range []struct{ name, version string }{{"containerd", v.Containerd}, {"buildkit", v.Buildkit}, {"OCI runtime", v.Runtime}} {
		if part.version == "" {
			r.add(part.name, "fail", part.name+" is not answering", restart)
			continue
		}
		r.add(part.name, "ok", part.version, "")
	}
	r.check("versions", engine.CheckFloors(engine.Versions{Containerd: v.Containerd, BuildKit: v.Buildkit}),
		"none has a known hole that matters here", "build the engine again: make engine")
}

func (r *report) network(b *backend) {
	if cause := b.breach.Load(); cause != nil {
		r.add("firewall", "fail", *cause, "find out which program changes nftables tables that are not its own")
		return
	}
	r.add("firewall", "ok", "installed and proven by the probe", "")
}

func (r *report) kernel() {
	var u unix.Utsname
	unix.Uname(&u) //nolint:errcheck // cannot fail
	r.add("kernel", "ok", unix.ByteSliceToString(u.Release[:]), "")
	for name, f := range map[string]string{
		"user namespaces": "/proc/sys/user/max_user_namespaces",
		"seccomp":         "/proc/sys/kernel/seccomp/actions_avail",
	} {
		data, err := os.ReadFile(f)
		if err == nil && strings.TrimSpace(string(data)) == "0" {
			err = errors.New("switched off in " + f)
		}
		r.check(name, err, "available", "use a kernel with "+name+", and do not switch them off by sysctl")
	}
	fs, err := os.ReadFile("/proc/filesystems")
	if err == nil && !strings.Contains(string(fs), "\toverlay\n") {
		err = errors.New("the kernel does not know overlayfs")
	}
	r.check("overlayfs", err, "available", "modprobe overlay")
}

func (r *report) disk(dir string) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		r.check("disk", err, "", "make "+dir+" readable")
		return
	}
	free := int64(st.Bavail) * st.Bsize
	detail := fmt.Sprintf("%.1f GiB free in %s", float64(free)/(1<<30), dir)
	if free < minFree {
		r.add("disk", "warn", detail, "free some space, or move state_dir to a larger disk")
		return
	}
	r.add("disk", "ok", detail, "")
}

func (r *report) groups(names ...string) {
	for _, name := range names {
		if name == "" {
			continue
		}
		if _, err := user.LookupGroup(name); err != nil {
			r.add("group "+name, "warn", "the group does not exist, so only root may use its socket", "groupadd --system "+name)
			continue
		}
		r.add("group "+name, "ok", "exists", "")
	}
}

func (r *report) files(b *backend) {
	init := filepath.Join(b.cfg.LibexecDir, "lfx-init")
	_, err := os.Stat(init)
	r.check("lfx-init", err, init, "install lfxd whole: make build")
}
