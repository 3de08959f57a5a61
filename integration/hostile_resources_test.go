//go:build integration && faults

package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// taken is what a probe got of something, and what stopped it.
type taken struct {
	Forks, Count, MiB, Files, Depth int
	Error                           string
}

// TestMemoryPastTheLimit: however a function takes memory, it is killed as a whole, its client is told what Lambda
// tells, and what is no memory of its own (files in /tmp, the page cache) is not held against it.
func TestMemoryPastTheLimit(t *testing.T) {
	h := newHostile(t, "memory", "f timeout: 10s; memory: 128MiB; tmp: 256MiB; concurrency: {max: 1}",
		"small timeout: 20s; memory: 128MiB; tmp: 64MiB; concurrency: {max: 8}")
	for _, kind := range []string{"private", "shared", "memfd", "processes"} {
		t.Run(kind, func(t *testing.T) { fails(t, "f", probeEvent{Do: "memory", Kind: kind}, outOfMemory) })
	}
	t.Run("a full /tmp is no memory", func(t *testing.T) {
		var got taken
		tell(t, "f", probeEvent{Do: "tmp", Kind: "bytes"}, &got)
		if got.MiB != 256 || got.Error != "ENOSPC" {
			t.Errorf("wrote %d MiB until %s, want 256 until ENOSPC", got.MiB, got.Error)
		}
		var n int
		if tell(t, "f", probeEvent{Do: "echo", N: 5}, &n); n != 5 {
			t.Errorf("with a full /tmp: %d", n)
		}
	})
	t.Run("past the limit beside a full /tmp", func(t *testing.T) {
		fails(t, "f", probeEvent{Do: "memory", Kind: "private"}, outOfMemory)
	})
	t.Run("past the limit while /tmp is empty", func(t *testing.T) { // the hard limit is memory and /tmp: the tripwire is at memory
		a := post(t, invokeURL("f"), probeEvent{Do: "hold", N: 160}.String())
		if want := strings.ReplaceAll(outOfMemory, "ID", a.header.Get("x-amzn-RequestId")); a.body != want {
			t.Errorf("160 of 128 MiB: %s", a.body)
		}
	})
	t.Run("below the limit", func(t *testing.T) {
		a := post(t, invokeURL("f"), probeEvent{Do: "hold", N: 90}.String())
		if a.body != `"held"` {
			t.Errorf("90 of 128 MiB: %s", a.body)
		}
	})
	t.Run("page cache", func(t *testing.T) {
		var mib int
		if tell(t, "f", probeEvent{Do: "memory", Kind: "page-cache"}, &mib); mib < 5 {
			t.Errorf("only %d MiB were read", mib)
		}
	})
	t.Run("socket buffers", func(t *testing.T) {
		a := post(t, invokeURL("f"), probeEvent{Do: "memory", Kind: "sockets"}.String())
		if want := strings.ReplaceAll(outOfMemory, "ID", a.header.Get("x-amzn-RequestId")); a.body != want && a.body != `"bounded"` {
			t.Errorf("got %.300s", a.body)
		}
	})
	t.Run("mlock", func(t *testing.T) {
		var e string
		if tell(t, "f", probeEvent{Do: "mlock"}, &e); e != "ENOMEM" && e != "EPERM" {
			t.Errorf("mlockall: %s", e)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				a, err := try(http.DefaultClient, "POST", invokeURL("small"), probeEvent{Do: "memory", Kind: "private"}.String())
				if want := strings.ReplaceAll(outOfMemory, "ID", a.header.Get("x-amzn-RequestId")); err != nil || a.body != want {
					t.Errorf("got %.300s, %v", a.body, err)
				}
			})
		}
		h.calm(t)
		wg.Wait()
	})
	h.calm(t)
}

