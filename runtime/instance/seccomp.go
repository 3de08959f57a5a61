package instance

import (
	"runtime"
	"slices"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// deniedSyscalls are taken out of containerd's default profile: a function has no use for them, and each has
// been part of an escape or a denial of service. mknod goes as a whole, so mkfifo does not work either.
var deniedSyscalls = []string{
	"ptrace", "process_vm_readv", "process_vm_writev", "modify_ldt", "name_to_handle_at", "open_by_handle_at",
	"clock_adjtime", "clock_adjtime64", "adjtimex", "syncfs", "fanotify_mark", "mknod", "mknodat",
	// Not in the default profile today; named so that a new version of it cannot bring them.
	"io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "userfaultfd", "perf_event_open",
	"keyctl", "add_key", "request_key", "unshare", "setns", "mount", "umount", "umount2", "mount_setattr", "move_mount",
	"open_tree", "fsopen", "fsmount", "fsconfig", "fspick", "pivot_root", "chroot", "fanotify_init", "kexec_load",
	"kexec_file_load", "init_module", "finit_module", "delete_module", "socketcall",
}

// socketFamilies are the address families of socket(2) that a function may use; netlink only with protocol
// NETLINK_ROUTE (interfaces and addresses, which getifaddrs reads).
var socketFamilies = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}

// conditional are the system calls that seccompProfile allows with certain arguments only.
var conditional = []string{"socket", "socketpair", "mmap", "memfd_create"}

// seccompProfile derives a function's profile from containerd's default. It is the same for every instance.
func seccompProfile(s *specs.Spec) *specs.LinuxSeccomp {
	p := seccomp.DefaultProfile(s)
	// Native calls only: the 32-bit socketcall would get around the socket rules below.
	p.Architectures = []specs.Arch{nativeArch()}
	rules := make([]specs.LinuxSyscall, 0, len(p.Syscalls)+len(socketFamilies)+len(conditional))
	for _, r := range p.Syscalls {
		r.Names = slices.DeleteFunc(slices.Clone(r.Names), func(name string) bool {
			if slices.Contains(conditional, name) {
				return true
			}
			return r.Action == specs.ActAllow && slices.Contains(deniedSyscalls, name)
		})
		if len(r.Names) > 0 {
			rules = append(rules, r)
		}
	}
	for _, f := range socketFamilies {
		rules = append(rules, allowSocket(argEquals(0, f)))
	}
	p.Syscalls = append(rules, allowSocket(argEquals(0, unix.AF_NETLINK), argEquals(2, unix.NETLINK_ROUTE)),
		// Of any other family socketpair gets as far as the kernel's search for a module, and of TIPC it works.
		allow("socketpair", argEquals(0, unix.AF_UNIX)),
		// Huge pages come out of the host's reserve and count against no memory limit.
		allow("mmap", argLacks(3, unix.MAP_HUGETLB)), allow("memfd_create", argLacks(1, unix.MFD_HUGETLB)))
	return p
}

// allowSocket allows socket(2) when all conditions hold. They must be about different arguments:
// libseccomp joins conditions on the same one by "or".
func allowSocket(args ...specs.LinuxSeccompArg) specs.LinuxSyscall { return allow("socket", args...) }

func allow(name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: args}
}

// argLacks is true when a flag is not set.
func argLacks(index uint, flag uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Value: flag, Op: specs.OpMaskedEqual}
}

func argEquals(index uint, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Value: value, Op: specs.OpEqualTo}
}

func nativeArch() specs.Arch {
	switch runtime.GOARCH {
	case "arm64":
		return specs.ArchAARCH64
	case "riscv64":
		return specs.ArchRISCV64
	case "s390x":
		return specs.ArchS390X
	case "ppc64le":
		return specs.ArchPPC64LE
	}
	return specs.ArchX86_64
}
