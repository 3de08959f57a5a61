package instance

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// sandboxed makes an instance of a sandbox that was made ahead.
func sandboxed(t *testing.T, m *Manager, s Spec) *Instance {
	t.Helper()
	if err := m.MakeNetwork(testContext(t)); err != nil {
		t.Fatal(err)
	}
	s.ID = m.NewID(testImage)
	i := create(t, m, s)
	if !i.parked {
		t.Fatal("the instance was not made of the sandbox")
	}
	return i
}

// seen is what the kernel tells of an instance: its mounts, limits and identity, with what differs from one to the next taken out.
func seen(t *testing.T, i *Instance) map[string]string {
	t.Helper()
	got := map[string]string{}
	plain := strings.NewReplacer(i.id, "ID", fmt.Sprint(i.rec.UID+functionID), "USER", fmt.Sprint(i.rec.UID), "ROOT")
	proc := fmt.Sprintf("/proc/%d/", i.pid)
	text := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var mounts []string
	layers := regexp.MustCompile(`(lowerdir|upperdir|workdir)=[^,]*`)
	for line := range strings.Lines(text(proc + "mountinfo")) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		f, super := strings.Fields(before), strings.Fields(after)
		// What is mounted where, from where and how; without the numbers, and without the directories of the layers.
		mounts = append(mounts, fmt.Sprintln(f[4], f[5], f[6:], super[0], layers.ReplaceAllString(super[2], "$1")))
	}
	slices.Sort(mounts)
	got["mounts"] = plain.Replace(strings.Join(mounts, ""))
	for _, f := range []string{"limits", "oom_score_adj", "uid_map", "gid_map", "cgroup"} {
		got[f] = plain.Replace(text(proc + f))
	}
	for line := range strings.Lines(text(proc + "status")) {
		k, v, _ := strings.Cut(line, ":")
		switch k {
		case "Uid", "Gid", "Groups", "Umask", "NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NSpid":
			got[k] = plain.Replace(strings.Join(strings.Fields(v)[min(1, len(strings.Fields(v))):], " "))
		}
	}
	memory, pids, err := i.group.Limits()
	cores, err2 := i.group.CPUQuota()
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	got["limits of the cgroup"] = fmt.Sprint(memory, pids, cores)
	for line := range strings.Lines(text(proc + "cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		dir := filepath.Join("/sys/fs/cgroup", f[1], f[2])
		for _, name := range []string{"cpu.shares", "cpu.weight", "memory.memsw.limit_in_bytes", "memory.swap.max", "memory.oom.group", "memory.high", "devices.list"} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				got[f[1]+"/"+name] = string(b)
			}
		}
	}
	// The root itself, as its own processes see it: names, kinds, rights and owners.
	var tree []string
	root := proc + "root"
	for _, dir := range []string{".", "etc", "run", "run/lfx", "dev", "var"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(root, dir, e.Name()), &st); err != nil {
				t.Fatal(err)
			}
			tree = append(tree, fmt.Sprintf("%s %s %d %d", filepath.Join(dir, e.Name()), fs.FileMode(st.Mode), st.Uid, st.Gid))
		}
	}
	got["tree"] = plain.Replace(strings.Join(tree, "\n"))
	return got
}

// TestSandboxBecomesAnInstanceLikeAnyOther: what the kernel tells of it, and what its function sees, do not differ.
func TestSandboxBecomesAnInstanceLikeAnyOther(t *testing.T) {
	m, e := newManager(t, func(o *Options) { o.Sandboxes = true })
	usual := create(t, m, probeSpec("usual", "sleep"))
	late := sandboxed(t, m, probeSpec("", "sleep"))
	if diff := cmp.Diff(seen(t, usual), seen(t, late)); diff != "" {
		t.Errorf("instance of a sandbox (-usual +late):\n%s", diff)
	}
	t.Logf("usual %+v\nlate %+v", usual.Phases(), late.Phases())
	report := func(i *Instance) (got map[string]any) {
		line, err := bufio.NewReader(i.Stdout()).ReadBytes('\n')
		if err != nil {
			t.Fatalf("%v; exit %v", err, i.Exit())
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		same := regexp.MustCompile(`^status\.(Uid|Gid|Groups|Umask|NoNewPrivs|Seccomp|Seccomp_filters|Speculation.*|Cap...|Sig(Blk|Ign|Cgt))$`)
		for k := range got { // the rest differs from one process to the next
			if k == "hostname" || k == "uid_map" || strings.HasPrefix(k, "status.") && !same.MatchString(k) || strings.HasSuffix(strings.ToLower(k), "pid") {
				delete(got, k)
			}
		}
		return got
	}
	a, b := create(t, m, probeSpec("usual-report", "report")), sandboxed(t, m, probeSpec("", "report"))
	if diff := cmp.Diff(report(a), report(b)); diff != "" {
		t.Errorf("seen from inside (-usual +late):\n%s", diff)
	}
	if x := waitExit(t, b); x.Code != 0 || x.Signal != 0 || x.OOM {
		t.Errorf("exit = %v, want 0", x)
	}
	id := late.ID()
	if err := late.Destroy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got := leftovers(t, m, e, id); got != nil {
		t.Errorf("left after Destroy: %v", got)
	}
}

// TestSandboxLimits: the limits are those of the function that came.
func TestSandboxLimits(t *testing.T) {
	m, _ := newManager(t, func(o *Options) { o.Sandboxes = true })
	if x := waitExit(t, sandboxed(t, m, probeSpec("", "hog"))); !x.OOM {
		t.Errorf("hog: %+v", x)
	}
	if x := waitExit(t, sandboxed(t, m, probeSpec("", "exit", "3"))); x.Code != 3 || x.OOM {
		t.Errorf("exit 3: %+v", x)
	}
	s := probeSpec("")
	s.Args = []string{"/nowhere"}
	if x := waitExit(t, sandboxed(t, m, s)); x.ExecError == nil || x.ExecError.Kind != InvalidEntrypoint {
		t.Errorf("no such program: %+v", x)
	}
	// More than a FIFO holds at once.
	long := "LONG=" + strings.Repeat("x", 100<<10)
	s.Args, s.Env = []string{"/probe", "report"}, []string{long, "HOME=/"}
	line, err := bufio.NewReader(sandboxed(t, m, s).Stdout()).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Env []string `json:"env"`
	}
	if err := json.Unmarshal(line, &got); err != nil || !slices.Equal(got.Env, s.Env) {
		t.Errorf("of 100 KiB of environment arrived %d variables: %.60q, %v", len(got.Env), got.Env, err)
	}
}

