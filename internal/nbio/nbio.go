// Package nbio reads and writes sockets that do not block (O_NONBLOCK): one system call that returns at once, with what there was.
// It serves the way of a warm invocation, for two reasons.
//
// Go's own Write waits until all is written, which a goroutine that answers for somebody else must not.
//
// Go's own system calls tell the scheduler that they may block (runtime.entersyscall). In a process that was idle until this message came,
// that wakes the runtime's monitor thread every time: a futex call, an interrupt of another processor and two switches of threads
// for nothing, more than the call itself costs. Calls that cannot block need not tell (syscall.RawSyscall).
// No more than rawLimit bytes go with one, so that the garbage collector never waits long for it.
//
// A pipe is no such thing, whatever its flags: read(2) first waits for the pipe's mutex, which its other end can hold for as long as it
// likes (splice(2) from a silent socket), and a thread that waits so without having told holds the whole process up. Poll asks
// without the mutex whether there is anything to read.
package nbio

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawLimit is up to which size in bytes a call is made without telling the scheduler.
const rawLimit = 64 << 10

// Read is read(2) of a socket that does not block. EINTR is never returned, EAGAIN is. n is never negative.
func Read(fd int, p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	p = p[:min(len(p), rawLimit)]
	return again(func() (uintptr, error) {
		if raced {
			n, err := syscall.Read(fd, p)
			return uintptr(max(n, 0)), err
		}
		return errnoOf(syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p))))
	})
}

// Pread is pread(2) of a file whose reads do not wait for a device: one of the kernel's. EINTR is never returned.
func Pread(fd int, p []byte, offset int64) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	return again(func() (uintptr, error) {
		return errnoOf(syscall.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(offset), 0, 0))
	})
}

// Write is write(2) to a socket that does not block. EINTR is never returned, EAGAIN is. n is never negative.
func Write(fd int, p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	return again(func() (uintptr, error) {
		if raced || len(p) > rawLimit {
			n, err := syscall.Write(fd, p)
			return uintptr(max(n, 0)), err
		}
		return errnoOf(syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p))))
	})
}

// EpollPoll is epoll_wait(2) with a timeout of zero. EINTR is never returned.
func EpollPoll(ep int, events []unix.EpollEvent) (n int, err error) {
	return again(func() (uintptr, error) {
		return errnoOf(syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0))
	})
}

// again makes a call until no signal has interrupted it.
func again(call func() (uintptr, error)) (int, error) {
	for {
		n, err := call()
		switch err { //nolint:errorlint // plain errnos
		case nil:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, err
		}
	}
}

// errnoOf is the outcome of a raw call as n and an error that is nil where there is none.
func errnoOf(n, _ uintptr, e syscall.Errno) (uintptr, error) {
	if e != 0 {
		return 0, e
	}
	return n, nil
}

// EpollMod is epoll_ctl(2) with EPOLL_CTL_MOD.
func EpollMod(ep, fd int, event *unix.EpollEvent) error {
	_, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(ep), unix.EPOLL_CTL_MOD, uintptr(fd), uintptr(unsafe.Pointer(event)), 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// Poll says whether a read of the descriptor, of a pipe too, would return something, an error or the end.
func Poll(fd int) bool {
	p, at := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}, unix.Timespec{}
	n, _, e := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&at)), 0, 0, 0)
	return e == 0 && n > 0
}
