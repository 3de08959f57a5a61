//go:build integration

package systemd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// firstAnswer is how long it may take from a package to the first answer of a function.
const firstAnswer = time.Minute

// invokeURL is where functions answer on TCP.
const invokeURL = "http://localhost:9000/2015-03-31/functions/"

// TestSystemd is one story on one machine; each chapter goes on where the one before ended.
func TestSystemd(t *testing.T) {
	root := repository(t)
	deb := makePackage(t, root)
	tree := host(t, "sh", filepath.Join(root, "integration/systemd/tree.sh"), filepath.Join(root, "build/systemd"))
	m := newMachine(t, tree, map[string]string{filepath.Join(root, "build/images"): "/srv/images", filepath.Dir(deb): "/srv/deb"})
	host(t, "cp", "-r", filepath.Join(root, "contrib/examples"), filepath.Join(m.root, "srv/examples"))
	before := m.state()
	for _, chapter := range []struct {
		name string
		run  func(*machine)
	}{
		{"FromPackageToFirstAnswer", func(m *machine) { m.install("/srv/deb/" + filepath.Base(deb)) }},
		{"Units", (*machine).testUnits},
		{"Listeners", (*machine).testListeners},
		{"Journal", (*machine).testJournal},
		{"Cgroups", (*machine).testCgroups},
		{"ContainerdDown", (*machine).testContainerdDown},
		{"BuildkitdDown", (*machine).testBuildkitdDown},
		{"RestartUnderRequests", (*machine).testRestart},
		{"Killed", (*machine).testKilled},
		{"Watchdog", (*machine).testWatchdog},
		{"SocketActivation", (*machine).testSocketActivation},
		{"WrongConfiguration", (*machine).testWrongConfiguration},
		{"Upgrade", func(m *machine) { m.testUpgrade("/srv/deb/" + filepath.Base(deb)) }},
		{"Reboot", (*machine).testReboot},
		{"RemoveAndPurge", func(m *machine) { m.testRemove(before) }},
	} {
		if !t.Run(chapter.name, func(t *testing.T) { chapter.run(m.on(t)) }) {
			return // the next ones would only repeat it
		}
	}
}

// repository returns the repository's root if the test can run here.
func repository(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can boot a machine")
	}
	for tool, pkg := range map[string]string{"systemd-nspawn": "systemd-container", "nsenter": "util-linux", "dpkg-deb": "dpkg"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing: apt-get install %s", tool, pkg)
		}
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, need := range []string{"build/engine/containerd", "build/images/python.tar", "contrib/examples/lambda-go/bootstrap"} {
		if _, err := os.Stat(filepath.Join(root, need)); err != nil {
			t.Fatalf("%s is missing: run make engine build images examples first", need)
		}
	}
	return root
}

// makePackage makes the package of the binaries under test and returns its path.
func makePackage(t *testing.T, root string) string {
	t.Helper()
	bin := os.Getenv("LFX_TEST_BIN")
	if bin == "" {
		bin = filepath.Join(root, "build/bin")
	}
	t.Setenv("BIN", bin)
	return host(t, "sh", filepath.Join(root, "contrib/debian/build.sh"), t.TempDir(), "0.0.1-test")
}

// install goes from the package to the first answer.
func (m *machine) install(deb string) {
	start := time.Now()
	m.run("dpkg", "-i", deb)
	m.run("systemctl", "start", "lfxd") // the package has started it; a person does this all the same
	if err := appendFile(filepath.Join(m.root, "etc/lfxd/config.toml"), baseImages); err != nil {
		m.t.Fatal(err)
	}
	m.run("lfxd", "check")
	m.run("systemctl", "start", "lfx-buildkitd") // wait for it: BuildKit calls an early SIGTERM a failure
	m.run("systemctl", "restart", "lfxd")
	for _, name := range []string{"provided", "python", "nodejs"} {
		m.run("/usr/libexec/lfxd/ctr", "--address", "/run/lfxd/engine/sock/containerd.sock", "--namespace", "lfx", "images", "import", "--local", "/srv/images/"+name+".tar")
	}
	m.run("lfxctl", "deploy", "/srv/examples")
	m.answers("hello-python")
	took := time.Since(start)
	m.t.Logf("from package to first answer: %s", took.Round(10*time.Millisecond))
	if took > firstAnswer {
		m.t.Errorf("from package to first answer: %s, want at most %s", took, firstAnswer)
	}
	for _, name := range []string{"hello-go", "hello-nodejs"} {
		m.answers(name)
	}
}

