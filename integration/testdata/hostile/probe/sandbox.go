package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func init() {
	actions["calls"] = calls
	actions["families"] = func(event) any { return map[string]any{"socket": families(native), "socketpair": pairs()} }
	actions["foreign"] = foreign
	actions["exec"] = func(e event) any { return run(e.Paths...) }
	actions["write"] = func(e event) any { return each(e.Paths, tryWrite) }
	actions["read"] = func(e event) any { return each(e.Paths, tryRead) }
	actions["status"] = status
	actions["dial"] = func(e event) any { return dialAll(e.Paths, e.span()) }
	actions["listen"] = listen
	actions["neighbours"] = neighbours
	actions["flows"] = flows
	actions["processes"] = func(event) any { p, _ := filepath.Glob("/proc/[0-9]*"); return len(p) }
	actions["link"] = links
}

func unwrap(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

func errOf(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

var names = map[syscall.Errno]string{
	syscall.EPERM: "EPERM", syscall.EACCES: "EACCES", syscall.EROFS: "EROFS", syscall.ENOSYS: "ENOSYS", syscall.EAGAIN: "EAGAIN",
	syscall.ENOSPC: "ENOSPC", syscall.EMFILE: "EMFILE", syscall.ENFILE: "ENFILE", syscall.ENOMEM: "ENOMEM", syscall.ENOENT: "ENOENT",
	syscall.EINVAL: "EINVAL", syscall.ECONNREFUSED: "ECONNREFUSED", syscall.EHOSTUNREACH: "EHOSTUNREACH", syscall.ENETUNREACH: "ENETUNREACH",
	syscall.EAFNOSUPPORT: "EAFNOSUPPORT", syscall.EPROTONOSUPPORT: "EPROTONOSUPPORT", syscall.EFBIG: "EFBIG", syscall.EISDIR: "EISDIR",
	syscall.ENOTDIR: "ENOTDIR", syscall.EEXIST: "EEXIST", syscall.ENODEV: "ENODEV", syscall.ENXIO: "ENXIO", syscall.EADDRNOTAVAIL: "EADDRNOTAVAIL",
	syscall.EADDRINUSE: "EADDRINUSE", syscall.EOPNOTSUPP: "EOPNOTSUPP", syscall.EBADF: "EBADF", syscall.EFAULT: "EFAULT", syscall.EIO: "EIO",
}

func errnoName(e syscall.Errno) string {
	if n, ok := names[e]; ok {
		return n
	}
	return fmt.Sprintf("errno %d", int(e))
}

func each(paths []string, f func(string) string) map[string]string {
	out := map[string]string{}
	for _, p := range paths {
		out[p] = f(p)
	}
	return out
}

func tryWrite(path string) string {
	fi, err := os.Stat(path)
	if err == nil && fi.IsDir() {
		path = filepath.Join(path, "hostile")
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return errno(err)
	}
	defer f.Close()
	_, err = f.WriteString("1")
	return errno(err)
}

// tryRead returns the beginning of a file, a link's target, or the names in a folder.
func tryRead(path string) string {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return errno(err)
		}
		var all []string
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return "dir " + strings.Join(all, " ")
	}
	f, err := os.Open(path)
	if err != nil {
		return errno(err)
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	n, err := f.Read(b)
	if n == 0 && err != nil && err.Error() != "EOF" {
		return errno(err)
	}
	return "data " + string(b[:n])
}

func status(event) any {
	out := map[string]string{}
	b, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(b), "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok {
			out[k] = strings.TrimSpace(v)
		}
	}
	return out
}

// run executes a program and returns what it printed and how it ended.
func run(args ...string) string {
	b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return strings.TrimSpace(string(b) + " " + err.Error())
	}
	return strings.TrimSpace(string(b))
}

