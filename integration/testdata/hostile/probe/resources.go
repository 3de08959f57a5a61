package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// actions are what a handler may do to the machine.
var actions = map[string]func(event) any{}

func init() {
	actions["recall"] = func(event) any { n := notes; notes = nil; return n }
	actions["echo"] = func(e event) any { return e.N }
	actions["host"] = func(event) any { h, _ := os.Hostname(); return h }
	actions["forks"] = forks
	actions["memory"] = memory
	actions["mlock"] = func(event) any { return errno(syscall.Mlockall(3)) }
	actions["tmp"] = fillTmp
	actions["flood"] = flood
	actions["fds"] = fds
	actions["leave"] = leave
	actions["kernel"] = kernelObjects
	actions["burn"] = burn
	actions["bomb"] = bomb
	actions["hold"] = hold
	actions["print"] = print
}

// errno is the name of an error, "ok" for none.
func errno(err error) string {
	if err == nil {
		return "ok"
	}
	if e, ok := unwrap(err).(syscall.Errno); ok {
		return errnoName(e)
	}
	return err.Error()
}

// child is what other processes of the function do.
func child(args []string) {
	switch args[0] {
	case "sleep":
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
		time.Sleep(time.Hour)
	case "zombies": // children that nobody waits for, of a parent that ends
		for range 20 {
			_ = exec.Command("/proc/self/exe", "exit").Start()
		}
		time.Sleep(100 * time.Millisecond)
	case "double": // a daemon whose parent is gone
		c := exec.Command("/proc/self/exe", "sleep")
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		_ = c.Start()
	case "hog":
		n, _ := strconv.Atoi(args[1])
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		time.Sleep(time.Hour)
	case "call":
		foreignCall(args[1])
	case "uid":
		fmt.Printf("%d %d %d %d", os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid())
	}
}

// forks starts processes until it must not, and keeps them.
func forks(event) any {
	n := 0
	for ; n < 5000; n++ {
		pid, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if e != 0 {
			return map[string]any{"forks": n, "error": errnoName(e)}
		}
		if pid == 0 {
			for {
				_, _, _ = syscall.RawSyscall(syscall.SYS_PAUSE, 0, 0, 0)
			}
		}
	}
	return map[string]any{"forks": n, "error": "ok"}
}

