package instance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/runtime/cgroup"
	"lfx.dev/lfxd/runtime/lfxinit"
)

// A sandbox is a network made ahead with a container in it that has no function yet: a task like that of any instance, with the same
// spec but for its root, which is an empty file system, and for its limits, in which lfx-init waits for its word. Nothing of any
// image is in it. When a function needs an instance, and only once for each sandbox, it gets the function's root and limits:
//
//   - the image's snapshot is mounted as containerd's shim would mount it, in a mount namespace of a thread that ends with it;
//   - the mounts of the container are moved from the empty root into it, each to a place that is looked up with the image's root as /
//     (openat2, RESOLVE_IN_ROOT), and pivot_root(2) makes it the root of everything in the container;
//   - the limits of the cgroup are written, and all is checked as in every other instance;
//   - lfx-init is told what to start.
//
// This takes a few milliseconds, for runc's 40 and more. An image on which it does not work (it has something else in the place
// of a mount, say) gets an instance that is made the usual way.

// The limits of a sandbox that has no function.
const (
	sandboxMemory = 63 // MiB
	sandboxTmp    = 1  // MiB
)

// lateDir is where the function's root is mounted before it becomes the root.
const lateDir = "/newroot"

// parkedSpec is what a sandbox is created with.
func (i *Instance) parkedSpec() Spec {
	return Spec{ID: i.id, Args: []string{"none"}, Dir: "/", MemoryMB: sandboxMemory, TmpMB: sandboxTmp, Cores: 1}
}

// park makes the container of a network made ahead and lets lfx-init run up to its gate.
func (i *Instance) park(ctx context.Context) (err error) {
	ctx = i.m.engine.ctx(ctx)
	i.spec = i.parkedSpec()
	oci := i.ociSpec()
	oci.Mounts = append(oci.Mounts, specs.Mount{
		Destination: lateDir, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "ro", "size=4k", "nr_inodes=2"},
	})
	root := func(context.Context) ([]mount.Mount, error) {
		owner := fmt.Sprintf("uid=%d,gid=%[1]d", i.rec.UID)
		return []mount.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=755", owner, "size=64k", "nr_inodes=64"}}}, nil
	}
	if i.pid, err = i.m.engine.createIn(ctx, i.spec, oci, root, func() {}); err != nil {
		return err
	}
	if err := i.holdProcess(); err != nil {
		return err
	}
	if err := i.m.engine.startTask(ctx, i.id); err != nil {
		return err
	}
	i.parked = true
	return nil
}

// standing says whether a sandbox can still be used. A network without a container always can.
func (i *Instance) standing() bool {
	if !i.parked {
		return true
	}
	ended, err := processEnded(i.pidfd)
	return err == nil && !ended
}

// adopt gives a sandbox its function: all that create does for others.
func (i *Instance) adopt(ctx context.Context) error {
	timer := stopwatch(i.begun)
	i.rec.Image = i.spec.Image
	if err := i.rec.write(i.m.dir(i.id)); err != nil {
		return err
	}
	timer.lap(&i.phases.Files)
	var root []mount.Mount
	var g errgroup.Group // both to their end: the undo must not meet one that is still under way
	g.Go(func() (err error) { root, err = i.m.engine.prepare(ctx, i.spec, i.rec.UID); return err })
	g.Go(func() error { return i.m.engine.updateContainer(ctx, i.spec, i.ociSpec()) })
	if err := g.Wait(); err != nil {
		return err
	}
	timer.lap(&i.phases.Container)
	if err := i.limit(ctx); err != nil {
		return err
	}
	if err := i.watchLimits(); err != nil {
		return err
	}
	if err := i.changeRoot(root); err != nil {
		return fmt.Errorf("%w: root: %w", errMisfit, err)
	}
	timer.lap(&i.phases.Create)
	if err := i.check(); err != nil {
		return fmt.Errorf("%w: %w", errMisfit, err)
	}
	timer.lap(&i.phases.Check)
	if err := i.listen(); err != nil {
		return fmt.Errorf("runtime API listener: %w", err)
	}
	timer.lap(&i.phases.Network)
	return i.move(Created)
}

const (
	// maxMisfits is how many sandboxes in a row may be of no use before no more are made for misfitPause: the host cannot do it, and each
	// costs a start.
	maxMisfits  = 3
	misfitPause = 10 * time.Minute
	// maxOdd is how many odd images are remembered.
	maxOdd = 1000
)

// makesSandboxes says whether a network made ahead gets a container.
func (m *Manager) makesSandboxes() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.o.Sandboxes && (m.misfits < maxMisfits || time.Since(m.misfit) > misfitPause)
}

