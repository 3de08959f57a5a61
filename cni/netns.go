package cni

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace that lives as long as its descriptor.
type namespace struct{ file *os.File }

// newNamespace makes an empty network namespace that no process is in.
func newNamespace() (*namespace, error) {
	var ns *namespace
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		ns = &namespace{file}
		return err
	})
	if err != nil {
		return nil, err
	}
	return ns, nil
}

// path reaches the namespace from other processes, while it is open here.
func (n *namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

func (n *namespace) close() error { return n.file.Close() }

// do runs f on a thread inside the namespace. Sockets that f opens stay inside; goroutines that f starts do not.
func (n *namespace) do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// openNamespace opens the namespace at path.
func openNamespace(path string) (*namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &namespace{file}, nil
}

// same reports whether path is this namespace.
func (n *namespace) same(path string) bool {
	mine, err := n.file.Stat()
	if err != nil {
		return false
	}
	other, err := os.Stat(path)
	return err == nil && os.SameFile(mine, other)
}

// onOwnThread runs f on an operating system thread that nobody else uses meanwhile and returns the
// thread to its network namespace. If that fails the thread is not reused: it ends with its goroutine.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() { // ends before onOwnThread returns
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
