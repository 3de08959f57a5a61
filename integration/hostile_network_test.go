//go:build integration && faults

package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netns is a network namespace: one that a test made, or an instance's.
type netns struct{ file *os.File }

func openNetns(path string) (*netns, error) {
	f, err := os.Open(path)
	return &netns{f}, err
}

// do runs f in the namespace, on a thread of its own that ends with it.
func (n *netns) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// newNetns makes a namespace that lives as long as its file.
func newNetns() (n *netns, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			n, err = openNetns("/proc/thread-self/ns/net")
		}
	}()
	<-done
	return n, err
}

// world's places: what a neighbour of the host answers as. Each is an address of the neighbour and one of the
// host on the same wire.
var places = map[string]struct{ there, here string }{
	"internet": {"203.0.113.1/24", "203.0.113.254/24"},
	"lan":      {"192.168.77.1/24", "192.168.77.254/24"},
	"lan 172":  {"172.20.0.1/24", "172.20.0.254/24"},
	"lan 10":   {"10.99.0.1/24", "10.99.0.254/24"},
	"carrier":  {"100.64.9.1/24", "100.64.9.254/24"},
	"metadata": {"169.254.169.254/30", "169.254.169.253/30"},
	"azure":    {"168.63.129.16/28", "168.63.129.17/28"},
	"test net": {"198.18.0.1/24", "198.18.0.254/24"},
}

// outside is the rest of the world, in a namespace of its own behind a wire.
type outside struct{ ns *netns }

// silentHost is on the wire, takes every packet and answers none.
const silentHost = "203.0.113.66"

func hostOf(prefix string) string { a, _, _ := strings.Cut(prefix, "/"); return a }

var outsidePorts = []int{22, 25, 53, 80, 443, 2375, 8080, 9000}

// newOutside makes the world and its listeners, and shows that it answers the daemon's host.
func newOutside(t *testing.T) *outside {
	t.Helper()
	ns, err := newNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.file.Close() }) //nolint:errcheck // gone with it
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wire := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire0"}, PeerName: "wire1", PeerNamespace: netlink.NsFd(int(ns.file.Fd()))}
	must(netlink.LinkAdd(wire))
	t.Cleanup(func() {
		if err := netlink.LinkDel(wire); err != nil {
			t.Error(err)
		}
	})
	must(netlink.LinkSetUp(wire))
	must(ns.do(func() error {
		link, err := netlink.LinkByName("wire1")
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		errs := []error{netlink.LinkSetUp(lo), netlink.LinkSetUp(link)}
		for _, p := range places {
			errs = append(errs, addAddress(link, p.there))
		}
		// a part of the internet that never answers
		_, silent, _ := net.ParseCIDR(silentHost + "/32")
		errs = append(errs, netlink.RouteAdd(&netlink.Route{Dst: silent, Type: unix.RTN_BLACKHOLE}))
		// whoever finds a way around the masquerade is answered too
		_, all, _ := net.ParseCIDR("10.201.0.0/16")
		return errors.Join(append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: net.ParseIP(hostOf(places["lan"].here))}))...)
	}))
	for _, p := range places {
		must(addAddress(wire, p.here))
	}
	var mac net.HardwareAddr
	must(ns.do(func() error {
		link, err := netlink.LinkByName("wire1")
		if err == nil {
			mac = link.Attrs().HardwareAddr
		}
		return err
	}))
	must(netlink.NeighAdd(&netlink.Neigh{LinkIndex: wire.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(silentHost), HardwareAddr: mac}))
	for _, port := range outsidePorts {
		serve(t, ns, "0.0.0.0:"+strconv.Itoa(port), "world")
	}
	for name, p := range places {
		if err := poll(5*time.Second, func() error { return answers(net.JoinHostPort(hostOf(p.there), "80"), "world") }); err != nil {
			t.Fatalf("%s does not answer even the host: %v", name, err)
		}
	}
	return &outside{ns}
}

