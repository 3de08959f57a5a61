//go:build integration && faults

package integration

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hog takes memory as long as it gets some; told to be quiet it only answers.
const hog = `
def handler(event, context):
    if event.get("quiet"): return "quiet"
    taken = []
    while True: taken.append(bytearray(8 << 20))
`

// TestMemoryPastTheBudget: functions that together want several times what all may have. What runs at once stays
// within the budget, each is answered with its own fate, and neither the daemon nor a neighbour is hit.
func TestMemoryPastTheBudget(t *testing.T) {
	const budget = 1 << 30
	f := newFaultDaemon(t, faultConfig{name: "lfxb", functions: fmt.Sprintf("memory_budget = \"%dMiB\"", budget>>20)})
	empty := f.observe(t)
	names := []string{"one", "two", "three", "four", "five"}
	code := []map[string]string{{}, python("quiet", hog)}
	lines := []string{"quiet timeout: 10s; memory: 128MiB; concurrency: {min: 1, max: 1}"}
	for _, name := range names {
		lines = append(lines, name+" timeout: 20s; memory: 128MiB; tmp: 64MiB; cpu: 1; concurrency: {max: 10}")
		code = append(code, python(name, hog))
	}
	code[0]["lfx.yaml"] = manifest("budget", lines...)
	f.mustDeploy(f.project(with(code...)))
	const each = 10 // 50 of 128 MiB: six times the budget
	var killed, refused atomic.Int64
	var wg sync.WaitGroup
	for range each {
		for _, name := range names {
			wg.Go(func() {
				a, err := f.invoke(name, "{}")
				want := strings.ReplaceAll(outOfMemory, "ID", a.header.Get("x-amzn-RequestId"))
				switch {
				case err == nil && a.status == http.StatusOK && a.body == want:
					killed.Add(1)
				case err == nil && (a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable): // it waited too long
					refused.Add(1)
				default:
					t.Errorf("%s: %d %.300s, %v", name, a.status, a.body, err)
				}
			})
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for answered := 0; ; answered++ {
		a, err := f.invoke("quiet", `{"quiet":true}`)
		if err != nil || a.body != `"quiet"` {
			t.Errorf("the neighbour, after %d answers: %d %.200s, %v", answered, a.status, a.body, err)
			break
		}
		if _, err := f.client.Version(t.Context()); err != nil {
			t.Errorf("the daemon: %v", err)
		}
		select {
		case <-done:
		case <-time.After(100 * time.Millisecond):
			continue
		}
		break
	}
	<-done
	peak := cgroupPeak(t, f.cgroup+"/fn")
	t.Logf("%d were killed for their memory, %d were refused; all together had at most %d MiB", killed.Load(), refused.Load(), peak>>20)
	if peak > budget {
		t.Errorf("all functions together had %d MiB, more than the budget", peak>>20)
	}
	if killed.Load() < 8 {
		t.Errorf("only %d ran", killed.Load())
	}
	f.removeAll(empty)
}

// cgroupPeak is the most memory in bytes that a cgroup has had.
func cgroupPeak(t *testing.T, name string) int64 {
	t.Helper()
	for _, path := range []string{"/sys/fs/cgroup/memory" + name + "/memory.max_usage_in_bytes", "/sys/fs/cgroup" + name + "/memory.peak"} {
		if b, err := os.ReadFile(path); err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("the memory of cgroup %s is not counted", name)
	return 0
}
