package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// v2 is a cgroup of the unified hierarchy.
type v2 struct{ dir string }

var _ Group = (*v2)(nil)

func (g *v2) SetCPU(cores float64) error {
	q := "max"
	if cores > 0 {
		q = strconv.FormatInt(quota(cores).Microseconds(), 10)
	}
	return write(g.dir, "cpu.max", q+" "+strconv.FormatInt(Period.Microseconds(), 10))
}

func (g *v2) CPUQuota() (float64, error) {
	s, err := read(g.dir, "cpu.max")
	if err != nil {
		return 0, err
	}
	q, p, _ := strings.Cut(s, " ")
	if q == "max" {
		return 0, nil
	}
	quota, err1 := strconv.ParseFloat(q, 64)
	period, err2 := strconv.ParseFloat(p, 64)
	if err := errors.Join(err1, err2); err != nil || period <= 0 {
		return 0, fmt.Errorf("%s/cpu.max: %q is no quota", g.dir, s)
	}
	return quota / period, nil
}

func (g *v2) SetShares(shares uint64) error {
	return write(g.dir, "cpu.weight", strconv.FormatUint(weight(shares), 10))
}

// weight is runc's conversion (opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value): a curve through least, usual and
// greatest value of both scales.
func weight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

func (g *v2) SetMemory(limit uint64) error {
	return write(g.dir, "memory.max", strconv.FormatUint(limit, 10))
}

func (g *v2) Limits() (memory, pids uint64, err error) {
	memory, err = readUint(g.dir, "memory.max")
	if err != nil {
		return 0, 0, err
	}
	pids, err = readUint(g.dir, "pids.max")
	return memory, pids, err
}

func (g *v2) Memory() (Memory, error) {
	usage, err := readUint(g.dir, "memory.current")
	if err != nil {
		return Memory{}, err
	}
	peak, err := readUint(g.dir, "memory.peak")
	if err != nil && !errdefs.IsNotFound(err) {
		return Memory{}, err
	}
	stat, err := readFields(g.dir, "memory.stat")
	if err != nil {
		return Memory{}, err
	}
	shmem := stat["shmem"]
	// "file" has both page cache and tmpfs.
	return Memory{Usage: usage, Peak: peak, Cache: stat["file"] - min(shmem, stat["file"]), Shmem: shmem}, nil
}

func (g *v2) OpenPeak() (*os.File, error) { return openPeak(g.dir, "memory.peak") }

func (g *v2) OOMKills() (uint64, error) {
	f, err := readFields(g.dir, "memory.events")
	return f["oom_kill"], err
}

func (g *v2) Freeze(ctx context.Context) error {
	if err := write(g.dir, "cgroup.freeze", "1"); err != nil {
		return err
	}
	err := waitState(ctx, func() (bool, error) {
		f, err := readFields(g.dir, "cgroup.events")
		return f["frozen"] == 1, err
	})
	if err != nil {
		return errors.Join(err, g.Thaw())
	}
	return nil
}

func (g *v2) Doomed() (bool, error) { return false, nil }

func (g *v2) Thaw() error { return write(g.dir, "cgroup.freeze", "0") }

func (g *v2) Pids() ([]int, error) { return pidsBelow(g.dir) }

// Kill uses cgroup.kill (Linux 5.14), which also reaches frozen processes and those being forked.
func (g *v2) Kill(ctx context.Context) error {
	if err := write(g.dir, "cgroup.kill", "1"); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	_ = g.Thaw()
	return killAll(ctx, g.Pids)
}

func (g *v2) Remove() error { return removeTree(g.dir) }

func (g *v2) Exists() bool {
	_, err := os.Stat(g.dir)
	return err == nil
}

// Watch sets memory.high to the limit and watches memory.events with inotify.
func (g *v2) Watch(o WatchOptions) (*Watch, error) {
	w := newWatch(g, o)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify (raise fs.inotify.max_user_instances if there are none left): %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify of memory.events")
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(g.dir, "memory.events"), unix.IN_MODIFY); err != nil {
		return nil, errors.Join(gone(err), events.Close())
	}
	w.add(events, 4096, func([]byte) { w.oom(); w.high() })
	if o.MemoryLimit > 0 {
		if err := g.setHigh(o.MemoryLimit); err != nil {
			_ = w.Close()
			return nil, err
		}
	}
	w.run()
	return w, nil
}

func (g *v2) setHigh(bytes uint64) error {
	return write(g.dir, "memory.high", strconv.FormatUint(bytes, 10))
}
