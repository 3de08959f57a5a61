package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/runtime/cgroup"
)

// Label is the containerd label that everything of an instance carries; its value is the instance's ID.
const Label = "dev.lfx.instance"

// Address of the Runtime API inside every instance.
const runtimeAPI = "127.0.0.1:9001"

// undoTimeout bounds what undoes a failed Create; it runs on a fresh context because the caller's may be dead.
const undoTimeout = 30 * time.Second

var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

// Network gives an instance an address. Package cni offers one; it must be safe for concurrent use.
type Network interface {
	// Attach joins the network namespace at nsPath (a /proc path of this process that stays valid during the call)
	// to the network and returns its address. What a failed or interrupted Attach leaves, Detach must be able to remove.
	Attach(ctx context.Context, id, nsPath string) (netip.Addr, error)
	// Detach undoes Attach and succeeds when there is nothing to undo. nsPath is empty when the namespace
	// is gone already.
	Detach(ctx context.Context, id, nsPath string) error
}

// Options are what a Manager needs. Client, Dir, InitPath, RuntimeBinary and RuntimeRoot are required.
type Options struct {
	Client *containerd.Client
	// Namespace is containerd's; default "lfx".
	Namespace string
	// Dir has one directory per instance. It should be on tmpfs, and only root may enter it.
	Dir string
	// InitPath is the static lfx-init on the host, on a file system that is not mounted noexec.
	InitPath string
	// RuntimeBinary is the OCI runtime, RuntimeRoot its private state directory.
	RuntimeBinary string
	RuntimeRoot   string
	// Cgroups says where the cgroups of the instances are, and who makes them; default below "/lfx/fn".
	Cgroups cgroup.Layout
	// Network attaches instances; nil leaves them with loopback only.
	Network Network
	// ResolvConf and Hosts return the contents of /etc/resolv.conf and /etc/hosts. addr is the zero value without
	// a network. Nil means an empty resolv.conf, and hosts with localhost, sandbox (as on Lambda) and the instance.
	ResolvConf func(id string, addr netip.Addr) []byte
	Hosts      func(id string, addr netip.Addr) []byte
	// Sandboxes says that a network made ahead gets a container too.
	Sandboxes bool
	// AppArmorProfile confines every instance; empty where AppArmor is off. It must be loaded.
	AppArmorProfile string
	Log             *slog.Logger
	// UIDBase is the first host uid of the first range, UIDRanges their number; default 1879048192 and 4094.
	UIDBase   uint32
	UIDRanges uint32
}

// Spec describes one instance.
type Spec struct {
	// ID is unique on the host: letters, digits, dot, underscore and dash, at most 63.
	ID string
	// Image is an image in containerd's store by name or by digest, unpacked for the overlayfs snapshotter.
	Image string
	// Args is the runtime's argv (entrypoint and command), Env its whole environment as KEY=VALUE, Dir its working directory.
	Args []string
	Env  []string
	Dir  string
	// MemoryMB is the function's memory, TmpMB the size of /tmp on top of it, both in MiB.
	MemoryMB int
	TmpMB    int
	// Cores is the CPU share. The instance is created with at least one core, for init; see SetCores.
	Cores float64
	// Labels go to the containerd container. Never copy image labels into them.
	Labels map[string]string
	// Listen is handed the listener on 127.0.0.1:9001 inside the instance before any code of the instance runs. The
	// listener is closed by Destroy. Nil means no listener.
	Listen func(net.Listener) error
	// Hold makes a spare: Create does all there is to do, but lfx-init waits for Begin before it starts the runtime.
	Hold bool
}

// Manager makes instances and finishes what is left of them. Methods may be called concurrently.
type Manager struct {
	o       Options
	log     *slog.Logger
	cgroups *cgroup.Root
	host    host
	uids    *uidRanges
	engine  *engine
	units   *cgroup.Units

	mu     sync.Mutex           // guards what follows
	live   map[string]*Instance // until Destroy has succeeded or a Create has failed
	closed bool
	// ahead are networks that nobody has taken, promised those whose ID was given out.
	ahead    []*Instance
	promised map[string]*Instance
	// dropped says that networks made ahead were removed and none was made since: what is given back goes too.
	dropped bool
	// odd are the images that a sandbox could not become; misfits counts the sandboxes in a row that were of no use.
	odd     map[string]bool
	misfits int
	misfit  time.Time // the last of them
}

