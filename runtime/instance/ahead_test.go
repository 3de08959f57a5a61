package instance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/runtime/cgroup"
	"lfx.dev/lfxd/runtime/lfxinit"
)

func TestMakeNamespaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: user namespaces with foreign uids")
	}
	const uid = defaultUIDBase + 7*rangeSize
	user, net, err := makeNamespaces("/bin/true", uid)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	defer net.Close()
	owner, err := unix.IoctlRetInt(int(net.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	of := os.NewFile(uintptr(owner), "owner")
	defer of.Close()
	a, err1 := user.Stat()
	b, err2 := of.Stat()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(a, b) {
		t.Error("the network namespace does not belong to the user namespace")
	}
	var st unix.Rusage
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, &st); pid > 0 {
		t.Errorf("child %d was left, %v", pid, err)
	}
}

func TestMakeNamespacesFails(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: user namespaces with foreign uids")
	}
	if user, net, err := makeNamespaces("/nowhere", defaultUIDBase); err == nil || user != nil || net != nil {
		t.Errorf("got %v, %v, %v", user, net, err)
	}
}

// addresses is a network that gives out addresses and counts.
type addresses struct {
	fail error

	mu       sync.Mutex
	attached map[string]bool
}

func (n *addresses) Attach(_ context.Context, id, nsPath string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := os.Stat(nsPath); err != nil {
		return netip.Addr{}, err
	}
	n.attached[id] = true
	return netip.MustParseAddr("10.9.8.7"), n.fail
}

func (n *addresses) Detach(_ context.Context, id, _ string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, id)
	return nil
}

func (n *addresses) ids() (ids []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.attached {
		ids = append(ids, id)
	}
	return ids
}

