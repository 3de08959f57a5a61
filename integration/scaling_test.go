//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// spinCode leaves a thread spinning behind every answer. The handler returns for how long the thread stood
// still at most since the call before, and starts it anew.
const spinCode = `
import threading, time
gap = 0.0
def spin():
    global gap
    last = time.monotonic()
    while True:
        now = time.monotonic()
        gap = max(gap, now - last)
        last = now
thread = None
def handler(event, context):
    global gap, thread
    if thread is None:
        thread = threading.Thread(target=spin, daemon=True)
        thread.start()
    out, gap = gap, 0.0
    return out
`

// awaitState polls until the only instance of a function is in a state.
func awaitState(t *testing.T, name, state string) (id string) {
	t.Helper()
	if err := poll(30*time.Second, func() error {
		all := instances(t, name)
		if len(all) != 1 || all[0].State != state {
			return fmt.Errorf("instances of %s: %+v, want one that is %s", name, all, state)
		}
		id = all[0].ID
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return id
}

// cpuTicks is the CPU time that an instance's processes have used, in clock ticks.
func cpuTicks(t *testing.T, id string) (sum int) {
	t.Helper()
	for _, pid := range instancePIDs(t, id) {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ") // the name may hold blanks
		f := strings.Fields(rest)
		for _, n := range f[11:13] { // utime, stime
			ticks, err := strconv.Atoi(n)
			if err != nil {
				t.Fatalf("%s: %v", b, err)
			}
			sum += ticks
		}
	}
	return sum
}

func TestIdleInstancesUseNoCPU(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("frost", "spin timeout: 5s; memory: 256MiB; cpu: 0.5")},
		python("spin", spinCode),
	))
	p.deploy()
	call := func() (gap float64) {
		t.Helper()
		a := post(t, invokeURL("spin"), "{}")
		if err := json.Unmarshal([]byte(a.body), &gap); a.status != 200 || err != nil {
			t.Fatalf("answer %d %s", a.status, a.body)
		}
		return gap
	}
	call()
	for range 2 { // twice, so that thawing is seen too
		id := awaitState(t, "spin", "frozen")
		before := cpuTicks(t, id)
		begin := time.Now()
		if before == 0 {
			t.Error("the thread has not spun at all")
		}
		time.Sleep(2 * time.Second) // what is measured
		if ticks := cpuTicks(t, id) - before; ticks != 0 {
			t.Errorf("the idle instance has used %d clock ticks in %s", ticks, time.Since(begin))
		}
		if gap := call(); gap < 2 {
			t.Errorf("the thread stood still for %.1f s at most, want 2 and more", gap)
		}
		if all := instances(t, "spin"); len(all) != 1 || all[0].ID != id {
			t.Errorf("instances after the call: %+v, want %s alone", all, id)
		}
	}
	id := awaitState(t, "spin", "frozen")
	if all := instances(t, "spin"); all[0].MemoryBytes < 1<<20 || all[0].Release != 1 || all[0].InFlight != 0 {
		t.Errorf("the instance tells %+v", all[0])
	}

	t.Run("killed while frozen", func(t *testing.T) {
		pids := instancePIDs(t, id)
		for _, pid := range pids {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(n, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				t.Fatal(err)
			}
		}
		call()
		for _, in := range instances(t, "spin") {
			if in.ID == id && in.State != "stopping" {
				t.Errorf("the killed instance is %s", in.State)
			}
		}
		if err := poll(30*time.Second, func() error { return gone(id, pids) }); err != nil {
			t.Error(err)
		}
	})

	t.Run("removed while frozen", func(t *testing.T) {
		id := awaitState(t, "spin", "frozen")
		pids := instancePIDs(t, id)
		p.removeAll()
		if err := poll(30*time.Second, func() error { return gone(id, pids) }); err != nil {
			t.Error(err)
		}
	})
}

func TestStoppedFunctionAnswersWithAThrottle(t *testing.T) {
	code := python("s", "def handler(event, context): return 'runs'\n")
	p := newProject(t, with(map[string]string{"lfx.yaml": manifest("halt", "s timeout: 5s; concurrency: {max: 0}")}, code))
	p.deploy()
	a := post(t, invokeURL("s"), "")
	if want := `{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}`; a.status != 429 || a.body != want ||
		a.header.Get("X-Amzn-ErrorType") != "TooManyRequestsException" {
		t.Errorf("a stopped function: %d %v %s, want 429 and %s", a.status, a.header, a.body, want)
	}
	write(t, p.dir+"/lfx.yaml", manifest("halt", "s timeout: 5s; concurrency: {max: 1}"))
	p.deploy()
	if a := post(t, invokeURL("s"), ""); a.body != `"runs"` {
		t.Errorf("after it was allowed: %d %s", a.status, a.body)
	}
}