// baseImages ends the installed configuration, whose last section it continues.
const baseImages = `"public.ecr.aws/lambda/provided:al2023" = "localhost/lfx-base/provided:1"
"public.ecr.aws/lambda/python:3.11" = "localhost/lfx-base/python:3.11"
"public.ecr.aws/lambda/nodejs:18" = "localhost/lfx-base/nodejs:18"
`

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// call invokes a function over TCP.
func (m *machine) call(name string) error {
	out, err := m.try("curl", "-sS", "--max-time", "60", "-XPOST", invokeURL+name+"/invocations", "-d", `{"name":"nspawn"}`)
	if err == nil && !strings.Contains(out, "Hello, nspawn!") {
		err = fmt.Errorf("%s answered %s", name, out)
	}
	return err
}

func (m *machine) answers(name string) {
	m.t.Helper()
	if err := m.call(name); err != nil {
		m.t.Fatal(err)
	}
}

// eventually is for what a restart in the background may delay.
func (m *machine) eventually(name string) {
	m.t.Helper()
	m.poll(name+" to answer", time.Minute, func() error { return m.call(name) })
}

// testUnits: all run, systemd finds no fault with them, and lfxd's own doctor neither.
func (m *machine) testUnits() {
	for _, unit := range []string{"lfxd.socket", "lfxd-invoke.socket", "lfxd-tcp.socket", "lfxd.service", "lfx-containerd.service", "lfx-buildkitd.service", "lfx-fn.slice", "lfx-build.slice"} {
		m.run("systemctl", "is-active", unit)
		if log := m.run("journalctl", "-o", "cat", "-p", "warning", "_PID=1", "UNIT="+unit); log != "" {
			m.t.Errorf("systemd warns of %s: %s", unit, log)
		}
	}
	if out := m.run("systemctl", "--failed", "--no-legend", "--plain"); out != "" {
		m.t.Errorf("failed units: %s", out)
	}
	m.run("systemd-analyze", "verify", "/lib/systemd/system/lfxd.service", "/lib/systemd/system/lfx-buildkitd.service", "/lib/systemd/system/lfx-containerd.service")
	m.run("lfxctl", "doctor")
	m.poll("the status to tell what runs", 30*time.Second, func() error {
		if got := m.property("lfxd", "StatusText"); !strings.HasPrefix(got, "3 functions") {
			return fmt.Errorf("status %q", got)
		}
		return nil
	})
	m.t.Log(lastLine(m.run("systemd-analyze", "security", "--no-pager", "lfxd.service")))
	// BuildKit would mount it into build steps.
	m.run("test", "!", "-e", "/run/lfxd/engine/sock/otel.sock")
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// property reads one property of a unit.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "-p", name, unit)
}

