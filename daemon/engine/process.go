package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// identity names one process for good: a process id alone is used again.
type identity struct {
	PID        int    `json:"pid"`
	StartTime  uint64 `json:"start_time"` // clock ticks after boot, field 22 of /proc/<pid>/stat
	BootID     string `json:"boot_id"`
	Executable string `json:"executable"`
	ConfigHash string `json:"config_hash"` // of what it was started with
}

// process is a child of ours or of a daemon before us.
type process struct {
	pid  int
	fd   *os.File      // pidfd
	done chan struct{} // closed when the process has ended or was detached from
	exit string        // why it ended; valid after done
}

// launch starts a program that outlives us: its own session (so no terminal and no group signal
// reaches it), no parent-death signal, output straight into a file.
func launch(path string, args, env []string, log *os.File) (*process, error) {
	cmd := exec.Command(path, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	// The process cannot be reaped before Wait below, so this is it and no other.
	fd, err := openPidfd(cmd.Process.Pid)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, fd: fd, done: make(chan struct{})}
	// Ends with the process. After Detach nobody waits for it: we are about to end ourselves.
	go func() {
		defer close(p.done)
		p.exit = "exit status 0"
		if err := cmd.Wait(); err != nil {
			p.exit = err.Error()
		}
	}()
	return p, nil
}

// adopt attaches to a process that somebody else started. It fails when the process is gone or
// another one has its id.
func adopt(id identity) (*process, error) {
	fd, err := openPidfd(id.PID)
	if err != nil {
		return nil, err
	}
	// Compare after opening: from here on the descriptor names one process.
	now, err := identify(id.PID)
	if err != nil || now.StartTime != id.StartTime || now.BootID != id.BootID || now.Executable != id.Executable {
		fd.Close()
		return nil, fmt.Errorf("process %d is not the one that was recorded", id.PID)
	}
	p := &process{pid: id.PID, fd: fd, done: make(chan struct{})}
	// Ends with the process, or when detach closes the descriptor.
	go func() {
		defer close(p.done)
		p.exit = "it ended (not our child, so its exit status is unknown)"
		waitPidfd(fd)
	}()
	return p, nil
}

func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitPidfd blocks until the process has ended or fd is closed.
func waitPidfd(fd *os.File) {
	raw, err := fd.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(sig unix.Signal) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return serr
}

// stop asks the process to end, makes it end after grace or when ctx ends, and waits until it has.
func (p *process) stop(ctx context.Context, grace time.Duration) error {
	p.signal(unix.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-ctx.Done():
	case <-timer.C:
	}
	if !p.alive() {
		return p.fd.Close()
	}
	if err := p.signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	select {
	case <-p.done:
		return p.fd.Close()
	case <-time.After(10 * time.Second): // stuck in the kernel, on a dead disk for example
		return fmt.Errorf("process %d does not end although it was killed", p.pid)
	}
}

// dump makes a Go program write the stacks of its goroutines to its log, which ends it. It waits for that as long as d.
func (p *process) dump(d time.Duration) {
	if p.signal(unix.SIGQUIT) != nil {
		return
	}
	select {
	case <-p.done:
	case <-time.After(d):
	}
}

// detach stops watching and leaves the process running.
func (p *process) detach() { p.fd.Close() }

// identify reads who a running process is.
func identify(pid int) (identity, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return identity{}, err
	}
	start, err := startTime(stat)
	if err != nil {
		return identity{}, fmt.Errorf("read %s/stat: %w", dir, err)
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return identity{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, err
	}
	return identity{PID: pid, StartTime: start, Executable: exe, BootID: string(bytes.TrimSpace(boot))}, nil
}

// startTime takes field 22 out of /proc/<pid>/stat. The second field is the program's name in
// parentheses and may hold anything, parentheses and blanks too.
func startTime(stat []byte) (uint64, error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, errors.New("no program name in it")
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 20 {
		return 0, errors.New("too few fields in it")
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func readIdentity(path string) (identity, error) {
	var id identity
	data, err := os.ReadFile(path)
	if err != nil {
		return id, err
	}
	err = json.Unmarshal(data, &id)
	if err == nil && id.PID <= 1 {
		err = fmt.Errorf("%s names no process", path)
	}
	return id, err
}

func (id identity) write(path string) error {
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return replaceFile(path, data)
}

// commandsWith lists the processes whose first argument is the program called name and that have
// arg, unless it is empty, among the others. A process that ends meanwhile is no error. One in another PID namespace belongs to the lfxd of a
// system container, whose paths may be the same as ours, and is left alone.
func commandsWith(name, arg string) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		data, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		if filepath.Base(args[0]) != name || !inOurPIDNamespace(pid) {
			continue
		}
		if arg == "" || slices.Contains(args[1:], arg) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func inOurPIDNamespace(pid int) bool {
	ours, err := os.Readlink("/proc/self/ns/pid")
	theirs, err2 := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns/pid"))
	return err == nil && err2 == nil && ours == theirs
}

// endCommands ends every process that commandsWith finds.
func endCommands(ctx context.Context, name, arg string, grace time.Duration) error {
	var errs []error
	for _, pid := range commandsWith(name, arg) {
		id, err := identify(pid)
		if err != nil {
			continue // it has ended
		}
		p, err := adopt(id)
		if err != nil {
			continue
		}
		errs = append(errs, p.stop(ctx, grace))
	}
	return errors.Join(errs...)
}
