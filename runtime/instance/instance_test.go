package instance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/runtime/cgroup"
)

// newManager returns a manager with directories and a cgroup parent of its own. At the end of the test nothing of
// it may be left anywhere.
func newManager(t *testing.T, change func(*Options)) (*Manager, *testEngine) {
	t.Helper()
	e := needEngine(t)
	parent := "/lfxtest-" + strings.ToLower(filepath.Base(t.Name())) + fmt.Sprint(os.Getpid())
	o := Options{
		Client: e.client, Namespace: testNamespace, Dir: t.TempDir(), InitPath: e.dir + "/lfx-init",
		RuntimeBinary: e.bin + "/runc", RuntimeRoot: e.dir + "/runc", Cgroups: cgroup.Plain(parent),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o)
	}
	m, err := NewManager(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		m.cgroups.RemoveParent(parent)
	})
	return m, e
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func probeSpec(id string, args ...string) Spec {
	return Spec{
		ID: id, Image: testImage, Args: append([]string{"/probe"}, args...), Env: []string{"PATH=/bin", "FOO=bar"}, Dir: "/var/task",
		MemoryMB: 128, TmpMB: 64, Cores: 0.5,
	}
}

// create makes an instance and destroys it at the end of the test.
func create(t *testing.T, m *Manager, s Spec) *Instance {
	t.Helper()
	i, err := m.Create(testContext(t), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Destroy(testContext(t)); err != nil {
			t.Error(err)
		}
	})
	return i
}

func waitExit(t *testing.T, i *Instance) Exit {
	t.Helper()
	select {
	case <-i.Exited():
	case <-time.After(30 * time.Second):
		t.Fatal("instance does not end")
	}
	e := i.Exit()
	e.Time = time.Time{}
	return e
}

func TestInsideView(t *testing.T) {
	m, _ := newManager(t, nil)
	i := create(t, m, probeSpec("inside-view", "report"))
	line, err := bufio.NewReader(i.Stdout()).ReadBytes('\n')
	if err != nil {
		b, _ := io.ReadAll(i.Stderr())
		t.Fatalf("%v; stderr %s; exit %v", err, b, i.Exit())
	}
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	t.Logf("phases %+v", i.Phases())
	want := map[string]any{
		"uid": 1000.0, "gid": 1000.0, "ppid": 1.0, "cwd": "/var/task", "hostname": "inside-view", "env.FOO": "bar",
		"status.CapEff": "0000000000000000", "status.CapBnd": "0000000000000000", "status.NoNewPrivs": "1", "status.Seccomp": "2",
		"uid_map":    fmt.Sprintf("0 %d 65536", i.rec.UID),
		"write.root": "open /x: read-only file system", "write.tmp": "", "write.fifo": "",
		"tmp.bytes": float64(64 << 20), "socket.families": []any{1.0, 2.0, 10.0, 16.0}, "socket.audit": "operation not permitted",
		"syscall.unshare": "operation not permitted", "syscall.mount": "operation not permitted", "syscall.ptrace": "operation not permitted",
		"syscall.keyctl": "operation not permitted", "syscall.io_uring_setup": "operation not permitted", "syscall.bpf": "operation not permitted",
		"syscall.userfaultfd": "operation not permitted", "syscall.perf_event_open": "operation not permitted", "syscall.clone3": "function not implemented",
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			delete(got, k)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("inside view (-want +got):\n%s", diff)
	}
	if e := waitExit(t, i); e.Code != 0 || e.Signal != 0 || e.OOM {
		t.Errorf("exit = %v, want 0", e)
	}
}

