package instance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"lfx.dev/lfxd/runtime/cgroup"
)

// Create makes and starts an instance, in the order of the package comment. When it returns, the start of the runtime is under way,
// or with Spec.Hold waits for Begin; whether it succeeds is told by Exited and Exit. An error leaves nothing behind,
// or a record that Reconcile finishes. Classes: ErrInvalidArgument for a bad spec, ErrAlreadyExists for an ID in use, ErrNotFound for an
// image that is missing or not unpacked.
func (m *Manager) Create(ctx context.Context, s Spec) (*Instance, error) {
	begun := time.Now()
	i, err := m.claim(s)
	if i == nil {
		return nil, err
	}
	parked := i.parked
	i.spec, i.begun = s, begun
	if err == nil {
		err = i.make(m.engine.ctx(ctx))
	}
	if err == nil {
		m.fitted(i)
		return i, nil
	}
	ended := parked && !i.standing()
	i.undo(err)
	if !parked || i.handed || ctx.Err() != nil || errdefs.IsInvalidArgument(err) {
		return nil, err
	}
	// What the sandbox could not be an instance that is made now may. Not where containerd is away or has no image.
	switch {
	case ended: // it says nothing about the image
	case errors.Is(err, errMisfit):
		m.misfitted(i.spec.Image)
	case errdefs.IsNotFound(err) || errdefs.IsUnavailable(err):
		return nil, err
	}
	m.log.Warn("a sandbox made ahead was of no use, and an instance is made in its place", "instance", i.id, "image", i.spec.Image, "error", err)
	return m.Create(ctx, s) // the ID is free again, or the record of what could not be removed stands in the way
}

// make makes and starts the instance that was claimed.
func (i *Instance) make(ctx context.Context) error {
	create := i.create
	if i.parked {
		create = i.adopt
	}
	if err := create(ctx); err != nil {
		return fmt.Errorf("create instance %s: %w", i.id, err)
	}
	if err := i.start(ctx); err != nil {
		return fmt.Errorf("start instance %s: %w", i.id, err)
	}
	return nil
}

// create makes everything up to the parked init.
func (i *Instance) create(ctx context.Context) (err error) {
	timer := stopwatch(i.begun)
	if err := i.describe(); err != nil {
		return err
	}
	timer.lap(&i.phases.Files)
	root := func(ctx context.Context) ([]mount.Mount, error) { return i.m.engine.prepare(ctx, i.spec, i.rec.UID) }
	i.pid, err = i.m.engine.createIn(ctx, i.spec, i.ociSpec(), root, func() { timer.lap(&i.phases.Container) })
	if err != nil {
		return err
	}
	if err := i.hold(); err != nil {
		return err
	}
	if i.m.o.Cgroups.Driven() {
		if err := i.group.SetCPU(max(i.spec.Cores, 1)); err != nil { // see specInput.scope
			return fmt.Errorf("CPU quota for init: %w", err)
		}
	}
	timer.lap(&i.phases.Create)
	if err := i.connect(ctx); err != nil {
		return err
	}
	timer.lap(&i.phases.Network)
	if err := i.check(); err != nil {
		return err
	}
	timer.lap(&i.phases.Check)
	return i.move(Created)
}

// describe makes the record, and the files that it stands for; with a network made ahead they are there.
func (i *Instance) describe() (err error) {
	dir := i.m.dir(i.id)
	if i.prepared {
		i.rec.Image = i.spec.Image
		return i.rec.write(dir)
	}
	if err := i.record(); err != nil {
		return err
	}
	if err := makeFiles(dir, i.rec.UID); err != nil {
		return err
	}
	i.pipes, err = openPipes(dir)
	return err
}

func (i *Instance) ociSpec() *specs.Spec {
	in := specInput{
		Spec: i.spec, uid: i.rec.UID, dir: i.m.dir(i.id), initPath: i.m.o.InitPath, cgroupsPath: i.m.o.Cgroups.OCI(i.id),
		scope: i.m.o.Cgroups.Driven(), apparmor: i.m.o.AppArmorProfile,
	}
	if i.prepared {
		in.userns, in.netns = specPath(i.userns), specPath(i.netns)
	}
	return ociSpec(in, i.m.host)
}

// start lets the parked init run: lfx-init, and the runtime unless the instance is held. The word for it is said before, so that the
// runtime does not wait for containerd's answer.
func (i *Instance) start(ctx context.Context) error {
	timer := stopwatch(time.Now())
	if !i.spec.Hold {
		if err := i.pipes.open(i.word()); err != nil {
			return err
		}
	}
	if !i.parked { // else lfx-init runs
		if err := i.m.engine.startTask(ctx, i.id); err != nil {
			return err
		}
	}
	timer.lap(&i.phases.Start)
	if i.spec.Hold {
		return nil
	}
	// The runtime may have ended already.
	if err := i.move(Started); err != nil && i.State() != Exited {
		return err
	}
	return nil
}

