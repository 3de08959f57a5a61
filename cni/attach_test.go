package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// checkDetached is the leak check: no attachment, veth, address, pin, cache or record.
func checkDetached(t *testing.T, m *Manager) {
	t.Helper()
	list, err := m.Attachments(t.Context())
	if err != nil || len(list) != 0 {
		t.Errorf("Attachments = %v, %v, want none", list, err)
	}
	for _, n := range m.networks() {
		bridge, err := m.findBridge(n)
		if err != nil || bridge == nil {
			t.Fatalf("bridge: %v", err)
		}
		if ports, err := bridgePorts(bridge); err != nil || len(ports) != 0 {
			t.Errorf("ports of %s = %v, %v, want none", n.bridge, ports, err)
		}
		if list, err := m.ipam(n).list(); err != nil || len(list) != 0 {
			t.Errorf("addresses of %s = %v, %v, want none", n.bridge, list, err)
		}
	}
	for _, dir := range []string{m.conf.recordDir(), filepath.Join(m.conf.cniDir(), "results")} {
		if entries, _ := os.ReadDir(dir); len(entries) != 0 {
			t.Errorf("%s holds %v, want nothing", dir, entries)
		}
	}
	if err := m.firewall.Check(t.Context()); err != nil || len(m.firewall.Pins()) != 0 {
		t.Errorf("pins = %v, Check = %v, want none", m.firewall.Pins(), err)
	}
}

func TestAttachDetach(t *testing.T) {
	m := setup(t, testConfig(t))
	checkDetached(t, m)
	ns := makeNamespace(t)
	a := attach(t, m, "one", ns)
	want := Attachment{ID: "one", IP: a.IP, Gateway: netip.MustParseAddr("10.201.0.1"), MAC: a.MAC, Veth: a.Veth, NetNS: ns.path()}
	if diff := cmp.Diff(want, a, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); diff != "" {
		t.Errorf("attachment (-want +got):\n%s", diff)
	}
	if !netip.MustParsePrefix("10.201.0.0/16").Contains(a.IP) || a.IP.Less(netip.MustParseAddr("10.201.1.0")) {
		t.Errorf("address %s, want one from 10.201.1.0 on", a.IP)
	}
	if err := m.firewall.Check(t.Context()); err != nil {
		t.Errorf("the sets do not hold exactly the attachment: %v", err)
	}
	if _, err := m.Attach(t.Context(), "one", ns.path()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second Attach = %v, want ErrAlreadyExists", err)
	}
	for range 2 { // idempotent
		if err := m.Detach(t.Context(), "one", ns.path()); err != nil {
			t.Errorf("Detach: %v", err)
		}
		checkDetached(t, m)
	}
	if _, err := m.Attach(t.Context(), "../x", ns.path()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Attach of a bad id = %v, want ErrInvalidArgument", err)
	}
}

// TestNamespaceOfUserNamespace attaches what production attaches: a namespace owned by a
// container's user namespace, reached by a descriptor, whose process may be dead at Detach.
func TestNamespaceOfUserNamespace(t *testing.T) {
	m := setup(t, testConfig(t))
	for _, tt := range []struct{ name, detachBy string }{{"descriptor", "fd"}, {"nothing", ""}} {
		t.Run("detach by "+tt.name, func(t *testing.T) {
			cmd := exec.Command("sleep", "60")
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1}},
				Pdeathsig:   syscall.SIGKILL,
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			end := sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
			defer end()
			ns, err := openNamespace(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			defer ns.close()
			attach(t, m, "in-userns", ns)
			end()
			path := ""
			if tt.detachBy == "fd" {
				path = ns.path()
			}
			if err := m.Detach(t.Context(), "in-userns", path); err != nil {
				t.Error(err)
			}
			checkDetached(t, m)
		})
	}
}

// TestDetachByWrongPath: a descriptor's path that by now leads to another instance, or to the host,
// must not cut that one off.
func TestDetachByWrongPath(t *testing.T) {
	m := setup(t, testConfig(t))
	mine, theirs := makeNamespace(t), makeNamespace(t)
	b := attach(t, m, "theirs", theirs)
	serve(t, theirs, "0.0.0.0:8080")
	for _, path := range []string{theirs.path(), "/proc/self/ns/net", "/proc/self/exe", "/nonexistent"} {
		attach(t, m, "mine", mine)
		if err := m.Detach(t.Context(), "mine", path); err != nil {
			t.Errorf("Detach by %s: %v", path, err)
		}
		if got := attachmentIDs(t, m); got != "theirs" {
			t.Errorf("attachments after Detach by %s = %q, want theirs", path, got)
		}
		if err := reachTCP(nil, b.IP.String()+":8080"); err != nil {
			t.Errorf("Detach by %s cut the other instance off: %v", path, err)
		}
	}
}

// BenchmarkAttachDetach is one instance's share of the network.
func BenchmarkAttachDetach(b *testing.B) {
	m := setup(b, testConfig(b))
	ns, err := newNamespace()
	if err != nil {
		b.Fatal(err)
	}
	defer ns.close()
	var attaching time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := m.Attach(b.Context(), "x", ns.path()); err != nil {
			b.Fatal(err)
		}
		attaching += time.Since(start)
		if err := m.Detach(b.Context(), "x", ns.path()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(attaching.Microseconds())/1000/float64(b.N), "ms/attach")
}