// TestPlaces: the place of a mount is looked up with the image's root as /; links and files that stand in the way are refused.
func TestPlaces(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "p", "real", "var"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"proc": "/p", "sys": "p", "dev": "/real", "tmp": "/real", "etc/hosts": "/../../../../real/hosts", "etc/resolv.conf": "/nowhere/else", "loop": "loop",
		"out": "/proc/self/root",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"file", "real/hosts"} {
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	c := rootChange{owner: os.Getuid()}
	for _, tt := range []struct {
		dest, want string // relative to the root; empty for an error
		dir        bool
	}{
		{"/proc", "", true}, {"/sys", "", true}, {"/dev", "", true}, {"/loop/x", "", true}, {"/file/x", "", true}, {"/etc/resolv.conf", "", false},
		{"/tmp", "real", true}, {"/etc/hosts", "real/hosts", false}, {"/run/lfx", "run/lfx", true}, {"/run/name", "run/name", false},
		{"/out/etc", "", true},
	} {
		fd, err := c.place(tree, tt.dest, tt.dir)
		if err != nil {
			if tt.want != "" {
				t.Errorf("%s: %v", tt.dest, err)
			}
			continue
		}
		got, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		unix.Close(fd) //nolint:errcheck // only read
		if want := filepath.Join(root, tt.want); err != nil || tt.want == "" || got != want {
			t.Errorf("%s is %s, %v, want %s", tt.dest, got, err, want)
		}
	}
}

// TestOddImage: an image that a sandbox cannot become gets instances that are made the usual way, and no further sandbox is spent on it;
// after three in a row none is made.
func TestOddImage(t *testing.T) {
	m, e := newManager(t, func(o *Options) { o.Sandboxes = true })
	for n := range maxMisfits {
		if err := m.MakeNetwork(testContext(t)); err != nil {
			t.Fatal(err)
		}
		s := probeSpec(m.NewID(testImage), "exit", "0")
		if err := os.WriteFile(filepath.Join(m.dir(s.ID), "root"), nil, 0o600); err != nil { // stands where the root is put together
			t.Fatal(err)
		}
		i := create(t, m, s)
		if x := waitExit(t, i); x.Code != 0 || i.parked {
			t.Errorf("%d: %+v, of a sandbox: %v", n, x, i.parked)
		}
		if err := m.MakeNetwork(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if id := m.NewID(testImage); m.liveOne(id) != nil {
			t.Errorf("%d: %s is that of a network made ahead", n, id)
		}
		if err := m.DropNetworks(testContext(t)); err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		clear(m.odd) // another image
		m.mu.Unlock()
	}
	if err := m.MakeNetwork(testContext(t)); err != nil {
		t.Fatal(err)
	}
	id := m.NewID(testImage)
	if i := m.liveOne(id); i == nil || i.parked {
		t.Error("sandboxes are still made")
	}
	m.GiveBack(id)
	if err := m.DropNetworks(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got := leftovers(t, m, e, id); got != nil {
		t.Errorf("left: %v", got)
	}
}

// TestSandboxThatEnded: it is not given out, and goes with the next reconciliation.
func TestSandboxThatEnded(t *testing.T) {
	m, e := newManager(t, func(o *Options) { o.Sandboxes = true })
	if err := m.MakeNetwork(testContext(t)); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	i := m.ahead[0]
	m.mu.Unlock()
	if err := unix.Kill(i.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waitPidfd(i.pidfd); err != nil {
		t.Fatal(err)
	}
	if got := m.NewID(testImage); got == i.id {
		t.Error("a dead sandbox was given out")
	}
	removed, err := m.Reconcile(testContext(t), func(string) bool { return false })
	if err != nil || !slices.Equal(removed, []string{i.id}) {
		t.Errorf("Reconcile removed %v, %v; want %s", removed, err, i.id)
	}
	if got := leftovers(t, m, e, i.id); got != nil {
		t.Errorf("left: %v", got)
	}
	// One that ends between its promise and its use is replaced on the spot.
	if err := m.MakeNetwork(testContext(t)); err != nil {
		t.Fatal(err)
	}
	s := probeSpec(m.NewID(testImage), "exit", "0")
	if out, err := exec.Command("kill", "-9", fmt.Sprint(m.liveOne(s.ID).pid)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if i := create(t, m, s); i.parked || waitExit(t, i).Code != 0 {
		t.Errorf("the instance in its place: %+v", i.Exit())
	}
}
