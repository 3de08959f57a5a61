package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sync/errgroup"

	"lfx.dev/lfxd/cni/firewall"
)

// collectParallel is how many attachments are taken apart at a time: most of a DEL waits for the
// kernel, and instances that start meanwhile want its attention too.
const collectParallel = 4

// GC removes every attachment whose id is not in validIDs, and what carries no id at all: damaged address
// files, veths that nobody claimed, elements of the firewall's sets, addresses of builds when no
// build is attached. It spares what began within Config.GCGrace. It goes on after errors and returns
// them all; call it again.
func (m *Manager) GC(ctx context.Context, validIDs []string) error {
	valid := make(map[string]bool, len(validIDs))
	for _, id := range validIDs {
		valid[id] = true
	}
	known, err := m.known(ctx)
	errs := []error{err}
	var g errgroup.Group
	g.SetLimit(collectParallel)
	var mu sync.Mutex // guards errs while g runs
	for id := range known {
		if valid[id] {
			continue
		}
		g.Go(func() error {
			err := m.collect(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	errs = append(errs, m.collectUnclaimed(), m.collectAddresses(), m.collectElements(ctx), m.pluginGC(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("collect network leftovers: %w", err)
	}
	return nil
}

// collect releases one attachment that nobody wants, unless it is young. DEL runs without the recorded
// namespace: its path names a descriptor of a process, and may by now lead to another instance.
func (m *Manager) collect(ctx context.Context, id string) error {
	unlock, err := m.ids.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	m.mu.Lock()
	l, ok := m.live[id]
	m.mu.Unlock()
	if ok && !l.since.IsZero() && time.Since(l.since) < m.conf.GCGrace {
		return nil
	}
	m.conf.Log.Info("collecting network of an instance that is gone", "attachment", id)
	return m.release(ctx, m.networkOf(id), id, "")
}

// known gathers the ids that anything of ours on the host carries, with their records.
func (m *Manager) known(ctx context.Context) (map[string]record, error) {
	ids, err := m.recordedIDs()
	if err != nil {
		return nil, err
	}
	reserved, err := m.ipam(m.functions).list()
	if err != nil {
		return nil, err
	}
	known := map[string]record{}
	for _, v := range reserved {
		if v.holder != "" {
			ids = append(ids, v.holder)
			known[v.holder] = record{IP: v.addr}
		}
	}
	cached, err := m.cachedIDs()
	if err != nil {
		return nil, err
	}
	claimed, err := m.claimedVeths()
	if err != nil {
		return nil, err
	}
	for id, veth := range claimed {
		ids = append(ids, id)
		r := known[id]
		r.Veth = veth
		known[id] = r
	}
	for _, id := range append(ids, cached...) {
		if r := m.readRecord(id); r.Network != "" {
			known[id] = r
		} else if _, ok := known[id]; !ok {
			known[id] = r
		}
	}
	return known, context.Cause(ctx)
}

// cachedIDs lists the ids for which libcni keeps a result of our functions' network.
func (m *Manager) cachedIDs() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(m.conf.cniDir(), "results"))
	if err := ignoreMissing(err); err != nil {
		return nil, fmt.Errorf("list cached CNI results: %w", err)
	}
	var ids []string
	for _, e := range entries {
		name, ours := strings.CutPrefix(e.Name(), m.functions.bridge+"-")
		id, ok := strings.CutSuffix(name, "-"+Interface)
		if ours && ok && validID.MatchString(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// claimedVeths returns the veths that carry our alias, by id.
func (m *Manager) claimedVeths() (map[string]string, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	claimed := map[string]string{}
	for _, l := range links {
		id, ok := strings.CutPrefix(l.Attrs().Alias, m.alias(""))
		if ok && l.Type() == "veth" && validID.MatchString(id) {
			claimed[id] = l.Attrs().Name
		}
	}
	return claimed, nil
}

// collectUnclaimed removes veths on the functions' bridge without an alias: ADD made them and died. While an
// Attach is between the two it cannot be told apart, so then the next collection does it.
func (m *Manager) collectUnclaimed() error {
	before, quiet := m.attaching()
	bridge, err := m.findBridge(m.functions)
	if bridge == nil || err != nil || !quiet {
		return err
	}
	ports, err := bridgePorts(bridge)
	if err != nil {
		return err
	}
	if after, _ := m.attaching(); after != before {
		return nil
	}
	var errs []error
	for _, p := range ports {
		if p.Attrs().Alias == "" {
			m.conf.Log.Info("collecting an interface that nobody claimed", "interface", p.Attrs().Name)
			errs = append(errs, deleteLink(p))
		}
	}
	return errors.Join(errs...)
}

// attaching returns how many Attaches ever began and whether none is in progress.
func (m *Manager) attaching() (begun uint64, quiet bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.begun, m.inflight == 0
}

// collectAddresses frees what no plugin would: files without a holder, and all addresses of builds when their
// bridge has no port (a port comes before its address and goes after the interface).
func (m *Manager) collectAddresses() error {
	err := m.ipam(m.functions).free(func(v reservation) bool { return v.holder == "" })
	bridge, findErr := m.findBridge(m.builds)
	if bridge == nil || findErr != nil {
		return errors.Join(err, findErr)
	}
	empty := sync.OnceValue(func() bool { // asked under the lock of addresses, once
		ports, err := bridgePorts(bridge)
		return err == nil && len(ports) == 0
	})
	return errors.Join(err, m.ipam(m.builds).free(func(reservation) bool { return empty() }))
}

// collectElements makes the firewall's sets hold exactly our pins. Changed rules are Run's business.
func (m *Manager) collectElements(ctx context.Context) error {
	if m.currentPhase() != ready {
		return nil
	}
	m.firewall.Forget(m.unowned())
	if err := m.firewall.Check(ctx); !errors.Is(err, firewall.ErrElements) {
		return nil
	}
	return m.firewall.Restore(ctx)
}

// unowned returns a predicate: does no attachment of ours have this port.
func (m *Manager) unowned() func(firewall.Pin) bool {
	return func(p firewall.Pin) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, l := range m.live {
			if l.Veth == p.Port {
				return false
			}
		}
		return m.inflight == 0
	}
}

// pluginGC issues CNI's own GC. Everything that is still cached counts as valid: libcni would run DEL for
// the rest with namespaces that may have become another instance's.
func (m *Manager) pluginGC(ctx context.Context) error {
	cached, err := m.cni.GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("list cached CNI attachments: %w", err)
	}
	args := &libcni.GCArgs{}
	for _, a := range cached {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	if err := m.cni.GCNetworkList(ctx, m.functions.list, args); err != nil {
		return fmt.Errorf("CNI GC: %w", err)
	}
	return nil
}