// fitted notes that a sandbox has become an instance.
func (m *Manager) fitted(i *Instance) {
	if !i.parked {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.misfits = 0
}

// misfitted notes that a sandbox that stood could not become an instance of an image, or, without one, that none could be made. For such
// an image instances are made the usual way from now on.
func (m *Manager) misfitted(image string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if image != "" {
		if len(m.odd) >= maxOdd {
			clear(m.odd)
		}
		m.odd[image] = true
	}
	m.misfit = time.Now()
	if m.misfits++; m.misfits == maxMisfits {
		m.log.Error("no sandboxes are made ahead for a while: none of the last ones could become an instance; cold starts take longer")
	}
}

// errMisfit is wrapped by what is wrong with a sandbox and an image together.
var errMisfit = errors.New("the sandbox does not fit")

// errSandboxEnded says that a sandbox has ended before it was used.
var errSandboxEnded = fmt.Errorf("the sandbox has ended: %w", errdefs.ErrFailedPrecondition)

// limit writes the limits that the spec of any other instance has. systemd is told of the memory here, and of the CPU when the init is
// over: until then it may put back what the sandbox had, which is a core, as init has at least.
func (i *Instance) limit(ctx context.Context) error {
	r := resources(specInput{Spec: i.spec}, i.m.host)
	if c := i.m.o.Cgroups; c.Driven() {
		high := uint64(i.spec.MemoryMB) * mib // see resources
		if err := i.m.units.SetMemory(ctx, c.Name(i.id), i.m.host.cgroupVersion, uint64(*r.Memory.Limit), high); err != nil {
			return err
		}
	}
	return errors.Join(
		i.group.SetMemory(uint64(*r.Memory.Limit)),
		i.group.SetShares(*r.CPU.Shares),
		i.group.SetCPU(max(i.spec.Cores, 1)),
	)
}

// tellTimeout bounds the wait for a turn to talk to systemd, and the call.
const tellTimeout = 10 * time.Second

// tellCPU tells systemd the CPU share of an instance that was a sandbox, once and in the background: SetCores is on the way of an
// invocation.
func (i *Instance) tellCPU(cores float64) {
	if !i.parked || !i.m.o.Cgroups.Driven() || i.told.Swap(true) {
		return
	}
	shares := *resources(specInput{Spec: i.spec}, i.m.host).CPU.Shares
	i.begin(func() { // ends with its context at the latest
		ctx, cancel := context.WithTimeout(i.life, tellTimeout)
		defer cancel()
		if err := i.m.units.SetCPU(ctx, i.m.o.Cgroups.Name(i.id), i.m.host.cgroupVersion, shares, cores); err != nil && i.State() == Started {
			i.m.log.Warn("systemd could not be told the CPU share of an instance; a daemon-reload gives it a whole core", "instance", i.id, "error", err)
		}
	})
}

// word is what lfx-init is told.
func (i *Instance) word() []byte {
	if !i.parked {
		return lfxinit.Go()
	}
	return lfxinit.Command{Dir: i.spec.Dir, Args: i.spec.Args, Env: i.spec.Env}.Word()
}

// changeRoot makes the snapshot the root of the sandbox.
func (i *Instance) changeRoot(mounts []mount.Mount) error {
	o, err := overlayOf(mounts)
	if err != nil {
		return err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", i.pid))
	if errors.Is(err, fs.ErrNotExist) {
		return errSandboxEnded
	}
	if err != nil {
		return err
	}
	defer ns.Close()   //nolint:errcheck // only read
	if !i.standing() { // the pid may be another's
		return errSandboxEnded
	}
	scratch := path.Join(i.m.dir(i.id), scratchDir)
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return err
	}
	c := rootChange{overlay: o, userns: int(i.userns.Fd()), mntns: int(ns.Fd()), scratch: scratch, owner: int(i.rec.UID), tmpMB: i.spec.TmpMB}
	for _, m := range i.ociSpec().Mounts {
		c.add(m.Destination)
	}
	if err := onThread(c.run); err != nil {
		return err
	}
	var now unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/root", i.pid), &now); err != nil {
		return err
	}
	if now.Dev != c.made.Dev || now.Ino != c.made.Ino {
		return differs("the root", "another", "the snapshot of the image")
	}
	return nil
}

// overlay is what the snapshotter wants to be mounted.
type overlay struct {
	lower   []string
	options []string // without lowerdir and the id mappings
	flags   uintptr
}

// overlayOf takes the snapshotter's mounts apart; class ErrFailedPrecondition for what is no overlay with mapped ids.
func overlayOf(mounts []mount.Mount) (o overlay, err error) {
	odd := fmt.Errorf("the snapshotter mounts it in another way than was expected: %w", errdefs.ErrFailedPrecondition)
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return o, odd
	}
	mapped := 0
	for _, opt := range mounts[0].Options {
		k, v, _ := strings.Cut(opt, "=")
		switch k {
		case "lowerdir":
			o.lower = strings.Split(v, ":")
		case "uidmap", "gidmap":
			mapped++
		case "nodev":
			o.flags |= unix.MS_NODEV
		case "nosuid":
			o.flags |= unix.MS_NOSUID
		default:
			o.options = append(o.options, opt)
		}
	}
	if len(o.lower) == 0 || mapped != 2 || o.flags != unix.MS_NODEV|unix.MS_NOSUID {
		return o, odd
	}
	return o, nil
}