// calls makes system calls that a function has no business with and returns the errors.
func calls(event) any {
	str := func(s string) uintptr { b := append([]byte(s), 0); return uintptr(unsafe.Pointer(&b[0])) }
	zero := make([]byte, 4096)
	buf := uintptr(unsafe.Pointer(&zero[0]))
	self := uintptr(os.Getpid())
	one := []int32{1, 0}
	priority := uintptr(unsafe.Pointer(&one[0]))
	capHeader, capAll := []uint32{0x20080522, 0}, []uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}
	list := []struct {
		name string
		nr   uintptr
		args []uintptr
	}{
		{"unshare user", 272, []uintptr{0x10000000}}, {"unshare net", 272, []uintptr{0x40000000}}, {"unshare mount", 272, []uintptr{0x20000}},
		{"unshare pid", 272, []uintptr{0x20000000}}, {"setns", 308, []uintptr{0, 0}},
		{"mount tmpfs", 165, []uintptr{str("none"), str("/tmp"), str("tmpfs"), 0, 0}}, {"mount bind", 165, []uintptr{str("/"), str("/tmp"), 0, 4096, 0}},
		{"umount", 166, []uintptr{str("/tmp"), 2}}, {"fsopen", 430, []uintptr{str("tmpfs"), 0}}, {"open_tree", 428, []uintptr{^uintptr(99), str("/"), 1}},
		{"move_mount", 429, nil}, {"mount_setattr", 442, nil}, {"pivot_root", 155, []uintptr{str("/tmp"), str("/tmp")}}, {"chroot", 161, []uintptr{str("/tmp")}},
		{"mknod block", 133, []uintptr{str("/tmp/sda"), 0o60600, 0x800}}, {"mknod char", 133, []uintptr{str("/tmp/mem"), 0o20600, 0x101}},
		{"mknodat", 259, []uintptr{^uintptr(99), str("/tmp/mem"), 0o20600, 0x101}},
		{"ptrace traceme", 101, []uintptr{0}}, {"ptrace attach init", 101, []uintptr{16, 1}}, {"ptrace seize init", 101, []uintptr{0x4206, 1}},
		{"process_vm_readv", 310, []uintptr{1, buf, 1, buf, 1, 0}}, {"process_vm_writev", 311, []uintptr{1, buf, 1, buf, 1, 0}},
		{"bpf", 321, []uintptr{0, buf, 128}}, {"perf_event_open", 298, []uintptr{buf, 0, ^uintptr(0), ^uintptr(0), 0}},
		{"io_uring_setup", 425, []uintptr{8, buf}}, {"userfaultfd", 323, []uintptr{0}},
		{"keyctl", 250, []uintptr{0, 0xfffffffd, 1}}, {"add_key", 248, []uintptr{str("user"), str("k"), buf, 8, 0xfffffffd}}, {"request_key", 249, []uintptr{str("user"), str("k"), 0, 0}},
		{"init_module", 175, []uintptr{buf, 0, buf}}, {"finit_module", 313, []uintptr{0, buf, 0}}, {"delete_module", 176, []uintptr{str("x"), 0}},
		{"kexec_load", 246, nil}, {"name_to_handle_at", 303, []uintptr{^uintptr(99), str("/"), buf, buf, 0}}, {"open_by_handle_at", 304, []uintptr{0, buf, 0}},
		{"fanotify_init", 300, nil}, {"clone3", 435, []uintptr{buf, 88}}, {"syslog", 103, []uintptr{3, buf, 4096}},
		{"reboot", 169, []uintptr{0xfee1dead, 672274793, 0}}, {"swapon", 167, []uintptr{str("/tmp"), 0}}, {"sethostname", 170, []uintptr{str("evil"), 4}},
		{"settimeofday", 164, []uintptr{buf, 0}}, {"clock_settime", 227, []uintptr{0, buf}}, {"adjtimex", 159, []uintptr{buf}}, {"acct", 163, []uintptr{0}},
		{"quotactl", 179, nil}, {"iopl", 172, []uintptr{3}}, {"ioperm", 173, []uintptr{0, 1, 1}}, {"modify_ldt", 154, []uintptr{1, buf, 16}},
		{"setpriority", 141, []uintptr{0, 0, ^uintptr(19)}}, {"sched_setscheduler", 144, []uintptr{0, 1, priority}},
		{"capset", 126, []uintptr{uintptr(unsafe.Pointer(&capHeader[0])), uintptr(unsafe.Pointer(&capAll[0]))}},
		{"setuid root", 105, []uintptr{0}}, {"setgid root", 106, []uintptr{0}}, {"setgroups", 116, []uintptr{1, buf}}, {"setresuid root", 117, []uintptr{0, 0, 0}},
		{"syncfs", 306, []uintptr{1}}, {"vhangup", 153, nil}, {"pidfd_getfd", 438, []uintptr{0, 0, 0}}, {"lookup_dcookie", 212, nil}, {"nfsservctl", 180, nil},
		{"migrate_pages", 256, []uintptr{self, 1, buf, buf}}, {"move_pages", 279, []uintptr{1, 0, 0, 0, 0, 0}}, {"kcmp", 312, []uintptr{1, 1, 0, 0, 0}},
		{"memfd_secret", 447, []uintptr{0}},
		{"huge pages", 9, []uintptr{0, 2 << 20, 3, 0x22 | 0x40000, ^uintptr(0), 0}}, {"huge memfd", 319, []uintptr{str("x"), 4}}, {"huge shm", 29, []uintptr{0, 2 << 20, 0o5600}},
	}
	out := map[string]string{}
	for _, c := range list {
		var a [6]uintptr
		copy(a[:], c.args)
		_, _, e := syscall.RawSyscall6(c.nr, a[0], a[1], a[2], a[3], a[4], a[5])
		out[c.name] = errno(errOf(e))
	}
	for name, flags := range map[string]uintptr{"clone user": 0x10000000, "clone net": 0x40000000, "clone mount": 0x20000, "clone pid": 0x20000000, "clone cgroup": 0x02000000} {
		out[name] = clone(flags)
	}
	return out
}

