package instance

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// newManager returns a manager with directories and a cgroup parent of its own. At the end of the test nothing of
// it may be left anywhere.
func newManager(t *testing.T, change func(*Options)) (*Manager, *testEngine) {
	t.Helper()
	e := needEngine(t)
	parent := "/lfxtest-" + strings.ToLower(filepath.Base(t.Name())) + fmt.Sprint(os.Getpid())
	o := Options{
		Client: e.client, Namespace: testNamespace, Dir: t.TempDir(), InitPath: e.dir + "/lfx-init",
		RuntimeBinary: e.bin + "/runc", RuntimeRoot: e.dir + "/runc", CgroupParent: parent,
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