// rootChange is one change of a root. run is called on a thread that is thrown away.
type rootChange struct {
	overlay
	userns, mntns int
	scratch       string   // a directory of ours on the host
	owner         int      // uid and gid of what is made in the root
	moved         []string // mounts of the container that are not below another one
	tmpMB         int
	made          unix.Stat_t // the root that was made
}

// add notes a mount of the container.
func (c *rootChange) add(dest string) {
	for _, m := range c.moved {
		if strings.HasPrefix(dest, m+"/") {
			return
		}
	}
	c.moved = append(c.moved, dest)
}

func (c *rootChange) run() error {
	tree, err := c.mountOverlay()
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := unix.Fstat(tree, &c.made); err != nil {
		return err
	}
	if err := unix.Setns(c.mntns, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the sandbox: %w", err)
	}
	return c.enter(tree)
}

// mountOverlay mounts the snapshot in a mount namespace of the thread's own and returns it detached. Layers are mapped to the ids of the
// instance each by itself: overlayfs cannot be mapped as a whole.
func (c *rootChange) mountOverlay() (tree int, err error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return -1, fmt.Errorf("a mount namespace: %w", err)
	}
	unix.Umask(0) // this thread's
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("a private mount namespace: %w", err)
	}
	if err := unix.Mount("tmpfs", c.scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700,size=1m"); err != nil {
		return -1, fmt.Errorf("scratch: %w", err)
	}
	if err := unix.Chdir(c.scratch); err != nil { // short names, and no colon in them
		return -1, err
	}
	names := make([]string, len(c.lower))
	for n, dir := range c.lower {
		names[n] = fmt.Sprint("l", n)
		if err := c.mapLayer(dir, names[n]); err != nil {
			return -1, fmt.Errorf("layer %s: %w", dir, err)
		}
	}
	if err := unix.Mkdir("m", 0o755); err != nil {
		return -1, err
	}
	options := strings.Join(append([]string{"lowerdir=" + strings.Join(names, ":")}, c.options...), ",")
	if err := unix.Mount("overlay", "m", "overlay", c.flags, options); err != nil {
		return -1, fmt.Errorf("mount the layers: %w", err)
	}
	return unix.OpenTree(unix.AT_FDCWD, "m", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

func (c *rootChange) mapLayer(dir, name string) error {
	layer, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(layer)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(c.userns)}
	if err := unix.MountSetattr(layer, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("map its ids: %w", err)
	}
	if err := unix.Mkdir(name, 0o755); err != nil {
		return err
	}
	return unix.MoveMount(layer, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// enter makes the tree the root of the mount namespace that the thread is in. / is the empty root until then, and its paths are ours.
func (c *rootChange) enter(tree int) error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if err := unix.Mount("", "/tmp", "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%dm", c.tmpMB)); err != nil {
		return fmt.Errorf("size of /tmp: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, lateDir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the root: %w", err)
	}
	for _, dest := range c.moved {
		if err := c.move(tree, dest); err != nil {
			return fmt.Errorf("mount %s: %w", dest, err)
		}
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Fchdir(tree); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // the old root lies on the new one then
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the empty root: %w", err)
	}
	return nil
}

// move moves a mount of the container to its place in the tree.
func (c *rootChange) move(tree int, dest string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dest, &st); err != nil {
		return err
	}
	to, err := c.place(tree, dest, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return unix.MoveMount(unix.AT_FDCWD, dest, to, "", unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// strictPlaces must be directories, as runc has it of /proc and /sys: AppArmor's rules go by these names.
var strictPlaces = map[string]bool{"/proc": true, "/sys": true, "/dev": true}

// place opens the place of a mount in the tree, with the tree's root as /, and makes what is missing of it.
func (c *rootChange) place(tree int, dest string, dir bool) (int, error) {
	resolve := uint64(unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV)
	if strictPlaces[dest] {
		resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	open := func() (int, error) {
		return unix.Openat2(tree, dest, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
	}
	fd, err := open()
	if err != unix.ENOENT { //nolint:errorlint // a plain errno
		return fd, err
	}
	above, err := c.place(tree, path.Dir(dest), true)
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	name := path.Base(dest)
	if dir {
		err = unix.Mkdirat(above, name, 0o755)
	} else {
		err = unix.Mknodat(above, name, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return -1, err
	}
	if err := unix.Fchownat(above, name, c.owner, c.owner, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, err
	}
	return open()
}

// watchLimits opens what tells of the memory, and begins to watch the instance.
func (i *Instance) watchLimits() (err error) {
	i.oom, err = i.group.Watch(cgroup.WatchOptions{MemoryLimit: uint64(i.spec.MemoryMB) * mib, Tmpfs: i.tmpBytes})
	if err != nil {
		return fmt.Errorf("watch memory: %w", err)
	}
	if i.peakFile, err = i.group.OpenPeak(); err != nil {
		return fmt.Errorf("watch memory: %w", err)
	}
	i.watching = true
	i.watch()
	return nil
}
