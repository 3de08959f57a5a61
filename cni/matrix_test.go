package cni

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// world is everything a function may want to reach, each of which would answer.
type world struct {
	internet, lan host
}

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{
		internet: neighbour(t, "inet", "198.51.100.1/24", "198.51.100.2/24", "203.0.113.10", "203.0.113.53", "169.254.169.254", "168.63.129.16", "100.64.0.9"),
		lan:      neighbour(t, "lan", "192.168.77.1/24", "192.168.77.2/24"),
	}
	for _, addr := range []string{"203.0.113.10:443", "203.0.113.10:25", "169.254.169.254:80", "168.63.129.16:80", "100.64.0.9:80"} {
		serve(t, w.internet.ns, addr)
	}
	serve(t, w.lan.ns, "192.168.77.2:80")
	serve(t, w.lan.ns, "192.168.77.2:5432")
	for _, addr := range []string{"198.51.100.1:22", "192.168.77.1:9000", "0.0.0.0:8123"} {
		serve(t, nil, addr)
	}
	return w
}

// TestMatrix is the table of what a function reaches, against hosts that would all answer.
func TestMatrix(t *testing.T) {
	c := testConfig(t)
	w := newWorld(t)
	c.Allow = []Egress{{Prefix: netip.MustParsePrefix("192.168.77.2/32"), Port: 5432}}
	m := setup(t, c)
	fn, peer := makeNamespace(t), makeNamespace(t)
	a, b := attach(t, m, "fn", fn), attach(t, m, "peer", peer)
	serve(t, nil, a.Gateway.String()+":9000")
	serve(t, peer, "0.0.0.0:8080")
	serve(t, fn, "0.0.0.0:8080")

	// that they would answer: the same calls from the host itself
	for _, addr := range []string{"203.0.113.10:443", "203.0.113.10:25", "169.254.169.254:80", "168.63.129.16:80", "100.64.0.9:80",
		"192.168.77.2:80", "198.51.100.1:22", "192.168.77.1:9000", a.Gateway.String() + ":9000", b.IP.String() + ":8080"} {
		if err := reachTCP(nil, addr); err != nil {
			t.Errorf("control: the host does not reach %s: %v", addr, err)
		}
	}

	for _, tt := range []struct {
		name, addr string
		want       bool
	}{
		{"internet", "203.0.113.10:443", true},
		{"operator's exception", "192.168.77.2:5432", true},
		{"own loopback", "127.0.0.1:8080", true},
		{"internet smtp", "203.0.113.10:25", false},
		{"metadata", "169.254.169.254:80", false},
		{"azure metadata", "168.63.129.16:80", false},
		{"carrier NAT", "100.64.0.9:80", false},
		{"LAN host", "192.168.77.2:80", false},
		{"peer", b.IP.String() + ":8080", false},
		{"host port on the gateway", a.Gateway.String() + ":9000", false},
		{"host port on all addresses", a.Gateway.String() + ":8123", false},
		{"host port on the build gateway", "10.202.0.1:8123", false},
		{"host's public address", "198.51.100.1:22", false},
		{"host's LAN address", "192.168.77.1:9000", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if err := reachTCP(fn, tt.addr); (err == nil) != tt.want {
				t.Errorf("function → tcp %s: %v, want reach %t", tt.addr, err, tt.want)
			}
			if err := reachUDP(fn, tt.addr); (err == nil) != tt.want && tt.name != "internet smtp" {
				t.Errorf("function → udp %s: %v, want reach %t", tt.addr, err, tt.want)
			}
		})
	}

	t.Run("LAN host to function", func(t *testing.T) {
		t.Parallel()
		route(t, w.lan.ns, "10.201.0.0/16", "192.168.77.1")
		if err := reachTCP(w.lan.ns, a.IP.String()+":8080"); err == nil {
			t.Error("a LAN host reaches a function by a direct route")
		}
		if err := reachUDP(w.lan.ns, a.Gateway.String()+":53"); err == nil {
			t.Error("a LAN host reaches the functions' resolver")
		}
	})
}

// TestPeerThroughGateway shows the hole that port isolation leaves: routed by way of the gateway.
func TestPeerThroughGateway(t *testing.T) {
	m := setup(t, testConfig(t))
	fn, peer := makeNamespace(t), makeNamespace(t)
	a, b := attach(t, m, "fn", fn), attach(t, m, "peer", peer)
	serve(t, peer, "0.0.0.0:8080")
	route(t, fn, b.IP.String()+"/32", a.Gateway.String())
	route(t, peer, a.IP.String()+"/32", a.Gateway.String())
	if err := reachTCP(fn, b.IP.String()+":8080"); err == nil {
		t.Error("a function reaches its peer by way of the gateway")
	}
}

func route(t *testing.T, ns *namespace, dst, gw string) {
	t.Helper()
	inside(t, ns, func() error {
		to, err := netlink.ParseIPNet(dst)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: to, Gw: netip.MustParseAddr(gw).AsSlice()})
	})
}