// clone forks with flags; a child that is made ends at once.
func clone(flags uintptr) string {
	pid, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, flags|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 {
		return errnoName(e)
	}
	if pid == 0 {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return "ok"
}

var kinds = []uintptr{syscall.SOCK_STREAM, syscall.SOCK_DGRAM, syscall.SOCK_RAW, syscall.SOCK_SEQPACKET, syscall.SOCK_RDM, syscall.SOCK_PACKET}

func native(family, kind, protocol uintptr) (uintptr, syscall.Errno) {
	fd, _, e := syscall.RawSyscall(syscall.SYS_SOCKET, family, kind, protocol)
	return fd, e
}

// families returns what sockets may be opened: "family/kind" for each.
func families(socket func(family, kind, protocol uintptr) (uintptr, syscall.Errno)) []string {
	out := []string{}
	for family := range uintptr(64) {
		for _, kind := range kinds {
			for _, protocol := range []uintptr{0, 3, 9, 15, 16, 255} { // netlink: none, sock_diag, audit, uevent, generic
				if fd, e := socket(family, kind, protocol); e == 0 {
					_ = syscall.Close(int(fd))
					out = append(out, fmt.Sprintf("%d/%d/%d", family, kind, protocol))
				}
			}
		}
	}
	for _, family := range []uintptr{1<<32 | 38, 1<<32 | 17, 0xffffffff00000026} { // the kernel looks at 32 bits
		if fd, e := socket(family, syscall.SOCK_SEQPACKET, 0); e == 0 {
			_ = syscall.Close(int(fd))
			out = append(out, fmt.Sprintf("%x", family))
		}
	}
	return out
}

// pairs is the same for socketpair; what is not EPERM reached the kernel, which looks for a module then.
func pairs() map[string]string {
	out := map[string]string{}
	for family := range uintptr(47) {
		var p [2]int32
		_, _, e := syscall.RawSyscall6(syscall.SYS_SOCKETPAIR, family, syscall.SOCK_STREAM, 0, uintptr(unsafe.Pointer(&p)), 0, 0)
		if e != syscall.EPERM {
			out[fmt.Sprint(family)] = errno(errOf(e))
		}
	}
	return out
}

// foreign makes calls of other tables in processes of their own and says how those ended.
func foreign(event) any {
	out := map[string]string{}
	for _, how := range []string{"int80 socket", "int80 socketcall", "int80 getpid", "x32 socket", "x32 getpid"} {
		out[how] = run("/proc/self/exe", "call", how)
	}
	out["program"] = run("/probe32")
	return out
}

// foreignCall makes one call of another table and prints what came of it.
func foreignCall(how string) {
	runtime.GOMAXPROCS(2) // a thread that is killed takes one with it
	threads := make(chan int)
	go func() {
		runtime.LockOSThread()
		threads <- syscall.Gettid()
		tableCall(how)
		os.Exit(0)
	}()
	// Killed is only the thread that made the call.
	for tid := <-threads; ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
		if _, state, _ := strings.Cut(string(b), ") "); err != nil || strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X") {
			fmt.Println("killed")
			os.Exit(1)
		}
	}
}