var errClosed = fmt.Errorf("instance manager is closed: %w", errdefs.ErrUnavailable)

// NewManager checks the options and the host and takes over the uid ranges of recorded instances. It does not talk to containerd:
// that may come later.
func NewManager(o Options) (*Manager, error) {
	if o.Client == nil || o.Dir == "" || o.InitPath == "" || o.RuntimeBinary == "" || o.RuntimeRoot == "" {
		return nil, fmt.Errorf("instance manager: client, directory, lfx-init, runtime and runtime root are required: %w", errdefs.ErrInvalidArgument)
	}
	o.defaults()
	if _, err := os.Stat(o.InitPath); err != nil {
		return nil, fmt.Errorf("lfx-init, the first process of every instance, is missing: %w", err)
	}
	root, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	m := &Manager{
		o: o, log: o.Log, cgroups: root, host: lookAtHost(root),
		units: cgroup.NewUnits(), uids: newUIDRanges(o.UIDBase, o.UIDRanges), engine: newEngine(o), live: map[string]*Instance{}, promised: map[string]*Instance{}, odd: map[string]bool{},
	}
	records, err := readRecords(o.Dir)
	for _, r := range records {
		m.uids.claim(r.UID, r.ID)
	}
	return m, err
}

func (o *Options) defaults() {
	if o.Namespace == "" {
		o.Namespace = "lfx"
	}
	if o.Cgroups == (cgroup.Layout{}) {
		o.Cgroups = cgroup.Plain("/lfx/fn")
	}
	if o.UIDBase == 0 {
		o.UIDBase = defaultUIDBase
	}
	if o.UIDRanges == 0 {
		o.UIDRanges = defaultUIDRanges
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ResolvConf == nil {
		o.ResolvConf = func(string, netip.Addr) []byte { return nil }
	}
	if o.Hosts == nil {
		o.Hosts = defaultHosts
	}
}

func lookAtHost(root *cgroup.Root) host {
	exists := func(path string) bool { _, err := os.Stat(path); return err == nil }
	h := host{cgroupVersion: root.Version(), ipv6: exists("/proc/sys/net/ipv6")}
	h.swapLimit = root.SwapLimit()
	h.thermal, _ = filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
	slices.Sort(h.thermal)
	return h
}

func defaultHosts(id string, addr netip.Addr) []byte {
	b := []byte("127.0.0.1\tlocalhost sandbox sandbox.localdomain\n")
	if addr.IsValid() {
		b = fmt.Appendf(b, "%s\t%s\n", addr, id)
	}
	return b
}

// dir returns the directory of an instance.
func (m *Manager) dir(id string) string { return filepath.Join(m.o.Dir, id) }

func (m *Manager) group(id string) cgroup.Group {
	return m.cgroups.Open(m.o.Cgroups.Parent(), m.o.Cgroups.Name(id))
}

// MemoryBytes returns what all instances together use now, without page cache, and with what their shims use where that is counted
// with them.
func (m *Manager) MemoryBytes() (uint64, error) {
	mem, err := m.cgroups.Open(m.o.Cgroups.Parent(), "").Memory()
	if errdefs.IsNotFound(err) {
		return 0, nil // no instance was made yet
	}
	return mem.Function(0), err
}

// reserve makes id known. It fails with class ErrAlreadyExists when id is in use, or ErrUnavailable after Close.
func (m *Manager) reserve(id string) (*Instance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errClosed
	}
	if m.live[id] != nil {
		return nil, fmt.Errorf("instance %s: %w", id, errdefs.ErrAlreadyExists)
	}
	i := newInstance(m, id)
	m.live[id] = i
	return i, nil
}

func (m *Manager) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, id)
}

// IDs lists the instances that exist or are being made or removed, those of networks made ahead too.
func (m *Manager) IDs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.live))
}

func (m *Manager) liveOne(id string) *Instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live[id]
}

// Close lets go of all instances without destroying them: their listeners and log pipes are closed, and Close
// waits for the goroutines that watch them. Call Destroy on each first, or leave them to the next Manager's Reconcile.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	var all []*Instance
	for _, i := range m.live {
		all = append(all, i)
	}
	m.mu.Unlock()
	var errs []error
	for _, i := range all {
		errs = append(errs, i.release())
	}
	m.units.Close()
	return errors.Join(errs...)
}
