package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/config"
	"lfx.dev/lfxd/daemon/deploy"
	"lfx.dev/lfxd/daemon/engine"
	"lfx.dev/lfxd/runtime/cgroup"
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
	r.host(b.cfg)
	return api.DoctorReport{Checks: r.checks}
}

// Doctor checks what can be checked without a daemon: before its first start, or when it does not start.
func Doctor(cfg *config.Config) api.DoctorReport {
	var r report
	r.check("configuration", cfg.Validate(), "valid", "correct the configuration; docs/configuration.md lists every key")
	r.check("root", rootOnly(), "yes", "run lfxd with sudo, or as a service")
	r.sockets(cfg)
	r.host(cfg)
	return api.DoctorReport{Checks: r.checks}
}

func rootOnly() error {
	if os.Getuid() != 0 {
		return errors.New("lfxd makes namespaces, cgroups and firewall rules, and must run as root")
	}
	return nil
}

// sockets says whether the engine answers and whether the TCP port is free. A daemon that runs has it.
func (r *report) sockets(cfg *config.Config) {
	for _, s := range []struct{ name, path, remedy string }{
		{"containerd", cfg.Engine.ContainerdAddress, "start the containerd that engine.containerd_address names"},
		{"buildkit", cfg.Engine.BuildkitAddress, "start the buildkitd that engine.buildkit_address names"},
	} {
		if s.path == "" {
			continue // an engine of our own comes with the daemon
		}
		c, err := net.DialTimeout("unix", strings.TrimPrefix(s.path, "unix://"), 2*time.Second)
		if err == nil {
			c.Close() //nolint:errcheck // nothing was said
		}
		r.check(s.name, err, "answers on "+s.path, s.remedy)
	}
	if cfg.Listen.TCP == "" {
		return
	}
	l, err := net.Listen("tcp", cfg.Listen.TCP)
	if err == nil {
		l.Close() //nolint:errcheck // only tried
	}
	r.check("port", err, cfg.Listen.TCP+" is free", "stop the program that has the port (ss -ltnp), unless it is lfxd itself, or set listen.tcp")
}

// host looks at the kernel, the disk and the programs.
func (r *report) host(cfg *config.Config) {
	r.kernel()
	r.cgroups()
	r.nft()
	r.disk(cfg.StateDir)
	r.groups(cfg.Listen.ControlGroup, cfg.Listen.InvokeGroup)
	r.files(cfg)
}

// cgroups says whether instances can be limited here.
func (r *report) cgroups() {
	root, err := cgroup.Detect()
	if err == nil {
		err = cgroupsWritable()
	}
	detail := ""
	if err == nil {
		detail = fmt.Sprintf("version %d", root.Version())
	}
	r.check("cgroups", err, detail, "mount the cgroup file system writable: in a container, run it privileged or with its own cgroup namespace")
}

// cgroupsWritable makes and removes a cgroup.
func cgroupsWritable() error {
	const root = "/sys/fs/cgroup"
	dir := filepath.Join(root, "memory")
	if _, err := os.Stat(dir); err != nil {
		dir = root
	}
	probe := filepath.Join(dir, fmt.Sprintf("lfx-doctor-%d", os.Getpid()))
	if err := os.Mkdir(probe, 0o755); err != nil {
		return fmt.Errorf("no cgroup can be made: %w", err)
	}
	return os.Remove(probe)
}

// nft says whether nftables works: the program that writes the rules, and the kernel behind it.
func (r *report) nft() {
	path, err := exec.LookPath("nft")
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, "nft"))
	}
	if err != nil {
		r.add("nftables", "fail", "the program nft is not installed", "apt-get install nftables")
		return
	}
	out, err := exec.Command(path, "list", "tables").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s does not work: %s", path, strings.TrimSpace(string(out)))
	}
	r.check("nftables", err, path, "use a kernel with nf_tables (modprobe nf_tables), and run as root")
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
	for _, f := range kernelFeatures() {
		r.check(f.name, f.err, "available", f.remedy)
	}
}

func (r *report) disk(dir string) {
	for filepath.Dir(dir) != dir { // before the first start the directory is not there
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	free, err := deploy.Free(dir)
	detail := fmt.Sprintf("%.1f GiB free in %s", float64(free)/(1<<30), dir)
	const remedy = "free some space, or move state_dir to a larger disk"
	switch {
	case err != nil:
		r.check("disk", err, "", "make "+dir+" readable")
	case free < deploy.MinFree:
		r.add("disk", "fail", detail+": deploys are refused", remedy)
	case free < minFree:
		r.add("disk", "warn", detail, remedy)
	default:
		r.add("disk", "ok", detail, "")
	}
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

// files says whether everything that comes with lfxd is where the configuration says.
func (r *report) files(cfg *config.Config) {
	programs := []string{"lfx-init", "bridge", "host-local"}
	if cfg.Engine.ContainerdAddress == "" {
		programs = append(programs, "containerd", "containerd-shim-runc-v2", "runc", "buildkitd", "loopback")
	}
	var missing []string
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(cfg.LibexecDir, name)); err != nil {
			missing = append(missing, name)
		}
	}
	var err error
	if len(missing) > 0 {
		err = fmt.Errorf("missing in %s: %s", cfg.LibexecDir, strings.Join(missing, ", "))
	}
	r.check("programs", err, "complete in "+cfg.LibexecDir, "install lfxd whole: make engine build, or the package; libexec_dir says where they are")
}
