package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/internal/nbio"
)

// Period is the CFS period of every instance.
const Period = 100 * time.Millisecond

// minQuota is the smallest CPU quota that the kernel accepts.
const minQuota = time.Millisecond

// Memory is what a cgroup has charged, in bytes.
type Memory struct {
	// Usage is everything: anonymous memory, page cache, tmpfs and kernel memory.
	Usage uint64
	// Peak is the highest Usage so far; zero where the kernel does not say (v2 before Linux 5.19).
	Peak uint64
	// Cache is the page cache, without Shmem.
	Cache uint64
	// Shmem is tmpfs and shared anonymous memory.
	Shmem uint64
}

// Function returns the bytes that the function itself uses: usage without page cache and without the
// given bytes of tmpfs files.
func (m Memory) Function(tmpfs uint64) uint64 {
	without := m.Cache + min(tmpfs, m.Shmem)
	if without >= m.Usage {
		return 0
	}
	return m.Usage - without
}

// Group is the cgroup of one instance. Methods may be called concurrently and return an error of class
// errdefs.ErrNotFound once the cgroup is gone.
type Group interface {
	// SetCPU sets the CPU quota in cores; zero or less removes the quota. Below 0.01 cores it becomes 0.01.
	SetCPU(cores float64) error
	// CPUQuota returns the quota in cores, zero for none.
	CPUQuota() (float64, error)
	// SetShares sets the CPU weight in shares, 1024 for a core, as the runtime does at creation.
	SetShares(shares uint64) error
	// SetMemory sets the hard limit of memory in bytes, and on v1 that of memory and swap together. On v2 swap stays as it is.
	SetMemory(limit uint64) error
	// Limits returns the hard memory limit in bytes and the pids limit; zero means unlimited.
	Limits() (memory, pids uint64, err error)
	// Memory returns what is charged now.
	Memory() (Memory, error)
	// OpenPeak opens the kernel's watermark of everything charged, for Peak; nil without an error where there is none (v2
	// before Linux 5.19).
	OpenPeak() (*os.File, error)
	// OOMKills returns how many processes the kernel has killed in this cgroup for want of memory.
	OOMKills() (uint64, error)
	// Freeze stops all processes. It returns when the kernel says that they are stopped. When ctx ends
	// before, or a second has passed, it lets them go on and says so.
	Freeze(ctx context.Context) error
	// Thaw lets them go on. Thawing what is not frozen does nothing.
	Thaw() error
	// Doomed reports whether a process of a frozen cgroup was sent a SIGKILL that it has not died of yet. Only
	// v1 keeps such processes: on v2 SIGKILL ends frozen ones at once.
	Doomed() (bool, error)
	// Pids returns the processes in the cgroup and below, seen from the caller's PID namespace.
	Pids() ([]int, error)
	// Kill sends SIGKILL to all processes, frozen ones too, until none is left or ctx ends.
	Kill(ctx context.Context) error
	// Remove removes the (empty) cgroup with everything below it, in every hierarchy. What is gone already is no error.
	Remove() error
	// Watch reports events until Close.
	Watch(o WatchOptions) (*Watch, error)
	// Exists reports whether the cgroup exists in any hierarchy.
	Exists() bool
}

// Root knows the mounted hierarchies of the host. The zero value is not usable; call Detect.
type Root struct {
	v2  string            // mount point of the unified hierarchy, "" without
	v1  map[string]string // controller → mount point
	use int               // 1 or 2: where the controllers are
}

