//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/api"
)

// TestBusyInstanceDuringASwitchIsNotUsedAgain: what runs while the release changes is finished, and its instance goes.
func TestBusyInstanceDuringASwitchIsNotUsedAgain(t *testing.T) {
	c := newChain(t, "busy", "f timeout: 20s; memory: 128MiB; cpu: 0.5; concurrency: {max: 1}")
	c.deploy()
	first := make(chan reply, 1)
	go func() {
		r, err := tryAsk("f", event{Sleep: 6000})
		if err != nil {
			t.Error(err)
		}
		first <- r
	}()
	awaitInstances(t, c.environment(), "f", func(all []api.InstanceInfo) error {
		if len(all) != 1 || all[0].State != "busy" {
			return fmt.Errorf("want one busy instance: %+v", all)
		}
		return nil
	})
	c.stamp("2")
	c.deploy()
	old := <-first
	if old.Stamp != "1" || old.release() != "1" || old.Version != "1" {
		t.Errorf("what ran during the switch was answered by %+v of release %s", old.seen, old.release())
	}
	for n := 1; n <= 3; n++ {
		r := ask(t, "f", event{})
		if r.Stamp != "2" || r.release() != "2" || r.Instance == old.Instance || r.N != n {
			t.Errorf("after the switch: %+v of release %s", r.seen, r.release())
		}
	}
	awaitInstances(t, c.environment(), "f", func(all []api.InstanceInfo) error {
		if len(all) != 1 || all[0].ID == old.Instance {
			return fmt.Errorf("want one new instance: %+v", all)
		}
		return nil
	})
}

// TestVersionsHavePoolsOfTheirOwn: a call of version 1 is served by version 1 while version 2 is warm, and by an
// instance of its own.
func TestVersionsHavePoolsOfTheirOwn(t *testing.T) {
	c := newChain(t, "versions", "f timeout: 10s; memory: 128MiB; cpu: 0.5; concurrency: {min: 1, max: 3}")
	c.deploy()
	one := ask(t, "f", event{})
	c.stamp("2")
	c.deploy()
	used := map[string]string{} // instance → stamp
	for range 3 {
		for _, call := range []struct{ target, version string }{{"f?Qualifier=1", "1"}, {"f", "2"}, {"f?Qualifier=2", "2"}, {"f?Qualifier=$LATEST", "2"}, {"f?Qualifier=r1", "1"}} {
			r := ask(t, call.target, event{})
			if r.Version != call.version || r.Stamp != call.version || r.header.Get("X-Amz-Executed-Version") != call.version {
				t.Errorf("%s: %+v by version %s", call.target, r.seen, r.header.Get("X-Amz-Executed-Version"))
			}
			if was, ok := used[r.Instance]; ok && was != r.Stamp {
				t.Errorf("instance %s served %s and %s", r.Instance, was, r.Stamp)
			}
			used[r.Instance] = r.Stamp
		}
	}
	if one.Stamp != "1" || one.release() != "1" {
		t.Errorf("before the second deploy: %+v", one.seen)
	}
}

// TestKilledIdleInstance: the next call after the kill is served, at once, by a new instance.
func TestKilledIdleInstance(t *testing.T) {
	c := newChain(t, "killed", "f timeout: 10s; memory: 128MiB; cpu: 0.5; concurrency: {max: 1}")
	c.deploy()
	for _, pause := range []time.Duration{0, 3 * time.Second} { // hot, and long idle: it may be frozen by then
		before := ask(t, "f", event{})
		<-time.After(pause)
		if err := killInstance(before.Instance); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		// The call may reach the old instance in the moment of its death: then it fails as the contract says.
		r, err := tryAsk("f", event{})
		if err != nil {
			if !strings.Contains(r.body, "Runtime exited with error: signal: killed") {
				t.Errorf("after %s of idling: %v", pause, err)
			}
			r = ask(t, "f", event{})
		}
		if took := time.Since(begin); took > time.Duration(slow(5))*time.Second {
			t.Errorf("after %s of idling the call took %s", pause, took)
		}
		if r.Instance == before.Instance || r.N != 1 {
			t.Errorf("after the kill of %s: %+v", before.Instance, r.seen)
		}
	}
}

