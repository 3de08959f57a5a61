//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/daemon/api"
)

// withAhead runs the daemon with spares and networks made ahead until the test ends.
func withAhead(t *testing.T, spares, networks int) {
	t.Helper()
	plain := d.toml()
	text := strings.NewReplacer("spares = 0\n", fmt.Sprintf("spares = %d\n", spares), "sandboxes_ahead = 2\n", fmt.Sprintf("sandboxes_ahead = %d\n", networks)).Replace(plain)
	baseline := d.observe(t)
	change := func(text string) {
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
	change(text)
	t.Cleanup(func() {
		change(plain)
		checkLeaks(t, baseline)
	})
}

// running lists the instances of a function, spares too.
func running(t *testing.T, name string) (instances, spares []api.InstanceInfo) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	all, err := d.client.Instances(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range all {
		switch {
		case in.Key.Function != name:
		case in.State == "spare":
			spares = append(spares, in)
		default:
			instances = append(instances, in)
		}
	}
	return instances, spares
}

// awaitSpare waits for a spare of the function that is none of the given ones.
func awaitSpare(t *testing.T, name string, not ...string) (spare api.InstanceInfo) {
	t.Helper()
	if err := poll(20*time.Second, func() error {
		_, spares := running(t, name)
		for _, s := range spares {
			if !strings.Contains(strings.Join(not, " "), s.ID) {
				spare = s
				return nil
			}
		}
		return fmt.Errorf("no spare of %s besides %v: %v", name, not, spares)
	}); err != nil {
		t.Fatal(err)
	}
	return spare
}

const sayPID = "import os\ndef handler(event, context): return os.environ['AWS_LAMBDA_LOG_STREAM_NAME']\n"

// TestSpares: the next start takes the spare, another is made, one that was killed is not handed out, and nothing is left
// of them when the daemon was killed.
func TestSpares(t *testing.T) {
	withAhead(t, 1, 0)
	p := newSpareProject(t, "spares", "spare")
	spare := awaitSpare(t, "spare")
	if spare.MemoryBytes <= 0 || spare.MemoryBytes > 16<<20 || spare.Address == "" || spare.Phases["ahead"] == 0 {
		t.Errorf("the spare is shown as %+v", spare)
	}
	if pid1 := processIn(t, spare.ID); pid1.children != "" {
		t.Errorf("the spare runs something before its word: children %q", pid1.children)
	}
	if a := post(t, invokeURL("spare"), ""); a.status != 200 || a.header.Get("X-Amz-Function-Error") != "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	instances, _ := running(t, "spare")
	if len(instances) != 1 || instances[0].ID != spare.ID || instances[0].Phases["ahead"] == 0 || instances[0].Phases["create"] != 0 {
		t.Errorf("the start did not take the spare %s: %+v", spare.ID, instances)
	}
	second := awaitSpare(t, "spare", spare.ID)

	// Killed spares are replaced, and never answer.
	if err := unix.Kill(processIn(t, second.ID).pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	third := awaitSpare(t, "spare", spare.ID, second.ID)

	// A crash of the daemon takes the spares with it.
	if err := d.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	fresh := awaitSpare(t, "spare", spare.ID, second.ID, third.ID)
	if err := poll(30*time.Second, func() error {
		now, err := d.look()
		if err == nil && (len(now.Instances) != 1 || len(now.Addresses) != 1 || len(now.Attached) != 1 || !strings.Contains(strings.Join(now.Instances, " "), fresh.ID)) {
			err = fmt.Errorf("want the spare %s alone: %+v", fresh.ID, now)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	p.removeAll()
	if err := poll(20*time.Second, func() error {
		if _, spares := running(t, "spare"); len(spares) > 0 {
			return fmt.Errorf("spares of a function that was removed: %v", spares)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// newSpareProject deploys one Python function; what it leaves is checked by withAhead, for spares come and go.
func newSpareProject(t *testing.T, called, name string) *project {
	t.Helper()
	dir := t.TempDir()
	for path, text := range with(map[string]string{"lfx.yaml": manifest(called, name)}, python(name, sayPID)) {
		write(t, dir+"/"+path, text)
	}
	p := &project{t: t, dir: dir}
	t.Cleanup(p.removeAll)
	p.deploy()
	return p
}

// inside is what can be seen of an instance's PID 1 on the host.
type inside struct {
	pid      int
	children string
}

// processIn finds the PID 1 of an instance.
func processIn(t *testing.T, id string) inside {
	t.Helper()
	for _, dir := range cgroups(d.cgroup + "/fn") {
		if !strings.Contains(filepath.Base(dir), id) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil || len(b) == 0 {
			continue
		}
		first, _, _ := strings.Cut(string(b), "\n") // the one that was there before all others
		pid, err := strconv.Atoi(first)
		if err != nil {
			t.Fatal(err)
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			t.Fatal(err)
		}
		return inside{pid, strings.TrimSpace(string(children))}
	}
	t.Fatalf("no process in the cgroup of %s", id)
	return inside{}
}

// TestSandboxesAhead: starts take sandboxes that stand ready, new ones are made, and a crash leaves nothing of them.
func TestSandboxesAhead(t *testing.T) {
	withAhead(t, 0, 2)
	p := newSpareProject(t, "ahead", "quick")
	ready := func(want int) []string {
		t.Helper()
		var ids []string
		if err := poll(20*time.Second, func() error {
			now, err := d.lookAtAll()
			if err == nil && (len(now.Attached) != want || len(now.Addresses) != want || len(now.Instances) != want || len(now.Tasks) != want) {
				err = fmt.Errorf("want %d networks: %+v", want, now)
			}
			ids = now.Instances
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	before := strings.Join(ready(2), " ")
	if a := post(t, invokeURL("quick"), ""); a.status != 200 || a.header.Get("X-Amz-Function-Error") != "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	instances, _ := running(t, "quick")
	if len(instances) != 1 || !strings.Contains(before, instances[0].ID) {
		t.Fatalf("the start did not take one of %s: %+v", before, instances)
	}
	if in := instances[0]; in.Phases["network"] > in.Phases["create"]/2 || in.Phases["start"] > in.Phases["create"] {
		t.Errorf("phases in µs: %v: network or container were made meanwhile", in.Phases)
	}
	ready(3)
	if err := d.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	after := strings.Join(ready(2), " ")
	for _, id := range strings.Fields(after) {
		if strings.Contains(before, id) {
			t.Errorf("%s is of the process before", id)
		}
	}
	if a := post(t, invokeURL("quick"), ""); a.status != 200 {
		t.Fatalf("after the crash: %d %s", a.status, a.body)
	}
	p.removeAll()
	ready(2)
}
