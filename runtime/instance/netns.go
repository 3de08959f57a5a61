package instance

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNetns runs fn on a thread that has entered the network namespace ns. Sockets made by fn belong to that
// namespace for good and can be used from anywhere. The thread is thrown away; mind that children started with Pdeathsig get
// their signal when the thread that started them ends, so start such children from a thread of their own.
func inNetns(ns *os.File, fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// onThread runs fn on a thread that is thrown away with whatever namespaces it has entered, and waits for it. It is never the process's
// first thread: that one does not end, and its namespaces and root are what /proc/PID shows of lfxd.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	// Ends with fn.
	go func() {
		runtime.LockOSThread() // never unlocked: Go then ends the thread with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- fn()
			return
		}
		done <- onThread(fn) // on another thread, since this goroutine has the first one
		runtime.UnlockOSThread()
	}()
	return <-done
}

// listenInside brings the instance's loopback up and listens on its Runtime API address. The listener is the identity: nothing
// outside this namespace can reach it.
func listenInside(ns *os.File) (l net.Listener, err error) {
	err = inNetns(ns, func() error {
		if err := loopbackUp(); err != nil {
			return err
		}
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", runtimeAPI)
		return err
	})
	return l, err
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return fmt.Errorf("flags of lo: %w", err)
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

// fdPath returns a path under which other processes can open f while it is open here.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