func TestExits(t *testing.T) {
	m, _ := newManager(t, nil)
	execError := func(kind ErrorKind, msg string) *ExecError { return &ExecError{kind, msg} }
	tests := []struct {
		name   string
		change func(*Spec)
		args   []string
		want   Exit
	}{
		{name: "zero", args: []string{"/probe", "exit", "0"}, want: Exit{}},
		{name: "code", args: []string{"/probe", "exit", "3"}, want: Exit{Code: 3}},
		{name: "exit-139", args: []string{"/probe", "exit", "139"}, want: Exit{Code: 139}},
		{name: "kill", args: []string{"/probe", "signal", "9"}, want: Exit{Code: 137, Signal: 9}},
		{name: "segv", args: []string{"/probe", "signal", "11"}, want: Exit{Code: 139, Signal: 11}},
		{name: "term", args: []string{"/probe", "signal", "15"}, want: Exit{Code: 143, Signal: 15}},
		{name: "path", args: []string{"tool", "exit", "4"}, want: Exit{Code: 4}},
		{name: "relative", change: func(s *Spec) { s.Dir = "/bin" }, args: []string{"./tool", "exit", "5"}, want: Exit{Code: 5}},
		{name: "missing", args: []string{"/nope"}, want: Exit{Code: 127, ExecError: execError(InvalidEntrypoint, "fork/exec /nope: no such file or directory")}},
		{name: "missing-path", args: []string{"nope"}, want: Exit{Code: 127, ExecError: execError(InvalidEntrypoint, "fork/exec nope: no such file or directory")}},
		{name: "plain", args: []string{"/plain"}, want: Exit{Code: 126, ExecError: execError(InvalidEntrypoint, "fork/exec /plain: permission denied")}},
		{name: "directory", args: []string{"/var"}, want: Exit{Code: 126, ExecError: execError(InvalidEntrypoint, "fork/exec /var: permission denied")}},
		{name: "garbage", args: []string{"/garbage"}, want: Exit{Code: 126, ExecError: execError(InvalidEntrypoint, "fork/exec /garbage: exec format error")}},
		{name: "workdir", change: func(s *Spec) { s.Dir = "/nowhere" }, args: []string{"/probe", "exit", "0"},
			want: Exit{Code: 126, ExecError: execError(InvalidWorkingDir, "chdir /nowhere: no such file or directory")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := probeSpec("exit-" + tt.name)
			s.Args = tt.args
			if tt.change != nil {
				tt.change(&s)
			}
			i := create(t, m, s)
			if diff := cmp.Diff(tt.want, waitExit(t, i)); diff != "" {
				t.Errorf("exit (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOutputBeforeExit(t *testing.T) {
	m, _ := newManager(t, nil)
	i := create(t, m, probeSpec("output", "exit", "0"))
	waitExit(t, i)
	// All output was in the pipe before the exit was reported, so a reader that starts only now gets it, and then the end.
	for name, f := range map[string]*os.File{"bye\n": i.Stdout(), "bye err\n": i.Stderr()} {
		_ = f.SetReadDeadline(time.Now().Add(10 * time.Second))
		b, err := io.ReadAll(f)
		if err != nil || string(b) != name {
			t.Errorf("read %q, %v; want %q", b, err, name)
		}
	}
}

func readLine(t *testing.T, f *os.File) string {
	t.Helper()
	_ = f.SetReadDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func TestOrphansAreReaped(t *testing.T) {
	m, _ := newManager(t, nil)
	i := create(t, m, probeSpec("orphans", "orphan"))
	if got := readLine(t, i.Stdout()); got != "zombies 0\n" {
		t.Errorf("function says %q", got)
	}
}

func TestOutOfMemory(t *testing.T) {
	m, _ := newManager(t, nil)
	for _, tmp := range []int{1, 512} { // with a big /tmp the hard limit is far away: the tripwire must do it
		t.Run(fmt.Sprint(tmp), func(t *testing.T) {
			s := probeSpec(fmt.Sprintf("oom-%d", tmp), "hog")
			s.TmpMB = tmp
			i := create(t, m, s)
			e := waitExit(t, i)
			if !e.OOM || e.Signal != 9 {
				t.Errorf("exit = %+v, want out of memory", e)
			}
			if got := i.PeakMemory(); got < 100*mib || got > 128*mib {
				t.Errorf("peak = %d MiB, want about 128", got/mib)
			}
		})
	}
}

func TestTmpIsNotMemory(t *testing.T) {
	m, _ := newManager(t, nil)
	s := probeSpec("tmp-full", "tmp", "200")
	s.TmpMB = 256
	i := create(t, m, s)
	if got := readLine(t, i.Stdout()); got != "filled\n" {
		t.Fatalf("function says %q", got)
	}
	if got := i.PeakMemory(); got > 64*mib {
		t.Errorf("peak = %d MiB: /tmp counts as memory", got/mib)
	}
	select {
	case <-i.Exited():
		t.Errorf("killed: %+v", i.Exit())
	case <-time.After(300 * time.Millisecond):
	}
}

func TestListener(t *testing.T) {
	m, _ := newManager(t, nil)
	s := probeSpec("listener", "call")
	served := make(chan error, 1)
	s.Listen = func(l net.Listener) error {
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, err = io.WriteString(c, "hello\n")
				_ = c.Close()
			}
			served <- err
		}()
		if c, err := net.DialTimeout("tcp", runtimeAPI, time.Second); err == nil {
			_ = c.Close()
			return errors.New("the listener can be reached from the host")
		}
		return nil
	}
	i := create(t, m, s)
	if got := readLine(t, i.Stdout()); got != "got hello\n" {
		t.Errorf("function says %q", got)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestSteering(t *testing.T) {
	m, _ := newManager(t, nil)
	i := create(t, m, probeSpec("steering", "sleep"))
	readLine(t, i.Stdout())
	if got, _ := i.group.CPUQuota(); got != 1 {
		t.Errorf("quota during init = %v cores, want 1", got)
	}
	if err := i.SetCores(0.07); err != nil {
		t.Fatal(err)
	}
	if got, _ := i.group.CPUQuota(); got != 0.07 {
		t.Errorf("quota = %v cores, want 0.07", got)
	}
	for range 3 {
		if err := errors.Join(i.Freeze(t.Context()), i.Thaw()); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := m.MemoryBytes(); err != nil || n == 0 || i.MemoryBytes() == 0 {
		t.Errorf("all instances use %d bytes (%v), this one %d; want something", n, err, i.MemoryBytes())
	}
	if err := i.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := i.Freeze(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a freeze after the kill: %v, want it refused", err)
	}
	if e := waitExit(t, i); e.Signal != 9 || e.OOM {
		t.Errorf("exit = %+v, want killed", e)
	}
	if err := i.Kill(); err != nil {
		t.Errorf("second kill: %v", err)
	}
}

func TestKilledWhileFrozen(t *testing.T) {
	m, _ := newManager(t, nil)
	i := create(t, m, probeSpec("icy", "sleep"))
	readLine(t, i.Stdout())
	if err := i.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(i.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// On v2 it ends at once, and its cgroup may be there still.
	if err := i.Thaw(); m.cgroups.Version() == 1 && !errdefs.IsNotFound(err) {
		t.Errorf("thaw: %v, want that it was killed", err)
	}
	if e := waitExit(t, i); e.Signal != 9 {
		t.Errorf("exit = %+v, want killed", e)
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	m, _ := newManager(t, nil)
	i := create(t, m, probeSpec("forward", "term"))
	readLine(t, i.Stdout())
	if err := unix.Kill(i.PID(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := waitExit(t, i); e.Code != 15 || e.Signal != 0 {
		t.Errorf("exit = %+v, want code 15", e)
	}
}

// leftovers lists everything that exists of an instance.
func leftovers(t *testing.T, m *Manager, e *testEngine, id string) []string {
	t.Helper()
	ctx := namespaces.WithNamespace(testContext(t), testNamespace)
	var left []string
	add := func(ok bool, what string) {
		if ok {
			left = append(left, what)
		}
	}
	_, err := e.client.ContainerService().Get(ctx, id)
	add(!errdefs.IsNotFound(err), "container")
	_, err = e.client.SnapshotService(snapshotter).Stat(ctx, id)
	add(!errdefs.IsNotFound(err), "snapshot")
	_, err = e.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	add(!errdefs.IsNotFound(errgrpc.ToNative(err)), "task")
	shims, err := m.shims()
	add(err != nil || shims[id] != 0, "shim")
	add(m.group(id).Exists(), "cgroup")
	for _, p := range []string{m.dir(id), m.runtimeState(id), e.dir + "/state/io.containerd.runtime.v2.task/" + testNamespace + "/" + id,
		e.dir + "/root/io.containerd.runtime.v2.task/" + testNamespace + "/" + id} {
		_, err := os.Stat(p)
		add(err == nil, p)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	add(strings.Contains(string(mounts), e.dir+"/state/io.containerd.runtime.v2.task/"+testNamespace+"/"+id+"/"), "mount")
	return left
}

func TestDestroyLeavesNothing(t *testing.T) {
	m, e := newManager(t, nil)
	i, err := m.Create(testContext(t), probeSpec("nothing", "sleep"))
	if err != nil {
		t.Fatal(err)
	}
	if got := leftovers(t, m, e, "nothing"); len(got) < 8 {
		t.Errorf("while it runs there is only %v", got)
	}
	for range 2 {
		if err := i.Destroy(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	if got := leftovers(t, m, e, "nothing"); got != nil {
		t.Errorf("left after Destroy: %v", got)
	}
	if len(m.uids.used) != 0 || i.State() != Removed {
		t.Errorf("uid ranges %v, state %v", m.uids.used, i.State())
	}
}

func TestReconcileAfterCrash(t *testing.T) {
	var o Options
	m, e := newManager(t, func(c *Options) { o = *c })
	ids := []string{"crash-a", "crash-b"}
	for _, id := range ids {
		if _, err := m.Create(testContext(t), probeSpec(id, "sleep")); err != nil {
			t.Fatal(err)
		}
	}
	// One loses its record too, and one died before anything but the record existed.
	if err := errors.Join(os.RemoveAll(m.dir("crash-b")), os.Mkdir(m.dir("crash-c"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := NewManager(o)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := next.Reconcile(testContext(t), func(string) bool { return true }); err != nil || len(got) != 0 {
		t.Fatalf("Reconcile that keeps all = %v, %v", got, err)
	}
	got, err := next.Reconcile(testContext(t), func(string) bool { return false })
	slices.Sort(got)
	if diff := cmp.Diff([]string{"crash-a", "crash-b", "crash-c"}, got); err != nil || diff != "" {
		t.Errorf("Reconcile: %v (-want +got):\n%s", err, diff)
	}
	for _, id := range got {
		if l := leftovers(t, next, e, id); l != nil {
			t.Errorf("left of %s: %v", id, l)
		}
	}
	if len(next.uids.used) != 0 {
		t.Errorf("uid ranges %v", next.uids.used)
	}
}

func TestParallel(t *testing.T) {
	m, _ := newManager(t, nil)
	var wg sync.WaitGroup
	for n := range 10 {
		wg.Go(func() {
			i, err := m.Create(testContext(t), probeSpec(fmt.Sprintf("parallel-%d", n), "exit", fmt.Sprint(n)))
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case <-i.Exited():
			case <-time.After(30 * time.Second):
			}
			if got := i.Exit().Code; got != n {
				t.Errorf("exit %d, want %d", got, n)
			}
			if err := i.Destroy(testContext(t)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// fakeNetwork notes what it is asked.
type fakeNetwork struct {
	attach error
	detach error
	mu     sync.Mutex
	calls  []string
}

func (n *fakeNetwork) Attach(_ context.Context, id, nsPath string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	target, err := os.Readlink(nsPath)
	n.calls = append(n.calls, "attach "+id+" "+strings.TrimRight(target, "0123456789]"))
	return netip.MustParseAddr("10.201.1.2"), errors.Join(err, n.attach)
}

func (n *fakeNetwork) Detach(_ context.Context, id, nsPath string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	target, _ := os.Readlink(nsPath)
	n.calls = append(n.calls, "detach "+id+" "+strings.TrimRight(target, "0123456789]"))
	return n.detach
}

func TestNetwork(t *testing.T) {
	n := &fakeNetwork{}
	m, _ := newManager(t, func(o *Options) { o.Network = n })
	i := create(t, m, probeSpec("network", "report"))
	var got map[string]any
	if err := json.Unmarshal([]byte(readLine(t, i.Stdout())), &got); err != nil {
		t.Fatal(err)
	}
	if want := "127.0.0.1\tlocalhost sandbox sandbox.localdomain\n10.201.1.2\tnetwork\n"; got["hosts"] != want {
		t.Errorf("hosts = %q, want %q", got["hosts"], want)
	}
	if err := i.Destroy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"attach network net:[", "detach network net:["}, n.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestFailedStepsAreUndone(t *testing.T) {
	boom := errors.New("boom")
	n := &fakeNetwork{}
	m, e := newManager(t, func(o *Options) { o.Network = n })
	tests := []struct {
		name    string
		prepare func(*Spec)
		class   func(error) bool
	}{
		{"image", func(s *Spec) { s.Image = "test.invalid/none:v1" }, errdefs.IsNotFound},
		{"listen", func(s *Spec) { s.Listen = func(net.Listener) error { return boom } }, func(err error) bool { return errors.Is(err, boom) }},
		{"attach", func(*Spec) { n.attach = boom }, func(err error) bool { return errors.Is(err, boom) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := probeSpec("undo-"+tt.name, "sleep")
			tt.prepare(&s)
			if _, err := m.Create(testContext(t), s); !tt.class(err) {
				t.Errorf("error = %v", err)
			}
			if got := leftovers(t, m, e, s.ID); got != nil {
				t.Errorf("left: %v", got)
			}
		})
	}
}

func TestFailedDestroyIsFinishedLater(t *testing.T) {
	n := &fakeNetwork{detach: errors.New("boom")}
	m, e := newManager(t, func(o *Options) { o.Network = n })
	i := create(t, m, probeSpec("retry", "sleep"))
	if err := i.Destroy(testContext(t)); err == nil {
		t.Fatal("Destroy succeeded without detaching")
	}
	r, err := readRecord(m.dir("retry"))
	if err != nil || !strings.Contains(r.Broken, "detach network: boom") {
		t.Errorf("record = %+v, %v", r, err)
	}
	n.detach = nil
	got, err := m.Reconcile(testContext(t), func(string) bool { return false })
	if diff := cmp.Diff([]string{"retry"}, got); err != nil || diff != "" {
		t.Errorf("Reconcile: %v (-want +got):\n%s", err, diff)
	}
	if got := leftovers(t, m, e, "retry"); got != nil {
		t.Errorf("left: %v", got)
	}
}
