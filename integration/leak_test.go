//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// world is everything external that a test could leave behind while the daemon runs. Equality with
// the baseline is exact.
type world struct {
	Containers, Tasks, Leases, Images []string // without the anchors of shared shims, which stand as long as lfxd runs
	// Snapshots are only those of instances: BuildKit keeps its own as a cache.
	Snapshots []string
	// Shims are those of one instance each; there are none unless the shared ones are missing.
	Shims      []string
	Links      []string
	Addresses  []string
	Attached   []string
	Cgroups    []string
	Instances  []string
	RuncStates []string
	Elements   []string // of the firewall's sets
	Mounts     []string
}

// observe lists the world. Names that BuildKit owns are left out.
func (t *daemonUnderTest) observe(tb testing.TB) world {
	tb.Helper()
	w, err := t.look()
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

// look lists the world without the sandboxes that no function has yet.
func (t *daemonUnderTest) look() (world, error) {
	before := t.ahead()
	w, err := t.lookAtAll()
	// One may have been taken or made meanwhile; then the next look tells.
	w.withoutAhead(append(before, t.ahead()...))
	return w, err
}

func (t *daemonUnderTest) lookAtAll() (w world, err error) {
	if w.Containers, err = t.list("containers", "ls", "-q"); err != nil {
		return w, err
	}
	if w.Tasks, err = t.list("tasks", "ls", "-q"); err != nil {
		return w, err
	}
	if w.Images, err = t.list("images", "ls", "-q"); err != nil {
		return w, err
	}
	snapshots, err := t.list("snapshots", "ls")
	if err != nil {
		return w, err
	}
	for _, line := range snapshots {
		if strings.HasPrefix(line, "lfx-") {
			w.Snapshots = append(w.Snapshots, line)
		}
	}
	w.Shims = slices.DeleteFunc(processes("containerd-shim-runc-v2", t.run), func(line string) bool { return strings.Contains(line, "-id "+sharedShim) })
	w.Addresses = t.addresses()
	w.Attached = files(filepath.Join(t.run, "net/cni/attach"))
	w.Instances = files(filepath.Join(t.run, "instances"))
	w.RuncStates = withoutAnchors(files(filepath.Join(t.run, "engine/runc/lfx")))
	w.Cgroups = withoutAnchors(cgroups(t.cgroup + "/fn"))
	w.Links = veths(t.table)
	w.Elements = firewallElements(t.table)
	for _, m := range append(mounts(t.run), mounts(t.state)...) {
		// An anchor's root file system comes and goes with its shim, a network namespace that buildkitd keeps for its next build
		// step with buildkitd; what must be gone when both are is checked at the end (down).
		if !strings.Contains(m, "/"+sharedShim) && !strings.Contains(m, "/engine/buildkit/net/cni/") {
			w.Mounts = append(w.Mounts, m)
		}
	}
	slices.Sort(w.Mounts)
	return w, nil
}

// addresses lists the reserved addresses, each with whose it is: an instance has one before its network is recorded.
func (t *daemonUnderTest) addresses() (all []string) {
	dir := filepath.Join(t.run, "net/ipam", t.bridge)
	for _, ip := range files(dir, "last_reserved_ip.0", "lock") {
		owner, err := os.ReadFile(filepath.Join(dir, ip))
		if err == nil && len(owner) > 0 { // it is written in two steps
			all = append(all, strings.Join(append([]string{ip}, strings.Fields(string(owner))...), " "))
		}
	}
	return all
}

// madeAhead is what names a sandbox that no function has yet.
type madeAhead struct{ ID, IP, Veth string }

// ahead lists the sandboxes that no function has. They come and go as long as lfxd runs; what must be gone with it is
// checked at the end (down).
func (t *daemonUnderTest) ahead() (all []madeAhead) {
	for _, id := range files(filepath.Join(t.run, "instances")) {
		var rec struct{ Image string }
		b, err := os.ReadFile(filepath.Join(t.run, "instances", id, "record.json"))
		if err != nil || json.Unmarshal(b, &rec) != nil || rec.Image != "" {
			continue
		}
		a := madeAhead{ID: id}
		if b, err := os.ReadFile(filepath.Join(t.run, "net/cni/attach", id+".json")); err == nil {
			_ = json.Unmarshal(b, &a) // not written yet
		}
		all = append(all, a)
	}
	return all
}

func (w *world) withoutAhead(all []madeAhead) {
	for _, list := range []*[]string{
		&w.Containers, &w.Tasks, &w.Snapshots, &w.Shims, &w.Links, &w.Addresses, &w.Attached, &w.Cgroups, &w.Instances, &w.RuncStates, &w.Elements, &w.Mounts,
	} {
		*list = slices.DeleteFunc(*list, func(line string) bool {
			return slices.ContainsFunc(all, func(a madeAhead) bool {
				return strings.Contains(line, a.ID) || a.IP != "" && line == a.IP || a.Veth != "" && strings.Contains(line, a.Veth)
			})
		})
		if len(*list) == 0 {
			*list = nil
		}
	}
}

// sharedShim begins the ids of the shims that instances share.
const sharedShim = "lfx-shim-"

// withoutAnchors leaves out what belongs to the shared shims.
func withoutAnchors(names []string) []string {
	return slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(filepath.Base(name), sharedShim) })
}

