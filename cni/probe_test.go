package cni

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
)

// TestProbeSeesEachHole damages one part of the defence at a time; the probe must name what it reached.
func TestProbeSeesEachHole(t *testing.T) {
	c := testConfig(t)
	newWorld(t)
	m := setup(t, c)
	for _, tt := range []struct {
		name   string
		damage []string
		want   []string
	}{
		{"forward rules flushed", []string{"flush", "chain", "inet", "lfx", "forward"}, []string{"neighbour-through-the-gateway", metadata}},
		{"input rules flushed", []string{"flush", "chain", "inet", "lfx", "input"}, []string{"host-address-10.201.0.1", "host-address-198.51.100.1"}},
		{"egress rules flushed", []string{"flush", "chain", "inet", "lfx", "egress"}, []string{metadata}},
		{"pinning flushed", []string{"flush", "chain", "bridge", "lfx", "pre"}, []string{"spoofed-address", "address-of-a-neighbour", "spoofed-mac", "spoofed-arp", "ipv6"}},
		{"host table gone", []string{"delete", "table", "inet", "lfx"}, []string{"neighbour-through-the-gateway"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nft(t, tt.damage...)
			err := m.probe(t.Context())
			if !errors.Is(err, ErrReachable) {
				t.Fatalf("probe = %v, want ErrReachable", err)
			}
			if !containsAny(err.Error(), tt.want) {
				t.Errorf("probe = %v, want one of %q named", err, tt.want)
			}
			if err := m.firewall.Restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := m.probe(t.Context()); err != nil {
				t.Errorf("probe after the repair: %v", err)
			}
		})
	}
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}

// TestProbeSeesMissingPortIsolation attaches with a conflist that does not isolate ports.
func TestProbeSeesMissingPortIsolation(t *testing.T) {
	ownBridgeFrames(t)
	m := setup(t, testConfig(t))
	weak := bytes.Replace(m.functions.json, []byte(`"portIsolation": true`), []byte(`"portIsolation": false`), 1)
	list, err := libcni.NetworkConfFromBytes(weak)
	if err != nil {
		t.Fatal(err)
	}
	m.functions.list = list
	err = m.probe(t.Context())
	if !errors.Is(err, ErrReachable) || !strings.Contains(err.Error(), "neighbour-on-the-bridge") {
		t.Errorf("probe = %v, want the neighbour reached on the bridge", err)
	}
}

// TestProbeDoesNotTrustSilence: with the bridge down nothing arrives anywhere, which is no proof.
func TestProbeDoesNotTrustSilence(t *testing.T) {
	c := testConfig(t)
	c.NoDNS = true
	m := setup(t, c)
	// the plugins set the bridge up at every ADD, so silence is made by a rule
	nft(t, "add", "table", "bridge", "silence")
	t.Cleanup(func() { nft(t, "delete", "table", "bridge", "silence") })
	nft(t, "add", "chain", "bridge", "silence", "pre", "{ type filter hook prerouting priority -400; policy drop; }")
	if err := m.probe(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("probe = %v, want ErrFailedPrecondition", err)
	}
	nft(t, "flush", "table", "bridge", "silence")
}

// ownBridgeFrames turns br_netfilter off, which sends frames between two ports through the inet
// table too and so hides a missing isolation.
func ownBridgeFrames(t *testing.T) {
	t.Helper()
	const key = "net/bridge/bridge-nf-call-iptables"
	old, err := getSysctl(key)
	if err != nil {
		return // not loaded
	}
	if err := setSysctl(key, "0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { setSysctl(key, old) })
}

// TestSetupFailsClosed: when the probe gets through, nothing is left and nothing can be attached.
func TestSetupFailsClosed(t *testing.T) {
	c := testConfig(t)
	ownBridgeFrames(t)
	before, _ := getSysctl(ipForward)
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Teardown(context.Background()) })
	weak := bytes.Replace(m.functions.json, []byte(`"portIsolation": true`), []byte(`"portIsolation": false`), 1)
	if m.functions.list, err = libcni.NetworkConfFromBytes(weak); err != nil {
		t.Fatal(err)
	}
	if err := m.Setup(t.Context()); !errors.Is(err, ErrReachable) {
		t.Errorf("Setup = %v, want ErrReachable", err)
	}
	checkNothingLeft(t, c, before)
	if _, err := m.Attach(t.Context(), "x", "/proc/self/ns/net"); !errdefs.IsUnavailable(err) {
		t.Errorf("Attach after a failed Setup = %v, want ErrUnavailable", err)
	}
}

func TestSetupRefuses(t *testing.T) {
	t.Run("a foreign bridge", func(t *testing.T) {
		c := testConfig(t)
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "lfx0"
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netlink.LinkDel(br) })
		m, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Setup(t.Context()); !errdefs.IsAlreadyExists(err) {
			t.Errorf("Setup = %v, want ErrAlreadyExists", err)
		}
		if err := m.Teardown(t.Context()); err != nil {
			t.Errorf("Teardown: %v", err)
		}
		if _, err := netlink.LinkByName("lfx0"); err != nil {
			t.Errorf("Teardown removed a foreign bridge: %v", err)
		}
	})
	t.Run("a subnet in use", func(t *testing.T) {
		c := testConfig(t)
		neighbour(t, "lan", "10.201.7.1/24", "10.201.7.2/24")
		m, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Setup(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "up-lan") {
			t.Errorf("Setup = %v, want ErrFailedPrecondition naming up-lan", err)
		}
	})
	t.Run("missing plugins", func(t *testing.T) {
		c := testConfig(t)
		c.BinDir = t.TempDir()
		m, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Setup(t.Context()); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Setup = %v, want ErrFailedPrecondition", err)
		}
	})
}
