package firewall

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/cni/internal/nstest"
)

func testRules() Rules {
	return Rules{
		Table: "lfx",
		Bridges: []Bridge{
			{Name: "lfx0", Gateway: netip.MustParseAddr("10.201.0.1"), Subnet: netip.MustParsePrefix("10.201.0.0/16")},
			{Name: "lfxb0", Gateway: netip.MustParseAddr("10.202.0.1"), Subnet: netip.MustParsePrefix("10.202.0.0/16")},
		},
		Allow: []Egress{
			{Prefix: netip.MustParsePrefix("10.0.0.0/8")},
			{Prefix: netip.MustParsePrefix("10.0.0.5/32"), Port: 5432}, // overlaps the first, which a set would refuse
		},
	}
}

func pin(n byte) Pin {
	return Pin{IP: netip.AddrFrom4([4]byte{10, 201, 1, n}), MAC: net.HardwareAddr{2, 0, 10, 201, 1, n}, Port: "veth" + string(rune('a'+n))}
}

func installed(t *testing.T) *Firewall {
	t.Helper()
	nstest.NeedRoot(t)
	f, err := New(testRules())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Install(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Remove(context.Background()); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if out, _ := exec.Command("nft", "list", "tables").Output(); len(out) != 0 {
			t.Errorf("tables are left: %s", out)
		}
	})
	return f
}

func nft(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
		t.Fatalf("nft %v: %v: %s", args, err, out)
	}
}