// bomb forks, and so does every child, for ever.
func bomb(event) any {
	for {
		pid, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if e != 0 || pid != 0 {
			_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
}

// hold takes n MiB and gives them back after a while.
func hold(e event) any {
	b, err := syscall.Mmap(-1, 0, e.N<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return errno(err)
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	time.Sleep(500 * time.Millisecond)
	_ = syscall.Munmap(b)
	return "held"
}

// print prints lines as they are, and with kind "invalid" one that is no UTF-8.
func print(e event) any {
	for _, p := range e.Paths {
		fmt.Println(p)
	}
	if e.Kind == "invalid" {
		_, _ = os.Stdout.Write([]byte("bad \xff\xfe\xc3( utf-8\n"))
	}
	return "printed"
}

// memory takes it until the end, in the way of kind.
func memory(e event) any {
	take := func(fd, flags int) {
		for {
			b, err := syscall.Mmap(fd, 0, 16<<20, syscall.PROT_READ|syscall.PROT_WRITE, flags)
			if err != nil {
				return
			}
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
		}
	}
	switch e.Kind {
	case "private":
		take(-1, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	case "shared":
		take(-1, syscall.MAP_SHARED|syscall.MAP_ANON)
	case "memfd":
		fd, _, _ := syscall.Syscall(319, uintptr(unsafe.Pointer(&[]byte("x\x00")[0])), 0, 0)
		f := os.NewFile(fd, "memfd")
		block := make([]byte, 1<<20)
		for {
			if _, err := f.Write(block); err != nil {
				return errno(err)
			}
		}
	case "processes":
		for range 200 {
			_ = exec.Command("/proc/self/exe", "hog", "4").Start()
			time.Sleep(5 * time.Millisecond)
		}
	case "sockets": // buffers of the kernel
		for {
			p, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
			if err != nil {
				break
			}
			_ = syscall.SetNonblock(p[0], true)
			for syscall.Sendto(p[0], make([]byte, 60<<10), 0, nil) == nil {
			}
			if _, err := syscall.Write(p[0], make([]byte, 60<<10)); err == syscall.ENOBUFS {
				break
			}
			for {
				if _, err := syscall.Write(p[0], make([]byte, 60<<10)); err != nil {
					break
				}
			}
		}
		return "bounded"
	case "page-cache": // legitimate: reading files is no memory of the function's
		return readAll("/")
	}
	time.Sleep(time.Minute)
	return "still here"
}

// readAll reads every file below dir and returns how many MiB that were.
func readAll(dir string) int64 {
	var total int64
	buf := make([]byte, 1<<20)
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() && (path == "/proc" || path == "/sys" || path == "/dev" || path == "/tmp" || path == "/run") {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		for {
			n, err := f.Read(buf)
			total += int64(n)
			if err != nil {
				return nil
			}
		}
	})
	return total >> 20
}

// fillTmp fills /tmp in the way of kind and says what stopped it.
func fillTmp(e event) any {
	switch e.Kind {
	case "bytes":
		f, err := os.Create("/tmp/full")
		if err != nil {
			return errno(err)
		}
		defer f.Close()
		block := make([]byte, 1<<20)
		total := 0
		for err == nil {
			var n int
			n, err = f.Write(block)
			total += n
		}
		return map[string]any{"mib": total >> 20, "error": errno(err)}
	case "inodes":
		for n := 0; ; n++ {
			if err := os.WriteFile(fmt.Sprintf("/tmp/%d", n), nil, 0o600); err != nil {
				return map[string]any{"files": n, "error": errno(err)}
			}
		}
	case "sparse":
		return errno(os.Truncate("/tmp/sparse", 1<<50))
	case "deep":
		defer os.Chdir("/") //nolint:errcheck // nothing else may be done
		if err := os.Chdir("/tmp"); err != nil {
			return errno(err)
		}
		for n := range e.N {
			if err := os.Mkdir("d", 0o700); err != nil {
				return map[string]any{"depth": n, "error": errno(err)}
			}
			_ = os.Chdir("d")
		}
		return map[string]any{"depth": e.N, "error": "ok"}
	}
	return "?"
}

// flood prints as fast as it can for a time and returns how many MiB got away.
func flood(e event) any {
	line := map[string][]byte{
		"lines":      bytes.Repeat([]byte("flood flood flood\n"), 4096),
		"no-newline": bytes.Repeat([]byte("x"), 1<<16),
		"nul":        bytes.Repeat([]byte{0}, 1<<16),
	}[e.Kind]
	var total int64
	for end := time.Now().Add(e.span()); time.Now().Before(end) && (e.N == 0 || total>>20 < int64(e.N)); {
		n, err := os.Stdout.Write(line)
		total += int64(n)
		if err != nil {
			return errno(err)
		}
	}
	return total >> 20
}

// fds opens descriptors until it must not.
func fds(e event) any {
	var all []int
	open := map[string]func() (int, error){
		"files":   func() (int, error) { return syscall.Open("/dev/null", 0, 0) },
		"sockets": func() (int, error) { return syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0) },
		"epoll":   func() (int, error) { return syscall.EpollCreate1(0) },
		"eventfd": func() (int, error) {
			fd, _, e := syscall.Syscall(290, 0, 0, 0)
			return int(fd), errOf(e)
		},
		"inotify": func() (int, error) { return syscall.InotifyInit1(0) },
		"pty":     func() (int, error) { return syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY, 0) },
		"unix": func() (int, error) {
			p, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			return p[0], err
		},
	}[e.Kind]
	defer func() {
		for _, fd := range all {
			_ = syscall.Close(fd)
		}
	}()
	for len(all) < 5000 {
		fd, err := open()
		if err != nil {
			return map[string]any{"count": len(all), "error": errno(err)}
		}
		all = append(all, fd)
	}
	return map[string]any{"count": len(all), "error": "ok"}
}

// leave starts processes that are still there when the answer is.
func leave(event) any {
	signal.Ignore(syscall.SIGTERM)
	for _, how := range []string{"sleep", "double", "zombies", "double"} {
		c := exec.Command("/proc/self/exe", how)
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := c.Start(); err != nil {
			return errno(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	return "left"
}

// kernelObjects takes what the kernel counts per user or per host.
func kernelObjects(event) any {
	out := map[string]any{}
	fd, err := syscall.InotifyInit1(0)
	watches := 0
	for ; err == nil && watches < 100_000; watches++ {
		_ = os.MkdirAll(fmt.Sprintf("/tmp/w/%d", watches), 0o700)
		if _, err = syscall.InotifyAddWatch(fd, fmt.Sprintf("/tmp/w/%d", watches), syscall.IN_CREATE); err != nil {
			break
		}
	}
	out["watches"], out["watches error"] = watches, errno(err)
	name := []byte("/q\x00")
	_, _, e := syscall.Syscall6(240, uintptr(unsafe.Pointer(&name[0])), uintptr(os.O_RDWR|os.O_CREATE), 0o600, 0, 0, 0)
	out["mq"] = errno(errOf(e))
	_, _, e = syscall.Syscall(29, 0, 1<<40, 0o1600) // shmget of a terabyte
	out["huge shm"] = errno(errOf(e))
	shms := 0
	for ; shms < 10_000; shms++ {
		if _, _, e = syscall.Syscall(29, 0, 4096, 0o1600); e != 0 {
			break
		}
	}
	out["shm"], out["shm error"] = shms, errno(errOf(e))
	_ = os.RemoveAll("/tmp/w")
	return out
}

// burn keeps every core busy.
func burn(e event) any {
	for range 8 {
		go func() {
			for {
			}
		}()
	}
	time.Sleep(e.span())
	os.Exit(0)
	return nil
}

// dialAll tries every "tcp:host:port", "udp:host:port" and "unix:path" and says what came of it.
func dialAll(targets []string, wait time.Duration) map[string]string {
	type result struct{ target, outcome string }
	results := make(chan result)
	slots := make(chan struct{}, 300)
	for _, t := range targets {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results <- result{t, reach(t, wait)}
		}()
	}
	out := map[string]string{}
	for range targets {
		r := <-results
		out[r.target] = r.outcome
	}
	return out
}

// reach says "reached …" with the first answer, "open" when a connection was made, else the error.
func reach(target string, wait time.Duration) string {
	kind, addr, _ := bytes.Cut([]byte(target), []byte(":"))
	c, err := net.DialTimeout(string(kind), string(addr), wait)
	if err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			return "timeout"
		}
		return errno(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(wait))
	_, _ = c.Write([]byte("hello"))
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	switch {
	case n > 0:
		return "reached " + string(buf[:n])
	case string(kind) == "udp":
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			return "timeout"
		}
		return errno(err)
	}
	return "open"
}