// testListeners: TCP, both sockets, and who may use them.
func (m *machine) testListeners() {
	as := func(group string) []string {
		return []string{"setpriv", "--reuid=65534", "--regid=" + group, "--clear-groups"}
	}
	invoke := []string{"curl", "-sS", "--max-time", "20", "--unix-socket", "/run/lfxd/invoke.sock", "-XPOST", "http://lfx/2015-03-31/functions/hello-go/invocations", "-d", "{}"}
	control := []string{"lfxctl", "ls"}
	for _, c := range []struct {
		group   string
		command []string
		ok      bool
	}{
		{"lfx-invoke", invoke, true}, {"lfxd", control, true},
		{"lfx-invoke", control, false}, {"lfxd", invoke, false}, {"nogroup", control, false}, {"nogroup", invoke, false},
	} {
		if out, err := m.try(append(as(c.group), c.command...)...); (err == nil) != c.ok {
			m.t.Errorf("group %s, %v: %s %v, want success %v", c.group, c.command[:2], out, err, c.ok)
		}
	}
	for socket, want := range map[string]string{"lfxd.sock": "660 root lfxd", "invoke.sock": "660 root lfx-invoke"} {
		if got := m.run("stat", "-c", "%a %U %G", "/run/lfxd/"+socket); got != want {
			m.t.Errorf("%s is %s, want %s", socket, got, want)
		}
	}
	if out := m.sh("curl -sS --unix-socket /run/lfxd/invoke.sock http://lfx/lfx/v1/functions"); !strings.Contains(out, "only Invoke is open") {
		m.t.Errorf("the invoke socket serves the control API: %s", out)
	}
}

// testJournal: what a function prints is found by its name.
func (m *machine) testJournal() {
	m.poll("the function's output in the journal", 20*time.Second, func() error {
		out, err := m.try("journalctl", "-o", "cat", "LFX_FUNCTION=hello-python")
		if err != nil || !strings.Contains(out, "greeting nspawn") || !strings.Contains(out, "REPORT RequestId") || strings.Contains(out, "hello-go") {
			return fmt.Errorf("it has %q (%w)", out, err)
		}
		return nil
	})
	if out := m.run("journalctl", "-o", "cat", "-u", "lfxd", "-p", "info"); !strings.Contains(out, "msg=ready") || strings.Contains(out, "level=") {
		m.t.Errorf("lfxd's own log: %s", out)
	}
}

// instances are the warm ones, as lfxctl knows them.
func (m *machine) instances() []string { return m.listed(false) }