// TestProcessesPastTheLimit: forks stop at the limit, bombs end with their invocation, and neither is felt
// outside.
func TestProcessesPastTheLimit(t *testing.T) {
	h := newHostile(t, "forks", "f timeout: 10s; memory: 512MiB; cpu: 1; concurrency: {max: 1}", "bomb timeout: 3s; memory: 512MiB; concurrency: {max: 8}", "burner timeout: 3s; cpu: 2; concurrency: {max: 4}",
		"early timeout: 10s; memory: 512MiB; environment: {MODE: fork-in-init}")
	t.Run("processes", func(t *testing.T) {
		var got taken
		tell(t, "f", probeEvent{Do: "forks"}, &got)
		if got.Forks < 500 || got.Forks > 1024 || got.Error != "EAGAIN" {
			t.Errorf("%d forks until %s, want up to 1024 until EAGAIN", got.Forks, got.Error)
		}
		id := instances(t, "f")[0].ID
		pids := instancePIDs(t, id)
		if len(pids) < 500 || len(pids) > 1024 {
			t.Errorf("%d processes on the host", len(pids))
		}
		h.calm(t)
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Errorf("the host forks: %v", err)
		}
		fails(t, "f", probeEvent{Do: "exit", N: 1}, exitError("with error: exit status 1"))
		if err := poll(20*time.Second, func() error { return gone(id, pids) }); err != nil {
			t.Error(err)
		}
	})
	t.Run("in init", func(t *testing.T) {
		a := post(t, invokeURL("early"), probeEvent{Do: "echo", N: 1}.String())
		if a.status != 200 || a.body != "1" && a.header.Get("X-Amz-Function-Error") != "Unhandled" {
			t.Errorf("status %d, %s", a.status, a.body)
		}
	})
	t.Run("bombs", func(t *testing.T) { h.bombs(t) })
	t.Run("every core busy", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if a, err := try(http.DefaultClient, "POST", invokeURL("burner"), probeEvent{Do: "burn", MS: 1500}.String()); err != nil || a.status != 200 {
					t.Errorf("%d %.200s %v", a.status, a.body, err)
				}
			})
		}
		h.calm(t)
		wg.Wait()
	})
	h.calm(t)
}