// Begin starts the runtime of an instance that was created with Hold, by one write. The error is of class
// ErrFailedPrecondition when the instance has ended meanwhile, or was begun before.
func (i *Instance) Begin() error {
	select {
	case <-i.dead:
		return fmt.Errorf("instance %s has ended while it waited: %w", i.id, errdefs.ErrFailedPrecondition)
	default:
	}
	// The kernel is asked too: the watcher may not have run yet.
	if ended, err := processEnded(i.pidfd); err != nil || ended {
		return errors.Join(err, fmt.Errorf("instance %s has ended while it waited: %w", i.id, errdefs.ErrFailedPrecondition))
	}
	if err := i.move(Started); err != nil {
		return err
	}
	if err := i.pipes.open(i.word()); err != nil {
		return fmt.Errorf("instance %s does not hear its word: %w", i.id, err)
	}
	return nil
}

// record writes down what will exist, before any of it does.
func (i *Instance) record() error {
	uid, err := i.m.uids.take(i.id)
	if err != nil {
		return err
	}
	i.rec = record{ID: i.id, UID: uid, Image: i.spec.Image, Network: i.m.o.Network != nil, Created: time.Now().UTC()}
	dir := i.m.dir(i.id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		i.m.uids.release(uid, i.id)
		if errors.Is(err, os.ErrExist) {
			// A leftover of the same ID is somebody else's: nothing of it may be undone by us.
			i.rec = record{}
			return fmt.Errorf("%s: %w", dir, errdefs.ErrAlreadyExists)
		}
		return err
	}
	return i.rec.write(dir)
}

// hold takes descriptors of the parked init and of its network namespace, so that both can be reached until
// Destroy even if the process dies, and starts watching it.
func (i *Instance) hold() error {
	if err := i.holdProcess(); err != nil {
		return err
	}
	return i.watchLimits()
}

func (i *Instance) holdProcess() error {
	fd, err := unix.PidfdOpen(i.pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("pidfd of process %d: %w", i.pid, err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	// The pid may have been reused between the answer and now: the descriptor must be of a process in our cgroup.
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", i.pid))
	if err == nil && !cgroup.InGroup(string(groups), i.m.o.Cgroups.Parent(), i.m.o.Cgroups.Name(i.id)) {
		err = fmt.Errorf("process %d is not in the cgroup of the instance: %w", i.pid, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return errors.Join(err, pidfd.Close())
	}
	i.pidfd = pidfd
	if i.prepared {
		return i.inNamespaces()
	}
	i.netns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", i.pid))
	return err
}

// connect makes the instance reachable, as far as that was not done ahead: loopback, listener, network, name files.
func (i *Instance) connect(ctx context.Context) error {
	if err := i.listen(); err != nil {
		return fmt.Errorf("runtime API listener: %w", err)
	}
	if i.prepared {
		return nil
	}
	return i.attach(ctx)
}

// attach gives the namespace an address, and the instance its name files.
func (i *Instance) attach(ctx context.Context) error {
	if n := i.m.o.Network; n != nil {
		addr, err := n.Attach(ctx, i.id, fdPath(i.netns))
		if err != nil {
			return fmt.Errorf("attach network: %w", err)
		}
		i.addr = addr
	}
	return i.m.writeNames(i.id, i.addr)
}

func (i *Instance) listen() (err error) {
	if i.spec.Listen == nil {
		if i.prepared {
			return nil
		}
		return inNetns(i.netns, loopbackUp)
	}
	if i.listener == nil {
		if i.listener, err = listenInside(i.netns); err != nil {
			return err
		}
	}
	i.handed = true
	return i.spec.Listen(i.listener)
}

// undo removes what a failed Create has made. What it cannot remove stays recorded.
func (i *Instance) undo(cause error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), undoTimeout, errors.New("undo of a failed start took too long"))
	defer cancel()
	if i.rec.ID == "" {
		_ = i.release()
		i.m.forget(i.id)
		return
	}
	err := i.stop(ctx)
	if err == nil {
		err = i.m.sweep(ctx, i.rec, i.nsPath())
	}
	if err != nil {
		i.m.log.Warn("what is left of a failed start is removed later", "instance", i.id, "error", err, "cause", cause)
	}
	_ = i.release()
	// Reconcile goes by the record from here on.
	i.m.forget(i.id)
}

// stopwatch measures one phase after the other.
type stopwatch time.Time

func (s *stopwatch) lap(d *time.Duration) {
	now := time.Now()
	*d = now.Sub(time.Time(*s))
	*s = stopwatch(now)
}
