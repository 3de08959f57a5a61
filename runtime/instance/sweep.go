package instance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// shimTimeout is how long a shim may take to go after its task was deleted.
const shimTimeout = 5 * time.Second

// sweep removes everything external of an instance, by name, whatever of it exists: it serves Destroy, the undo of Create and
// Reconcile. Every step succeeds when there is nothing to do, so an interrupted sweep is simply repeated. The record
// goes last. nsPath is empty when the network namespace is out of reach.
//
// The processes die first. The network is detached while the namespace is still held, before containerd
// (which may be down) is needed.
func (m *Manager) sweep(ctx context.Context, r record, nsPath string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("destroy instance %s: %w", r.ID, err)
			r.Broken = err.Error()
			_ = r.write(m.dir(r.ID))
		}
	}()
	ctx = m.engine.ctx(ctx)
	group := m.group(r.ID)
	if err := group.Kill(ctx); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	if m.o.Network != nil && r.Network {
		if err := m.o.Network.Detach(ctx, r.ID, nsPath); err != nil {
			return fmt.Errorf("detach network: %w", err)
		}
	}
	if err := m.engine.remove(ctx, r.ID); err != nil {
		return err
	}
	if err := m.awaitShim(ctx, r.ID); err != nil {
		return err
	}
	if err := m.removeGroup(ctx, r.ID); err != nil {
		return err
	}
	// The runtime's own state is gone with the task, unless the shim died before it.
	if err := os.RemoveAll(m.runtimeState(r.ID)); err != nil {
		return err
	}
	if err := m.removeDir(r.ID); err != nil {
		return err
	}
	m.uids.release(r.UID, r.ID)
	return nil
}

// removeGroup removes the cgroup of an instance or of a shim, with what is in it. The runtime has done so, unless it was stopped before
// it could delete what it had made, or had asked systemd for.
func (m *Manager) removeGroup(ctx context.Context, id string) error {
	group := m.group(id)
	if !group.Exists() {
		return nil
	}
	if err := group.Kill(ctx); err != nil {
		return fmt.Errorf("kill what is left in the cgroup of %s: %w", id, err)
	}
	if m.o.Cgroups.Driven() {
		if err := m.units.Stop(ctx, m.o.Cgroups.Name(id)); err != nil {
			return err
		}
	}
	return group.Remove()
}

// removeDir removes the instance's directory, the record last.
func (m *Manager) removeDir(id string) error {
	for _, d := range []string{ioDir, "etc", secretsDir, scratchDir} {
		if err := os.RemoveAll(filepath.Join(m.dir(id), d)); err != nil {
			return err
		}
	}
	return os.RemoveAll(m.dir(id))
}

func (m *Manager) runtimeState(id string) string {
	return filepath.Join(m.o.RuntimeRoot, m.o.Namespace, id)
}

// awaitShim waits for the end of the instance's shim, which ends by itself after its task was deleted. One that has lost containerd
// does not know, and is killed.
func (m *Manager) awaitShim(ctx context.Context, id string) error {
	deadline := time.Now().Add(shimTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		shims, err := m.shims()
		if err != nil || shims[id] == 0 {
			return err
		}
		if time.Now().After(deadline) {
			m.log.Warn("shim outlives its task and is killed", "instance", id, "pid", shims[id])
			if err := unix.Kill(shims[id], unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("kill shim %d: %w", shims[id], err)
			}
			deadline = time.Now().Add(shimTimeout)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("shim %d is still there: %w", shims[id], context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// shims returns the pids of our shims by the ID of their container: processes named containerd-shim-runc-v2 with our namespace in
// their arguments. A zombie has no arguments and does not count, nor does one in another PID namespace: a system
// container's lfxd has the same paths.
func (m *Manager) shims() (map[string]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	ours, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	all := map[string]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		if err != nil || !strings.HasPrefix(string(comm), "containerd-shim") {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/pid"))
		if err != nil || ns != ours {
			continue
		}
		if id, ok := shimOf(string(b), m.o.Namespace, m.engine.address()); ok {
			all[id] = pid
		}
	}
	return all, nil
}

// shimOf returns the container ID from a shim's command line, if it serves our namespace of our containerd.
func shimOf(cmdline, namespace, address string) (id string, ok bool) {
	args := strings.Split(cmdline, "\x00")
	flag := func(name string) string {
		for n := 1; n+1 < len(args); n++ {
			if args[n] == name {
				return args[n+1]
			}
		}
		return ""
	}
	if filepath.Base(args[0]) != "containerd-shim-runc-v2" || flag("-namespace") != namespace ||
		(address != "" && flag("-address") != address) {
		return "", false
	}
	id = flag("-id")
	return id, id != ""
}

// Reconcile compares what is recorded and what exists with what should: everything of an instance that keep refuses is
// destroyed, unless the instance belongs to this manager (it was made by it and Destroy has not failed on it). It returns the IDs of what it has
// removed. One instance that cannot be removed does not stop the others; their errors are joined. Call it at start, from
// time to time, and when containerd is back. After a crash of the daemon nothing is kept: keep returns false.
//
// Ours is what has a record, our label in containerd, or a cgroup below our parent. A task or a shim
// without any of these is BuildKit's or somebody else's.
func (m *Manager) Reconcile(ctx context.Context, keep func(id string) bool) (removed []string, err error) {
	found, err := m.find(m.engine.ctx(ctx))
	if err != nil {
		return nil, fmt.Errorf("reconcile instances: %w", err)
	}
	var errs []error
	for id, r := range found {
		live := m.liveOne(id)
		if live == nil && keep(id) || live != nil && !live.broken.Load() {
			continue
		}
		finish := func() error { return m.finish(ctx, r) }
		if live != nil {
			finish = func() error { return live.Destroy(ctx) }
		}
		if err := finish(); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, id)
	}
	return removed, errors.Join(errs...)
}

// find returns everything of ours, by ID; where there is no record, one with what is known.
func (m *Manager) find(ctx context.Context) (map[string]record, error) {
	records, err := readRecords(m.o.Dir)
	if err != nil {
		return nil, err
	}
	found := map[string]record{}
	for _, r := range records {
		found[r.ID] = r
	}
	names, err := m.cgroups.Children(m.o.Cgroups.Parent())
	if err != nil {
		return nil, err
	}
	var cgroups []string
	for _, name := range names {
		if id, ok := m.o.Cgroups.ID(name); ok && !strings.HasPrefix(id, shimPrefix) {
			cgroups = append(cgroups, id)
		}
	}
	labelled, err := m.engine.labelled(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range append(cgroups, labelled...) {
		if _, ok := found[id]; !ok && validID.MatchString(id) {
			found[id] = record{ID: id, Network: true}
		}
	}
	return found, nil
}

// finish destroys one leftover. The ID is reserved meanwhile, so that no Create takes it.
func (m *Manager) finish(ctx context.Context, r record) error {
	if _, err := m.reserve(r.ID); err != nil {
		return err
	}
	defer m.forget(r.ID)
	return m.sweep(ctx, r, "")
}
