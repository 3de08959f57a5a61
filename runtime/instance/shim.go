package instance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Launching a shim is half of a task's creation (two executions of a program of 8 MB), and a shim of its own is most of what an
// idle instance costs in memory. A shim can serve any number of tasks: containerd creates a task in the shim of the
// container's sandbox when its store has that sandbox and a task of the sandbox's ID runs. So that this task
// outlives every instance it is an anchor: a container that is created and never started, a parked runc init of
// about a megabyte that runs no other code. There are a few shims instead of one because whoever kills one ends the instances
// in it, and their pools replace them.

// shimLabel marks the anchors of shared shims in containerd.
const shimLabel = "dev.lfx.shim"

// noticeTimeout is how long containerd may take to see that a shim has died.
const noticeTimeout = 2 * time.Second

// shimPrefix begins the IDs of anchors.
const shimPrefix = "lfx-shim-"

// sharedShims are the IDs of the sandboxes whose shims stand.
type sharedShims struct {
	mu   sync.Mutex // guards what follows
	ids  []string
	next int
}

// pick returns the shims in turn, "" when there is none.
func (s *sharedShims) pick() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ids) == 0 {
		return ""
	}
	s.next++
	return s.ids[s.next%len(s.ids)]
}

func (s *sharedShims) add(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, have := range s.ids {
		if have == id {
			return
		}
	}
	s.ids = append(s.ids, id)
}

// drop takes a shim out of use.
func (s *sharedShims) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, have := range s.ids {
		if have == id {
			s.ids = append(s.ids[:n:n], s.ids[n+1:]...)
			return
		}
	}
}

// ShareShims makes sure that n shims stand for the instances to come, and puts back what is missing of them; those
// that an earlier process left are used. Without it, and while it fails, every instance has a shim of its own. Call it again when
// containerd is back. RemoveShims undoes it.
func (m *Manager) ShareShims(ctx context.Context, n int) error {
	ctx = m.engine.ctx(ctx)
	var errs []error
	for k := range n {
		id := fmt.Sprint(shimPrefix, k)
		if err := m.ensureShim(ctx, id); err != nil {
			m.engine.shims.drop(id)
			errs = append(errs, fmt.Errorf("shim %s: %w", id, err))
			continue
		}
		m.engine.shims.add(id)
	}
	return errors.Join(errs...)
}

// RemoveShims removes all shared shims, also those of an earlier process. Their instances must be gone.
func (m *Manager) RemoveShims(ctx context.Context) error {
	ctx = m.engine.ctx(ctx)
	list, err := m.engine.client.ContainerService().List(ctx, fmt.Sprintf("labels.%q", shimLabel))
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range list {
		m.engine.shims.drop(c.ID)
		errs = append(errs, m.removeShim(ctx, c.ID))
	}
	os.Remove(m.shimDir("")) //nolint:errcheck // not there, or not empty, which was reported
	return errors.Join(errs...)
}

func (m *Manager) shimDir(id string) string {
	return filepath.Join(filepath.Dir(m.o.Dir), "shims", id)
}

// ensureShim makes the anchor unless it stands.
func (m *Manager) ensureShim(ctx context.Context, id string) (err error) {
	if m.engine.anchorStands(ctx, id) {
		return nil
	}
	if err := m.removeShim(ctx, id); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), undoTimeout, errors.New("undo of a shim took too long"))
			defer cancel()
			err = errors.Join(err, m.removeShim(undo, id))
		}
	}()
	root := filepath.Join(m.shimDir(id), "root")
	for _, dir := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "init"), nil, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil { // the daemon's umask may have made it root's alone
		return err
	}
	return m.engine.createAnchor(ctx, id, root, m.anchorSpec(id))
}

// anchorSpec is a container that could do nothing even if it were started.
func (m *Manager) anchorSpec(id string) *specs.Spec {
	memory, pids := int64(64*mib), int64(32)
	s := &specs.Spec{
		Version: ociVersion, Hostname: id, Root: &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			User: specs.User{UID: 65534, GID: 65534}, Cwd: "/", Args: []string{"/init", "/"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "mode=755", "size=64k", "nr_inodes=64"}},
			{Destination: "/init", Type: "bind", Source: m.o.InitPath, Options: []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: m.o.Cgroups.OCI(id),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace}, {Type: specs.NetworkNamespace},
			},
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				Memory:  &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids},
			},
		},
	}
	s.Linux.Seccomp = seccompProfile(s)
	return s
}

// removeShim removes whatever exists of a shim. What does not exist is no error.
func (m *Manager) removeShim(ctx context.Context, id string) error {
	if err := m.engine.removeAnchor(ctx, id); err != nil {
		return fmt.Errorf("remove shim %s: %w", id, err)
	}
	if err := m.awaitShim(ctx, id); err != nil {
		return err
	}
	if err := m.removeGroup(ctx, id); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(m.runtimeState(id)), os.RemoveAll(m.shimDir(id)))
}

// anchorStands reports whether the sandbox is in the store and its task is parked.
func (e *engine) anchorStands(ctx context.Context, id string) bool {
	if _, err := e.client.SandboxStore().Get(ctx, id); err != nil {
		return false
	}
	resp, err := e.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	return err == nil && resp.Process.Status == task.Status_CREATED
}

func (e *engine) createAnchor(ctx context.Context, id, root string, oci *specs.Spec) error {
	if e.runtimeEr != nil {
		return e.runtimeEr
	}
	spec, err := typeurl.MarshalAny(oci)
	if err != nil {
		return err
	}
	_, err = e.client.ContainerService().Create(ctx, containers.Container{
		ID: id, Labels: map[string]string{shimLabel: id}, Spec: spec, Runtime: containers.RuntimeInfo{Name: runtimeName, Options: e.runtime},
	})
	if err != nil {
		return err
	}
	if _, err := e.createTask(ctx, id, []mount.Mount{{Type: "bind", Source: root, Options: []string{"bind", "ro"}}}); err != nil {
		return err
	}
	now := time.Now().UTC()
	_, err = e.client.SandboxStore().Create(ctx, sandbox.Sandbox{
		ID: id, Labels: map[string]string{shimLabel: id}, CreatedAt: now, UpdatedAt: now,
		Runtime: sandbox.RuntimeOpts{Name: runtimeName, Options: e.runtime},
	})
	return err
}

// killAnchor asks again for a while when containerd has not noticed yet that the anchor's shim died.
func (e *engine) killAnchor(ctx context.Context, id string) error {
	deadline := time.Now().Add(noticeTimeout)
	for {
		_, err := e.client.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true})
		err = errgrpc.ToNative(err)
		if err == nil || errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (e *engine) removeAnchor(ctx context.Context, id string) error {
	if err := e.client.SandboxStore().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	err := e.killAnchor(ctx, id)
	if err == nil {
		err = e.deleteTask(ctx, id)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := e.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