// list runs ctr and returns its lines, sorted; header and digests-only lines are left out.
func (t *daemonUnderTest) list(args ...string) ([]string, error) {
	out, err := t.ctr(args...)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, line := range strings.Split(out, "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "KEY") && !strings.HasPrefix(line, sharedShim) {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// checkLeaks polls until the world is as it was.
func checkLeaks(t *testing.T, baseline world) {
	t.Helper()
	d.checkLeaks(t, baseline)
}

func (u *daemonUnderTest) checkLeaks(t *testing.T, baseline world) {
	t.Helper()
	err := poll(60*time.Second, func() error {
		now, err := u.look()
		if err != nil {
			return err
		}
		if diff := cmp.Diff(baseline, now); diff != "" {
			return fmt.Errorf("the test left something behind (-before +after):\n%s", diff)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// hostState is what `lfxd down` must restore.
type hostState struct {
	links     []string
	forward   string
	cgroups   []string
	processes []string
}

func observeHost() hostState {
	forward, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward") // absent means the same before and after
	h := hostState{forward: string(forward)}
	links, err := netlink.LinkList()
	if err == nil {
		for _, l := range links {
			h.links = append(h.links, l.Attrs().Name)
		}
	}
	slices.Sort(h.links)
	return h
}

// diff says what is left of the daemon on the host.
func (h hostState) diff(now hostState, t *daemonUnderTest) error {
	if d := cmp.Diff(h, now, cmp.AllowUnexported(hostState{})); d != "" {
		return fmt.Errorf("the host is not as it was (-before +after):\n%s", d)
	}
	for _, dir := range []string{t.run, t.state} {
		if m := mounts(dir); len(m) > 0 {
			return fmt.Errorf("mounts are left: %s", strings.Join(m, ", "))
		}
		if p := processes("", dir); len(p) > 0 {
			return fmt.Errorf("processes are left: %s", strings.Join(p, "; "))
		}
	}
	if out, err := output("nft", "list", "tables"); err != nil || slices.Contains(strings.Fields(out), t.table) {
		return fmt.Errorf("nftables tables are left: %s %v", out, err)
	}
	if c := cgroups(t.cgroup); len(c) > 0 {
		return fmt.Errorf("cgroups are left: %s", strings.Join(c, ", "))
	}
	if _, err := os.Stat(t.run); err == nil {
		return fmt.Errorf("%s is left: %v", t.run, files(t.run))
	}
	return nil
}

// processes lists processes of that program (any when empty) whose command line mentions dir, zombies
// too; this test's own children that ended and are being waited for do not count.
func processes(program, dir string) []string {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline") // a fixed pattern
	var out []string
	for _, e := range entries {
		data, err := os.ReadFile(e)
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		line := strings.Join(args, " ")
		if strings.Contains(line, dir) && (program == "" || filepath.Base(args[0]) == program) && !strings.HasSuffix(filepath.Base(args[0]), ".test") {
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}

// pidsOf lists the processes of that program whose command line mentions dir.
func pidsOf(program, dir string) (pids []int) {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline") // a fixed pattern
	for _, e := range entries {
		data, err := os.ReadFile(e)
		args := strings.Split(string(data), "\x00")
		if err != nil || filepath.Base(args[0]) != program || !strings.Contains(string(data), dir) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(e))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// files lists the names in a folder.
func files(dir string, except ...string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if !slices.Contains(except, e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out
}

// cgroups lists what is below a cgroup in any hierarchy.
func cgroups(parent string) []string {
	var out []string
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + parent + "/*") // a fixed pattern
	unified, _ := filepath.Glob("/sys/fs/cgroup" + parent + "/*")
	for _, p := range append(roots, unified...) {
		if fi, err := os.Stat(p); err == nil && fi.IsDir() {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// veths lists the host sides of the interfaces of a daemon's functions, by the table in their aliases.
func veths(table string) []string {
	links, err := netlink.LinkList()
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, l := range links {
		if l.Type() == "veth" && strings.HasPrefix(l.Attrs().Alias, "lfx:"+table+":") { // BuildKit's have none
			out = append(out, l.Attrs().Name)
		}
	}
	slices.Sort(out)
	return out
}

// firewallElements lists the pinned addresses and ports of instances.
func firewallElements(table string) []string {
	out, err := output("nft", "list", "table", "bridge", table)
	if err != nil {
		return []string{err.Error()}
	}
	var all []string
	for _, part := range strings.Split(out, "elements = {")[1:] {
		part, _, _ = strings.Cut(part, "}")
		for e := range strings.SplitSeq(part, ",") {
			all = append(all, strings.Join(strings.Fields(e), " "))
		}
	}
	slices.Sort(all)
	return all
}

// mounts lists mount points below a folder.
func mounts(dir string) []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	return out
}