// listed are the instances as lfxctl knows them, with those that are created ahead or without.
func (m *machine) listed(spares bool) []string {
	m.t.Helper()
	var list []struct {
		ID    string `json:"id"`
		State string `json:"state"`
	}
	out := m.run("lfxctl", "ps", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		m.t.Fatalf("lfxctl ps: %v in %s", err, out)
	}
	var ids []string
	for _, i := range list {
		if spares || i.State != "spare" {
			ids = append(ids, i.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// scopes are the instances that systemd knows.
func (m *machine) scopes() []string {
	m.t.Helper()
	var ids []string
	for _, line := range strings.Split(m.run("systemctl", "list-units", "--no-legend", "--plain", "--state=active", "lfx-*.scope"), "\n") {
		// Neither build steps nor the anchors of shared shims.
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "lfx-build-") && !strings.HasPrefix(f[0], "lfx-lfx-shim-") {
			ids = append(ids, strings.TrimSuffix(strings.TrimPrefix(f[0], "lfx-"), ".scope"))
		}
	}
	slices.Sort(ids)
	return ids
}

// tidy waits until what runs is what lfxd knows: no orphan.
func (m *machine) tidy() {
	m.t.Helper()
	m.poll("only lfxd's own instances to run", time.Minute, func() error {
		ahead := strings.Fields(m.sh(`cd /run/lfxd/instances && grep -L '"image"' */record.json | cut -d/ -f1; true`)) // sandboxes that no function has yet
		running := slices.DeleteFunc(m.scopes(), func(id string) bool { return slices.Contains(ahead, id) })
		if d := cmp.Diff(m.listed(true), running); d != "" {
			return fmt.Errorf("instances of lfxd and scopes of systemd differ (-lfxd +systemd):\n%s", d)
		}
		return nil
	})
}

// testCgroups: each instance is a scope of its own limits in the slice, and daemon-reload does not change them.
func (m *machine) testCgroups() {
	m.answers("hello-go")
	m.tidy()
	ids := m.instances()
	if len(ids) != 3 {
		m.t.Fatalf("instances %v, want 3", ids)
	}
	read := func() string { // of the warm ones: spares come and go
		out := m.sh(`cd /sys/fs/cgroup; for f in cpu.cfs_quota_us memory.limit_in_bytes pids.max cpu.max memory.max memory.high; do
			for d in . cpu memory pids; do for s in $d/lfx.slice/lfx-fn.slice/*.scope; do case $s in *shim*) continue ;; esac; [ -f $s/$f ] && echo "$s $f $(cat $s/$f)"; done; done; done; true`)
		var lines []string
		for line := range strings.Lines(out) {
			if slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(line, id) }) {
				lines = append(lines, line)
			}
		}
		// systemd rounds a quota up to whole percents: at daemon-reload, and at once for what was a sandbox.
		return strings.NewReplacer("cfs_quota_us 15000", "cfs_quota_us 14471", "cpu.max 15000", "cpu.max 14471").Replace(strings.Join(lines, ""))
	}
	got := read()
	for _, want := range []string{"cfs_quota_us 14471", "memory.limit_in_bytes 805306368", "pids.max 1024"} {
		if strings.Contains(got, "cfs_quota_us") && strings.Count(got, want) != len(ids) {
			m.t.Errorf("%q is not there %d times:\n%s", want, len(ids), got)
		}
	}
	m.run("systemctl", "daemon-reload")
	m.poll("the limits to be as they were", 10*time.Second, func() error {
		if d := cmp.Diff(got, read()); d != "" {
			return fmt.Errorf("daemon-reload changed limits (-before +after):\n%s", d)
		}
		return nil
	})
	for slice, file := range map[string]string{"lfx-fn.slice": "MemoryMax", "lfx-build.slice": "TasksMax"} {
		if v := m.property(slice, file); v == "infinity" || v == "" {
			m.t.Errorf("%s of %s is %q", file, slice, v)
		}
	}
}

// testContainerdDown: warm functions answer while containerd is stopped, killed and restarted, lfxd says so, and
// cold ones answer again by themselves.
func (m *machine) testContainerdDown() {
	warm := m.instances()
	pid := m.property("lfxd", "MainPID")
	m.run("systemctl", "stop", "lfx-containerd")
	for range 3 {
		m.answers("hello-go")
	}
	m.poll("systemctl status to say what is down", time.Minute, func() error {
		if s := m.property("lfxd", "StatusText"); !strings.Contains(s, "containerd is not answering") || !strings.Contains(s, "systemctl start lfx-containerd") {
			return fmt.Errorf("it says %q", s)
		}
		return nil
	})
	m.run("systemctl", "start", "lfx-containerd")
	m.answers("hello-go")
	m.run("systemctl", "restart", "lfx-containerd")
	m.answers("hello-python")
	m.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "lfx-containerd")
	m.answers("hello-nodejs")
	m.poll("containerd to be restarted", time.Minute, func() error {
		_, err := m.try("systemctl", "is-active", "lfx-containerd")
		return err
	})
	m.tidy()
	if d := cmp.Diff(warm, m.instances()); d != "" {
		m.t.Errorf("instances changed (-before +after):\n%s", d)
	}
	if now := m.property("lfxd", "MainPID"); now != pid {
		m.t.Errorf("lfxd was restarted: %s became %s", pid, now)
	}
	m.poll("lfxd to be whole again", 30*time.Second, func() error { _, err := m.try("lfxctl", "doctor"); return err })
	m.deployChange("after containerd was restarted")
}

