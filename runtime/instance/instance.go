package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/runtime/cgroup"
)

// Phases says where the time of a Create went.
type Phases struct {
	Files     time.Duration // record, files, FIFOs
	Container time.Duration // container record and snapshot, together
	Create    time.Duration // shim and parked init
	Network   time.Duration // loopback, listener, Network.Attach; next to nothing with a network made ahead
	Check     time.Duration // self-check
	Start     time.Duration // the runtime's exec is under way
}

// Total returns the sum.
func (p Phases) Total() time.Duration {
	return p.Files + p.Container + p.Create + p.Network + p.Check + p.Start
}

// Instance is one execution environment. Methods may be called concurrently.
type Instance struct {
	m    *Manager
	id   string
	spec Spec
	rec  record

	group    cgroup.Group
	oom      *cgroup.Watch
	pid      int
	pidfd    *os.File
	netns    *os.File
	userns   *os.File // only of a network made ahead
	prepared bool     // its network was made ahead
	parked   bool     // so was its container: see sandbox.go
	begun    time.Time
	told     atomic.Bool // systemd knows the CPU share
	handed   bool        // the listener was handed to Spec.Listen
	peakFile *os.File    // the kernel's watermark; nil where it has none
	pipes    pipes
	listener net.Listener
	addr     netip.Addr
	phases   Phases

	wg          sync.WaitGroup
	dead        chan struct{} // PID 1 has ended
	controlEnd  chan struct{} // nothing more will be read from the control FIFO
	exited      chan struct{}
	released    chan struct{}
	releaseOnce sync.Once
	insistOnce  sync.Once
	outOfMemory atomic.Bool
	broken      atomic.Bool // Destroy has failed
	watching    bool

	destroying sync.Mutex // held by Destroy as a whole

	life    context.Context    // ends when the instance is being killed: nothing is frozen from then on
	doom    context.CancelFunc // ends life
	freezer sync.Mutex         // held while the freezer is written

	mu    sync.Mutex // guards what follows
	state State
	exit  Exit
	peak  uint64
	letGo bool // release has begun
	// measured is when peak was computed, watermark what the kernel's was then.
	// looked is when the watermark was read last.
	measured  time.Time
	watermark uint64
	looked    time.Time
}

func newInstance(m *Manager, id string) *Instance {
	life, doom := context.WithCancel(context.Background())
	return &Instance{
		life: life, doom: doom,
		m: m, id: id, state: Creating, group: m.group(id),
		dead: make(chan struct{}), controlEnd: make(chan struct{}), exited: make(chan struct{}), released: make(chan struct{}),
	}
}

// ID returns the instance's ID.
func (i *Instance) ID() string { return i.id }

// PID returns the host's pid of the instance's PID 1 (lfx-init). It is not reused before Destroy.
func (i *Instance) PID() int { return i.pid }

// Address returns the address on the network, the zero value without one.
func (i *Instance) Address() netip.Addr { return i.addr }

// Phases says where the time of the start went.
func (i *Instance) Phases() Phases { return i.phases }

// State returns where the instance is in its life.
func (i *Instance) State() State {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state
}

// Stdout and Stderr return our read ends of the log FIFOs. They are owned by the instance, closed by Destroy, and waited on by Go's
// poller (deadlines work). Reads return io.EOF when nothing of the instance lives any more and all was read.
func (i *Instance) Stdout() *os.File { return i.pipes.stdout }

// Stderr is like Stdout.
func (i *Instance) Stderr() *os.File { return i.pipes.stderr }

// Exited is closed when the runtime has ended, for whatever reason; then Exit says how. What it has printed may
// still be in the pipes.
func (i *Instance) Exited() <-chan struct{} { return i.exited }

// Exit says how the instance ended. It is the zero value before Exited is closed.
func (i *Instance) Exit() Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

// SetCores sets the CPU quota by one write to the cgroup. An instance is created with at least one core, for its init; this lowers it just
// before the first event.
func (i *Instance) SetCores(cores float64) error {
	if !(cores > 0) {
		return fmt.Errorf("CPU share of %v cores: %w", cores, errdefs.ErrInvalidArgument)
	}
	i.tellCPU(cores)
	return i.group.SetCPU(cores)
}

