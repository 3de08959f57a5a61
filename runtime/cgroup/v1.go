package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// v1 is a cgroup with one hierarchy per controller.
type v1 struct {
	dirs map[string]string // by controller
	all  []string          // in every mounted hierarchy
}

var _ Group = (*v1)(nil)

func (g *v1) SetCPU(cores float64) error {
	us := int64(-1)
	if cores > 0 {
		us = quota(cores).Microseconds()
	}
	return write(g.dirs["cpu"], "cpu.cfs_quota_us", strconv.FormatInt(us, 10))
}

func (g *v1) CPUQuota() (float64, error) {
	q, err := readUint(g.dirs["cpu"], "cpu.cfs_quota_us")
	if err != nil {
		return 0, err
	}
	p, err := readUint(g.dirs["cpu"], "cpu.cfs_period_us")
	if err != nil || p == 0 {
		return 0, err
	}
	return float64(q) / float64(p), nil
}

func (g *v1) SetShares(shares uint64) error {
	return write(g.dirs["cpu"], "cpu.shares", strconv.FormatUint(shares, 10))
}

func (g *v1) SetMemory(limit uint64) error { return limitMemory1(g.dirs["memory"], int64(limit)) }

func (g *v1) Limits() (memory, pids uint64, err error) {
	memory, err = readUint(g.dirs["memory"], "memory.limit_in_bytes")
	if err != nil {
		return 0, 0, err
	}
	pids, err = readUint(g.dirs["pids"], "pids.max")
	return memory, pids, err
}

func (g *v1) Memory() (Memory, error) {
	dir := g.dirs["memory"]
	usage, err := readUint(dir, "memory.usage_in_bytes")
	if err != nil {
		return Memory{}, err
	}
	peak, err := readUint(dir, "memory.max_usage_in_bytes")
	if err != nil {
		return Memory{}, err
	}
	stat, err := readFields(dir, "memory.stat")
	if err != nil {
		return Memory{}, err
	}
	shmem := stat["total_shmem"]
	// "cache" has both page cache and tmpfs.
	cache := stat["total_cache"] - min(shmem, stat["total_cache"])
	return Memory{Usage: usage, Peak: peak, Cache: cache, Shmem: shmem}, nil
}

func (g *v1) OpenPeak() (*os.File, error) {
	return openPeak(g.dirs["memory"], "memory.max_usage_in_bytes")
}

func (g *v1) OOMKills() (uint64, error) {
	f, err := readFields(g.dirs["memory"], "memory.oom_control")
	return f["oom_kill"], err
}

func (g *v1) Freeze(ctx context.Context) error {
	dir := g.dirs["freezer"]
	// A fork during freezing can leave the state at FREEZING; the kernel's advice is to write FROZEN again.
	err := waitState(ctx, func() (bool, error) {
		if err := write(dir, "freezer.state", "FROZEN"); err != nil {
			return false, err
		}
		s, err := read(dir, "freezer.state")
		return s == "FROZEN", err
	})
	if err != nil {
		return errors.Join(err, g.Thaw())
	}
	return nil
}

func (g *v1) Thaw() error { return write(g.dirs["freezer"], "freezer.state", "THAWED") }

func (g *v1) Doomed() (bool, error) {
	pids, err := g.Pids()
	for _, p := range pids {
		status, serr := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		if serr == nil && killPending(string(status)) {
			return true, nil
		}
	}
	return false, err
}

// killPending reads from the text of /proc/PID/status whether a SIGKILL waits to be delivered.
func killPending(status string) bool {
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}

func (g *v1) Pids() ([]int, error) { return pidsBelow(g.dirs["freezer"]) }

// Kill signals in a loop: first under freeze, so that a fork bomb does not outrun it; the signals are
// delivered on thawing.
func (g *v1) Kill(ctx context.Context) error {
	_ = write(g.dirs["freezer"], "freezer.state", "FROZEN")
	pids, _ := g.Pids()
	for _, p := range pids {
		_ = unix.Kill(p, unix.SIGKILL)
	}
	_ = g.Thaw()
	return killAll(ctx, g.Pids)
}

func (g *v1) Remove() error {
	var errs []error
	for _, d := range g.all {
		errs = append(errs, removeTree(d))
	}
	return errors.Join(errs...)
}

func (g *v1) Exists() bool {
	for _, d := range g.all {
		if _, err := os.Stat(d); err == nil {
			return true
		}
	}
	return false
}

// Watch asks for eventfds through cgroup.event_control: one for memory.oom_control, one for a usage threshold.
func (g *v1) Watch(o WatchOptions) (*Watch, error) {
	w := newWatch(g, o)
	if err := g.notify(w, "memory.oom_control", "", w.oom); err != nil {
		_ = w.Close()
		return nil, err
	}
	if o.MemoryLimit > 0 {
		w.readers = append(w.readers, func() { g.threshold(w) })
	}
	w.run()
	return w, nil
}

// threshold registers the tripwire, for which the kernel waits until nobody can be looking at the old ones (an RCU grace period: 5 to 20 ms),
// and then reads its events. Memory that went over meanwhile is seen right after. Where it cannot be registered, the
// memory is looked at once a second.
func (g *v1) threshold(w *Watch) {
	ev, err := g.register("memory.usage_in_bytes", strconv.FormatUint(w.o.MemoryLimit, 10))
	if err != nil {
		w.poll()
		return
	}
	if !w.keep(ev) {
		return
	}
	w.high()
	w.read(ev, 8, func([]byte) { w.high() })
}

// notify registers an eventfd for file and calls fn at each event.
func (g *v1) notify(w *Watch, file, arg string, fn func()) error {
	ev, err := g.register(file, arg)
	if err == nil {
		w.add(ev, 8, func([]byte) { fn() })
	}
	return err
}

// register registers an eventfd for file. When the cgroup is removed the kernel signals once more.
func (g *v1) register(file, arg string) (*os.File, error) {
	dir := g.dirs["memory"]
	target, err := os.Open(filepath.Join(dir, file))
	if err != nil {
		return nil, gone(err)
	}
	defer target.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	ev := os.NewFile(uintptr(fd), "eventfd of "+file)
	if err := write(dir, "cgroup.event_control", fmt.Sprintf("%d %d %s", fd, target.Fd(), arg)); err != nil {
		return nil, errors.Join(err, ev.Close())
	}
	return ev, nil
}