// deployChange makes a new version of the Python function and waits for its answer.
func (m *machine) deployChange(greeting string) {
	m.t.Helper()
	m.sh(`sed -i '0,/GREETING: .*/s//GREETING: "` + greeting + `"/' /srv/examples/lfx.yaml`)
	m.sh(`echo "# ` + greeting + `" >>/srv/examples/lambda-python/app.py`)
	m.run("lfxctl", "deploy", "/srv/examples")
	out := m.run("lfxctl", "invoke", "hello-python", "-d", `{"name":"x"}`)
	if !strings.Contains(out, greeting) {
		m.t.Fatalf("the new version answers %s, want %q", out, greeting)
	}
	m.sh(`sed -i '0,/GREETING: .*/s//GREETING: Hello/' /srv/examples/lfx.yaml`)
	m.run("lfxctl", "deploy", "/srv/examples")
}

// testBuildkitdDown: without it functions answer, a deploy says what is missing, and the next one works.
func (m *machine) testBuildkitdDown() {
	m.run("systemctl", "stop", "lfx-buildkitd")
	m.answers("hello-python")
	m.sh(`echo "# changed" >>/srv/examples/lambda-python/app.py`)
	out, err := m.try("lfxctl", "deploy", "/srv/examples")
	if err == nil || !strings.Contains(err.Error(), "buildkitd is not answering") {
		m.t.Errorf("a deploy without buildkitd: %s %v", out, err)
	}
	m.run("systemctl", "start", "lfx-buildkitd")
	m.deployChange("after buildkitd was started")
	m.run("systemctl", "restart", "lfx-buildkitd")
	m.answers("hello-python")
	m.deployChange("after buildkitd was restarted")
}

// testRestart: requests that come while lfxd is restarted wait in its sockets; none is refused.
func (m *machine) testRestart() {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []string
	calls, unavailable := 0, 0
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				out, err := m.try("curl", "-sS", "--max-time", "60", "-w", " %{http_code}", "-XPOST", invokeURL+"hello-go/invocations", "-d", `{}`)
				mu.Lock()
				calls++
				if strings.HasSuffix(out, " 503") {
					unavailable++
				}
				if err != nil || !strings.HasSuffix(out, " 200") && !strings.HasSuffix(out, " 503") {
					failed = append(failed, fmt.Sprint(out, err))
				}
				mu.Unlock()
			}
		})
	}
	m.run("systemctl", "restart", "lfxd")
	m.eventually("hello-go")
	m.run("systemctl", "restart", "lfxd")
	m.eventually("hello-go")
	close(stop)
	wg.Wait()
	m.t.Logf("%d requests while lfxd was restarted twice, of them %d answered by 503", calls, unavailable)
	if len(failed) > 0 {
		m.t.Errorf("%d of %d requests failed in a way that a client does not retry, the first: %s", len(failed), calls, failed[0])
	}
	m.tidy()
}

// testKilled: systemd starts a killed lfxd again, and nothing of before is left.
func (m *machine) testKilled() {
	m.answers("hello-python")
	old := m.instances()
	restarts := m.property("lfxd", "NRestarts")
	// As a runtime leaves it that was stopped between its call of systemd and its own record: a scope that nobody owns.
	m.sh(`systemd-run --quiet --scope --slice=lfx-fn.slice --unit=lfx-lfx-00000000000000aa sleep 1000 </dev/null >/dev/null 2>&1 &
		for i in $(seq 100); do systemctl is-active --quiet lfx-lfx-00000000000000aa.scope && exit 0; sleep 0.1; done; exit 1`)
	m.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "lfxd")
	m.poll("the restart", time.Minute, func() error {
		if m.property("lfxd", "NRestarts") == restarts {
			return errors.New("not yet")
		}
		return nil
	})
	m.eventually("hello-python")
	m.tidy()
	for _, id := range m.listed(true) {
		if slices.Contains(old, id) {
			m.t.Errorf("instance %s outlived the crash", id)
		}
	}
}

