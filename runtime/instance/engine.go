package instance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
)

const (
	snapshotter = "overlayfs"
	runtimeName = "io.containerd.runc.v2"
	// gcRoot keeps a snapshot from containerd's garbage collector until it is removed by name. It stands in for a lease,
	// which would cost two more transactions per start.
	gcRoot = "containerd.io/gc.root"
	// stopTimeout bounds the wait for containerd to see that a killed task has ended.
	stopTimeout = 10 * time.Second
)

// engine is what we ask of containerd. It uses the services directly: the client's container and task
// objects read the same records again at every step and take a lease per container.
type engine struct {
	client    *containerd.Client
	namespace string
	runtime   typeurl.Any
	runtimeEr error
	// shims have a lock of their own.
	shims sharedShims

	mu     sync.Mutex        // guards chains and remap
	chains map[string]string // image target digest (or digest reference) → chain ID of its layers
	remap  bool              // the snapshotter is known to map ids
}

func newEngine(o Options) *engine {
	e := &engine{client: o.Client, namespace: o.Namespace, chains: map[string]string{}}
	e.runtime, e.runtimeEr = typeurl.MarshalAny(&runcoptions.Options{
		BinaryName: o.RuntimeBinary, Root: o.RuntimeRoot, SystemdCgroup: o.Cgroups.Driven(),
	})
	return e
}

func (e *engine) ctx(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, e.namespace)
}

// parent returns the name of the image's topmost snapshot.
func (e *engine) parent(ctx context.Context, ref string) (string, error) {
	if strings.Contains(ref, "@sha256:") {
		if c := e.cached(ref); c != "" {
			return c, nil
		}
	}
	img, err := e.image(ctx, ref)
	if err != nil {
		return "", err
	}
	key := img.Target.Digest.String()
	if c := e.cached(key); c != "" {
		return c, nil
	}
	diffs, err := img.RootFS(ctx, e.client.ContentStore(), platforms.Default())
	if err != nil {
		return "", fmt.Errorf("layers of image %s: %w", ref, err)
	}
	chain := identity.ChainID(diffs).String()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.chains[key] = chain
	if strings.Contains(ref, "@sha256:") {
		e.chains[ref] = chain
	}
	return chain, nil
}

func (e *engine) cached(key string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.chains[key]
}

// image looks an image up by name; a reference by digest is also found under any other name.
func (e *engine) image(ctx context.Context, ref string) (images.Image, error) {
	img, err := e.client.ImageService().Get(ctx, ref)
	if err == nil || !errdefs.IsNotFound(err) {
		return img, err
	}
	_, dgst, ok := strings.Cut(ref, "@")
	if !ok && !strings.HasPrefix(ref, "sha256:") {
		return img, err
	}
	if !ok {
		dgst = ref
	}
	all, lerr := e.client.ImageService().List(ctx, fmt.Sprintf("target.digest==%q", dgst))
	if lerr != nil {
		return img, lerr
	}
	if len(all) == 0 {
		return img, err
	}
	return all[0], nil
}

// prepare makes the snapshot of an instance and returns its mounts.
func (e *engine) prepare(ctx context.Context, s Spec, uid uint32) ([]mount.Mount, error) {
	if err := e.checkRemap(ctx); err != nil {
		return nil, err
	}
	parent, err := e.parent(ctx, s.Image)
	if err != nil {
		return nil, err
	}
	ids := idMapping(uid)
	mounts, err := e.client.SnapshotService(snapshotter).Prepare(ctx, s.ID, parent,
		containerd.WithUserNSRemapperLabels(ids, ids),
		snapshots.WithLabels(map[string]string{Label: s.ID, gcRoot: time.Now().UTC().Format(time.RFC3339)}))
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("image %s is not unpacked: deploy the function again: %w", s.Image, err)
	}
	for i, m := range mounts {
		// A device in the image opens nothing (the runtime's own list of allowed ones has /dev/net/tun).
		mounts[i].Options = append(m.Options, "nodev", "nosuid")
		if m.Type == "overlay" {
			// The upper directory is thrown away with the instance, so nothing waits for its data to reach the disk.
			mounts[i].Options = append(mounts[i].Options, "volatile")
		}
	}
	return mounts, err
}

// checkRemap makes sure that the snapshotter maps ids by mount; otherwise files would belong to nobody.
func (e *engine) checkRemap(ctx context.Context) error {
	e.mu.Lock()
	known := e.remap
	e.mu.Unlock()
	if known {
		return nil
	}
	caps, err := e.client.GetSnapshotterCapabilities(ctx, snapshotter)
	if err != nil {
		return err
	}
	for _, c := range caps {
		if c == "remap-ids" {
			e.mu.Lock()
			e.remap = true
			e.mu.Unlock()
			return nil
		}
	}
	return fmt.Errorf("the %s snapshotter cannot map user ids: it needs Linux 5.19 and an overlay file system with idmapped mounts: %w",
		snapshotter, errdefs.ErrFailedPrecondition)
}