// Detect reads /proc/self/mountinfo. It fails with class errdefs.ErrFailedPrecondition when the controllers that an instance
// needs (cpu, memory, pids, and on v1 freezer) are not mounted.
func Detect() (*Root, error) {
	f, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	r := parseMountinfo(string(f))
	if r.v1["memory"] != "" {
		r.use = 1
		for _, c := range []string{"cpu", "memory", "pids", "freezer"} {
			if r.v1[c] == "" {
				return nil, fmt.Errorf("the cgroup v1 controller %s is not mounted below /sys/fs/cgroup: %w", c, errdefs.ErrFailedPrecondition)
			}
		}
		return r, nil
	}
	if r.v2 == "" {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted below /sys/fs/cgroup: %w", errdefs.ErrFailedPrecondition)
	}
	r.use = 2
	have, err := os.ReadFile(filepath.Join(r.v2, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(strings.Fields(string(have)), c) {
			return nil, fmt.Errorf("the cgroup v2 controller %s is not available in %s: %w", c, r.v2, errdefs.ErrFailedPrecondition)
		}
	}
	return r, nil
}

// Hybrid reports whether cgroup v1 is in use with a v2 hierarchy mounted beside it (crun refuses that).
func (r *Root) Hybrid() bool { return r.use == 1 && r.v2 != "" }

func parseMountinfo(s string) *Root {
	r := &Root{v1: map[string]string{}}
	for line := range strings.Lines(s) {
		head, tail, ok := strings.Cut(strings.TrimSpace(line), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(t) < 3 || h[3] != "/" {
			continue
		}
		switch t[0] {
		case "cgroup2":
			if r.v2 == "" {
				r.v2 = h[4]
			}
		case "cgroup":
			for _, o := range strings.Split(t[2], ",") {
				if r.v1[o] == "" && o != "rw" && o != "ro" {
					r.v1[o] = h[4]
				}
			}
		}
	}
	return r
}

// Version returns 1 or 2: where the controllers are.
func (r *Root) Version() int { return r.use }

// Open returns the cgroup parent/id. It need not exist yet. parent is an absolute path within each hierarchy,
// such as "/lfx/fn".
func (r *Root) Open(parent, id string) Group {
	if r.use == 2 {
		return &v2{dir: filepath.Join(r.v2, parent, id)}
	}
	g := &v1{dirs: map[string]string{}}
	for c, m := range r.v1 {
		g.dirs[c] = filepath.Join(m, parent, id)
	}
	g.all = r.dirs(parent, id)
	return g
}

// dirs returns the directory of parent/id in every hierarchy that is mounted.
func (r *Root) dirs(parent, id string) []string {
	var all []string
	for _, m := range r.mounts() {
		all = append(all, filepath.Join(m, parent, id))
	}
	return all
}

func (r *Root) mounts() []string {
	var all []string
	for _, m := range r.v1 {
		if !slices.Contains(all, m) {
			all = append(all, m)
		}
	}
	if r.v2 != "" {
		all = append(all, r.v2)
	}
	slices.Sort(all)
	return all
}

// Children returns the names of the cgroups directly below parent in any hierarchy, sorted: what reconciliation compares.
func (r *Root) Children(parent string) ([]string, error) {
	var ids []string
	for _, dir := range r.dirs(parent, "") {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() {
				ids = append(ids, e.Name())
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// RemoveParent removes parent and the empty cgroups above it. Cgroups that still have children or processes stay.
func (r *Root) RemoveParent(parent string) {
	for _, m := range r.mounts() {
		for p := filepath.Clean(parent); p != "/" && p != "."; p = filepath.Dir(p) {
			if unix.Rmdir(filepath.Join(m, p)) != nil {
				break
			}
		}
	}
}

// InGroup reports whether the text of /proc/<pid>/cgroup names parent/id in a hierarchy that matters.
func InGroup(procCgroup, parent, id string) bool {
	want := filepath.Join(parent, id)
	for line := range strings.Lines(procCgroup) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (f[2] == want || strings.HasPrefix(f[2], want+"/")) {
			return true
		}
	}
	return false
}

// removeTree removes dir and the cgroups below it, deepest first. A cgroup whose last process has just died
// can stay busy for a moment: it retries for up to a second.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	deadline := time.Now().Add(time.Second)
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY || time.Now().After(deadline) {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(wait)
	}
}

// killAll sends SIGKILL to every process that list names until it names none.
func killAll(ctx context.Context, list func() ([]int, error)) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := list()
		if errdefs.IsNotFound(err) || (err == nil && len(pids) == 0) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, p := range pids {
			if err := unix.Kill(p, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("kill process %d: %w", p, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes still live after SIGKILL: %w", len(pids), context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// pidsBelow returns the processes of dir and of the cgroups below it.
func pidsBelow(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		s, err := read(path, "cgroup.procs")
		for f := range strings.FieldsSeq(s) {
			if p, perr := strconv.Atoi(f); perr == nil {
				pids = append(pids, p)
			}
		}
		return err
	})
	return pids, gone(err)
}

func read(dir, file string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	return strings.TrimSpace(string(b)), gone(err)
}

// readUint reads a number; "max" and v1's way to say unlimited are zero.
func readUint(dir, file string) (uint64, error) {
	s, err := read(dir, file)
	if err != nil || s == "max" || s == "-1" {
		return 0, err
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s/%s: %w", dir, file, err)
	}
	if n >= 1<<62 {
		return 0, nil
	}
	return n, nil
}

// Peak reads the watermark in bytes from what OpenPeak returned, by one system call.
func Peak(f *os.File) (uint64, error) {
	var buf [24]byte
	n := 0
	c, err := f.SyscallConn()
	if err == nil { // ReadAt would ask a second time for the rest
		cerr := c.Control(func(fd uintptr) { n, err = nbio.Pread(int(fd), buf[:], 0) })
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return 0, gone(err)
	}
	var v uint64
	for _, c := range buf[:n] {
		if c < '0' || c > '9' {
			break
		}
		v = v*10 + uint64(c-'0')
	}
	return v, nil
}

// openPeak opens a file of a cgroup that may not have it.
func openPeak(dir, file string) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, file))
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(dir); statErr == nil {
			return nil, nil //nolint:nilnil // as documented: the kernel has none
		}
	}
	return f, gone(err)
}

// readFields reads a file of "key value" lines.
func readFields(dir, file string) (map[string]uint64, error) {
	s, err := read(dir, file)
	if err != nil {
		return nil, err
	}
	m := map[string]uint64{}
	for line := range strings.Lines(s) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			m[k] = n
		}
	}
	return m, nil
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return gone(err)
	}
	_, err = f.WriteString(value)
	return gone(errors.Join(err, f.Close()))
}

// gone gives errors of a removed cgroup their class.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}

func quota(cores float64) time.Duration {
	return max(time.Duration(cores*float64(Period)), minQuota)
}

// freezeTimeout is how long the kernel may take to stop all processes.
const freezeTimeout = time.Second

// waitState polls until want is true.
func waitState(ctx context.Context, want func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, freezeTimeout,
		fmt.Errorf("the kernel has not stopped all processes within %s: %w", freezeTimeout, errdefs.ErrUnavailable))
	defer cancel()
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		ok, err := want()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// SwapLimit reports whether the kernel can limit swap.
func (r *Root) SwapLimit() bool {
	if r.use == 1 {
		_, err := os.Stat(filepath.Join(r.v1["memory"], "memory.memsw.limit_in_bytes"))
		return err == nil
	}
	// The root cgroup has no memory.swap.max; any other one has.
	matches, _ := filepath.Glob(filepath.Join(r.v2, "*", "memory.swap.max"))
	return len(matches) > 0
}
