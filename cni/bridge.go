package cni

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const defaultMTU = 1500

// ensureBridge makes the bridge, or adopts the one that an earlier run of ours left, gives it its
// address and its sysctls and only then sets it up.
func (m *Manager) ensureBridge(n *network) error {
	link, err := m.ownBridge(n)
	if err != nil {
		return err
	}
	if err := snoopingOff(link); err != nil {
		return fmt.Errorf("bridge %s: turn multicast snooping off: %w", n.bridge, err)
	}
	if err := netlink.LinkSetMTU(link, m.conf.MTU); err != nil {
		return fmt.Errorf("bridge %s: set MTU %d: %w", n.bridge, m.conf.MTU, err)
	}
	if err := assertBridgeSysctls(n.bridge); err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: n.gateway.AsSlice(), Mask: net.CIDRMask(n.subnet.Bits(), 32)}}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("bridge %s: add address %s: %w", n.bridge, n.gateway, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bridge %s: set up: %w", n.bridge, err)
	}
	return nil
}

// snoopingOff turns multicast snooping off unless it is. The change carries the bridge's name, which Linux 6.1 takes for a new one and
// refuses while the bridge is up (EBUSY, dev_change_name), so it is set down for it.
func snoopingOff(link netlink.Link) error {
	if b, ok := link.(*netlink.Bridge); ok && b.MulticastSnooping != nil && !*b.MulticastSnooping {
		return nil
	}
	if link.Attrs().Flags&net.FlagUp != 0 {
		if err := netlink.LinkSetDown(link); err != nil {
			return err
		}
	}
	// Only what is to change is sent: kernels refuse some of what they report themselves (6.1: EINVAL).
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = link.Attrs().Name, link.Attrs().Index
	err := netlink.BridgeSetMcastSnoop(&netlink.Bridge{LinkAttrs: attrs}, false)
	if errors.Is(err, unix.EOPNOTSUPP) { // a kernel without snooping
		return nil
	}
	return err
}

// ownBridge returns our bridge and makes it when there is none.
func (m *Manager) ownBridge(n *network) (netlink.Link, error) {
	link, err := m.findBridge(n)
	if link != nil && err == nil {
		err = m.claimBridge(link)
	}
	if link != nil || err != nil {
		return link, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = n.bridge, m.conf.MTU
	// an address of its own, or it takes the lowest of its ports' and changes as they come and go
	attrs.HardwareAddr = gatewayMAC(n.gateway)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", n.bridge, err)
	}
	if link, err = m.findBridge(n); link == nil || err != nil {
		return nil, fmt.Errorf("bridge %s went away while it was made: %w", n.bridge, errors.Join(err, errdefs.ErrUnavailable))
	}
	return link, m.claimBridge(link)
}