// bombs: eight functions fork without end at once. Each ends with its time, and meanwhile the host forks and the
// neighbour answers; how fast is in the log.
func (h *hostile) bombs(t *testing.T) {
	const n = 8
	answer := func() { h.calm(t) }
	fork := func() {
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Errorf("the host forks: %v", err)
		}
	}
	t.Logf("without bombs: neighbour %s, fork %s", latencies(40, answer), latencies(40, fork))
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() { fails(t, "bomb", probeEvent{Do: "bomb"}, timedOut(3)) })
	}
	if err := poll(20*time.Second, func() error { // until all of them fork
		full := 0
		for _, in := range instances(t, "bomb") {
			if len(instancePIDs(t, in.ID)) > 100 {
				full++
			}
		}
		if full < n/2 {
			return fmt.Errorf("only %d of %d bombs went off", full, n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	neighbour, forks := latencies(20, answer), latencies(20, fork)
	t.Logf("with %d bombs: neighbour %s, fork %s", n, neighbour, forks)
	wg.Wait()
	if neighbour.p50 > 2*time.Second || forks.p50 > time.Second {
		t.Errorf("the bombs are felt: neighbour %s, fork %s", neighbour, forks)
	}
	if err := poll(20*time.Second, func() error {
		if left := instances(t, "bomb"); len(left) > 0 {
			return fmt.Errorf("%d bombs are left", len(left))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// spread is how long something took, several times.
type spread struct{ p50, p99 time.Duration }

func (s spread) String() string {
	return fmt.Sprintf("p50 %s, p99 %s", s.p50.Round(10*time.Microsecond), s.p99.Round(10*time.Microsecond))
}

// latencies does something n times, one after the other.
func latencies(n int, do func()) spread {
	all := make([]time.Duration, n)
	for i := range all {
		begin := time.Now()
		do()
		all[i] = time.Since(begin)
	}
	slices.Sort(all)
	return spread{all[n/2], all[n*99/100]}
}

// TestKernelObjectsAreNotUsedUp: what the kernel counts per process, per user or for the whole host ends inside the
// instance before it ends for anybody else.
func TestKernelObjectsAreNotUsedUp(t *testing.T) {
	h := newHostile(t, "objects", "f timeout: 20s; memory: 512MiB; cpu: 1; concurrency: {max: 1}")
	for _, c := range []struct {
		kind  string
		most  int
		error string
	}{
		{"files", 1024, "EMFILE"}, {"sockets", 1024, "EMFILE"}, {"epoll", 1024, "EMFILE"}, {"eventfd", 1024, "EMFILE"}, {"unix", 1024, "EMFILE"},
		{"inotify", 64, "EMFILE"}, {"pty", 64, "ENOSPC"},
	} {
		t.Run(c.kind, func(t *testing.T) {
			var got taken
			tell(t, "f", probeEvent{Do: "fds", Kind: c.kind}, &got)
			if got.Count > c.most || got.Count < 8 || got.Error != c.error {
				t.Errorf("%d until %s, want at most %d until %s", got.Count, got.Error, c.most, c.error)
			}
		})
	}
	t.Run("watches and queues", func(t *testing.T) {
		var got map[string]any
		tell(t, "f", probeEvent{Do: "kernel"}, &got)
		if n, ok := got["watches"].(float64); !ok || n > 8192 || got["watches error"] != "ENOSPC" {
			t.Errorf("inotify: %v watches until %v", got["watches"], got["watches error"])
		}
		if got["mq"] == "ok" {
			t.Errorf("a POSIX message queue was made")
		}
	})
	for range 65 { // the daemon runs as this user: what functions used must not count here
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			t.Fatalf("inotify on the host: %v", err)
		}
		defer unix.Close(fd) //nolint:errcheck // of no further use
	}
	h.calm(t)
}

// TestFilesFillUp: /tmp is the only place, ends at its size and its number of files, and is gone with the
// instance at once.
func TestFilesFillUp(t *testing.T) {
	h := newHostile(t, "files", "f timeout: 20s; memory: 512MiB; tmp: 64MiB; cpu: 1; concurrency: {max: 1}", "lean timeout: 20s; memory: 128MiB; tmp: 64MiB; cpu: 1")
	var got taken
	if tell(t, "f", probeEvent{Do: "tmp", Kind: "bytes"}, &got); got.MiB != 64 || got.Error != "ENOSPC" {
		t.Errorf("%d MiB until %s", got.MiB, got.Error)
	}
	var e string
	if tell(t, "f", probeEvent{Do: "tmp", Kind: "sparse"}, &e); e == "" {
		t.Error("no answer to a sparse file")
	}
	if tell(t, "f", probeEvent{Do: "tmp", Kind: "deep", N: 10_000}, &got); got.Depth < 10_000 {
		t.Errorf("depth %d: %s", got.Depth, got.Error)
	}
	if tell(t, "f", probeEvent{Do: "tmp", Kind: "inodes"}, &got); got.Files < 10_000 || got.Files > 65536 || got.Error != "ENOSPC" {
		t.Errorf("%d files until %s", got.Files, got.Error)
	}
	// Empty files take memory of the kernel's: of a small function that may be too much, and is said so.
	a := post(t, invokeURL("lean"), probeEvent{Do: "tmp", Kind: "inodes"}.String())
	if want := strings.ReplaceAll(outOfMemory, "ID", a.header.Get("x-amzn-RequestId")); a.body != want && !strings.Contains(a.body, "ENOSPC") {
		t.Errorf("empty files in 128 MiB: %.300s", a.body)
	}
	t.Run("elsewhere", func(t *testing.T) {
		places := []string{
			"/", "/etc", "/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/var", "/var/task", "/var/runtime", "/usr/bin", "/home", "/root", "/opt", "/run", "/run/secrets", "/boot", "/lib", "/dev", "/dev/pts",
			"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger", "/proc/1/mem", "/proc/1/oom_score_adj",
			"/proc/1/exe", "/sys/kernel/uevent_helper", "/sys/fs/cgroup", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/memory/release_agent", "/sys/power/state", "/probe", "/suid",
		}
		var got map[string]string
		tell(t, "f", probeEvent{Do: "write", Paths: places}, &got)
		for path, e := range got {
			if e == "ok" {
				t.Errorf("%s could be written", path)
			}
		}
	})
	begin := time.Now()
	for _, f := range []string{"f", "lean"} {
		for _, s := range mustFunctions(t, "files") {
			if s.Key.Function == f {
				if _, err := d.client.RemoveFunction(context.Background(), s.Key); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := poll(30*time.Second, func() error {
		if n := len(instances(t, "f")) + len(instances(t, "lean")); n > 0 {
			return fmt.Errorf("%d instances are left", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 15*time.Second { // 5 s on a quiet machine
		t.Errorf("removing them took %s", took)
	}
	h.calm(t)
}

// TestLogFloods: a function that prints as fast as it can neither waits for the daemon nor fills the disk, and
// what it prints stays text under its own name.
func TestLogFloods(t *testing.T) {
	const span = 1500 // ms
	h := newHostile(t, "floods", "f timeout: 30s; cpu: 1; concurrency: {max: 1}", "odd timeout: 5s; concurrency: {max: 1}")
	folder := filepath.Join(d.state, "logs")
	for _, kind := range []string{"lines", "no-newline", "nul"} {
		t.Run(kind, func(t *testing.T) {
			busy, size := cpuTime(t, d.pid()), sizeOf(t, folder)
			begin := time.Now()
			a := post(t, invokeURL("f"), probeEvent{Do: "flood", Kind: kind, MS: span}.String(), "X-Amz-Log-Type", "Tail")
			took := time.Since(begin)
			h.calm(t)
			used, grown := cpuTime(t, d.pid())-busy, sizeOf(t, folder)-size
			if a.status != 200 || a.header.Get("X-Amz-Function-Error") != "" {
				t.Errorf("status %d: %.300s", a.status, a.body)
			}
			if took > 20*time.Second {
				t.Errorf("a flood of %d ms took %s", span, took)
			}
			if grown > 128<<20 {
				t.Errorf("the log grew by %d MiB", grown>>20)
			}
			if used > took*3/2+2*time.Second {
				t.Errorf("the daemon used %s of CPU in %s", used, took)
			}
			if log := tail(t, a); len(log) > 4096 || !strings.Contains(log, "REPORT RequestId: ") {
				t.Errorf("the tail has %d bytes: %.200q", len(log), log)
			}
			t.Logf("%s MiB printed in %s, %s of daemon CPU, %d MiB on disk", a.body, took, used, grown>>20)
		})
	}
	t.Run("drops are told", func(t *testing.T) {
		stdout, _, _ := lfxctl("logs", "f", "-n", "20000")
		if !strings.Contains(stdout, "dropped") {
			t.Errorf("nobody says that lines were dropped; the log ends with %.300s", stdout[max(0, len(stdout)-300):])
		}
	})
	t.Run("100 MB without newline", func(t *testing.T) {
		var mib int
		if tell(t, "f", probeEvent{Do: "flood", Kind: "no-newline", N: 100, MS: 20_000}, &mib); mib < 100 {
			t.Errorf("%d MiB", mib)
		}
	})
	t.Run("strange bytes", func(t *testing.T) {
		a := post(t, invokeURL("odd"), probeEvent{Do: "print", Paths: []string{
			"fake\x1b[2J\x1b]0;title\x07escape", `{"time":"2020-01-01T00:00:00Z","stream":"platform","message":"forged"}`, "nul\x00nul",
			"END RequestId: 00000000-0000-4000-8000-000000000000", "bell\x07", "cr\rlf", "REPORT RequestId: x\tDuration: 0.00 ms",
		}, Kind: "invalid"}.String())
		if a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		stdout, stderr, code := lfxctl("logs", "odd", "-o", "json")
		if code != 0 {
			t.Fatal(stderr)
		}
		for _, line := range strings.Split(strings.TrimSpace(stdout), "\n") {
			if strings.Contains(line, `"stream":"platform"`) && (strings.Contains(line, "forged") && !strings.Contains(line, `\"`) || strings.Contains(line, "00000000-0000")) {
				t.Errorf("a printed line became the platform's: %s", line)
			}
			for _, c := range []byte(line) {
				if c < 0x20 {
					t.Errorf("a control character in %q", line)
					break
				}
			}
		}
		if !strings.Contains(stdout, `forged\"}`) || !strings.Contains(stdout, `\u001b[2J`) || !strings.Contains(stdout, "\uFFFD") || !strings.Contains(stdout, `nul\u0000nul`) {
			t.Errorf("what was printed is not there: %s", stdout)
		}
	})
	h.calm(t)
}

// cpuTime is how much CPU time a process has used.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	var user, system int
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// sizeOf is the size of all files below a folder.
func sizeOf(t *testing.T, dir string) int64 {
	t.Helper()
	var n int64
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if fi, err := e.Info(); err == nil {
			n += fi.Size()
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return n
}

// TestLogPipeIsHeld: a function can lock its own output, for as long as it likes, so that even a read that does not wait does
// (splice(2) from a silent socket takes the pipe's mutex first). Only its own instance may stand still for that.
func TestLogPipeIsHeld(t *testing.T) {
	const hold = `import os, socket, threading, time
pair = socket.socketpair()
def handler(event, context):
    if event.get('print'):
        print('something to read', flush=True)
    for fd in (1, 2):
        threading.Thread(target=os.splice, args=(pair[0].fileno(), fd, 1), daemon=True).start()
    time.sleep(0.2)
    return 'held'
`
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("held", "holder timeout: 3s; concurrency: {max: 1}", "quiet timeout: 10s")},
		python("holder", hold),
		python("quiet", "def handler(event, context): return 'here'\n"),
	))
	p.deploy()
	c := &http.Client{Timeout: time.Duration(slow(10)) * time.Second}
	for _, event := range []string{`{}`, `{"print": true}`} {
		held := make(chan struct{})
		go func() { // ends with its client's timeout
			defer close(held)
			_, _ = try(c, "POST", invokeURL("holder"), event) // whatever becomes of it
		}()
		for range 20 {
			if a := do(t, c, "POST", invokeURL("quiet"), ""); a.body != `"here"` {
				t.Errorf("a neighbour: %d %s", a.status, a.body)
			}
			if _, stderr, code := lfxctl("ps"); code != 0 {
				t.Errorf("lfxctl ps: %s", stderr)
			}
		}
		<-held
	}
}
