package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is the name of the interface inside an instance's namespace.
const Interface = "eth0"

// pluginTimeout bounds one ADD or DEL; they take 20 to 60 ms, and longer only behind other changes
// of network devices.
const pluginTimeout = 15 * time.Second

// Attachment is one instance's place in the network. Fields other than ID are zero when a crash
// left only a part of it.
type Attachment struct {
	ID      string
	IP      netip.Addr
	Gateway netip.Addr // also where DNS answers
	MAC     net.HardwareAddr
	Veth    string // host side of the pair
	NetNS   string // path it was attached by; may be dead
}

func (m *Manager) attachment(r record) Attachment {
	mac, _ := net.ParseMAC(r.MAC)
	return Attachment{ID: r.ID, IP: r.IP, Gateway: m.functions.gateway, MAC: mac, Veth: r.Veth, NetNS: r.NetNS}
}

// Attach gives the namespace at nsPath an interface, an address and a default route, and pins the
// address before it returns; nothing may run in the namespace earlier. nsPath must stay valid until then, and may be
// /proc/<pid>/fd/<n>. It takes 20 ms and more, most of it in the plugins, and may run in parallel.
//
// On failure everything is undone. The errors: errdefs.ErrInvalidArgument for an id that cannot be a
// name, ErrAlreadyExists for one that is attached, ErrResourceExhausted when the subnet has no address left,
// ErrUnavailable before Setup and while the firewall is being restored.
func (m *Manager) Attach(ctx context.Context, id, nsPath string) (Attachment, error) {
	if err := m.requireReady(); err != nil {
		return Attachment{}, fmt.Errorf("attach %s: %w", id, err)
	}
	r, err := m.attachTo(ctx, m.functions, id, nsPath)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s to the network: %w", id, err)
	}
	return m.attachment(r), nil
}

// attachTo is Attach without the question whether the network is proven, which the probe answers.
func (m *Manager) attachTo(ctx context.Context, n *network, id, nsPath string) (r record, err error) {
	if err := checkID(id); err != nil {
		return r, err
	}
	unlock, err := m.ids.lock(ctx, id)
	if err != nil {
		return r, err
	}
	defer unlock()
	r = record{ID: id, Network: n.bridge, NetNS: nsPath}
	if err := m.begin(r); err != nil {
		return r, err
	}
	defer m.finish()
	// before the first effect: ADD can half-succeed
	defer func() {
		if err != nil {
			m.undoAttach(ctx, n, id, nsPath)
		}
	}()
	if err := m.writeRecord(r); err != nil {
		return r, err
	}
	if err := m.add(ctx, n, &r); err != nil {
		return r, err
	}
	if err := m.claimVeth(n, r); err != nil {
		return r, err
	}
	if err := narrow(n, nsPath); err != nil {
		return r, err
	}
	if err := m.writeRecord(r); err != nil {
		return r, err
	}
	if pin, ok := r.pin(); ok && n.pinned {
		if err := m.firewall.Add(ctx, pin); err != nil {
			return r, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live[id] = live{record: r, since: time.Now()}
	return r, nil
}

// begin notes r as live, so that GC knows it, unless there is one of that id.
func (m *Manager) begin(r record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.live[r.ID]; ok {
		return fmt.Errorf("id %s is attached already: %w", r.ID, errdefs.ErrAlreadyExists)
	}
	m.live[r.ID] = live{record: r, since: time.Now()}
	m.inflight++
	m.begun++
	return nil
}

func (m *Manager) finish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inflight--
}

func (m *Manager) undoAttach(ctx context.Context, n *network, id, nsPath string) {
	undo, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), undoTimeout, errors.New("undo took too long"))
	defer cancel()
	if err := m.release(undo, n, id, nsPath); err != nil {
		m.conf.Log.Warn("attachment is not undone; the next collection tries again", "attachment", id, "error", err)
	}
}

// add runs CNI ADD and completes r from its result. The MAC is the kernel's random one: it would have
// to be chosen before the plugin knows the address, and the pin makes it unforgeable either way.
func (m *Manager) add(ctx context.Context, n *network, r *record) error {
	ctx, cancel := context.WithTimeoutCause(ctx, pluginTimeout, errors.New("CNI ADD did not finish"))
	defer cancel()
	res, err := m.cni.AddNetworkList(ctx, n.list, m.runtimeConf(r.ID, r.NetNS))
	if err != nil {
		return m.explainAdd(ctx, n, err)
	}
	result, err := current.NewResultFromResult(res)
	if err != nil {
		return fmt.Errorf("read the CNI result: %w", err)
	}
	return r.complete(result)
}