func TestInstallIsIdempotent(t *testing.T) {
	f := installed(t)
	for range 2 {
		if err := f.Check(t.Context()); err != nil {
			t.Errorf("Check = %v", err)
		}
		if err := f.Install(t.Context(), true); err != nil {
			t.Errorf("Install: %v", err)
		}
	}
	for range 2 {
		if err := f.Remove(t.Context()); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if err := f.Check(t.Context()); !errors.Is(err, ErrChanged) {
		t.Errorf("Check after Remove = %v, want ErrChanged", err)
	}
}

func TestElements(t *testing.T) {
	f := installed(t)
	ctx := t.Context()
	for range 2 { // twice is once
		if err := f.Add(ctx, pin(1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Add(ctx, pin(2)); err != nil {
		t.Fatal(err)
	}
	if err := f.Check(ctx); err != nil {
		t.Errorf("Check = %v: the elements written over netlink do not read as they were meant", err)
	}
	// the same elements written as text must be the same keys
	if err := f.Restore(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(pin(1)); err != nil {
		t.Fatal(err)
	}
	if err := f.Check(ctx); err != nil {
		t.Errorf("Check after Delete = %v", err)
	}
	if err := f.Delete(pin(1)); err != nil {
		t.Errorf("second Delete = %v", err)
	}
	if diff := cmp.Diff([]Pin{pin(2)}, f.Pins(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("pins (-want +got):\n%s", diff)
	}
	for _, damage := range [][]string{
		{"flush", "set", "bridge", "lfx", "who"},
		{"add", "element", "bridge", "lfx", "ports", "{ eth9 }"},
	} {
		nft(t, damage...)
		if err := f.Check(ctx); !errors.Is(err, ErrElements) {
			t.Errorf("Check after %v = %v, want ErrElements", damage, err)
		}
		if err := f.Restore(ctx); err != nil {
			t.Fatal(err)
		}
		if err := f.Check(ctx); err != nil {
			t.Errorf("Check after Restore = %v", err)
		}
	}
}

// TestAddRestores: between a flush and its repair an Add must neither fail nor be lost.
func TestAddRestores(t *testing.T) {
	f := installed(t)
	nft(t, "flush", "ruleset")
	if err := f.Add(t.Context(), pin(1)); err != nil {
		t.Fatal(err)
	}
	if err := f.Check(t.Context()); err != nil {
		t.Errorf("Check = %v", err)
	}
	nft(t, "flush", "ruleset")
	if err := f.Delete(pin(1)); err != nil {
		t.Errorf("Delete without tables = %v", err)
	}
}

func TestCheckSeesChanges(t *testing.T) {
	f := installed(t)
	for _, damage := range [][]string{
		{"flush", "ruleset"},
		{"delete", "table", "bridge", "lfx"},
		{"flush", "chain", "inet", "lfx", "from_fn"},
		{"insert", "rule", "inet", "lfx", "egress", "accept"},
		{"add", "element", "inet", "lfx", "private4", "{ 203.0.113.0/24 }"},
		{"delete", "element", "inet", "lfx", "private4", "{ 169.254.0.0/16 }"},
		{"add", "chain", "inet", "lfx", "extra", "{ type filter hook forward priority -400; policy accept; }"},
		{"add", "table", "inet", "lfx", "{ flags dormant; }"},
	} {
		nft(t, damage...)
		if err := f.Check(t.Context()); !errors.Is(err, ErrChanged) {
			t.Errorf("Check after %v = %v, want ErrChanged", damage, err)
		}
		if err := f.Restore(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := f.Check(t.Context()); err != nil {
			t.Errorf("Check after Restore from %v = %v", damage, err)
		}
	}
}

func TestWatch(t *testing.T) {
	f := installed(t)
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() { done <- f.Watch(ctx, func() { events <- struct{}{} }) }()
	expect := func(what string, want bool) {
		t.Helper()
		wait := 5 * time.Second
		if !want {
			wait = 100 * time.Millisecond
		}
		got := false
		select {
		case <-events:
			got = true
		case <-time.After(wait):
		}
		if got != want {
			t.Errorf("%s: event %t, want %t", what, got, want)
		}
		for len(events) > 0 {
			<-events
		}
	}
	// until the socket is bound an event can be missed, so the first is repeated
	for bound := false; !bound; {
		nft(t, "add", "chain", "inet", "lfx", "extra")
		nft(t, "delete", "chain", "inet", "lfx", "extra")
		select {
		case <-events:
			bound = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	for expectQuiet := true; expectQuiet; { // the rest of those
		select {
		case <-events:
		case <-time.After(100 * time.Millisecond):
			expectQuiet = false
		}
	}
	if err := f.Add(t.Context(), pin(1)); err != nil {
		t.Fatal(err)
	}
	expect("our own element", false)
	nft(t, "add", "table", "inet", "lfxother")
	expect("somebody else's table", false)
	nft(t, "delete", "table", "inet", "lfxother")
	nft(t, "flush", "chain", "inet", "lfx", "from_fn")
	expect("a flushed chain", true)
	nft(t, "flush", "ruleset")
	expect("a flushed ruleset", true)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watch = %v, want nil", err)
	}
}

func TestNoNFTIsExplained(t *testing.T) {
	err := explain("Error: Could not process rule: Operation not supported\nadd table inet lfx", errors.New("exit status 1"))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "modprobe nf_tables") {
		t.Errorf("explain = %v, want ErrFailedPrecondition with a remedy", err)
	}
	if err := explain("", errors.New("exit status 1")); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("explain of nothing = %v", err)
	}
	if err := explain("netlink: Error: cache initialization failed: Operation not permitted", nil); !errdefs.IsPermissionDenied(err) {
		t.Errorf("explain = %v, want ErrPermissionDenied", err)
	}
}

// TestDamagedNFT: a kernel or a user that cannot is told apart from a rule set that is wrong.
func TestUnprivileged(t *testing.T) {
	nstest.NeedRoot(t)
	f, err := New(testRules())
	if err != nil {
		t.Fatal(err)
	}
	f.nft = t.TempDir() + "/nft"
	if err := os.WriteFile(f.nft, []byte("#!/bin/sh\necho 'Error: Could not process rule: Protocol not supported' >&2; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := f.Install(t.Context(), false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Install = %v, want ErrFailedPrecondition", err)
	}
}

func TestValidate(t *testing.T) {
	for name, break_ := range map[string]func(*Rules){
		"table name":        func(r *Rules) { r.Table = "lfx; flush ruleset" },
		"bridge name":       func(r *Rules) { r.Bridges[0].Name = `lfx0" accept` },
		"long bridge name":  func(r *Rules) { r.Bridges[0].Name = "abcdefghijklmnop" },
		"no bridge":         func(r *Rules) { r.Bridges = nil },
		"IPv6 subnet":       func(r *Rules) { r.Bridges[0].Subnet = netip.MustParsePrefix("fd00::/64") },
		"unmasked subnet":   func(r *Rules) { r.Bridges[0].Subnet = netip.MustParsePrefix("10.201.0.1/16") },
		"gateway elsewhere": func(r *Rules) { r.Bridges[0].Gateway = netip.MustParseAddr("10.9.0.1") },
		"metadata allowed":  func(r *Rules) { r.Allow = []Egress{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}} },
		"no prefix allowed": func(r *Rules) { r.Allow = []Egress{{}} },
	} {
		r := testRules()
		break_(&r)
		if err := r.Validate(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: Validate = %v, want ErrInvalidArgument", name, err)
		}
	}
	if err := testRules().Validate(); err != nil {
		t.Errorf("Validate = %v", err)
	}
}

func FuzzParseEgress(f *testing.F) {
	for _, s := range []string{"10.0.0.5:5432", "10.0.0.0/8", "192.168.1.10", "169.254.169.254:80", "0.0.0.0/0", "::1", "10.0.0.5:0", "10.0.0.5:+1", ":", "fe80::1%eth0", "10.0.0.0/33"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEgress(s)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("ParseEgress(%q) = %v, want ErrInvalidArgument", s, err)
			}
			return
		}
		if e.Prefix.Contains(netip.MustParseAddr("169.254.169.254")) {
			t.Errorf("ParseEgress(%q) opens the metadata service", s)
		}
		again, err := ParseEgress(e.String())
		if err != nil || again != e {
			t.Errorf("ParseEgress(%q) = %v, read again as %v, %v", s, e, again, err)
		}
	})
}

func FuzzParseListing(f *testing.F) {
	f.Add([]byte(`{"nftables": [{"metainfo": {}}, {"rule": {"chain": "a", "expr": [{"counter": null}]}}, {"set": {"name": "who", "elem": [{"concat": ["veth1", "10.201.1.2", "02:00:0a:c9:01:02"]}]}}]}`))
	f.Add([]byte(`{"nftables": [{"set": {"name": "ports", "elem": [1, null, {}]}}]}`))
	f.Fuzz(func(t *testing.T, out []byte) { _, _ = parseListing(out) })
}

func FuzzConcerns(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{20, 0, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0})
	fw := &Firewall{rules: testRules()}
	f.Fuzz(func(t *testing.T, batch []byte) { fw.concerns(batch) })
}
