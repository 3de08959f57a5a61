package cni

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// watched is a Manager that runs, with what its hooks saw.
type watched struct {
	*Manager
	breaches, restored atomic.Int32
	downAtBreach       atomic.Bool
	refusedAtBreach    atomic.Bool
}

func running(t *testing.T, c Config) *watched {
	t.Helper()
	w := &watched{}
	c.OnBreach = func(error) {
		link, err := netlink.LinkByName("lfx0")
		w.downAtBreach.Store(err == nil && link.Attrs().Flags&net.FlagUp == 0)
		_, err = w.Attach(context.Background(), "refused", "/proc/self/ns/net")
		w.refusedAtBreach.Store(errdefs.IsUnavailable(err))
		w.breaches.Add(1)
	}
	c.OnRestored = func() { w.restored.Add(1) }
	w.Manager = setup(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	return w
}

// TestRestored damages the firewall as others on the host do; it is back within ten seconds, with the elements of
// the instance, and no frame passed meanwhile.
func TestRestored(t *testing.T) {
	c := testConfig(t)
	newWorld(t)
	w := running(t, c)
	fn := makeNamespace(t)
	attach(t, w.Manager, "fn", fn)
	for _, tt := range []struct {
		name   string
		damage []string
	}{
		{"flush ruleset", []string{"flush", "ruleset"}},
		{"table deleted", []string{"delete", "table", "inet", "lfx"}},
		{"bridge table deleted", []string{"delete", "table", "bridge", "lfx"}},
		{"chain flushed", []string{"flush", "chain", "inet", "lfx", "from_fn"}},
		{"rule added", []string{"insert", "rule", "inet", "lfx", "egress", "accept"}},
		{"table dormant", []string{"add", "table", "inet", "lfx", "{ flags dormant; }"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			breaches, restored := w.breaches.Load(), w.restored.Load()
			start := time.Now()
			nft(t, tt.damage...)
			poll(t, "the firewall is back", func() bool { return w.restored.Load() > restored && w.currentPhase() == ready })
			t.Logf("back after %s", time.Since(start))
			if w.breaches.Load() == breaches || !w.downAtBreach.Load() || !w.refusedAtBreach.Load() {
				t.Errorf("breaches %d → %d, bridge down %t, attach refused %t: not failed closed",
					breaches, w.breaches.Load(), w.downAtBreach.Load(), w.refusedAtBreach.Load())
			}
			if err := w.firewall.Check(t.Context()); err != nil {
				t.Errorf("Check = %v", err)
			}
			if err := reachTCP(fn, metadata); err == nil {
				t.Error("function reaches the metadata service")
			}
			poll(t, "the function reaches the internet again", func() bool { return reachTCP(fn, "203.0.113.10:443") == nil })
		})
	}
}

// TestElementsRestored: sets that somebody emptied are filled at the next look, without cutting anybody.
func TestElementsRestored(t *testing.T) {
	m := setup(t, testConfig(t))
	attach(t, m, "fn", makeNamespace(t))
	nft(t, "flush", "set", "bridge", "lfx", "ports")
	failed := 0
	if !m.assert(t.Context(), &failed) {
		t.Error("assert did not repair")
	}
	if err := m.firewall.Check(t.Context()); err != nil {
		t.Errorf("Check = %v", err)
	}
}

func TestForwardingIsRestored(t *testing.T) {
	for _, before := range []string{"0", "1"} {
		t.Run("was "+before, func(t *testing.T) {
			c := testConfig(t)
			old, _ := getSysctl(ipForward)
			t.Cleanup(func() { setSysctl(ipForward, old) })
			if err := setSysctl(ipForward, before); err != nil {
				t.Fatal(err)
			}
			w := newWorld(t)
			setup(t, c) // checks at the end that it is as before
			route(t, w.lan.ns, "203.0.113.0/24", "192.168.77.1")
			route(t, w.internet.ns, "192.168.77.0/24", "198.51.100.1")
			if err := reachTCP(w.lan.ns, "203.0.113.10:443"); (err == nil) != (before == "1") {
				t.Errorf("the host routes for its LAN: %v; it was a router before: %s", err, before)
			}
		})
	}
}