func (m *Manager) runtimeConf(id, nsPath string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: nsPath, IfName: Interface}
}

// explainAdd turns what the plugins say into a class and a remedy. They have only text for it.
func (m *Manager) explainAdd(ctx context.Context, n *network, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	if strings.Contains(err.Error(), "no IP addresses available") {
		return fmt.Errorf("every address of %s is in use: stop instances or configure a larger subnet: %w", n.subnet, errdefs.ErrResourceExhausted)
	}
	if missing := m.conf.checkPlugins(); missing != nil {
		return missing
	}
	return err
}

// complete fills r with the address, and with the interface pair of the result.
func (r *record) complete(res *current.Result) error {
	for _, ip := range res.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok && addr.Unmap().Is4() {
			r.IP = addr.Unmap()
		}
	}
	for _, i := range res.Interfaces {
		switch {
		case i.Sandbox != "":
			r.MAC = i.Mac
		case i.Name != r.Network:
			r.Veth = i.Name
		}
	}
	if _, ok := r.pin(); !ok {
		return fmt.Errorf("the CNI result lacks an address, a MAC or an interface: %v", res)
	}
	return nil
}

// claimVeth marks the host side of the pair as ours, after looking that the plugin did what pinning and
// isolation rest on: that it is a port of our bridge.
func (m *Manager) claimVeth(n *network, r record) error {
	link, err := netlink.LinkByName(r.Veth)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", r.Veth, err)
	}
	master, err := netlink.LinkByIndex(link.Attrs().MasterIndex)
	if err != nil || master.Attrs().Name != n.bridge {
		return fmt.Errorf("interface %s is no port of bridge %s: %w", r.Veth, n.bridge, errdefs.ErrFailedPrecondition)
	}
	if err := netlink.LinkSetAlias(link, m.alias(r.ID)); err != nil {
		return fmt.Errorf("mark interface %s: %w", r.Veth, err)
	}
	return nil
}

// narrow leaves the gateway as the only neighbour: everything else goes by way of it, where the firewall drops what is for other
// instances. The kernel's table of neighbours is one for all namespaces, and a function that spoke to every
// address of the subnet would fill it for the host and everybody else.
func narrow(n *network, nsPath string) error {
	ns, err := openNamespace(nsPath)
	if err != nil {
		return err
	}
	defer ns.close()
	return ns.do(func() error {
		link, err := netlink.LinkByName(Interface)
		if err != nil {
			return fmt.Errorf("find interface %s inside: %w", Interface, err)
		}
		index := link.Attrs().Index
		gateway := &net.IPNet{IP: n.gateway.AsSlice(), Mask: net.CIDRMask(32, 32)}
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: gateway, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route to the gateway: %w", err)
		}
		subnet := &net.IPNet{IP: n.subnet.Masked().Addr().AsSlice(), Mask: net.CIDRMask(n.subnet.Bits(), 32)}
		err = netlink.RouteDel(&netlink.Route{LinkIndex: index, Dst: subnet, Scope: netlink.SCOPE_LINK})
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route to the subnet: %w", err)
		}
		return nil
	})
}

// Detach removes the attachment: interface pair, address, pin, cache and record. nsPath may be empty
// when the namespace is gone. It is idempotent, frees the address also when the plugins fail or
// the files are damaged, and takes about 40 ms. After an error the record is kept: call again, or let GC.
func (m *Manager) Detach(ctx context.Context, id, nsPath string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	unlock, err := m.ids.lock(ctx, id)
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	defer unlock()
	if err := m.release(ctx, m.networkOf(id), id, nsPath); err != nil {
		return fmt.Errorf("detach %s from the network: %w", id, err)
	}
	return nil
}

// networkOf is the functions' network, except for what the probe recorded on the builds'.
func (m *Manager) networkOf(id string) *network {
	if m.readRecord(id).Network == m.builds.bridge {
		return m.builds
	}
	return m.functions
}