// TestNetworkMadeAhead: an instance takes the network that was made ahead with its name, and sees what any other sees.
func TestNetworkMadeAhead(t *testing.T) {
	n := &addresses{attached: map[string]bool{}}
	m, _ := newManager(t, func(o *Options) { o.Network = n })
	if err := m.MakeNetwork(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got := m.NetworksAhead(); got != 1 {
		t.Fatalf("%d networks ahead, want 1", got)
	}
	ahead := n.ids()
	if removed, err := m.Reconcile(testContext(t), func(string) bool { return false }); err != nil || len(removed) > 0 {
		t.Errorf("Reconcile removed %v, %v", removed, err)
	}
	s := probeSpec(m.NewID(testImage), "report")
	if len(ahead) != 1 || s.ID != ahead[0] {
		t.Fatalf("the next ID is %s, the networks ahead are %v", s.ID, ahead)
	}
	served := false
	s.Listen = func(l net.Listener) error { served = l != nil; return nil }
	i := create(t, m, s)
	line, err := bufio.NewReader(i.Stdout()).ReadBytes('\n')
	if err != nil {
		t.Fatalf("%v; exit %v", err, i.Exit())
	}
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{
		"uid": 1000.0, "status.CapEff": "0000000000000000", "status.Seccomp": "2", "hostname": s.ID,
		"uid_map": fmt.Sprintf("0 %d 65536", i.rec.UID), "syscall.unshare": "operation not permitted",
	} {
		if got[k] != want {
			t.Errorf("%s = %v, want %v", k, got[k], want)
		}
	}
	if hosts, err := os.ReadFile(filepath.Join(m.dir(s.ID), hostsFile)); err != nil || i.Address().String() != "10.9.8.7" || len(hosts) == 0 {
		t.Errorf("address %s, hosts %q, %v", i.Address(), hosts, err)
	}
	if !served || len(n.ids()) != 1 {
		t.Errorf("listener handed over: %v; attached %v", served, n.ids())
	}
	if err := i.Destroy(testContext(t)); err != nil || len(n.ids()) != 0 {
		t.Errorf("after Destroy: attached %v, %v", n.ids(), err)
	}
}

// TestNetworksAheadLeaveNothing: whether dropped, refused half-way, taken by a spec that is invalid, or left by a crash.
func TestNetworksAheadLeaveNothing(t *testing.T) {
	n := &addresses{attached: map[string]bool{}}
	m, _ := newManager(t, func(o *Options) { o.Network = n })
	left := func(when string) {
		t.Helper()
		entries, err := os.ReadDir(m.o.Dir)
		if err != nil || len(entries) > 0 || len(n.ids()) > 0 || len(m.IDs()) > 0 || len(m.uids.used) > 0 {
			t.Errorf("%s: files %v, attached %v, live %v, uid ranges %v, %v", when, entries, n.ids(), m.IDs(), m.uids.used, err)
		}
	}
	for range 2 {
		if err := m.MakeNetwork(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.DropNetworks(testContext(t)); err != nil {
		t.Error(err)
	}
	left("dropped")
	for range 2 {
		if err := m.MakeNetwork(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	late := m.NewID(testImage) // of a start that waits for containerd while the daemon stops
	if err := m.DropNetworks(testContext(t)); err != nil {
		t.Error(err)
	}
	m.GiveBack(late)
	if removed, err := m.Reconcile(testContext(t), func(string) bool { return false }); err != nil || len(removed) != 1 || removed[0] != late {
		t.Errorf("Reconcile removed %v, %v; want %s", removed, err, late)
	}
	left("given back after the others were dropped")
	n.fail = errors.New("no address")
	if err := m.MakeNetwork(testContext(t)); !errors.Is(err, n.fail) {
		t.Errorf("error = %v", err)
	}
	left("no address")
	n.fail = nil
	if err := m.MakeNetwork(testContext(t)); err != nil {
		t.Fatal(err)
	}
	m.GiveBack(m.NewID(testImage))
	m.GiveBack("never-promised")
	if got := m.NetworksAhead(); got != 1 {
		t.Errorf("%d networks after one was given back, want 1", got)
	}
	if _, err := m.Create(testContext(t), Spec{ID: m.NewID(testImage)}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error = %v", err)
	}
	left("invalid")
	if err := m.MakeNetwork(testContext(t)); err != nil {
		t.Fatal(err)
	}
	id := m.IDs()[0]
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := NewManager(m.o)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if removed, err := next.Reconcile(testContext(t), func(string) bool { return false }); err != nil || len(removed) != 1 || removed[0] != id {
		t.Errorf("the next process removed %v, %v; want %s", removed, err, id)
	}
	m = next
	left("crashed")
}

// TestGiveBack: what is given back stands ready again, unless networks made ahead were dropped meanwhile: then it is left to Reconcile.
func TestGiveBack(t *testing.T) {
	for _, drop := range []bool{false, true} {
		m := &Manager{cgroups: &cgroup.Root{}, live: map[string]*Instance{}, promised: map[string]*Instance{}}
		i, err := m.reserve(RandomID())
		if err != nil {
			t.Fatal(err)
		}
		m.ahead = []*Instance{i}
		if id := m.NewID(testImage); id != i.id {
			t.Fatalf("the next ID is %s, want %s", id, i.id)
		}
		want := 1
		if drop {
			want = 0
			if err := m.DropNetworks(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		m.GiveBack(i.id)
		if n := m.NetworksAhead(); n != want || i.broken.Load() != drop || len(m.promised) != 0 {
			t.Errorf("dropped %v: %d networks ahead, left to Reconcile: %v", drop, n, i.broken.Load())
		}
	}
}

// TestDestroyThatDoesNotEnd: an instance whose process does not end in time is Reconcile's too.
func TestDestroyThatDoesNotEnd(t *testing.T) {
	m := &Manager{cgroups: &cgroup.Root{}, live: map[string]*Instance{}}
	i, err := m.reserve("stuck")
	if err != nil {
		t.Fatal(err)
	}
	i.watching = true
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.Destroy(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	if !i.broken.Load() || m.liveOne("stuck") == nil {
		t.Error("nobody goes on with it")
	}
}

// TestHeldInstance: nothing of the image runs before Begin.
func TestHeldInstance(t *testing.T) {
	m, _ := newManager(t, nil)
	s := probeSpec("held", "exit", "5")
	s.Hold = true
	i := create(t, m, s)
	if i.State() != Created {
		t.Errorf("state = %v, want created", i.State())
	}
	awaitGate(t, i)
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", i.PID()))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("PID 1 has the threads %v, %v", tasks, err)
	}
	for _, path := range tasks {
		if children, err := os.ReadFile(path); err != nil || len(children) > 0 {
			t.Errorf("%s: %q, %v", path, children, err)
		}
	}
	for name, f := range map[string]*os.File{"stdout": i.Stdout(), "stderr": i.Stderr()} {
		if n := buffered(t, f); n != 0 {
			t.Errorf("%d bytes are in %s", n, name)
		}
	}
	if err := i.Begin(); err != nil {
		t.Fatal(err)
	}
	if e := waitExit(t, i); e.Code != 5 {
		t.Errorf("exit = %+v", e)
	}
	if buffered(t, i.Stdout()) == 0 {
		t.Error("nothing was printed after Begin")
	}
	if err := i.Begin(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second Begin: %v", err)
	}
}

// awaitGate waits until lfx-init of a held instance stands at the gate: it has the FIFO open.
func awaitGate(t *testing.T, i *Instance) {
	t.Helper()
	gate, err := os.Stat(filepath.Join(i.m.dir(i.id), ioDir, lfxinit.GateName))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", i.PID()))
		for _, fd := range fds {
			if open, err := os.Stat(fd); err == nil && os.SameFile(open, gate) {
				return
			}
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("PID 1 does not open the gate; it has open %v, %v", fds, err)
		}
	}
}

// buffered says how many bytes are in a pipe.
func buffered(t *testing.T, f *os.File) (n int) {
	t.Helper()
	c, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ierr error
	err = c.Control(func(fd uintptr) { n, ierr = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err := errors.Join(err, ierr); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestHeldInstanceDies: an instance that was killed while it waited is not begun.
func TestHeldInstanceDies(t *testing.T) {
	m, _ := newManager(t, nil)
	s := probeSpec("held-dies", "exit", "5")
	s.Hold = true
	i := create(t, m, s)
	if err := unix.Kill(i.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for ended := false; !ended; time.Sleep(time.Millisecond) {
		var err error
		if ended, err = processEnded(i.pidfd); err != nil || time.Now().After(deadline) {
			t.Fatalf("it does not end: %v", err)
		}
	}
	if err := i.Begin(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Begin: %v", err)
	}
	if e := waitExit(t, i); e.Signal != syscall.SIGKILL {
		t.Errorf("exit = %+v", e)
	}
}
