package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// feature is a part of the kernel that instances cannot do without.
type feature struct {
	name   string
	remedy string
	err    error // why it is not there; nil when it is
}

// kernelFeatures looks at the parts of the kernel that can be looked up. What only an attempt tells
// (nf_tables, idmapped mounts) is found by the part that makes the attempt.
func kernelFeatures() []feature {
	users := feature{name: "user namespaces", remedy: "use a kernel with CONFIG_USER_NS, and do not switch them off: sysctl user.max_user_namespaces=15000"}
	users.err = notZero("/proc/sys/user/max_user_namespaces")
	filter := feature{name: "seccomp", remedy: "use a kernel with CONFIG_SECCOMP_FILTER"}
	filter.err = notZero("/proc/sys/kernel/seccomp/actions_avail")
	overlay := feature{name: "overlayfs", remedy: "load it: modprobe overlay"}
	overlay.err = knowsFileSystem("overlay")
	return []feature{users, filter, overlay}
}

// knowsFileSystem says that the kernel does not have a file system. One that is a module and was not needed yet is loaded by the
// kernel when somebody asks for it, as mount does.
func knowsFileSystem(name string) error {
	for attempt := 0; ; attempt++ {
		list, err := os.ReadFile("/proc/filesystems")
		if err != nil || strings.Contains(string(list), "\t"+name+"\n") {
			return err
		}
		if attempt > 0 {
			return fmt.Errorf("the kernel does not know the %s file system", name)
		}
		if fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC); err == nil {
			unix.Close(fd) //nolint:errcheck // nothing was made
		}
	}
}

// notZero says that a file of the kernel is not there or holds 0.
func notZero(path string) error {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the kernel has no %s", path)
	case err != nil:
		return err
	case strings.TrimSpace(string(data)) == "0":
		return errors.New("switched off in " + path)
	}
	return nil
}

// checkKernel refuses a kernel on which no instance could ever start.
func (d *Daemon) checkKernel(context.Context) error {
	var missing []error
	for _, f := range kernelFeatures() {
		if f.err != nil {
			missing = append(missing, fmt.Errorf("this kernel gives lfxd no %s (%w): %s", f.name, f.err, f.remedy))
		}
	}
	return errors.Join(missing...)
}