// createContainer records the container; shim names the sandbox whose shim its task will be in, "" for a shim of its own.
func (e *engine) createContainer(ctx context.Context, s Spec, oci *specs.Spec, shim string) error {
	if e.runtimeEr != nil {
		return e.runtimeEr
	}
	spec, err := typeurl.MarshalAny(oci)
	if err != nil {
		return err
	}
	_, err = e.client.ContainerService().Create(ctx, containers.Container{
		ID: s.ID, Labels: labelsOf(s), Image: s.Image, Spec: spec, Snapshotter: snapshotter, SnapshotKey: s.ID,
		Runtime: containers.RuntimeInfo{Name: runtimeName, Options: e.runtime}, SandboxID: shim,
	})
	return err
}

func labelsOf(s Spec) map[string]string {
	labels := map[string]string{}
	for k, v := range s.Labels {
		labels[k] = v
	}
	labels[Label] = s.ID
	return labels
}

// updateContainer writes down what the container of a sandbox has become.
func (e *engine) updateContainer(ctx context.Context, s Spec, oci *specs.Spec) error {
	spec, err := typeurl.MarshalAny(oci)
	if err != nil {
		return err
	}
	c := containers.Container{ID: s.ID, Labels: labelsOf(s), Image: s.Image, Spec: spec}
	if _, err := e.client.ContainerService().Update(ctx, c, "labels", "image", "spec"); err != nil {
		return fmt.Errorf("container: %w", err)
	}
	return nil
}

// createIn creates root (a snapshot as a rule), container and task, in a shared shim if one stands, else in a shim of its own; recorded is called before
// the task. Snapshot and container do not need each other and are made together: both wait for containerd's
// disk. A shim that turns out to be gone is taken out of use.
func (e *engine) createIn(ctx context.Context, s Spec, oci *specs.Spec, root func(context.Context) ([]mount.Mount, error), recorded func()) (pid int, err error) {
	shim := e.shims.pick()
	var rootfs []mount.Mount
	var g errgroup.Group // both to their end: the undo must not meet one that is still under way
	g.Go(func() (err error) {
		if rootfs, err = root(ctx); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		if err := e.createContainer(ctx, s, oci, shim); err != nil {
			return fmt.Errorf("container: %w", err)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return 0, err
	}
	recorded()
	if pid, err = e.createTask(ctx, s.ID, rootfs); err == nil {
		return pid, nil
	}
	if shim == "" || ctx.Err() != nil || e.anchorStands(ctx, shim) {
		return 0, fmt.Errorf("task: %w", err)
	}
	e.shims.drop(shim)
	if err := e.client.ContainerService().Delete(ctx, s.ID); err != nil {
		return 0, fmt.Errorf("container: %w", err)
	}
	if err := e.createContainer(ctx, s, oci, ""); err != nil {
		return 0, fmt.Errorf("container: %w", err)
	}
	if pid, err = e.createTask(ctx, s.ID, rootfs); err != nil {
		return 0, fmt.Errorf("task: %w", err)
	}
	return pid, nil
}

// createTask starts the shim and the parked init, and returns the init's pid. Standard I/O is /dev/null: logs go through our FIFOs.
func (e *engine) createTask(ctx context.Context, id string, rootfs []mount.Mount) (int, error) {
	req := &tasks.CreateTaskRequest{ContainerID: id}
	for _, m := range rootfs {
		req.Rootfs = append(req.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	resp, err := e.client.TaskService().Create(ctx, req)
	if err != nil {
		return 0, errgrpc.ToNative(err)
	}
	return int(resp.Pid), nil
}

func (e *engine) startTask(ctx context.Context, id string) error {
	_, err := e.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: id})
	return errgrpc.ToNative(err)
}

// remove removes task, container and snapshot. The processes must be dead. What is gone already is no error.
func (e *engine) remove(ctx context.Context, id string) error {
	if err := e.deleteTask(ctx, id); err != nil {
		return fmt.Errorf("delete task: %w", err)
	}
	if err := e.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container: %w", err)
	}
	if err := e.client.SnapshotService(snapshotter).Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	return nil
}

// deleteTask waits until containerd knows that the task has ended, for it refuses to delete others.
func (e *engine) deleteTask(ctx context.Context, id string) error {
	svc := e.client.TaskService()
	wctx, cancel := context.WithTimeoutCause(ctx, stopTimeout, errors.New("containerd does not see the end of the task"))
	defer cancel()
	_, _ = svc.Wait(wctx, &tasks.WaitRequest{ContainerID: id}) // Delete tells what is wrong
	_, err := svc.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err := errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// labelled returns the IDs of all instances that containerd has a container or a snapshot of.
func (e *engine) labelled(ctx context.Context) ([]string, error) {
	var ids []string
	list, err := e.client.ContainerService().List(ctx, fmt.Sprintf("labels.%q", Label))
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if c.Labels[Label] == c.ID {
			ids = append(ids, c.ID)
		}
	}
	err = e.client.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Labels[Label] == i.Name {
			ids = append(ids, i.Name)
		}
		return nil
	}, fmt.Sprintf("labels.%q", Label))
	return ids, err
}

// address is containerd's socket as its shims have it in their arguments: without scheme. It is empty when the client does not tell.
func (e *engine) address() string {
	conn, ok := e.client.Conn().(interface{ Target() string })
	if !ok {
		return ""
	}
	return strings.TrimPrefix(conn.Target(), "unix://")
}
