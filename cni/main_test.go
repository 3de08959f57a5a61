package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"lfx.dev/lfxd/cni/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// plugins returns the directory of the CNI plugins or skips.
func plugins(t testing.TB) string {
	t.Helper()
	nstest.NeedRoot(t)
	dir := os.Getenv("LFX_CNI_BIN")
	if dir == "" {
		dir, _ = filepath.Abs("../build/engine")
	}
	if _, err := os.Stat(filepath.Join(dir, "bridge")); err != nil {
		t.Skipf("needs the CNI plugins in %s: make engine", dir)
	}
	return dir
}

// testConfig is a configuration with directories of the test's own.
func testConfig(t testing.TB) Config {
	return Config{
		BinDir: plugins(t), RunDir: t.TempDir(), GCGrace: -1,
		DNSUpstreams: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.53:53")},
		Log:          slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// setup returns a Manager that is ready, and checks after the test that Teardown leaves nothing.
func setup(t testing.TB, c Config) *Manager {
	t.Helper()
	before, err := getSysctl(ipForward)
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Teardown(context.Background()); err != nil {
			t.Errorf("Teardown: %v", err)
		}
		checkNothingLeft(t, c, before)
	})
	start := time.Now()
	if err := m.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("setup took %s", time.Since(start))
	return m
}

func checkNothingLeft(t testing.TB, c Config, forward string) {
	t.Helper()
	links, err := listLinks()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "bridge" || l.Type() == "veth" && !strings.HasPrefix(l.Attrs().Name, "up-") {
			t.Errorf("interface %s is left", l.Attrs().Name)
		}
	}
	if out := nft(t, "list", "tables"); out != "" {
		t.Errorf("tables are left: %s", out)
	}
	if got, _ := getSysctl(ipForward); got != forward {
		t.Errorf("ip_forward = %s after Teardown, want %s", got, forward)
	}
	if entries, _ := os.ReadDir(c.RunDir); len(entries) != 0 {
		t.Errorf("run directory is not empty: %v", entries)
	}
}

func nft(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// makeNamespace makes one with its loopback up, closed at the end.
func makeNamespace(t *testing.T) *namespace {
	t.Helper()
	ns, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.close() })
	inside(t, ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

func inside(t *testing.T, ns *namespace, f func() error) {
	t.Helper()
	if err := ns.do(f); err != nil {
		t.Fatal(err)
	}
}

// host is a neighbour of the machine under test, in a namespace of its own.
type host struct {
	ns   *namespace
	name string
}

// neighbour makes a host that is linked to us: we have ours, it has theirs and the further
// addresses, to which we get routes.
func neighbour(t *testing.T, name, ours, theirs string, more ...string) host {
	t.Helper()
	ns := makeNamespace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up-" + name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "net0", PeerNamespace: netlink.NsFd(int(ns.file.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(veth) })
	configure := func(link, cidr string) error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
	}
	if err := configure(attrs.Name, ours); err != nil {
		t.Fatal(err)
	}
	inside(t, ns, func() error {
		errs := []error{configure("net0", theirs)}
		for _, a := range more {
			errs = append(errs, configure("lo", a+"/32"))
		}
		return errors.Join(errs...)
	})
	gw, _, _ := net.ParseCIDR(theirs)
	for _, a := range more {
		dst := &net.IPNet{IP: net.ParseIP(a), Mask: net.CIDRMask(32, 32)}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: gw}); err != nil {
			t.Fatal(err)
		}
	}
	return host{ns, name}
}

// serve answers "hello" on TCP and echoes on UDP at addr in ns (nil: ours) until the test ends.
func serve(t *testing.T, ns *namespace, addr string) {
	t.Helper()
	var l net.Listener
	var p net.PacketConn
	open := func() (err error) {
		if l, err = net.Listen("tcp4", addr); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp4", addr)
		return err
	}
	in := onOwnThread
	if ns != nil {
		in = ns.do
	}
	if err := in(open); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); p.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			p.WriteTo(buf[:n], from)
		}
	}()
}

const dialTimeout = 250 * time.Millisecond

// reachTCP reports whether something at addr says hello to somebody in ns.
func reachTCP(ns *namespace, addr string) error {
	return dialFrom(ns, "tcp4", addr, func(c net.Conn) error {
		got, err := io.ReadAll(c)
		if err == nil && string(got) != "hello" {
			err = fmt.Errorf("read %q", got)
		}
		return err
	})
}

func reachUDP(ns *namespace, addr string) error {
	return dialFrom(ns, "udp4", addr, func(c net.Conn) error {
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 16))
		return err
	})
}

func dialFrom(ns *namespace, network, addr string, talk func(net.Conn) error) error {
	in := onOwnThread
	if ns != nil {
		in = ns.do
	}
	return in(func() error {
		c, err := dialInside(context.Background(), network, addr, dialTimeout)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(dialTimeout))
		return talk(c)
	})
}

// poll waits until ok or fails after ten seconds.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within ten seconds: %s", what)
		case <-tick.C:
		}
	}
}

func attach(t *testing.T, m *Manager, id string, ns *namespace) Attachment {
	t.Helper()
	a, err := m.Attach(t.Context(), id, ns.path())
	if err != nil {
		t.Fatal(err)
	}
	return a
}