func addAddress(link netlink.Link, prefix string) error {
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, a)
}

// serve answers with a word on a TCP and a UDP port of a namespace (nil: the daemon's).
func serve(t *testing.T, ns *netns, addr, word string) {
	t.Helper()
	var l net.Listener
	var u net.PacketConn
	open := func() (err error) {
		if l, err = net.Listen("tcp4", addr); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp4", addr)
		return err
	}
	var err error
	if ns != nil {
		err = ns.do(open)
	} else {
		err = open()
	}
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); u.Close(); wg.Wait() }) //nolint:errcheck // of no further use
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(word)) //nolint:errcheck // the client tells
			c.Close()             //nolint:errcheck // answered
		}
	})
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo([]byte(word), from) //nolint:errcheck // the client tells
		}
	})
}

// answers reports whether a TCP port says the word to the daemon's host.
func answers(addr, word string) error {
	c, err := net.DialTimeout("tcp4", addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // read
	c.SetDeadline(time.Now().Add(time.Second))
	b := make([]byte, 20)
	n, err := c.Read(b)
	if string(b[:n]) != word {
		return fmt.Errorf("%s said %q: %v", addr, b[:n], err)
	}
	return nil
}

// dialFrom lets a function try addresses and returns what became of each.
func dialFrom(t *testing.T, function string, targets []string) map[string]string {
	t.Helper()
	var got map[string]string
	tell(t, function, probeEvent{Do: "dial", MS: 700, Paths: targets}, &got)
	if len(got) != len(targets) {
		t.Errorf("%d of %d addresses were tried", len(got), len(targets))
	}
	return got
}

// TestFunctionsReachTheInternetAndNothingElse: of everybody who would have answered, only the internet does.
func TestFunctionsReachTheInternetAndNothingElse(t *testing.T) {
	h := newHostile(t, "network", "a timeout: 30s; cpu: 1; concurrency: {max: 1}", "b timeout: 10s; concurrency: {max: 1}", "c timeout: 30s; cpu: 1; concurrency: {max: 1}")
	out := newOutside(t)
	var said string
	tell(t, "b", probeEvent{Do: "listen"}, &said)
	peer := instances(t, "b")[0].Address
	if err := answers(peer+":8080", "peer"); err != nil {
		t.Fatalf("the peer does not answer even the host: %v", err)
	}
	t.Run("world", func(t *testing.T) {
		var targets []string
		for _, p := range places {
			for _, port := range outsidePorts {
				targets = append(targets, fmt.Sprintf("tcp:%s:%d", hostOf(p.there), port), fmt.Sprintf("udp:%s:%d", hostOf(p.there), port))
			}
		}
		internet := hostOf(places["internet"].there)
		for target, outcome := range dialFrom(t, "a", targets) {
			may := strings.Contains(target, internet+":") && target != "tcp:"+internet+":25"
			if reached := strings.Contains(outcome, "reached"); reached != may {
				t.Errorf("%s: %s", target, outcome)
			}
		}
	})
	t.Run("host", func(t *testing.T) { testHostIsOutOfReach(t) })
	t.Run("peer", func(t *testing.T) {
		for target, outcome := range dialFrom(t, "a", []string{
			"tcp:" + peer + ":8080", "udp:" + peer + ":8080", "tcp:" + peer + ":9001", "udp:10.201.255.255:8080", "udp:255.255.255.255:8080", "udp:224.0.0.1:8080", "unix:@hostile-peer",
		}) {
			if strings.Contains(outcome, "reached") || outcome == "open" {
				t.Errorf("%s: %s", target, outcome)
			}
		}
	})
	t.Run("Runtime API of others", func(t *testing.T) {
		targets := []string{"tcp:" + peer + ":9001", "tcp:10.201.0.1:9001", "tcp:0.0.0.0:9000", "tcp:[::1]:9001"}
		for i := 2; i < 100; i += 7 {
			targets = append(targets, fmt.Sprintf("tcp:127.0.0.%d:9001", i), fmt.Sprintf("tcp:127.%d.0.1:9001", i))
		}
		for target, outcome := range dialFrom(t, "a", targets) {
			if outcome == "open" || strings.Contains(outcome, "reached") {
				t.Errorf("%s: %s", target, outcome)
			}
		}
	})
	t.Run("from the LAN", func(t *testing.T) {
		err := out.ns.do(func() error { return answers(peer+":8080", "peer") })
		if err == nil {
			t.Error("a function answers the LAN")
		}
	})
	t.Run("own interface", func(t *testing.T) {
		var got map[string]string
		tell(t, "a", probeEvent{Do: "link"}, &got)
		for what, e := range got {
			if e == "ok" {
				t.Errorf("%s could be changed", what)
			}
		}
	})
	t.Run("flows", func(t *testing.T) { testFlowsAreBounded(t) })
	t.Run("neighbour table", func(t *testing.T) { testNeighboursAreBounded(t) })
	t.Run("frames", func(t *testing.T) { testFramesStayInside(t) })
	h.calm(t)
}

// testHostIsOutOfReach tries ports of every class on every address of the host.
func testHostIsOutOfReach(t *testing.T) {
	ports := []int{1, 22, 80, 111, 443, 631, 1338, 2375, 2376, 5000, 6443, 8080, 9001, 9090, 10250, 32768, 50000, 65535}
	addrs := []string{"10.201.0.1", hostOf(places["lan"].here), hostOf(places["internet"].here), hostOf(places["metadata"].here)}
	for _, port := range ports {
		serve(t, nil, fmt.Sprintf("0.0.0.0:%d", port), "host")
	}
	serve(t, nil, "10.201.0.1:9000", "host")
	secret, err := net.Listen("unix", "@lfx-hostile-host")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close() //nolint:errcheck // of no further use
	targets := []string{"unix:@lfx-hostile-host", "tcp:10.201.0.1:9000", "udp:10.201.0.1:9000", "tcp:127.0.0.1:9000", "tcp:127.0.0.1:8080", "unix:" + d.run + "/lfxd.sock", "unix:" + d.run + "/invoke.sock", "unix:" + d.run + "/engine/sock/containerd.sock"}
	for _, a := range addrs {
		if err := answers(a+":8080", "host"); err != nil {
			t.Fatalf("%s does not answer even the host: %v", a, err)
		}
		for _, port := range ports {
			targets = append(targets, fmt.Sprintf("tcp:%s:%d", a, port), fmt.Sprintf("udp:%s:%d", a, port))
		}
	}
	for port := 2; port < 65536; port += 199 { // every class of ports, where a refusal would tell too
		targets = append(targets, fmt.Sprintf("tcp:10.201.0.1:%d", port))
	}
	got := dialFrom(t, "a", targets)
	for target, outcome := range got {
		mine := strings.HasPrefix(target, "tcp:127.") || strings.HasPrefix(target, "unix:")
		if strings.Contains(outcome, "reached") || outcome == "open" || !mine && outcome == "ECONNREFUSED" {
			t.Errorf("%s: %s", target, outcome)
		}
	}
	if outcome := dialFrom(t, "a", []string{"tcp:10.201.0.1:53"})["tcp:10.201.0.1:53"]; outcome != "open" {
		t.Errorf("DNS does not answer: %s", outcome)
	}
}

// conntrack is how many connections the daemon's namespace tracks.
func conntrack(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
	if err != nil {
		t.Skipf("no count of connections: %v", err)
	}
	lines := strings.Split(string(b), "\n")
	n, err := strconv.ParseInt(strings.Fields(lines[1])[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// testFlowsAreBounded: the host's table of connections is not one function's to fill.
func testFlowsAreBounded(t *testing.T) {
	before := conntrack(t)
	for _, kind := range []string{"udp", "tcp"} {
		var said string
		tell(t, "a", probeEvent{Do: "flows", Kind: kind, N: 6000, Paths: []string{hostOf(places["internet"].there)}}, &said)
		if n := conntrack(t) - before; n > 2500 { // 1024, what is being closed, and other tests' own
			t.Errorf("after 6000 flows of %s, %d more are tracked", kind, n)
		} else {
			t.Logf("%s: %d more are tracked", kind, n)
		}
	}
	testHalfOpenFlows(t)
	var said string
	tell(t, "a", probeEvent{Do: "flows", Kind: "udp", N: 5000, MS: 53, Paths: []string{"10.201.0.1"}}, &said) // questions to DNS
	if n := conntrack(t) - before; n > 4000 {
		t.Errorf("after a flood of questions, %d more are tracked", n)
	}
	if got := dialFrom(t, "b", []string{"tcp:10.201.0.1:53"}); got["tcp:10.201.0.1:53"] != "open" {
		t.Errorf("another function lost DNS: %v", got)
	}
	if err := answers(hostOf(places["internet"].there)+":80", "world"); err != nil {
		t.Errorf("the host lost the internet: %v", err)
	}
	if got := dialFrom(t, "b", []string{"tcp:" + hostOf(places["internet"].there) + ":80"}); !strings.Contains(fmt.Sprint(got), "reached") {
		t.Errorf("another function lost the internet: %v", got)
	}
}

// testHalfOpenFlows floods a host that never answers with requests for connections: each stays in the table for
// minutes, and what leaves the host is bounded, too.
func testHalfOpenFlows(t *testing.T) {
	before, sent := conntrack(t), packetsSent(t, "wire0")
	var said string
	tell(t, "c", probeEvent{Do: "flows", Kind: "tcp", N: 50_000, Paths: []string{silentHost}}, &said)
	tracked, left := conntrack(t)-before, packetsSent(t, "wire0")-sent
	if tracked > 1500 { // 1024, and other tests' own
		t.Errorf("after 50000 requests for connections, %d more are tracked", tracked)
	}
	if left > 10_000 {
		t.Errorf("%d packets left the host", left)
	}
	if left == 0 {
		t.Error("nothing left the host: the flood was none")
	}
	t.Logf("half-open: %d more are tracked, %d packets left the host", tracked, left)
}

// packetsSent is how many packets an interface of the daemon's namespace has sent.
func packetsSent(t *testing.T, name string) uint64 {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.TxPackets
}

// testNeighboursAreBounded: the kernel's table of neighbours is one for all namespaces, so no function may grow it.
func testNeighboursAreBounded(t *testing.T) {
	var failed map[string]int
	tell(t, "a", probeEvent{Do: "neighbours", N: 3000}, &failed)
	var entries int
	if err := instanceNetns(t, "a").do(func() error {
		list, err := netlink.NeighList(0, netlink.FAMILY_V4)
		entries = len(list)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if entries > 16 {
		t.Errorf("after packets to 3000 addresses of its own network, the function has %d entries in the table of neighbours (%v)", entries, failed)
	}
}

// instanceNetns is the namespace of the function's instance.
func instanceNetns(t *testing.T, function string) *netns {
	t.Helper()
	pids := instancePIDs(t, instances(t, function)[0].ID)
	ns, err := openNetns("/proc/" + pids[0] + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.file.Close() }) //nolint:errcheck // of no further use
	return ns
}

// tap is a raw socket on one interface.
type tap struct {
	fd  int
	mac net.HardwareAddr
}

func openTap(t *testing.T, ns *netns, ifname string) *tap {
	t.Helper()
	var s tap
	open := func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		s.mac = link.Attrs().HardwareAddr
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	}
	err := error(nil)
	if ns != nil {
		err = ns.do(open)
	} else {
		err = open()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s.fd) }) //nolint:errcheck // of no further use
	return &s
}

// seen collects the names of the test's frames that arrived until now.
func (s *tap) seen() []string {
	var names []string
	buf := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if err != nil {
			return names
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if _, rest, ok := strings.Cut(string(buf[:n]), frameMark); ok {
			name, _, _ := strings.Cut(rest, "|")
			names = append(names, name)
		}
	}
}

const frameMark = "lfx-hostile|"

// frame is what a function would send if it could: the test sends it from the function's own namespace.
type frame struct {
	name  string
	bytes []byte
	// passes says that the host may see it; a neighbour never may.
	passes bool
}

func ethernet(dst, src net.HardwareAddr, kind uint16, payload []byte, name string) []byte {
	b := binary.BigEndian.AppendUint16(append(slices.Clone(dst), src...), kind)
	return append(append(b, payload...), frameMark+name+"|"...)
}

// udp4 is an IPv4 packet around a frame's name.
func udp4(src, dst string, port uint16, name string) []byte {
	data := frameMark + name + "|"
	p := make([]byte, 28, 28+len(data))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(data)))
	from, to := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(p[12:], from[:])
	copy(p[16:], to[:])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(p[20:], 40000)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(data)))
	return append(p, data...)
}

