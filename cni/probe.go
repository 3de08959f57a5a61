package cni

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	miekg "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// probeWindow is how long the probe listens after its last frame. Frames cross a bridge
	// within microseconds of being sent; the window covers a machine that is busy.
	probeWindow  = 200 * time.Millisecond
	probeTimeout = 10 * time.Second // for all of it; below a second is usual
	dnsTries     = 3
	metadata     = "169.254.169.254:80"
	// probePort is where frames to the host are addressed; receivers see frames, not ports, and at the
	// host's own addresses a socket of the probe's own.
	probePort = 9001
)

func gatewayDNS(n *network) netip.AddrPort { return netip.AddrPortFrom(n.gateway, 53) }

// ErrReachable is wrapped by Setup's error when the probe got where no function may.
var ErrReachable = errors.New("the firewall does not hold")

// probe attaches two throw-away namespaces to each bridge exactly as instances are, and lets one
// try to reach the other and the host. It fails when anything arrives that must not, and also when
// the frames that must arrive do not: then silence would prove nothing.
func (m *Manager) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errors.New("network probe did not finish"))
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range m.networks() {
		g.Go(func() error {
			if err := m.probeNetwork(ctx, n); err != nil {
				return fmt.Errorf("network probe on %s: %w", n.bridge, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// probeEnd is one of the two namespaces.
type probeEnd struct {
	id  string
	ns  *namespace
	rec record
	mac net.HardwareAddr
}

func (m *Manager) probeNetwork(ctx context.Context, n *network) (err error) {
	var ends [2]*probeEnd
	defer func() { err = errors.Join(err, m.closeProbe(ctx, n, ends[:])) }()
	g, openCtx := errgroup.WithContext(ctx)
	for i := range ends {
		g.Go(func() (err error) {
			ends[i], err = m.openProbe(openCtx, n, fmt.Sprintf("probe-%s-%d", n.bridge, i))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	p, err := m.newProbe(n, ends[0], ends[1])
	if err != nil {
		return err
	}
	defer p.close()
	return p.run(ctx)
}

// openProbe makes and attaches one end. Left over from a crash under the same id, it is replaced.
func (m *Manager) openProbe(ctx context.Context, n *network, id string) (*probeEnd, error) {
	if err := m.release(ctx, n, id, ""); err != nil {
		return nil, err
	}
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	e := &probeEnd{id: id, ns: ns}
	if e.rec, err = m.attachTo(ctx, n, id, ns.path()); err != nil {
		return nil, errors.Join(err, ns.close())
	}
	if e.mac, err = net.ParseMAC(e.rec.MAC); err != nil {
		return e, fmt.Errorf("probe's MAC: %w", err)
	}
	return e, nil
}

func (m *Manager) closeProbe(ctx context.Context, n *network, ends []*probeEnd) error {
	undo, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), undoTimeout, errors.New("undo took too long"))
	defer cancel()
	var g errgroup.Group
	for _, e := range ends {
		if e == nil {
			continue
		}
		g.Go(func() error {
			unlock, err := m.ids.lock(undo, e.id)
			if err != nil {
				return err
			}
			defer unlock()
			return errors.Join(m.release(undo, n, e.id, e.ns.path()), e.ns.close())
		})
	}
	return g.Wait()
}

// probe is one run over one bridge: frames with a nonce and the name of their case are sent from one
// end, and sinks where they may or may not arrive read the names back.
type probe struct {
	net    *network
	a, b   *probeEnd
	bridge net.HardwareAddr
	nonce  string
	dns    bool
	from   int // packet socket in a
	sinks  []*sink
	hosts  []hostSocket
}

// sink is a socket on which frames of the probe are looked for.
type sink struct {
	name string
	fd   int
	seen []string
}

// hostSocket is a port of the host that a function must not reach.
type hostSocket struct {
	addr netip.AddrPort
	conn net.PacketConn
}

func (m *Manager) newProbe(n *network, a, b *probeEnd) (p *probe, err error) {
	p = &probe{net: n, a: a, b: b, nonce: "lfx-probe " + rand.Text() + " ", from: -1, dns: m.resolver != nil}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	link, err := netlink.LinkByName(n.bridge)
	if err != nil {
		return p, fmt.Errorf("find bridge %s: %w", n.bridge, err)
	}
	p.bridge = link.Attrs().HardwareAddr
	if err := a.ns.do(func() error { p.from, err = packetSocket(Interface); return err }); err != nil {
		return p, fmt.Errorf("open the probe's sender: %w", err)
	}
	if err := p.sink("bridge", nil, n.bridge); err != nil {
		return p, err
	}
	if err := p.sink("neighbour", b.ns, Interface); err != nil {
		return p, err
	}
	return p, p.openHostSockets()
}

// sink opens a packet socket on an interface, in ns if there is one.
func (p *probe) sink(name string, ns *namespace, ifname string) error {
	s := &sink{name: name, fd: -1}
	open := func() (err error) { s.fd, err = packetSocket(ifname); return err }
	in := onOwnThread
	if ns != nil {
		in = ns.do
	}
	if err := in(open); err != nil {
		return fmt.Errorf("open the probe's receiver on %s: %w", name, err)
	}
	p.sinks = append(p.sinks, s)
	return nil
}

// openHostSockets listens on the gateway and on the host's other addresses, at ports of their own,
// for the length of the probe; what arrives is discarded.
func (p *probe) openHostSockets() error {
	const most = 4
	addrs := []netip.Addr{p.net.gateway}
	list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range list {
		addr, _ := netip.AddrFromSlice(a.IP.To4())
		if addr.IsGlobalUnicast() && addr != p.net.gateway && len(addrs) < most {
			addrs = append(addrs, addr)
		}
	}
	for _, a := range addrs {
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		if err != nil {
			continue // not configured yet, or gone; there is nothing to reach then
		}
		p.hosts = append(p.hosts, hostSocket{conn.LocalAddr().(*net.UDPAddr).AddrPort(), conn})
	}
	return nil
}

func (p *probe) close() {
	for _, s := range p.sinks {
		unix.Close(s.fd)
	}
	for _, h := range p.hosts {
		h.conn.Close()
	}
	if p.from >= 0 {
		unix.Close(p.from)
	}
}

// packetSocket opens a raw socket for all frames of one interface of the thread's namespace.
func packetSocket(ifname string) (int, error) {
	link, err := netlink.LinkByName(ifname)
	if err != nil {
		return -1, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// attempt is one frame of the probe. forbidden names the sinks at which it must not arrive; a host
// socket's name is its address.
type attempt struct {
	name      string
	frame     []byte
	forbidden []string
	required  string // sink at which it must arrive
}

// The attempts, by what they show. Case names have no spaces: a sink reads the name up to one.
func (p *probe) attempts() []attempt {
	a, b := p.a, p.b
	foreign := netip.AddrFrom4([4]byte{203, 0, 113, 77}) // reserved for documentation: nobody has it
	dst := netip.AddrPortFrom(p.net.gateway, probePort)
	peer := netip.AddrPortFrom(b.rec.IP, probePort)
	elsewhere := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	both := []string{"bridge", "neighbour"}
	list := []attempt{
		p.udp("control", a.mac, p.bridge, a.rec.IP, dst, nil).needs("bridge"),
		p.udp("neighbour-on-the-bridge", a.mac, b.mac, a.rec.IP, peer, both[1:]),
		p.udp("neighbour-through-the-gateway", a.mac, p.bridge, a.rec.IP, peer, both[1:]),
		p.udp("broadcast-to-neighbours", a.mac, broadcast, a.rec.IP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), probePort), both[1:]),
	}
	for _, h := range p.hosts {
		list = append(list, p.udp("host-address-"+h.addr.Addr().String(), a.mac, p.bridge, a.rec.IP, h.addr, []string{h.addr.String()}))
	}
	if p.net.pinned {
		list = append(list,
			p.udp("spoofed-address", a.mac, p.bridge, foreign, dst, both),
			p.udp("address-of-a-neighbour", a.mac, p.bridge, b.rec.IP, dst, both),
			p.udp("spoofed-mac", elsewhere, p.bridge, a.rec.IP, dst, both),
			p.raw("spoofed-arp", ethernet(a.mac, broadcast, unix.ETH_P_ARP, arpReply(a.mac, p.net.gateway, b.mac, b.rec.IP)), both),
			p.raw("ipv6", ethernet(a.mac, broadcast, unix.ETH_P_IPV6, nil), both))
	}
	return list
}

func (p *probe) udp(name string, src, dst net.HardwareAddr, from netip.Addr, to netip.AddrPort, forbidden []string) attempt {
	frame := ethernet(src, dst, unix.ETH_P_IP, udpPacket(from, to, []byte(p.nonce+name+" ")))
	return attempt{name: name, frame: frame, forbidden: forbidden}
}

// raw appends the name to a frame that has no payload of its own.
func (p *probe) raw(name string, frame []byte, forbidden []string) attempt {
	return attempt{name: name, frame: append(frame, p.nonce+name+" "...), forbidden: forbidden}
}

func (a attempt) needs(sink string) attempt { a.required = sink; return a }

// run sends, listens and judges; the questions to DNS and to the metadata service go at the same time.
func (p *probe) run(ctx context.Context) error {
	attempts := p.attempts()
	until := make(chan time.Time, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.askDNS(ctx) })
	g.Go(func() error { return p.askMetadata(ctx) })
	g.Go(func() error {
		err := p.send(ctx, attempts)
		until <- time.Now().Add(probeWindow)
		return err
	})
	g.Go(func() error { p.listen(ctx, until); return nil })
	if err := g.Wait(); err != nil {
		return err
	}
	return p.judge(attempts)
}

// send sends every frame, twice: the first may meet a port that is not forwarding yet.
func (p *probe) send(ctx context.Context, attempts []attempt) error {
	for range 2 {
		for _, a := range attempts {
			if err := unix.Send(p.from, a.frame, 0); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return fmt.Errorf("send %s: %w", a.name, err)
			}
		}
		select {
		case <-time.After(probeWindow / 10):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// listen polls all sinks until the time that until tells.
func (p *probe) listen(ctx context.Context, until <-chan time.Time) {
	var end time.Time
	buf := make([]byte, 65536)
	fds := make([]unix.PollFd, len(p.sinks))
	for end.IsZero() || time.Now().Before(end) {
		select {
		case end = <-until:
		case <-ctx.Done():
			return
		default:
		}
		for i, s := range p.sinks {
			fds[i] = unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN}
		}
		if _, err := unix.Poll(fds, 10); err != nil {
			continue
		}
		for i, s := range p.sinks {
			if fds[i].Revents&unix.POLLIN != 0 {
				s.drain(buf, p.nonce)
			}
		}
	}
}

// drain reads what waits and keeps the names of the probe's own frames. Frames that the interface
// sends are not arrivals.
func (s *sink) drain(buf []byte, nonce string) {
	for {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if err != nil {
			return
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if name, ok := caseName(buf[:n], nonce); ok {
			s.seen = append(s.seen, name)
		}
	}
}

// caseName finds the nonce in a frame and returns the name behind it.
func caseName(frame []byte, nonce string) (string, bool) {
	_, rest, ok := strings.Cut(string(frame), nonce)
	if !ok {
		return "", false
	}
	name, _, ok := strings.Cut(rest, " ")
	return name, ok
}

// judge compares what arrived where with what may.
func (p *probe) judge(attempts []attempt) error {
	seen := map[string][]string{}
	for _, s := range p.sinks {
		seen[s.name] = s.seen
	}
	for _, h := range p.hosts {
		seen[h.addr.String()] = h.received(p.nonce)
	}
	var reached []string
	for _, a := range attempts {
		if a.required != "" && !slices.Contains(seen[a.required], a.name) {
			return fmt.Errorf("a frame that must arrive did not, so silence proves nothing (is the bridge up, and does another firewall drop everything?): %w", errdefs.ErrFailedPrecondition)
		}
		for _, sink := range a.forbidden {
			if slices.Contains(seen[sink], a.name) {
				reached = append(reached, a.name)
			}
		}
	}
	return p.breach(reached)
}

func (p *probe) breach(reached []string) error {
	if len(reached) == 0 {
		return nil
	}
	slices.Sort(reached)
	return fmt.Errorf("%w: from a function's place the probe reached %s; no function is started",
		ErrReachable, strings.Join(slices.Compact(reached), ", "))
}

// received returns the names of what came to the socket until now.
func (h hostSocket) received(nonce string) []string {
	var names []string
	buf := make([]byte, 2048)
	h.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	for {
		n, _, err := h.conn.ReadFrom(buf)
		if err != nil {
			return names
		}
		if name, ok := caseName(buf[:n], nonce); ok {
			names = append(names, name)
		}
	}
}

// askDNS sends the forwarder a question that it answers by itself, so that no upstream matters.
func (p *probe) askDNS(ctx context.Context) error {
	if !p.dns {
		return nil
	}
	q := new(miekg.Msg)
	q.SetQuestion("probe.lfx.", miekg.TypeTXT)
	q.Question[0].Qclass = miekg.ClassCHAOS
	var last error
	for range dnsTries {
		answer, err := p.exchange(ctx, q)
		if err == nil && answer.Rcode == miekg.RcodeRefused {
			return nil
		}
		last = cmp.Or(err, errors.New("the answer is not the forwarder's"))
	}
	return fmt.Errorf("the DNS forwarder on %s does not answer a function (does another firewall drop it?): %w", gatewayDNS(p.net), last)
}

func (p *probe) exchange(ctx context.Context, q *miekg.Msg) (answer *miekg.Msg, err error) {
	err = p.a.ns.do(func() error {
		conn, err := dialInside(ctx, "udp4", gatewayDNS(p.net).String(), time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Second))
		c := &miekg.Conn{Conn: conn}
		if err := c.WriteMsg(q); err != nil {
			return err
		}
		answer, err = c.ReadMsg()
		return err
	})
	return answer, err
}

// askMetadata connects to the cloud's metadata service as a function would. Even a refusal means that the
// packet went out and something answered.
func (p *probe) askMetadata(ctx context.Context) error {
	return p.a.ns.do(func() error {
		conn, err := dialInside(ctx, "tcp4", metadata, 2*probeWindow)
		if err == nil {
			conn.Close()
		}
		if err == nil || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
			return p.breach([]string{metadata})
		}
		return nil
	})
}

// dialInside connects on the calling thread: an address that is a literal needs no resolver and no race,
// so net makes the socket where it is called, in the namespace of this thread.
func dialInside(ctx context.Context, network, addr string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil && os.IsTimeout(err) {
		return nil, fmt.Errorf("no answer from %s: %w", addr, err)
	}
	return conn, err
}