// testWatchdog: an lfxd that does nothing any more is killed and started again.
func (m *machine) testWatchdog() {
	dropIn := filepath.Join(m.root, "etc/systemd/system/lfxd.service.d")
	if err := os.MkdirAll(dropIn, 0o755); err != nil {
		m.t.Fatal(err)
	}
	defer func() {
		if err := os.RemoveAll(dropIn); err != nil {
			m.t.Error(err)
		}
		m.run("systemctl", "daemon-reload")
	}()
	if err := os.WriteFile(filepath.Join(dropIn, "test.conf"), []byte("[Service]\nWatchdogSec=6\nTimeoutAbortSec=1\n"), 0o644); err != nil {
		m.t.Fatal(err)
	}
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "restart", "lfxd")
	pid, restarts := m.property("lfxd", "MainPID"), m.property("lfxd", "NRestarts")
	time.Sleep(8 * time.Second) // longer than the watchdog: a healthy lfxd is left alone
	if now := m.property("lfxd", "MainPID"); now != pid {
		m.t.Fatalf("the watchdog killed a healthy lfxd: %s became %s", pid, now)
	}
	m.run("systemctl", "kill", "--signal=STOP", "--kill-who=main", "lfxd")
	m.poll("the watchdog", time.Minute, func() error {
		if m.property("lfxd", "NRestarts") == restarts {
			return errors.New("not yet")
		}
		return nil
	})
	m.eventually("hello-go")
	m.tidy()
}

// testSocketActivation: a request starts a stopped lfxd; a stopped lfxd leaves nothing but its sockets and
// its engine.
func (m *machine) testSocketActivation() {
	m.run("systemctl", "stop", "lfxd")
	if s := m.scopes(); len(s) > 0 {
		m.t.Errorf("instances outlived lfxd: %v", s)
	}
	if out := m.run("nft", "list", "tables"); strings.Contains(out, "lfx") {
		m.t.Errorf("tables are left: %s", out)
	}
	if out := m.run("ip", "-brief", "link"); strings.Contains(out, "lfx") || strings.Contains(out, "veth") {
		m.t.Errorf("links are left: %s", out)
	}
	if _, err := m.try("systemctl", "is-active", "lfx-buildkitd"); err == nil {
		m.t.Error("buildkitd runs without lfxd's firewall")
	}
	m.run("systemctl", "is-active", "lfx-containerd")
	m.answers("hello-go") // by the request itself
	m.run("systemctl", "is-active", "lfxd")
	m.deployChange("after socket activation")
	m.tidy()
}

// testWrongConfiguration: lfxd says what is wrong in one line and is not restarted for ever.
func (m *machine) testWrongConfiguration() {
	path := filepath.Join(m.root, "etc/lfxd/config.toml")
	right, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	try := func(text, want string) {
		m.t.Helper()
		m.run("systemctl", "stop", "lfxd")
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			m.t.Fatal(err)
		}
		m.try("systemctl", "start", "lfxd") //nolint:errcheck // it must not
		m.poll("the reason in the journal", 30*time.Second, func() error {
			if out := m.run("journalctl", "-o", "cat", "-u", "lfxd", "-n", "20"); !strings.Contains(out, want) {
				return fmt.Errorf("it has %s", out)
			}
			return nil
		})
	}
	try("regoin = \"x\"\n", `there is no key "regoin"`)
	try("[listen]\ntcp = \"127.0.0.1:9100\"\n"+strings.ReplaceAll(string(right), "[listen]", ""), "lfxd-tcp.socket listens on 127.0.0.1:9000")
	m.run("systemctl", "stop", "lfxd")
	if err := os.WriteFile(path, right, 0o640); err != nil {
		m.t.Fatal(err)
	}
	m.run("systemctl", "reset-failed")
	m.run("systemctl", "start", "lfxd")
	m.answers("hello-go")
}

