package instance

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/runtime/cgroup"
	"lfx.dev/lfxd/runtime/lfxinit"
)

// goneTimeout is how long lfx-init may take to end after it has reported the end of the runtime.
const goneTimeout = 2 * time.Second

// ErrorKind is the Lambda error type of a runtime that could not be started.
type ErrorKind string

// The kinds, spelled as Lambda's errorType.
const (
	InvalidEntrypoint ErrorKind = "Runtime.InvalidEntrypoint"
	InvalidWorkingDir ErrorKind = "Runtime.InvalidWorkingDir"
	InvalidTaskConfig ErrorKind = "Runtime.InvalidTaskConfig"
)

// ExecError says why the runtime could not be started.
type ExecError struct {
	Kind ErrorKind
	// Msg is worded as Go's os/exec does, for example "fork/exec /app: no such file or directory".
	Msg string
}

// Error returns kind and message.
func (e *ExecError) Error() string { return string(e.Kind) + ": " + e.Msg }

// Exit says how an instance ended.
type Exit struct {
	// Code is the runtime's exit code; when Signal is set it is 128 + Signal.
	Code int
	// Signal has ended the runtime; zero when it exited by itself. It is SIGKILL when the whole instance was killed.
	Signal syscall.Signal
	// OOM: the kernel killed a process of the instance for want of memory, or the function's memory went over its limit.
	OOM bool
	// ExecError is set when the runtime was never started.
	ExecError *ExecError
	// Err is set when the end could not be observed properly (a forged or broken report).
	Err error
	// Time is when the end was noticed.
	Time time.Time
}

// String is worded as Go words a process state: "exit status 3", "signal: killed".
func (e Exit) String() string {
	switch {
	case e.ExecError != nil:
		return e.ExecError.Error()
	case e.Signal != 0:
		return "signal: " + e.Signal.String()
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// watch starts the goroutines that notice the end of the instance. They end when PID 1 is gone or release closes
// their descriptors; release waits for them.
func (i *Instance) watch() {
	i.wg.Go(i.watchInit)
	i.wg.Go(i.watchControl)
	if i.oom != nil {
		i.wg.Go(i.watchMemory)
	}
}

// watchInit waits for the end of PID 1.
func (i *Instance) watchInit() {
	err := waitPidfd(i.pidfd)
	select {
	case <-i.released: // err says that the descriptor was closed
		return
	default:
	}
	close(i.dead)
	i.pipes.letGo()
	// Records that were written before the end are still in the pipe: let watchControl read them first.
	<-i.controlEnd
	i.end(Exit{Code: 128 + int(unix.SIGKILL), Signal: syscall.SIGKILL, Err: err})
}

// waitPidfd waits until the process of f has ended: a pidfd becomes readable then.
func waitPidfd(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return c.Read(pidfdReadable)
}

func pidfdReadable(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1
}

// processEnded says whether the process of f has ended.
func processEnded(f *os.File) (ended bool, err error) {
	c, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	err = c.Control(func(fd uintptr) { ended = pidfdReadable(fd) })
	return ended, err
}

// watchControl reads what lfx-init reports, until it has gone or reports the end.
func (i *Instance) watchControl() {
	defer close(i.controlEnd)
	for {
		r, err := lfxinit.ReadRecord(i.pipes.control)
		if err != nil {
			if errors.Is(err, lfxinit.ErrRecord) {
				i.end(Exit{Code: 128 + int(unix.SIGKILL), Signal: syscall.SIGKILL, Err: err})
				_ = i.Kill()
			}
			return
		}
		// lfx-init has opened its ends by now.
		i.pipes.letGo()
		if r.Kind == lfxinit.Started {
			continue
		}
		i.end(i.exitOf(r))
		i.wg.Go(i.finish)
		return
	}
}

// finish kills an instance whose end was reported but which does not go.
func (i *Instance) finish() {
	select {
	case <-i.dead:
	case <-i.released:
	case <-time.After(goneTimeout):
		_ = i.Kill()
	}
}

func (i *Instance) exitOf(r lfxinit.Record) Exit {
	switch r.Kind {
	case lfxinit.Signaled:
		return Exit{Code: 128 + int(r.Value), Signal: syscall.Signal(r.Value)}
	case lfxinit.ExecFailed:
		code := 126
		if r.Class == lfxinit.ClassEntrypointMissing {
			code = 127
		}
		return Exit{Code: code, ExecError: i.execError(r)}
	}
	return Exit{Code: int(r.Value)}
}

func (i *Instance) execError(r lfxinit.Record) *ExecError {
	errno := syscall.Errno(r.Value)
	switch r.Class {
	case lfxinit.ClassWorkingDir:
		return &ExecError{InvalidWorkingDir, fmt.Sprintf("chdir %s: %s", i.spec.Dir, errno)}
	case lfxinit.ClassTaskConfig:
		return &ExecError{InvalidTaskConfig, fmt.Sprintf("fork/exec %s: %s", i.spec.Args[0], errno)}
	}
	return &ExecError{InvalidEntrypoint, fmt.Sprintf("fork/exec %s: %s", i.spec.Args[0], errno)}
}

// watchMemory kills the instance as a whole when it is out of memory.
func (i *Instance) watchMemory() {
	select {
	case <-i.dead:
	case <-i.released:
	case r := <-i.oom.Fired():
		i.outOfMemory.Store(true)
		i.m.log.Debug("instance out of memory", "instance", i.id, "over_limit", r == cgroup.OverLimit)
		_ = i.Kill()
	}
}

// end records the first exit that is reported and lets Exited's readers go.
func (i *Instance) end(e Exit) {
	e.Time = time.Now()
	kills, _ := i.group.OOMKills()
	e.OOM = i.outOfMemory.Load() || kills > 0
	peak := i.computePeak()
	i.mu.Lock()
	defer i.mu.Unlock()
	next, err := i.state.to(Exited)
	if err != nil {
		return
	}
	i.state, i.exit, i.peak = next, e, max(i.peak, peak)
	close(i.exited)
}

// tmpBytes returns how many bytes of /tmp are used, seen through PID 1's root. The path is resolved within that root: the image decides
// what /tmp is there.
func (i *Instance) tmpBytes() uint64 {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", i.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, "tmp", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil || st.Type != unix.TMPFS_MAGIC {
		return 0
	}
	return (st.Blocks - st.Bfree) * uint64(st.Bsize)
}