func TestParallelAttach(t *testing.T) {
	m := setup(t, testConfig(t))
	const n = 20
	spaces := make([]*namespace, n)
	for i := range spaces {
		spaces[i] = makeNamespace(t)
	}
	var wg sync.WaitGroup
	addrs := make([]netip.Addr, n)
	start := time.Now()
	for i, ns := range spaces {
		wg.Go(func() {
			a, err := m.Attach(t.Context(), fmt.Sprintf("p%d", i), ns.path())
			if err != nil {
				t.Errorf("Attach %d: %v", i, err)
			}
			addrs[i] = a.IP
		})
	}
	wg.Go(func() { // a collection beside them takes none
		if err := m.GC(t.Context(), ids(n)); err != nil {
			t.Errorf("GC: %v", err)
		}
	})
	wg.Wait()
	t.Logf("%d attached in %s", n, time.Since(start))
	seen := map[netip.Addr]bool{}
	for _, a := range addrs {
		if seen[a] {
			t.Errorf("address %s was given twice", a)
		}
		seen[a] = true
	}
	if err := m.firewall.Check(t.Context()); err != nil || len(m.firewall.Pins()) != n {
		t.Errorf("%d pins, Check = %v, want %d", len(m.firewall.Pins()), err, n)
	}
	for i, ns := range spaces {
		wg.Go(func() {
			if err := m.Detach(t.Context(), fmt.Sprintf("p%d", i), ns.path()); err != nil {
				t.Errorf("Detach %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	checkDetached(t, m)
}

func ids(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("p%d", i))
	}
	return list
}

func TestAddressesExhausted(t *testing.T) {
	c := testConfig(t)
	c.Subnet = netip.MustParsePrefix("10.209.0.0/28")
	m := setup(t, c)
	var err error
	n := 0
	for ; n < 20 && err == nil; n++ {
		_, err = m.Attach(t.Context(), fmt.Sprintf("p%d", n), makeNamespace(t).path())
	}
	if !errdefs.IsResourceExhausted(err) {
		t.Fatalf("Attach %d = %v, want ErrResourceExhausted", n, err)
	}
	if n != 14 { // .2 to .14, and the one that failed
		t.Errorf("%d Attaches until the subnet was full, want 14", n)
	}
	if err := m.Detach(t.Context(), "p3", ""); err != nil {
		t.Error(err)
	}
	attach(t, m, "again", makeNamespace(t))
	if err := m.GC(t.Context(), nil); err != nil {
		t.Error(err)
	}
	checkDetached(t, m)
}

// brokenPlugins is a plugin directory whose bridge runs script; $REAL is the real directory.
func brokenPlugins(t *testing.T, script string) string {
	t.Helper()
	real, dir := plugins(t), t.TempDir()
	text := "#!/bin/sh\nREAL=" + real + "\nexport CNI_PATH=$REAL\n" + script + "\nexec $REAL/bridge\n"
	if err := os.WriteFile(filepath.Join(dir, "bridge"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(real, "host-local"), filepath.Join(dir, "host-local")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestPluginFaults lets ADD and DEL fail in every way; nothing may be left, and the address is free.
func TestPluginFaults(t *testing.T) {
	m := setup(t, testConfig(t))
	const failDel = `[ $CNI_COMMAND = DEL ] && { echo '{"code":11,"msg":"no"}'; exit 1; }`
	for _, tt := range []struct {
		name, script string
		wantErr      bool
	}{
		{"ADD fails at once", `[ $CNI_COMMAND = ADD ] && { echo '{"code":11,"msg":"no"}'; exit 1; }`, true},
		{"ADD is killed after it took an address", `[ $CNI_COMMAND = ADD ] && { $REAL/bridge >/dev/null; kill -9 $$; }`, true},
		{"ADD is killed and DEL fails", `[ $CNI_COMMAND = ADD ] && { $REAL/bridge >/dev/null; kill -9 $$; }` + "\n" + failDel, true},
		{"ADD prints garbage", `[ $CNI_COMMAND = ADD ] && { $REAL/bridge >/dev/null; echo '{{{'; exit 0; }`, true},
		{"ADD prints nothing useful", `[ $CNI_COMMAND = ADD ] && { $REAL/bridge >/dev/null; echo '{"cniVersion":"1.1.0"}'; exit 0; }`, true},
		{"DEL fails", failDel, false},
		{"DEL prints garbage", `[ $CNI_COMMAND = DEL ] && { echo '{{{'; exit 1; }`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m.cni.Path = []string{brokenPlugins(t, tt.script)}
			ns := makeNamespace(t)
			_, err := m.Attach(t.Context(), "x", ns.path())
			if (err != nil) != tt.wantErr {
				t.Errorf("Attach = %v, want an error: %t", err, tt.wantErr)
			}
			if err == nil {
				if err := m.Detach(t.Context(), "x", ns.path()); err != nil {
					t.Errorf("Detach: %v", err)
				}
			}
			checkDetached(t, m)
			m.cni.Path = []string{m.conf.BinDir}
			attach(t, m, "x", ns) // the id and the namespace are usable again
			if err := m.Detach(t.Context(), "x", ns.path()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAttachCancelled: the caller's context is dead, the undo runs all the same.
func TestAttachCancelled(t *testing.T) {
	m := setup(t, testConfig(t))
	m.cni.Path = []string{brokenPlugins(t, `[ $CNI_COMMAND = ADD ] && { $REAL/bridge >/dev/null; sleep 30; }`)}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := m.Attach(ctx, "x", makeNamespace(t).path()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Attach = %v, want its context's end", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Attach took %s although its context ended after 0.3s", took)
	}
	checkDetached(t, m)
}

// TestDamagedFiles: whatever a crash did to the files, Detach frees the address.
func TestDamagedFiles(t *testing.T) {
	m := setup(t, testConfig(t))
	for name, damage := range map[string]func(a Attachment) error{
		"empty address file":   func(a Attachment) error { return os.WriteFile(m.addrFile(a), nil, 0o600) },
		"garbage address file": func(a Attachment) error { return os.WriteFile(m.addrFile(a), []byte("\x00\x01"), 0o600) },
		"address file gone":    func(a Attachment) error { return os.Remove(m.addrFile(a)) },
		"garbage cache":        func(a Attachment) error { return os.WriteFile(m.cacheFile(m.functions, a.ID), []byte("{"), 0o600) },
		"cache gone":           func(a Attachment) error { return os.Remove(m.cacheFile(m.functions, a.ID)) },
		"veth gone": func(a Attachment) error {
			l, err := netlink.LinkByName(a.Veth)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		},
		"sets flushed": func(a Attachment) error { nft(t, "flush", "set", "bridge", "lfx", "who"); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			ns := makeNamespace(t)
			a := attach(t, m, "x", ns)
			if err := damage(a); err != nil {
				t.Fatal(err)
			}
			if err := m.Detach(t.Context(), "x", ns.path()); err != nil {
				t.Errorf("Detach: %v", err)
			}
			checkDetached(t, m)
		})
	}
}

func (m *Manager) addrFile(a Attachment) string {
	return filepath.Join(m.ipam(m.functions).dir, a.IP.String())
}

// TestCrash: a second Manager finds what the first, which is gone, had attached.
func TestCrash(t *testing.T) {
	c := testConfig(t)
	first := setup(t, c)
	kept, lost := makeNamespace(t), makeNamespace(t)
	a := attach(t, first, "kept", kept)
	attach(t, first, "lost", lost)
	if err := first.resolver.Close(); err != nil { // as the end of its process would
		t.Fatal(err)
	}
	second, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.resolver.Close() })
	// what a crash between two steps leaves
	for file, text := range map[string]string{
		filepath.Join(second.ipam(second.functions).dir, "10.201.9.9"): "",
		filepath.Join(second.ipam(second.builds).dir, "10.202.9.9"):    "some-build\r\neth0",
		second.recordFile("never-added"):                               `{"id":"never-added","network":"lfx0"}`,
		second.recordFile("torn"):                                      `{"id":`,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	orphanVeth(t, second)
	if got := attachmentIDs(t, second); got != "kept lost never-added torn" {
		t.Errorf("attachments = %s", got)
	}
	if err := second.GC(t.Context(), []string{"kept"}); err != nil {
		t.Fatal(err)
	}
	if got := attachmentIDs(t, second); got != "kept" {
		t.Errorf("attachments after GC = %s, want kept", got)
	}
	if err := second.firewall.Check(t.Context()); err != nil || len(second.firewall.Pins()) != 1 {
		t.Errorf("Check = %v with %d pins, want one", err, len(second.firewall.Pins()))
	}
	serve(t, kept, "0.0.0.0:8080")
	if err := reachTCP(nil, a.IP.String()+":8080"); err != nil {
		t.Errorf("the attachment that was kept is not reached: %v", err)
	}
	if err := second.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkDetached(t, second)
}

func attachmentIDs(t *testing.T, m *Manager) string {
	t.Helper()
	list, err := m.Attachments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, a := range list {
		names = append(names, a.ID)
	}
	return strings.Join(names, " ")
}

// orphanVeth is a port of our bridge that nobody claimed, as an ADD that was killed leaves it.
func orphanVeth(t *testing.T, m *Manager) {
	t.Helper()
	bridge, err := m.findBridge(m.functions)
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = "vethorphan", bridge.Attrs().Index
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "vethorphan1"}); err != nil {
		t.Fatal(err)
	}
}

func TestGCGrace(t *testing.T) {
	c := testConfig(t)
	c.GCGrace = time.Hour
	m := setup(t, c)
	attach(t, m, "young", makeNamespace(t))
	if err := m.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := attachmentIDs(t, m); got != "young" {
		t.Errorf("attachments after GC = %q, want the young one", got)
	}
	if err := m.Detach(t.Context(), "young", ""); err != nil {
		t.Error(err)
	}
	checkDetached(t, m)
}
