// Package nstest runs the tests of a package in a network namespace and a mount namespace of their
// own: netlink sockets, nft and CNI plugins that goroutines start on any thread then all see the
// private network, and nothing is left on the machine.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const insideEnv = "LFX_CNI_TEST_INSIDE"

// Main is for TestMain: it executes the test binary again inside and does not return. Without root it
// runs the tests where it is; those that need the namespace call NeedRoot.
func Main(m *testing.M) {
	switch {
	case os.Getuid() != 0:
		os.Exit(m.Run())
	case os.Getenv(insideEnv) == "":
		os.Exit(runInside())
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "private network namespace:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// NeedRoot skips where network namespaces cannot be made.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces, nftables")
	}
}

// runInside executes this test binary again and returns its exit code.
func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	signal.Ignore(os.Interrupt) // the child has it from the terminal
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "private network namespace:", err)
		return 1
	}
	return 0
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