func arp(op byte, mac net.HardwareAddr, ip string, targetMAC net.HardwareAddr, target string) []byte {
	sender, receiver := netip.MustParseAddr(ip).As4(), netip.MustParseAddr(target).As4()
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac...)
	b = append(append(b, sender[:]...), targetMAC...)
	return append(b, receiver[:]...)
}

// icmp6 is an IPv6 packet of neighbour discovery; nobody looks at its checksum on the way.
func icmp6(kind byte) []byte {
	b := make([]byte, 40+16)
	b[0], b[5], b[6], b[7] = 0x60, 16, unix.IPPROTO_ICMPV6, 255
	b[8], b[9], b[23] = 0xfe, 0x80, 9
	b[24], b[25], b[39] = 0xff, 2, 1
	b[40] = kind
	return b
}

// testFramesStayInside sends what a function would send if it had raw sockets: what must hold then is the
// bridge and the firewall alone.
func testFramesStayInside(t *testing.T) {
	a, b := instances(t, "a")[0].Address, instances(t, "b")[0].Address
	from, neighbour, bridge := openTap(t, instanceNetns(t, "a"), "eth0"), openTap(t, instanceNetns(t, "b"), "eth0"), openTap(t, nil, "lfx0")
	loopback, err := net.ListenPacket("udp4", "127.0.0.1:4477")
	if err != nil {
		t.Fatal(err)
	}
	defer loopback.Close() //nolint:errcheck // of no further use
	all, strange := net.HardwareAddr{255, 255, 255, 255, 255, 255}, net.HardwareAddr{2, 0, 0, 0, 0, 1}
	ip := func(name string, dst, src net.HardwareAddr, saddr, daddr string, passes bool) frame {
		return frame{name, append(binary.BigEndian.AppendUint16(append(slices.Clone(dst), src...), unix.ETH_P_IP), udp4(saddr, daddr, 4477, name)...), passes}
	}
	raw := func(name string, dst, src net.HardwareAddr, kind uint16, payload []byte) frame {
		return frame{name, ethernet(dst, src, kind, payload, name), false}
	}
	frames := []frame{
		ip("control", bridge.mac, from.mac, a, "10.201.0.1", true),
		ip("to the neighbour on the wire", neighbour.mac, from.mac, a, b, false),
		ip("to the neighbour by the gateway", bridge.mac, from.mac, a, b, true),
		ip("broadcast", all, from.mac, a, "255.255.255.255", true),
		ip("multicast", net.HardwareAddr{1, 0, 0x5e, 0, 0, 251}, from.mac, a, "224.0.0.251", true),
		ip("loopback of the host", bridge.mac, from.mac, a, "127.0.0.1", true),
		ip("from loopback", bridge.mac, from.mac, "127.0.0.1", "127.0.0.1", false),
		ip("from the neighbour's address", bridge.mac, from.mac, b, "10.201.0.1", false),
		ip("from the gateway's address", neighbour.mac, from.mac, "10.201.0.1", b, false),
		ip("from another MAC", bridge.mac, strange, a, "10.201.0.1", false),
		ip("from the neighbour's MAC", bridge.mac, neighbour.mac, b, "10.201.0.1", false),
		ip("from the internet", bridge.mac, from.mac, "203.0.113.9", b, false),
		raw("answer under the neighbour's MAC", bridge.mac, neighbour.mac, unix.ETH_P_ARP, arp(2, from.mac, a, bridge.mac, "10.201.0.1")),
		raw("gateway is here", neighbour.mac, from.mac, unix.ETH_P_ARP, arp(2, from.mac, "10.201.0.1", neighbour.mac, b)),
		raw("neighbour is here", bridge.mac, from.mac, unix.ETH_P_ARP, arp(2, from.mac, b, bridge.mac, "10.201.0.1")),
		raw("gratuitous", all, from.mac, unix.ETH_P_ARP, arp(1, from.mac, b, make(net.HardwareAddr, 6), b)),
		raw("gratuitous gateway", all, from.mac, unix.ETH_P_ARP, arp(1, from.mac, "10.201.0.1", make(net.HardwareAddr, 6), "10.201.0.1")),
		raw("router advertisement", net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, from.mac, unix.ETH_P_IPV6, icmp6(134)),
		raw("neighbour solicitation", net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, from.mac, unix.ETH_P_IPV6, icmp6(135)),
		raw("tagged", neighbour.mac, from.mac, unix.ETH_P_8021Q, append([]byte{0, 1, 8, 0}, udp4(a, b, 4477, "tagged")...)),
		raw("spanning tree", net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, from.mac, 39, make([]byte, 39)),
	}
	for range 2 {
		for _, f := range frames {
			if err := unix.Send(from.fd, f.bytes, 0); err != nil {
				t.Errorf("send %s: %v", f.name, err)
			}
		}
	}
	// What the host sends does arrive, after all of the above: so silence says something.
	c, err := net.Dial("udp4", b+":4477")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // of no further use
	arrived := map[string][]string{}
	if err := poll(10*time.Second, func() error {
		if _, err := c.Write([]byte(frameMark + "from the host|")); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		arrived["neighbour"] = append(arrived["neighbour"], neighbour.seen()...)
		arrived["bridge"] = append(arrived["bridge"], bridge.seen()...)
		if !slices.Contains(arrived["neighbour"], "from the host") || !slices.Contains(arrived["bridge"], "control") {
			return fmt.Errorf("what must arrive did not: %q", arrived)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if slices.Contains(arrived["neighbour"], f.name) {
			t.Errorf("%q arrived at the neighbour", f.name)
		}
		if !f.passes && slices.Contains(arrived["bridge"], f.name) {
			t.Errorf("%q arrived at the host", f.name)
		}
	}
	loopback.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) //nolint:errcheck // read at once
	buf := make([]byte, 2048)
	if n, _, err := loopback.ReadFrom(buf); err == nil {
		t.Errorf("the host's loopback received %q", buf[:n])
	}
	for _, s := range []struct{ file, want string }{{"route_localnet", "0"}, {"rp_filter", "1"}, {"accept_redirects", "0"}, {"send_redirects", "0"}} {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf/lfx0", s.file))
		if err != nil || !cmp.Equal(strings.TrimSpace(string(b)), s.want) {
			t.Errorf("%s of lfx0 is %s, want %s (%v)", s.file, b, s.want, err)
		}
	}
	// the host still knows the neighbour's true MAC
	list, err := netlink.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		if n.IP.String() == b && len(n.HardwareAddr) > 0 && n.HardwareAddr.String() != neighbour.mac.String() {
			t.Errorf("the host believes that the neighbour is at %s", n.HardwareAddr)
		}
	}
}