// TestLateAnswerIsNobodys: an answer that comes around the timeout is in time, or nobody gets it: the next call has
// its own answer, from a new instance.
func TestLateAnswerIsNobodys(t *testing.T) {
	c := newChain(t, "late", "f timeout: 1s; memory: 128MiB; cpu: 0.5; concurrency: {max: 1}")
	c.deploy()
	before, late := ask(t, "f", event{}), 0
	for try := range 20 {
		a := post(t, invokeURL("f"), event{Sleep: 1000*slow(1) + 2*try, Env: "AWS_REGION"}.String())
		want := fmt.Sprintf(`{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: %s Error: Task timed out after %d.00 seconds"}`, a.header.Get("x-amzn-RequestId"), slow(1))
		inTime := a.header.Get("X-Amz-Function-Error") == ""
		if !inTime && a.body != want {
			t.Errorf("got %s, want %s", a.body, want)
		}
		after := ask(t, "f", event{Env: "AWS_LAMBDA_FUNCTION_NAME"})
		if after.Env != "f" || inTime != (after.Instance == before.Instance) || !inTime && after.N != 1 {
			t.Errorf("the call after one that was in time, %v, got %+v; before it was %+v", inTime, after.seen, before.seen)
		}
		before = after
		if !inTime {
			late++
		}
		if late == 4 {
			return
		}
	}
	t.Errorf("only %d answers were late", late)
}

// TestChangedVariableReachesTheNextCall: settings are part of a version.
func TestChangedVariableReachesTheNextCall(t *testing.T) {
	c := newChain(t, "variable", "f timeout: 5s; memory: 128MiB; cpu: 0.5; concurrency: {min: 1, max: 2}")
	for n, value := range []string{"one", "two", "three"} {
		c.functions = []string{"f timeout: 5s; memory: 128MiB; cpu: 0.5; concurrency: {min: 1, max: 2}; environment: {COLOUR: " + value + "}"}
		c.setManifest("")
		c.deploy()
		for range 3 {
			if r := ask(t, "f", event{Env: "COLOUR"}); r.Env != value || r.Version != fmt.Sprint(n+1) {
				t.Errorf("with COLOUR=%s: %+v", value, r.seen)
			}
		}
	}
}