// claimBridge gives a bridge of ours its alias, which cannot be given while it is made.
func (m *Manager) claimBridge(link netlink.Link) error {
	if err := netlink.LinkSetAlias(link, m.alias("")); err != nil {
		return fmt.Errorf("mark bridge %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// findBridge returns our bridge, nil when there is none. A link of that name that does not carry
// our alias, nor our MAC and no alias yet, is somebody else's: errdefs.ErrAlreadyExists.
func (m *Manager) findBridge(n *network) (netlink.Link, error) {
	link, err := netlink.LinkByName(n.bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", n.bridge, err)
	}
	a := link.Attrs()
	unclaimed := a.Alias == "" && bytes.Equal(a.HardwareAddr, gatewayMAC(n.gateway))
	if link.Type() != "bridge" || a.Alias != m.alias("") && !unclaimed {
		return nil, fmt.Errorf("the network interface %s exists and is not ours: remove it (ip link del %s) or configure another name: %w", n.bridge, n.bridge, errdefs.ErrAlreadyExists)
	}
	return link, nil
}

// gatewayMAC is a locally administered address made of an IPv4 address: 02:00:0a:c9:00:01.
func gatewayMAC(ip netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{2, 0}, ip.AsSlice()...)
}

// alias marks what is ours among links: a bridge with an empty id, a veth with its instance's.
func (m *Manager) alias(id string) string { return "lfx:" + m.conf.Table + ":" + id }

// setBridges sets both bridges up or down. Down, no frame enters the host from an instance, whatever
// the rules say; addresses and ports stay.
func (m *Manager) setBridges(set func(netlink.Link) error) error {
	var errs []error
	for _, n := range m.networks() {
		link, err := netlink.LinkByName(n.bridge)
		if err == nil {
			err = set(link)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("bridge %s: %w", n.bridge, err))
		}
	}
	return errors.Join(errs...)
}

// removeBridge removes the bridge and the veths on it. Absent is no error; a bridge that is not ours stays.
func (m *Manager) removeBridge(n *network) error {
	link, err := m.findBridge(n)
	if errdefs.IsAlreadyExists(err) || link == nil && err == nil {
		return nil
	}
	if err != nil {
		return err
	}
	ports, err := bridgePorts(link)
	errs := []error{err}
	for _, p := range ports {
		errs = append(errs, deleteLink(p))
	}
	return errors.Join(append(errs, deleteLink(link))...)
}

func deleteLink(link netlink.Link) error {
	err := netlink.LinkDel(link)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove interface %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// bridgePorts lists the veths that are ports of bridge.
func bridgePorts(bridge netlink.Link) ([]netlink.Link, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	var ports []netlink.Link
	for _, l := range links {
		if l.Type() == "veth" && l.Attrs().MasterIndex == bridge.Attrs().Index {
			ports = append(ports, l)
		}
	}
	return ports, nil
}

// listLinks lists all interfaces. A dump that the kernel marks as interrupted, because links came or
// went meanwhile, is asked for again.
func listLinks() ([]netlink.Link, error) {
	const tries = 10
	for i := 0; ; i++ {
		links, err := netlink.LinkList()
		if err == nil {
			return links, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) || i == tries {
			return nil, fmt.Errorf("list network interfaces: %w", err)
		}
	}
}

// checkSubnetFree reports an interface of the host that already uses one of our subnets.
func (m *Manager) checkSubnetFree() error {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.IPNet.String())
		if err != nil {
			continue
		}
		for _, n := range m.networks() {
			if !prefix.Masked().Overlaps(n.subnet) {
				continue
			}
			link, err := netlink.LinkByIndex(a.LinkIndex)
			if err != nil || link.Attrs().Alias == m.alias("") {
				continue
			}
			return fmt.Errorf("subnet %s is already used by interface %s (%s): configure another subnet for %s: %w",
				n.subnet, link.Attrs().Name, prefix, n.bridge, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// hostMTU is the MTU of the interface with the default route, or 1500.
func hostMTU() int {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return defaultMTU
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU >= minMTU {
			return min(link.Attrs().MTU, 65535)
		}
	}
	return defaultMTU
}

// assertBridgeSysctls keeps packets of the bridge from loopback addresses and from changing routes,
// and IPv6 off it.
func assertBridgeSysctls(bridge string) error {
	v4, v6 := "net/ipv4/conf/"+bridge+"/", "net/ipv6/conf/"+bridge+"/"
	for _, s := range []struct{ key, value string }{
		{v4 + "route_localnet", "0"},
		{v4 + "rp_filter", "1"},
		{v4 + "accept_redirects", "0"},
		{v4 + "send_redirects", "0"},
		{v6 + "disable_ipv6", "1"},
	} {
		err := setSysctl(s.key, s.value)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(s.key, "net/ipv6/") {
			continue // a kernel without IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	procSys   = "/proc/sys"
	ipForward = "net/ipv4/ip_forward"
)

func getSysctl(key string) (string, error) {
	data, err := os.ReadFile(filepath.Join(procSys, key))
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// setSysctl writes only what differs, so that a /proc/sys mounted read-only but set right is enough.
func setSysctl(key, value string) error {
	if got, err := getSysctl(key); err != nil || got == value {
		return err
	}
	if err := os.WriteFile(filepath.Join(procSys, key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", key, value, err)
	}
	return nil
}
