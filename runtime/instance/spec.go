package instance

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"lfx.dev/lfxd/runtime/lfxinit"
)

// What holds for every instance; the reasons are beside the values in ociSpec.
const (
	ociVersion = "1.2.0" // old crun and runc refuse what they do not know
	functionID = 1000    // uid and gid inside
	pidsLimit  = 1024    // as on Lambda, lfx-init's threads included
	mib        = 1 << 20
	cpuPeriod  = 100_000 // µs
)

// host is what the spec needs to know about the machine. It is looked up once, by NewManager.
type host struct {
	cgroupVersion int
	swapLimit     bool // the kernel can limit swap
	ipv6          bool // there are IPv6 sysctls
	thermal       []string
}

// specInput is what the spec of one instance is made from.
type specInput struct {
	Spec
	uid         uint32 // first host uid
	dir         string // the instance's directory
	initPath    string
	cgroupsPath string
	// scope says that systemd owns the cgroup. At daemon-reload it writes what it was told at create over whatever was
	// written since, so it must be told what is to stay.
	scope    bool
	apparmor string
	// userns and netns are the paths of namespaces made ahead; empty ones are made by the runtime.
	userns, netns string
}

// validate refuses what must never reach a runtime.
func (s Spec) validate() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if !validID.MatchString(s.ID) {
		return invalid("instance ID %q: letters, digits, dot, underscore and dash, at most 63", s.ID)
	}
	if len(s.Args) == 0 || s.Args[0] == "" {
		return invalid("the image has no entrypoint and no command")
	}
	if err := validDir(s.Dir); err != nil {
		return err
	}
	if s.MemoryMB < 4 || s.TmpMB < 1 {
		return invalid("memory of %d MB and /tmp of %d MB", s.MemoryMB, s.TmpMB)
	}
	if !(s.Cores > 0) || math.IsInf(s.Cores, 0) {
		return invalid("CPU share of %v cores", s.Cores)
	}
	for _, e := range s.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" || strings.ContainsRune(e, 0) {
			return invalid("environment variable %q", e)
		}
	}
	for _, a := range s.Args {
		if strings.ContainsRune(a, 0) {
			return invalid("argument %q has a NUL byte", a)
		}
	}
	return nil
}

// validDir refuses working directories through which a runtime's own descriptors have been reached
// (CVE-2024-21626).
func validDir(dir string) error {
	if !filepath.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		return fmt.Errorf("working directory %q is no absolute path: %w", dir, errdefs.ErrInvalidArgument)
	}
	clean := filepath.Clean(dir)
	for _, p := range []string{"/proc", "/sys", "/dev"} {
		if clean == p || strings.HasPrefix(clean, p+"/") {
			return fmt.Errorf("working directory %q is below %s: %w", dir, p, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// ociSpec is the literal: nothing in it comes from the image except what the caller has put into Args, Env and Dir.
func ociSpec(in specInput, h host) *specs.Spec {
	s := &specs.Spec{
		Version:  ociVersion,
		Hostname: in.ID,
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Process:  process(in),
		Mounts:   mounts(in),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace}, {Type: specs.UserNamespace, Path: in.userns}, {Type: specs.NetworkNamespace, Path: in.netns},
			},
			UIDMappings:       idMapping(in.uid),
			GIDMappings:       idMapping(in.uid),
			CgroupsPath:       in.cgroupsPath,
			RootfsPropagation: "private",
			Resources:         resources(in, h),
			Sysctl:            sysctls(h),
			MaskedPaths: append([]string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/kallsyms", "/proc/kpagecount",
				"/proc/kpageflags", "/proc/kpagecgroup", "/proc/kmsg", "/proc/config.gz", "/sys/firmware",
				"/sys/devices/virtual/powercap", "/sys/kernel", "/sys/fs/bpf",
			}, h.thermal...),
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	s.Linux.Seccomp = seccompProfile(s)
	return s
}

func process(in specInput) *specs.Process {
	umask, oom := uint32(0o022), 800 // functions die before daemons
	return &specs.Process{
		User: specs.User{UID: functionID, GID: functionID, Umask: &umask},
		// The working directory goes to lfx-init, which reports a missing one; runc would make it.
		Cwd:             "/",
		Args:            append([]string{filepath.Join(lfxinit.Dir, lfxinit.InitName), in.Dir}, in.Args...),
		Env:             in.Env,
		NoNewPrivileges: true,
		ApparmorProfile: in.apparmor,
		Capabilities: &specs.LinuxCapabilities{
			Bounding: []string{}, Effective: []string{}, Permitted: []string{}, Inheritable: []string{}, Ambient: []string{},
		},
		OOMScoreAdj: &oom,
		Rlimits: []specs.POSIXRlimit{ // no NPROC: it counts per uid; the pids limit does it
			{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}, // as on Lambda
			{Type: "RLIMIT_CORE", Soft: 0, Hard: 0},
			{Type: "RLIMIT_MEMLOCK", Soft: 65536, Hard: 65536},
			{Type: "RLIMIT_MSGQUEUE", Soft: 0, Hard: 0},
		},
	}
}

func idMapping(first uint32) []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: first, Size: rangeSize}}
}