// TestOneInstanceServesInOrder: eight calls of a function with one instance wait for it in the order in which they came.
func TestOneInstanceServesInOrder(t *testing.T) {
	c := newChain(t, "order", "f timeout: 20s; memory: 128MiB; cpu: 0.5; concurrency: {max: 1}")
	c.deploy()
	before := ask(t, "f", event{})
	const n = 8
	var got [n]atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r, err := tryAsk("f", event{Sleep: 300})
			if err != nil || r.Instance != before.Instance {
				t.Errorf("call %d: %+v, %v", i, r.seen, err)
			}
			got[i].Store(int64(r.N))
		})
		if err := poll(10*time.Second, func() error { // until it has been accepted
			if bound := releases(t, c.environment())[1].InFlight; got[i].Load() == 0 && int(bound) < i+1 {
				return fmt.Errorf("%d of %d calls are there", bound, i+1)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	for i := range got {
		if place := int(got[i].Load()) - before.N; place != i+1 {
			t.Errorf("call %d was the %dth to be served", i+1, place)
		}
	}
}

// TestNamesAreNotIDs: any legal name of a function works, beside others that differ in case only or are as long as may
// be, and nothing on the host is named after it.
func TestNamesAreNotIDs(t *testing.T) {
	names := []string{"fn", "FN", "Fn_-9", strings.Repeat("x", 64), strings.Repeat("x", 63) + "Y", "lfx-init", "9"}
	var lines []string
	for _, n := range names {
		lines = append(lines, n+" timeout: 5s; memory: 128MiB; cpu: 0.5")
	}
	program, err := chainProgram()
	if err != nil {
		t.Fatal(err)
	}
	text := manifest("names", lines...)
	for _, n := range names {
		text = strings.Replace(text, "  "+n+":\n    build: ./"+n+"\n", "  \""+n+"\":\n    build: ./f\n", 1)
	}
	p := newProject(t, map[string]string{"lfx.yaml": text, "f/Dockerfile": chainImage, "f/chain": program, "f/stamp": "1"})
	p.deploy()
	seen := map[string]string{}
	for _, n := range names {
		r := ask(t, n, event{})
		if r.Function != n || seen[r.Instance] != "" {
			t.Errorf("%s was answered by %+v, which was %s before", n, r.seen, seen[r.Instance])
		}
		seen[r.Instance] = n
		if !strings.HasPrefix(r.Instance, "lfx-") || strings.Contains(r.Instance, n) && len(n) > 2 {
			t.Errorf("the instance of %s is called %s", n, r.Instance)
		}
	}
}

// TestManyCrashesLeaveNothing: three hundred instances that end in the middle of an event, each with the contract's
// answer. The leak check of the project does the rest.
func TestManyCrashesLeaveNothing(t *testing.T) {
	const functions, crashes = 4, 75
	var lines []string
	for i := range functions {
		lines = append(lines, fmt.Sprintf("crash%d timeout: 10s; memory: 128MiB; cpu: 1; concurrency: {max: 1}", i))
	}
	c := newChain(t, "crashes", lines...)
	c.deploy()
	empty := d.observe(t)
	descriptors := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.pid()))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := descriptors()
	var wg sync.WaitGroup
	for i := range functions {
		wg.Go(func() {
			client := &http.Client{}
			defer client.CloseIdleConnections()
			for n := range crashes {
				code := n % 3
				want := fmt.Sprintf("with error: exit status %d", code)
				if code == 0 {
					want = "without providing a reason"
				}
				a, err := try(client, "POST", invokeURL(fmt.Sprintf("crash%d", i)), event{Exit: &code}.String())
				want = fmt.Sprintf(`{"errorType":"Runtime.ExitError","errorMessage":"RequestId: %s Error: Runtime exited %s"}`, a.header.Get("x-amzn-RequestId"), want)
				if err != nil || a.body != want {
					t.Errorf("crash %d of crash%d: %d %s, %v; want %s", n, i, a.status, a.body, err, want)
				}
			}
		})
	}
	wg.Wait()
	checkLeaks(t, empty)
	if err := poll(30*time.Second, func() error {
		if now := descriptors(); now > before+20 {
			return fmt.Errorf("%d descriptors, %d before", now, before)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestStopWithFiftyWarmInstances: the daemon ends in time and leaves nothing of them; the next one answers.
func TestStopWithFiftyWarmInstances(t *testing.T) {
	const n = 50
	c := newChain(t, "fifty", fmt.Sprintf("f timeout: 10s; memory: 128MiB; cpu: 0.5; concurrency: {min: %d, max: %d}", n, n))
	c.deploy()
	awaitInstances(t, c.environment(), "f", func(all []api.InstanceInfo) error {
		if len(all) < n {
			return fmt.Errorf("%d of %d instances are warm", len(all), n)
		}
		return nil
	})
	begin := time.Now()
	if err := d.signal(syscall.SIGTERM); err != nil {
		t.Errorf("lfxd ended with %v", err)
	}
	t.Logf("stopping with %d instances took %s", n, time.Since(begin))
	for what, left := range map[string][]string{
		"processes":  slices.DeleteFunc(processes("", d.run), func(p string) bool { return strings.Contains(p, "lfxctl") }),
		"interfaces": veths(d.table), "cgroups": cgroups(d.cgroup + "/fn"), "mounts": mounts(d.run),
		"records": files(filepath.Join(d.run, "instances")), "attachments": files(filepath.Join(d.run, "net/cni/attach")),
		"addresses": d.addresses(),
	} {
		if len(left) > 0 {
			t.Errorf("left are %d %s: %.2000q", len(left), what, left)
		}
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if r := ask(t, "f", event{}); r.Stamp != "1" || r.release() != "1" {
		t.Errorf("after the restart: %+v", r.seen)
	}
}

// TestScaleToZero: an instance that nobody calls for idle_timeout goes, those of min stay, and the next call is served
// by a new one.
func TestScaleToZero(t *testing.T) {
	reconfigure(t, "idle_timeout = \"5m\"", "idle_timeout = \"2s\"")
	c := newChain(t, "zero", "seldom timeout: 10s; memory: 128MiB; cpu: 0.5", "always timeout: 10s; memory: 128MiB; cpu: 0.5; concurrency: {min: 1, max: 3}")
	c.deploy()
	first, warm := ask(t, "seldom", event{}), ask(t, "always", event{})
	wait := bound(t, c.environment(), "always", event{Sleep: 1500})
	other := ask(t, "always", event{}) // a second instance beside the busy one
	wait()
	awaitInstances(t, c.environment(), "", func(all []api.InstanceInfo) error {
		if len(all) != 1 || all[0].Key.Function != "always" {
			return fmt.Errorf("want one instance, of always: %+v", all)
		}
		return nil
	})
	if other.Instance == warm.Instance {
		t.Errorf("both were served by %s", warm.Instance)
	}
	if r := ask(t, "seldom", event{}); r.Instance == first.Instance || r.N != 1 {
		t.Errorf("after it had gone: %+v", r.seen)
	}
}

// reconfigure restarts the daemon with another line in its configuration, until the test ends.
func reconfigure(t *testing.T, old, new string) {
	t.Helper()
	plain := d.toml()
	if !strings.Contains(plain, old) {
		t.Fatalf("the configuration has no %q", old)
	}
	change := func(text string) {
		t.Helper()
		if err := d.signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
	}
	change(strings.Replace(plain, old, new, 1))
	t.Cleanup(func() { change(plain) })
}