func tableCall(how string) {
	const x32 = 0x40000000
	switch how {
	case "int80 socket":
		fmt.Println("answered", int32(int80(359, 38, 5, 0)))
	case "int80 getpid":
		fmt.Println("answered", int32(int80(20, 0, 0, 0)))
	case "int80 socketcall":
		b, _, e := syscall.Syscall6(syscall.SYS_MMAP, 0, 4096, 3, 0x22|0x40, ^uintptr(0), 0) // below 4 GiB
		if e != 0 {
			fmt.Println("answered", e)
			return
		}
		args := (*[3]uint32)(unsafe.Pointer(b)) //nolint:govet // memory of mmap
		args[0], args[1], args[2] = 38, 5, 0
		fmt.Println("answered", int32(int80(102, 1, b, 0)))
	case "x32 socket":
		_, _, e := syscall.RawSyscall(x32|41, 38, 5, 0)
		fmt.Println("answered", errno(errOf(e)))
	case "x32 getpid":
		_, _, e := syscall.RawSyscall(x32|39, 0, 0, 0)
		fmt.Println("answered", errno(errOf(e)))
	}
}

// listen answers on every address of the instance, TCP and UDP, and on an abstract socket, for as long as it lives.
func listen(e event) any {
	answer := func(l net.Listener) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("peer"))
			c.Close()
		}
	}
	for _, a := range []struct{ network, addr string }{{"tcp4", "0.0.0.0:8080"}, {"unix", "@hostile-peer"}} {
		l, err := net.Listen(a.network, a.addr)
		if err != nil {
			return errno(err)
		}
		go answer(l)
	}
	u, err := net.ListenPacket("udp4", "0.0.0.0:8080")
	if err != nil {
		return errno(err)
	}
	go func() {
		b := make([]byte, 2048)
		for {
			if _, from, err := u.ReadFrom(b); err == nil {
				_, _ = u.WriteTo([]byte("peer"), from)
			}
		}
	}()
	_ = os.WriteFile("/tmp/secret", []byte("secret of a neighbour"), 0o644)
	time.Sleep(e.span())
	return "listening"
}

// neighbours speaks to n addresses of the function's own network.
func neighbours(e event) any {
	var open []int
	defer func() {
		for _, fd := range open {
			_ = syscall.Close(fd)
		}
	}()
	failed := map[string]int{}
	for i := range e.N {
		if i%100 == 0 { // what waits for an answer fills a socket's buffer
			fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_NONBLOCK, 0)
			if err != nil {
				return map[string]int{errno(err): 1}
			}
			open = append(open, fd)
		}
		to := &syscall.SockaddrInet4{Port: 9, Addr: [4]byte{10, 201, byte(100 + i/250), byte(1 + i%250)}}
		if err := syscall.Sendto(open[len(open)-1], []byte("x"), 0, to); err != nil {
			failed[errno(err)]++
		}
	}
	return failed
}

// flows opens n flows to an address, as fast as it can.
func flows(e event) any {
	for i := range e.N {
		if e.Kind == "tcp" {
			fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
			if err != nil {
				return errno(err)
			}
			sa := &syscall.SockaddrInet4{Port: port(e, i)}
			copy(sa.Addr[:], net.ParseIP(e.Paths[0]).To4())
			_ = syscall.Connect(fd, sa)
			_ = syscall.Close(fd)
			continue
		}
		c, err := net.Dial("udp4", net.JoinHostPort(e.Paths[0], fmt.Sprint(port(e, i))))
		if err != nil {
			return errno(err)
		}
		_, _ = c.Write([]byte("x"))
		c.Close()
	}
	return "sent"
}

// port is the one that the event names in ms, or one after the other.
func port(e event, i int) int {
	if e.MS != 0 {
		return e.MS
	}
	return 1 + i%60000
}

// links tries to change the interface's addresses.
func links(event) any {
	out := map[string]string{}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return errno(err)
	}
	defer syscall.Close(fd)
	var req [40]byte
	copy(req[:], "eth0")
	req[16] = 2 // AF_INET
	for name, op := range map[string]uintptr{"address": 0x8916, "hardware address": 0x8924, "flags": 0x8914, "mtu": 0x8922, "route": 0x890b, "arp": 0x8955} {
		_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), op, uintptr(unsafe.Pointer(&req[0])))
		out[name] = errno(errOf(e))
	}
	raw, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_RAW)
	out["raw socket"] = errno(err)
	if err == nil {
		syscall.Close(raw)
	}
	out["icmp socket"] = errno(func() error {
		_, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP)
		return err
	}())
	out["bind to a neighbour's address"] = errno(func() error { _, err := net.Listen("tcp4", "10.201.0.1:8081"); return err }())
	out["transparent"] = errno(syscall.SetsockoptInt(fd, syscall.SOL_IP, 19, 1))
	out["mark"] = errno(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_MARK, 1))
	return out
}