func mounts(in specInput) []specs.Mount {
	m := func(dest, typ, source string, options ...string) specs.Mount {
		return specs.Mount{Destination: dest, Type: typ, Source: source, Options: options}
	}
	bind := func(dest, source string) specs.Mount {
		return m(dest, "bind", filepath.Join(in.dir, source), "bind", "ro", "nosuid", "nodev", "noexec", "private")
	}
	return []specs.Mount{
		m("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
		m("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=64k", "nr_inodes=64"),
		// Pseudo-terminals are counted for the whole host (kernel.pty.max), hence a limit for each.
		m("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "max=64"),
		m("/dev/shm", "tmpfs", "shm", "nosuid", "nodev", "noexec", "mode=1777", "size=16m", "nr_inodes=1024"),
		m("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		m("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "ro"),
		m("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%dm", in.TmpMB), "nr_inodes=65536"),
		bind("/etc/resolv.conf", resolvFile),
		bind("/etc/hosts", hostsFile),
		bind("/run/secrets", secretsDir),
		// A FIFO on a read-only mount can be written: only files and directories are protected.
		bind(lfxinit.Dir, ioDir),
		m(filepath.Join(lfxinit.Dir, lfxinit.InitName), "bind", in.initPath, "bind", "ro", "nosuid", "nodev", "private"),
	}
}

func resources(in specInput, h host) *specs.LinuxResources {
	memory := hardMemory(in.Spec)
	pids := int64(pidsLimit)
	cores := max(in.Cores, 1) // init runs with a core at least; SetCores lowers it before the first event
	if in.scope {
		cores = in.Cores // create raises it for init
	}
	quota, period := int64(math.Round(cores*cpuPeriod)), uint64(cpuPeriod)
	shares := uint64(max(2, math.Round(in.Cores*1024)))
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, // the runtime adds null, zero, full, random, urandom, tty
		Pids:    &specs.LinuxPids{Limit: &pids},
		Memory:  &specs.LinuxMemory{Limit: &memory},
		CPU:     &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
	}
	if h.swapLimit {
		r.Memory.Swap = &memory // memory and swap together, so equal means no swap
	}
	if h.cgroupVersion == 2 {
		r.Unified = map[string]string{"memory.oom.group": "1"}
		if h.swapLimit {
			r.Unified["memory.swap.max"] = "0"
		}
		if in.scope {
			r.Unified["memory.high"] = strconv.FormatInt(int64(in.MemoryMB)*mib, 10) // cgroup.Watch's tripwire
		}
	}
	return r
}

// hardMemory is the limit of the cgroup in bytes: /tmp's pages are charged to it too.
func hardMemory(s Spec) int64 { return int64(s.MemoryMB+s.TmpMB) * mib }

// netSysctl returns the file of a sysctl that belongs to the network namespace.
func netSysctl(key string) (path string, ok bool) {
	return "/proc/sys/" + strings.ReplaceAll(key, ".", "/"), strings.HasPrefix(key, "net.")
}

func sysctls(h host) map[string]string {
	m := map[string]string{
		"net.ipv4.ping_group_range":  "1 0",
		"user.max_user_namespaces":   "0",
		"user.max_inotify_instances": "64",
		"user.max_inotify_watches":   "8192",
	}
	if h.ipv6 {
		m["net.ipv6.conf.all.disable_ipv6"] = "1"
		m["net.ipv6.conf.default.disable_ipv6"] = "1"
	}
	return m
}
