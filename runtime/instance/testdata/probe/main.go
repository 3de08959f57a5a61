// Command probe is the function that the tests of runtime/instance run: it says what it sees, or ends in the way asked for.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(64)
	}
	switch os.Args[1] {
	case "report":
		report()
	case "exit":
		code, _ := strconv.Atoi(os.Args[2])
		fmt.Println("bye")
		fmt.Fprintln(os.Stderr, "bye err")
		os.Exit(code)
	case "signal":
		n, _ := strconv.Atoi(os.Args[2])
		raise(syscall.Signal(n))
		time.Sleep(time.Minute)
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "orphan":
		orphan()
	case "term":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("waiting")
		<-c
		os.Exit(15)
	case "hog":
		hog()
	case "tmp":
		tmp()
	case "call":
		call()
	}
}

// raise ends the process by the signal, past the Go runtime's handlers.
func raise(s syscall.Signal) {
	var act [4]uintptr // struct sigaction of the kernel, all zero: the default action
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	_ = syscall.Kill(os.Getpid(), s)
}

// report prints facts as one JSON object.
func report() {
	facts := map[string]any{"uid": os.Getuid(), "gid": os.Getgid(), "pid": os.Getpid(), "ppid": os.Getppid()}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		facts["status."+k] = strings.TrimSpace(v)
	}
	facts["uid_map"] = strings.Join(strings.Fields(read("/proc/self/uid_map")), " ")
	facts["hosts"] = read("/etc/hosts")
	facts["env.FOO"] = os.Getenv("FOO")
	facts["env"] = os.Environ()
	facts["cwd"], _ = os.Getwd()
	facts["hostname"], _ = os.Hostname()
	facts["write.root"] = errText(os.WriteFile("/x", nil, 0o600))
	facts["write.tmp"] = errText(os.WriteFile("/tmp/x", []byte("x"), 0o600))
	facts["write.fifo"] = errText(writeTo("/run/lfx/stdout", ""))
	var st syscall.Statfs_t
	if syscall.Statfs("/tmp", &st) == nil {
		facts["tmp.bytes"] = int64(st.Blocks) * st.Bsize
	}
	families := []int{}
	for f := range 46 {
		if fd, err := syscall.Socket(f, syscall.SOCK_DGRAM, 0); err == nil {
			families = append(families, f)
			_ = syscall.Close(fd)
		} else if fd, err := syscall.Socket(f, syscall.SOCK_STREAM, 0); err == nil {
			families = append(families, f)
			_ = syscall.Close(fd)
		} else if fd, err := syscall.Socket(f, syscall.SOCK_RAW, 0); err == nil {
			families = append(families, f)
			_ = syscall.Close(fd)
		}
	}
	facts["socket.families"] = families
	_, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_AUDIT)
	facts["socket.audit"] = errText(err)
	for name, nr := range map[string]uintptr{"unshare": syscall.SYS_UNSHARE, "mount": syscall.SYS_MOUNT, "ptrace": syscall.SYS_PTRACE,
		"keyctl": syscall.SYS_KEYCTL, "io_uring_setup": 425, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298, "clone3": 435} {
		_, _, errno := syscall.RawSyscall6(nr, 0, 0, 0, 0, 0, 0)
		facts["syscall."+name] = errno.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(facts)
}

func orphan() {
	// A grandchild that outlives its parent and ends before the runtime: PID 1 must reap it.
	if len(os.Args) > 2 {
		c := exec.Command("/probe", "exit", "0")
		_ = c.Start()
		return
	}
	_ = exec.Command("/probe", "orphan", "child").Run()
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		if n := zombies(); n == 0 {
			fmt.Println("zombies 0")
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Println("zombies", zombies())
}

func zombies() int {
	n := 0
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if strings.Contains(read("/proc/"+e.Name()+"/status"), "State:\tZ") {
			n++
		}
	}
	return n
}

func hog() {
	var all [][]byte
	for {
		b := make([]byte, 4<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
		if len(all)%8 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// tmp fills /tmp with the given MiB and goes on living.
func tmp() {
	mb, _ := strconv.Atoi(os.Args[2])
	f, _ := os.Create("/tmp/fill")
	b := make([]byte, 1<<20)
	for range mb {
		if _, err := f.Write(b); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	fmt.Println("filled")
	time.Sleep(time.Hour)
}

// call talks to the Runtime API address.
func call() {
	c, err := net.Dial("tcp", "127.0.0.1:9001")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && err != io.EOF {
		fmt.Println(err)
	}
	fmt.Print("got ", line)
}

func read(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

func writeTo(path, s string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(s)
	return err
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