// peakInterval is how long a computed peak stands while the kernel's watermark stays within peakStep of what it was: the
// computation reads memory.stat, for which the kernel adds up every CPU's counters (40 µs and more).
const (
	peakInterval = 100 * time.Millisecond
	peakStep     = 1 << 20
	// peakPause is how long not even the watermark is read again, a fiftieth of a warm call otherwise. A REPORT within it shows the
	// memory of the call before; what page faults have added since, a few MiB, is in the next one.
	peakPause = time.Millisecond
)

// PeakMemory returns the most memory in bytes that the function has used so far, as well as the kernel tells: the peak of
// everything charged less the page cache and /tmp that are charged now, at least what it uses now and at most its limit. After the
// end it is the last value. It is cheap enough to be called for every invocation.
func (i *Instance) PeakMemory() uint64 {
	if last, ok := i.recentPeak(); ok {
		return last
	}
	return i.computePeak()
}

// recentPeak returns the last value when nothing much can have changed since.
func (i *Instance) recentPeak() (uint64, bool) {
	if i.peakFile == nil {
		return 0, false
	}
	now := time.Now()
	i.mu.Lock()
	defer i.mu.Unlock()
	if now.Sub(i.looked) < peakPause && i.peak > 0 {
		return i.peak, true
	}
	mark, err := cgroup.Peak(i.peakFile)
	i.looked = now
	if err != nil || now.Sub(i.measured) > peakInterval || mark > i.watermark+peakStep {
		if err == nil {
			i.measured, i.watermark = now, mark
		}
		return 0, false
	}
	return i.peak, true
}

func (i *Instance) computePeak() uint64 {
	i.mu.Lock()
	last := i.peak
	i.mu.Unlock()
	mem, err := i.group.Memory()
	if err != nil {
		return last
	}
	tmp := i.tmpBytes()
	peak := max(mem.Function(tmp), cgroup.Memory{Usage: mem.Peak, Cache: mem.Cache, Shmem: mem.Shmem}.Function(tmp))
	peak = max(last, min(peak, uint64(i.spec.MemoryMB)*mib))
	i.mu.Lock()
	defer i.mu.Unlock()
	i.peak = max(i.peak, peak)
	return i.peak
}

// MemoryBytes returns what the instance's cgroup counts now, without page cache; zero when the cgroup is gone. It reads
// memory.stat: not for every invocation.
func (i *Instance) MemoryBytes() uint64 {
	mem, err := i.group.Memory()
	if err != nil {
		return 0
	}
	return mem.Function(0)
}

// Freeze stops all processes of the instance; it returns when they are stopped (some 0.1 to 0.5 ms). When ctx ends
// before, when they do not stop within a second, or when the instance is being killed, it returns an error
// and they run on.
func (i *Instance) Freeze(ctx context.Context) error {
	i.freezer.Lock()
	defer i.freezer.Unlock()
	if i.life.Err() != nil {
		return fmt.Errorf("freeze instance %s: it is being removed: %w", i.id, errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(i.life, cancel)()
	if err := i.group.Freeze(ctx); err != nil {
		return fmt.Errorf("freeze instance %s: %w", i.id, err)
	}
	return nil
}

// Thaw lets the processes go on. Class errdefs.ErrNotFound means that the instance has ended, or was killed while it was
// frozen and ends now: it must not get an event.
func (i *Instance) Thaw() error {
	i.freezer.Lock()
	defer i.freezer.Unlock()
	doomed, err := i.group.Doomed()
	if err = errors.Join(err, i.group.Thaw()); err != nil {
		return fmt.Errorf("thaw instance %s: %w", i.id, err)
	}
	if doomed {
		return fmt.Errorf("instance %s was killed while it was frozen: %w", i.id, errdefs.ErrNotFound)
	}
	return nil
}

// Kill ends the whole instance at once, frozen or not: with its PID 1 the kernel kills everything in its PID namespace. It does
// not wait; see Exited. Killing what has ended does nothing.
func (i *Instance) Kill() error {
	if i.pidfd == nil {
		return nil
	}
	c, err := i.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var kerr error
	if err := c.Control(func(fd uintptr) { kerr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		return err
	}
	if kerr != nil && kerr != unix.ESRCH {
		return fmt.Errorf("kill instance %s: %w", i.id, kerr)
	}
	i.insistOnce.Do(func() { i.begin(i.insist) })
	// v1 delivers the signal to frozen processes when they are thawed. A freeze under way ends first.
	i.doom()
	i.freezer.Lock()
	defer i.freezer.Unlock()
	if err := i.group.Thaw(); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill instance %s: %w", i.id, err)
	}
	return nil
}

// insistAfter is how long PID 1 may take to end after it was killed.
const insistAfter = 200 * time.Millisecond

// insist kills every process of the cgroup when PID 1 does not end. The kernel kills the others only once it has let go of PID 1's files, and
// a function can hold that up: it locks a log pipe that lfx-init has open (splice(2) from a silent socket).
func (i *Instance) insist() {
	select {
	case <-i.dead:
		return
	case <-i.released:
		return
	case <-time.After(insistAfter):
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), undoTimeout, errors.New("its processes do not end"))
	defer cancel()
	if err := i.group.Kill(ctx); err != nil && !errdefs.IsNotFound(err) {
		i.m.log.Warn("an instance does not end after SIGKILL", "instance", i.id, "error", err)
	}
}

// begin runs fn on a goroutine that release waits for; not at all when release has begun.
func (i *Instance) begin(fn func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.letGo {
		i.wg.Go(fn)
	}
}

// move changes the state.
func (i *Instance) move(next State) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	s, err := i.state.to(next)
	i.state = s
	return err
}