// testUpgrade: the same package again, as an upgrade: the configuration and the functions stay.
func (m *machine) testUpgrade(deb string) {
	before := m.run("cat", "/etc/lfxd/config.toml")
	pid := m.property("lfxd", "MainPID")
	m.run("dpkg", "-i", deb)
	if d := cmp.Diff(before, m.run("cat", "/etc/lfxd/config.toml")); d != "" {
		m.t.Errorf("the upgrade changed the configuration (-before +after):\n%s", d)
	}
	if m.property("lfxd", "MainPID") == pid {
		m.t.Error("the old lfxd still runs")
	}
	m.eventually("hello-python")
	m.tidy()
}

// testReboot with warm instances: the functions are back, the instances are new ones, and nothing of before is left.
func (m *machine) testReboot() {
	for _, name := range []string{"hello-go", "hello-python", "hello-nodejs"} {
		m.answers(name)
	}
	old := m.instances()
	if len(old) < 3 {
		m.t.Fatalf("only %v are warm", old)
	}
	m.reboot()
	m.run("systemctl", "is-active", "lfxd", "lfx-containerd", "lfxd.socket")
	for _, name := range []string{"hello-go", "hello-python", "hello-nodejs"} {
		m.eventually(name)
	}
	m.tidy()
	for _, id := range m.listed(true) {
		if slices.Contains(old, id) {
			m.t.Errorf("instance %s outlived the reboot", id)
		}
	}
	for _, id := range old {
		if out := m.run("find", "/run/lfxd", "-name", "*"+id+"*"); out != "" {
			m.t.Errorf("left of before the reboot: %s", out)
		}
	}
	m.deployChange("after the reboot")
}

// state is what a purge must restore.
func (m *machine) state() map[string]string {
	m.t.Helper()
	return map[string]string{
		"links":    m.run("ip", "-brief", "link"),
		"tables":   m.run("nft", "list", "tables"),
		"groups":   m.sh("getent group | sort"),
		"forward":  m.run("cat", "/proc/sys/net/ipv4/ip_forward"),
		"mounts":   m.sh("grep -c lfxd /proc/self/mountinfo || true"),
		"files":    m.sh("find / -xdev -iname '*lfx*' ! -path '/proc/*' ! -path '/sys/*' ! -path '/srv/*' ! -name lfx-test-init | sort"),
		"cgroups":  m.sh("find /sys/fs/cgroup -name '*lfx*' | sort"),
		"units":    m.sh("systemctl list-unit-files --no-legend 'lfx*'; systemctl list-units --all --no-legend --plain 'lfx*'"),
		"programs": m.sh("for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -E '^[^ ]*(lfx|containerd|buildkitd|runc)' | grep -v lfx-test; done; true"),
		"packages": m.sh("dpkg-query -W -f '${Package} ${Status}\\n' lfxd 2>/dev/null || true"),
	}
}

// testRemove: the package goes with warm instances, first without its data, then with.
func (m *machine) testRemove(before map[string]string) {
	m.answers("hello-go")
	m.run("dpkg", "--remove", "lfxd")
	gone := m.state()
	for _, what := range []string{"links", "tables", "forward", "mounts", "programs", "cgroups"} {
		if d := cmp.Diff(before[what], gone[what]); d != "" {
			m.t.Errorf("%s after the removal (-before +after):\n%s", what, d)
		}
	}
	if files := strconv.Quote(m.sh("ls -A /run/lfxd 2>/dev/null || true")); files != `""` {
		m.t.Errorf("/run/lfxd has %s", files)
	}
	m.run("test", "-s", "/var/lib/lfxd/state/state.db") // the data stays until the purge
	m.run("test", "-s", "/etc/lfxd/config.toml")
	m.run("dpkg", "--purge", "lfxd")
	if d := cmp.Diff(before, m.state()); d != "" {
		m.t.Errorf("after the purge (-before +after):\n%s", d)
	}
	if out := m.run("systemctl", "--failed", "--no-legend", "--plain"); out != "" {
		m.t.Errorf("failed units: %s", out)
	}
}
