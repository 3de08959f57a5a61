package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"

	"lfx.dev/lfxd/cni/dns"
	"lfx.dev/lfxd/cni/firewall"
)

// undoTimeout bounds what is done after a failure, on a context of its own.
const undoTimeout = 20 * time.Second

// phase says what a Manager may do.
//
//	created ──Setup──▶ ready ◀──restored──┐
//	   ▲                 │ └────breach──▶ cut
//	   └────Teardown─────┴────────────────┘
type phase int

const (
	created phase = iota // nothing is installed: Attach is refused
	ready                // the probe passed and the rules stand
	cut                  // the rules are not as installed: bridges are down, Attach is refused
)

func (p phase) String() string { return [...]string{"not set up", "ready", "cut off"}[p] }

// Manager owns both bridges, both tables and every attachment. Its methods may be called
// concurrently, except Setup and Teardown, which exclude each other and Run.
type Manager struct {
	conf      Config
	functions *network
	builds    *network
	firewall  *firewall.Firewall
	cni       *libcni.CNIConfig
	resolver  *dns.Forwarder
	ids       keyLock

	mu       sync.Mutex // guards what follows; never held across I/O
	phase    phase
	live     map[string]live
	inflight int    // Attaches between their record and their alias
	begun    uint64 // Attaches ever begun
}

// live is an attachment of this process or one loaded from its record.
type live struct {
	record
	since time.Time // zero when an earlier process made it
}

// New validates c and finds what it needs on the host; it changes nothing. The errors are
// errdefs.ErrInvalidArgument for a configuration that cannot work and ErrFailedPrecondition for a
// program that is missing, with what to install.
func New(c Config) (*Manager, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.MTU == 0 {
		c.MTU = hostMTU()
	}
	functions, err := newNetwork(c, c.Bridge, c.Subnet, true)
	if err != nil {
		return nil, err
	}
	builds, err := newNetwork(c, c.BuildBridge, c.BuildSubnet, false)
	if err != nil {
		return nil, err
	}
	fw, err := firewall.New(firewall.Rules{Table: c.Table, Bridges: []firewall.Bridge{functions.rules(), builds.rules()}, Allow: c.Allow})
	if err != nil {
		return nil, err
	}
	return &Manager{
		conf: c, functions: functions, builds: builds, firewall: fw, live: map[string]live{},
		cni: libcni.NewCNIConfigWithCacheDir([]string{c.BinDir}, c.cniDir(), &pluginExec{}),
	}, nil
}

func (m *Manager) networks() []*network { return []*network{m.functions, m.builds} }

// BuildConflist is the CNI configuration for builds, for BuildKit's cniConfigPath.
func (m *Manager) BuildConflist() []byte { return m.builds.json }

// Setup installs the firewall, then the bridges, then the forwarder, and proves with the probe that
// the first holds; it takes below two seconds. What a crashed run left under our names is adopted, so a second
// Setup is no error. When anything fails, and above all when the probe reached something, everything
// is undone and no instance may start.
func (m *Manager) Setup(ctx context.Context) (err error) {
	if err := m.conf.checkPlugins(); err != nil {
		return err
	}
	if err := m.checkSubnetFree(); err != nil {
		return err
	}
	for _, n := range m.networks() {
		if _, err := m.findBridge(n); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), undoTimeout, errors.New("undo took too long"))
			defer cancel()
			if undoErr := m.Teardown(undo); undoErr != nil {
				m.conf.Log.Warn("network setup is not undone", "error", undoErr)
			}
		}
	}()
	if err := m.loadRecords(); err != nil {
		return err
	}
	wasOff, err := m.recordForwarding()
	if err != nil {
		return err
	}
	if err := m.firewall.Install(ctx, wasOff); err != nil {
		return err
	}
	if err := setSysctl(ipForward, "1"); err != nil {
		return fmt.Errorf("functions need the host to route for them: %w", err)
	}
	for _, n := range m.networks() {
		if err := m.ensureBridge(n); err != nil {
			return err
		}
	}
	if err := m.startDNS(ctx); err != nil {
		return err
	}
	if err := m.probe(ctx); err != nil {
		return err
	}
	m.setPhase(ready)
	return nil
}

func (m *Manager) setPhase(p phase) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.phase = p
}