// release takes one attachment apart under its id's lock. The plugins go first, because they are the contract;
// then each thing they own is looked for and removed if it is still there.
func (m *Manager) release(ctx context.Context, n *network, id, nsPath string) error {
	r := m.readRecord(id)
	if nsPath != "" && !leadsTo(nsPath, r) {
		nsPath = "" // everything is on the host's side too
	}
	if r.Network != "" || m.cached(n, id) {
		if err := m.del(ctx, n, id, nsPath); err != nil {
			m.conf.Log.Warn("CNI DEL failed; its work is done without it", "attachment", id, "error", err)
		}
	}
	errs := []error{
		removeInside(nsPath),
		m.removeVeths(id, r.Veth),
		m.ipam(n).free(func(v reservation) bool { return v.holder == id || v.holder == "" && v.addr == r.IP }),
		ignoreMissing(os.Remove(m.cacheFile(n, id))),
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// the pin outlives the veth: a port in no set is not pinned
	if pin, ok := r.pin(); ok && n.pinned {
		if err := m.firewall.Delete(pin); err != nil {
			return err
		}
		forgetNeighbour(n, r.IP)
	}
	if err := m.removeRecord(id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, id)
	return nil
}

// del runs CNI DEL, with the namespace and, if that fails, without it.
func (m *Manager) del(ctx context.Context, n *network, id, nsPath string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, pluginTimeout, errors.New("CNI DEL did not finish"))
	defer cancel()
	err := m.cni.DelNetworkList(ctx, n.list, m.runtimeConf(id, nsPath))
	if err != nil && nsPath != "" {
		err = m.cni.DelNetworkList(ctx, n.list, m.runtimeConf(id, ""))
	}
	return err
}

func (m *Manager) cacheFile(n *network, id string) string {
	return filepath.Join(m.conf.cniDir(), "results", n.bridge+"-"+id+"-"+Interface)
}

func (m *Manager) cached(n *network, id string) bool {
	_, err := os.Lstat(m.cacheFile(n, id))
	return err == nil
}

// leadsTo reports whether nsPath is a network namespace that may be the one of r: not ours, and
// without an interface of that name with another MAC. A path like /proc/<pid>/fd/<n> may by now lead elsewhere, and
// DEL would cut whoever is there off.
func leadsTo(nsPath string, r record) bool {
	ns, err := openNamespace(nsPath)
	if err != nil {
		return false
	}
	defer ns.close()
	if ns.same("/proc/thread-self/ns/net") {
		return false
	}
	err = ns.do(func() error {
		link, err := netlink.LinkByName(Interface)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err == nil && (link.Type() != "veth" || r.MAC != "" && r.MAC != link.Attrs().HardwareAddr.String()) {
			err = errors.New("somebody else's interface")
		}
		return err
	})
	return err == nil
}

// removeInside removes the interface inside the namespace, and its other end with it. It finds a
// pair whose name no result has told us. A namespace that is gone needs nothing.
func removeInside(nsPath string) error {
	if nsPath == "" {
		return nil
	}
	ns, err := openNamespace(nsPath)
	if err != nil {
		return nil
	}
	defer ns.close()
	return ns.do(func() error {
		link, err := netlink.LinkByName(Interface)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find interface %s inside: %w", Interface, err)
		}
		return deleteLink(link)
	})
}

// removeVeths removes the host side by its alias, or by name when the alias was not yet given.
func (m *Manager) removeVeths(id, name string) error {
	if name == "" {
		return nil
	}
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if alias := link.Attrs().Alias; alias != m.alias(id) && (alias != "" || !m.isOurPort(link)) {
		return nil // the name was given to somebody else
	}
	return deleteLink(link)
}

func (m *Manager) isOurPort(link netlink.Link) bool {
	for _, n := range m.networks() {
		if b, err := m.findBridge(n); err == nil && b != nil && link.Attrs().MasterIndex == b.Attrs().Index {
			return true
		}
	}
	return false
}

// forgetNeighbour drops the host's memory of which MAC had the address, so that the next holder is
// not spoken to under it. Only an optimisation: the entry expires by itself.
func forgetNeighbour(n *network, ip netip.Addr) {
	link, err := netlink.LinkByName(n.bridge)
	if err != nil {
		return
	}
	_ = netlink.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip.AsSlice()})
}

// Attachments lists what exists: records, reserved addresses, cached results and marked veths, so
// that it also shows what a crash or a failed Detach left. After the last Detach it is empty.
func (m *Manager) Attachments(ctx context.Context) ([]Attachment, error) {
	known, err := m.known(ctx)
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	list := make([]Attachment, 0, len(known))
	for id, r := range known {
		r.ID = id
		list = append(list, m.attachment(r))
	}
	slices.SortFunc(list, func(a, b Attachment) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}
