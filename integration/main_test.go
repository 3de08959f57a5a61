//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inNamespace marks the run that is inside its own network namespace already.
const inNamespace = "LFX_TEST_IN_NETNS"

// d is the daemon that all tests share.
var d *daemonUnderTest

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "integration: these tests make containers, namespaces and firewall rules: run them as root")
		return 1
	}
	if os.Getenv(inNamespace) == "" {
		return isolate()
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration: loopback:", err)
		return 1
	}
	before := observeHost()
	d, err = startDaemon()
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		return 1
	}
	code := m.Run()
	if err := d.finish(before); err != nil {
		fmt.Fprintln(os.Stderr, "integration: after the last test:", err)
		code = 1
	}
	if code != 0 {
		d.showLog()
	}
	return code
}

// isolate runs this program again in a network namespace of its own.
func isolate() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		if e, ok := err.(*exec.ExitError); ok { //nolint:errorlint // exec returns it bare
			return e.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "integration: a network namespace of our own:", err)
		return 1
	}
	return 0
}