func (m *Manager) currentPhase() phase {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.phase
}

// loadRecords takes over the attachments that an earlier process recorded, so that they stay pinned
// until GC or Detach is asked to remove them.
func (m *Manager) loadRecords() error {
	for _, dir := range []string{m.conf.ipamDir(), m.conf.recordDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make run directory: %w", err)
		}
	}
	if err := m.removeUnfinished(); err != nil {
		return fmt.Errorf("remove unfinished records: %w", err)
	}
	ids, err := m.recordedIDs()
	if err != nil {
		return err
	}
	var pins []firewall.Pin
	for _, id := range ids {
		r := m.readRecord(id)
		m.mu.Lock()
		if _, ok := m.live[id]; !ok {
			m.live[id] = live{record: r}
		}
		m.mu.Unlock()
		if pin, ok := r.pin(); ok && r.Network != m.builds.bridge {
			pins = append(pins, pin)
		}
	}
	return m.firewall.Preload(pins)
}

// recordForwarding notes, once for all runs until Teardown, whether the host was a router before us.
func (m *Manager) recordForwarding() (wasOff bool, err error) {
	if before, ok := m.forwardingBefore(); ok {
		return before == "0", nil
	}
	now, err := getSysctl(ipForward)
	if err != nil {
		return false, err
	}
	if err := writeFileAtomic(m.conf.forwardFile(), []byte(now)); err != nil {
		return false, fmt.Errorf("record %s: %w", ipForward, err)
	}
	return now == "0", nil
}

// forwardingBefore reads the note; false when there is none that makes sense.
func (m *Manager) forwardingBefore() (string, bool) {
	data, err := os.ReadFile(m.conf.forwardFile())
	value := strings.TrimSpace(string(data))
	if _, convErr := strconv.Atoi(value); err != nil || convErr != nil {
		return "", false
	}
	return value, true
}

// startDNS answers on both gateways, for their subnets only.
func (m *Manager) startDNS(ctx context.Context) error {
	if m.conf.NoDNS || m.resolver != nil {
		return nil
	}
	c := dns.Config{Upstreams: m.conf.DNSUpstreams, ResolvConf: m.conf.ResolvConf, Log: m.conf.Log}
	for _, n := range m.networks() {
		c.Listen = append(c.Listen, gatewayDNS(n))
		c.Clients = append(c.Clients, n.subnet)
	}
	f, err := dns.New(c)
	if err != nil {
		return err
	}
	if err := f.Start(ctx); err != nil {
		return err
	}
	m.resolver = f
	return nil
}

// Teardown removes what Setup and Attach made, also what an earlier process of the same
// configuration made, and restores ip_forward: no bridge, veth, table, address or record is left. It goes on
// after errors and returns them all; calling it again is no error. Instances lose their network.
func (m *Manager) Teardown(ctx context.Context) error {
	m.setPhase(created)
	var errs []error
	if m.resolver != nil {
		errs = append(errs, m.resolver.Close())
		m.resolver = nil
	}
	// bridges before tables: while a veth carries frames the rules must stand
	for _, n := range m.networks() {
		errs = append(errs, m.removeBridge(n))
	}
	if before, ok := m.forwardingBefore(); ok {
		errs = append(errs, setSysctl(ipForward, before))
	}
	if len(m.linksLeft()) == 0 {
		errs = append(errs, m.firewall.Remove(ctx))
	}
	m.mu.Lock()
	clear(m.live)
	m.mu.Unlock()
	errs = append(errs, os.RemoveAll(m.conf.ipamDir()), os.RemoveAll(m.conf.cniDir()))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take the network down: %w", err)
	}
	return nil
}

// linksLeft lists our bridges that still exist.
func (m *Manager) linksLeft() []string {
	var left []string
	for _, n := range m.networks() {
		if link, err := m.findBridge(n); link != nil || err != nil && !errdefs.IsAlreadyExists(err) {
			left = append(left, n.bridge)
		}
	}
	return left
}

// requireReady is errdefs.ErrUnavailable unless instances may be attached.
func (m *Manager) requireReady() error {
	if p := m.currentPhase(); p != ready {
		return fmt.Errorf("the functions' network is %s: %w", p, errdefs.ErrUnavailable)
	}
	return nil
}