// Destroy ends the instance and removes everything of it. It waits, some 50 ms, until all is gone or ctx ends. When a part
// cannot be removed the error says which, the record stays, and a later Destroy or Reconcile goes on from
// there. Destroying what is removed does nothing.
func (i *Instance) Destroy(ctx context.Context) error {
	i.destroying.Lock()
	defer i.destroying.Unlock()
	if i.State() == Removed {
		return nil
	}
	if err := i.stop(ctx); err != nil {
		i.broken.Store(true) // Reconcile may go on with it
		return err
	}
	if i.listener != nil {
		_ = i.listener.Close()
	}
	if err := i.m.sweep(ctx, i.rec, i.nsPath()); err != nil {
		i.broken.Store(true)
		return err
	}
	err := i.release()
	i.m.forget(i.id)
	return errors.Join(err, i.move(Removed))
}

// stop kills the instance and waits until its PID 1 is gone.
func (i *Instance) stop(ctx context.Context) error {
	if !i.watching {
		return nil
	}
	if err := i.Kill(); err != nil {
		return err
	}
	select {
	case <-i.dead:
	case <-i.released: // the manager was closed: nobody watches any more, sweep kills through the cgroup
		i.end(Exit{Code: 128 + int(unix.SIGKILL), Signal: unix.SIGKILL})
		return nil
	case <-ctx.Done():
		return fmt.Errorf("instance %s does not end after SIGKILL: %w", i.id, context.Cause(ctx))
	}
	select {
	case <-i.exited:
	case <-ctx.Done():
		return fmt.Errorf("instance %s has ended, but its last report does not come: %w", i.id, context.Cause(ctx))
	}
	return nil
}

// nsPath returns a path to the network namespace, empty when we do not hold it.
func (i *Instance) nsPath() string {
	select {
	case <-i.released:
		return ""
	default:
	}
	if i.netns == nil {
		return ""
	}
	return fdPath(i.netns)
}

// release closes our descriptors and waits for the goroutines that use them. The instance itself goes on.
func (i *Instance) release() error {
	i.releaseOnce.Do(func() {
		i.mu.Lock()
		i.letGo = true // tellCPU begins nothing any more
		i.mu.Unlock()
		close(i.released)
		if i.listener != nil {
			_ = i.listener.Close()
		}
		if i.oom != nil {
			_ = i.oom.Close()
		}
		for _, f := range []*os.File{i.pidfd, i.netns, i.userns, i.peakFile} {
			if f != nil {
				_ = f.Close()
			}
		}
		i.pipes.close()
	})
	i.wg.Wait()
	return nil
}
