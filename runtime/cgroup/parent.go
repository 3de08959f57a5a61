package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// LimitParent makes the cgroup parent and bounds what all cgroups below it may use together: memory in
// bytes, without swap, and processes. It is the wall behind the limits of each: their sum may be
// larger. The cgroup goes with RemoveParent.
func (r *Root) LimitParent(parent string, memory, pids int64) error {
	var err error
	if r.use == 2 {
		err = r.limitParent2(parent, memory, pids)
	} else {
		err = r.limitParent1(parent, memory, pids)
	}
	if err != nil {
		return fmt.Errorf("limit the cgroup %s: %w", parent, err)
	}
	return nil
}

// The weight of one ordinary process, which is a cgroup's too unless it is told otherwise, and the greatest there is: in shares (v1) and as
// cpu.weight (v2). Both scales are linear; runc's conversion between them is not (weight).
const (
	sharesOfOne, mostShares = 1024, 262144
	weightOfOne, mostWeight = 100, 10000
)

// WeighParent makes the cgroup parent, which exists, and the one above it, but none further up, as heavy as one ordinary process on each of cpus processors. Without,
// a cgroup weighs as much as a single process, however many run in it: what runs beside it, such as the daemon and its clients, gets its turn
// first on every processor, and who waits for an answer waits for that too. A weight that is not the kernel's default stays, somebody
// chose it. (kubelet weighs the cgroup of all pods in the same way: Kubernetes, "Reserve Compute Resources for System Daemons".)
func (r *Root) WeighParent(parent string, cpus int) error {
	parent = filepath.Clean("/" + parent)
	if r.use == 2 {
		if err := r.enableCPU(filepath.Dir(parent)); err != nil {
			return fmt.Errorf("weigh the cgroup %s: %w", parent, err)
		}
	}
	for _, path := range []string{filepath.Dir(parent), parent} {
		if path == "/" {
			continue
		}
		if err := r.weigh(path, uint64(cpus)); err != nil {
			return fmt.Errorf("weigh the cgroup %s: %w", path, err)
		}
	}
	return nil
}

// enableCPU lets the cgroups below path, and below those above it, have a weight.
func (r *Root) enableCPU(path string) error {
	if path != "/" {
		if err := r.enableCPU(filepath.Dir(path)); err != nil {
			return err
		}
	}
	return write(filepath.Join(r.v2, path), "cgroup.subtree_control", "+cpu")
}

func (r *Root) weigh(path string, cpus uint64) error {
	dir, file, one, most := filepath.Join(r.v1["cpu"], path), "cpu.shares", uint64(sharesOfOne), uint64(mostShares)
	if r.use == 2 {
		dir, file, one, most = filepath.Join(r.v2, path), "cpu.weight", weightOfOne, mostWeight
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if now, err := readUint(dir, file); err != nil || now != one {
		return err
	}
	return write(dir, file, strconv.FormatUint(min(cpus*one, most), 10))
}

func (r *Root) limitParent1(parent string, memory, pids int64) error {
	mem, procs := filepath.Join(r.v1["memory"], parent), filepath.Join(r.v1["pids"], parent)
	for _, dir := range []string{mem, procs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// Without it, on old kernels, the limit would not count what is below; it cannot be set, and need not be,
	// where it is on already or the hierarchy above decides.
	write(mem, "memory.use_hierarchy", "1") //nolint:errcheck // as said
	return errors.Join(limitMemory1(mem, memory), write(procs, "pids.max", strconv.FormatInt(pids, 10)))
}

// limitMemory1 keeps memory.memsw.limit at or above memory.limit while both move.
func limitMemory1(dir string, limit int64) error {
	text := strconv.FormatInt(limit, 10)
	swap := func() error {
		err := write(dir, "memory.memsw.limit_in_bytes", text)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOENT) {
			return nil // the kernel does not count swap
		}
		return err
	}
	if err := write(dir, "memory.limit_in_bytes", text); err != nil { // above the old bound with swap
		return errors.Join(swap(), write(dir, "memory.limit_in_bytes", text))
	}
	if _, err := os.Stat(filepath.Join(dir, "memory.memsw.limit_in_bytes")); err != nil {
		return nil //nolint:nilerr // as above
	}
	return swap()
}

func (r *Root) limitParent2(parent string, memory, pids int64) error {
	dir := r.v2
	for part := range strings.SplitSeq(strings.Trim(filepath.Clean(parent), "/"), "/") {
		if err := write(dir, "cgroup.subtree_control", "+memory +pids"); err != nil {
			return err
		}
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	err := errors.Join(write(dir, "memory.max", strconv.FormatInt(memory, 10)), write(dir, "pids.max", strconv.FormatInt(pids, 10)))
	if _, serr := os.Stat(filepath.Join(dir, "memory.swap.max")); serr == nil {
		err = errors.Join(err, write(dir, "memory.swap.max", "0"))
	}
	return err
}

// MemoryAllowed returns the smallest memory limit in bytes of the cgroup at path and of those above it, zero when
// none of them has one. A cgroup that does not exist has none.
func (r *Root) MemoryAllowed(path string) (uint64, error) {
	mount, file := r.v2, "memory.max"
	if r.use == 1 {
		mount, file = r.v1["memory"], "memory.limit_in_bytes"
	}
	var least uint64
	for p := filepath.Clean("/" + path); ; p = filepath.Dir(p) {
		n, err := readUint(filepath.Join(mount, p), file)
		if err != nil && !errdefs.IsNotFound(err) {
			return 0, fmt.Errorf("read the memory limit of the cgroup %s: %w", p, err)
		}
		if n > 0 && (least == 0 || n < least) {
			least = n
		}
		if p == "/" {
			return least, nil
		}
	}
}

// PressureFile returns the file that tells how long processes of the cgroup at path stalled for want of
// memory (Documentation/accounting/psi.rst), empty where the kernel has none: with v1, or without PSI.
func (r *Root) PressureFile(path string) string {
	if r.use != 2 {
		return ""
	}
	file := filepath.Join(r.v2, path, "memory.pressure")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}
