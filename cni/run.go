package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"lfx.dev/lfxd/cni/firewall"
)

const (
	checkEvery = 10 * time.Second
	retryEvery = time.Second
	// checkTries is how often in a row the rules may be unreadable, nft for example cannot be started,
	// before that counts as a breach.
	checkTries = 3
)

// Run keeps the network as Setup left it until ctx ends, and then returns nil: it looks at the tables every ten
// seconds and whenever nftables reports a change. When somebody flushed or changed them, both bridges
// are set down at once, so that nothing can pass without rules; Config.OnBreach is called, the tables are put back with
// the elements of every instance, the bridges are set up and Config.OnRestored is called. That takes
// about 20 ms; connections survive it.
func (m *Manager) Run(ctx context.Context) error {
	events := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := m.firewall.Watch(ctx, func() {
			select {
			case events <- struct{}{}:
			default: // one is waiting
			}
		})
		if err != nil {
			m.conf.Log.Warn("firewall events are not available; looking every ten seconds", "error", err)
		}
		return nil
	})
	g.Go(func() error { m.keep(ctx, events); return nil })
	return g.Wait()
}

// keep calls assert at every event and tick.
func (m *Manager) keep(ctx context.Context, events <-chan struct{}) {
	failed := 0
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
		case <-next.C:
		}
		wait := checkEvery
		if !m.assert(ctx, &failed) {
			wait = retryEvery
		}
		next.Reset(wait)
	}
}

// assert compares and repairs; it returns false when it must be called again soon.
func (m *Manager) assert(ctx context.Context, failed *int) bool {
	if m.currentPhase() == created {
		return true
	}
	err := m.firewall.Check(ctx)
	switch {
	case ctx.Err() != nil:
		return true
	case err == nil:
		*failed = 0
		return m.assertHost(ctx)
	case errors.Is(err, firewall.ErrElements):
		// an instance that lacks its element is cut off, not set free; nothing to fail closed
		m.conf.Log.Warn("firewall sets were changed by somebody else; putting them back")
		return m.firewall.Restore(ctx) == nil
	case !errors.Is(err, firewall.ErrChanged):
		if *failed++; *failed < checkTries {
			m.conf.Log.Warn("firewall cannot be read", "error", err)
			return false
		}
	}
	return m.repair(ctx, err)
}

// assertHost puts back what the rules rest on, and ends a breach whose repair had failed half-way.
func (m *Manager) assertHost(ctx context.Context) bool {
	errs := []error{setSysctl(ipForward, "1")}
	for _, n := range m.networks() {
		errs = append(errs, assertBridgeSysctls(n.bridge))
	}
	if err := errors.Join(errs...); err != nil {
		m.conf.Log.Warn("network settings of the host cannot be kept", "error", err)
		return false
	}
	if m.currentPhase() == cut {
		return m.reopen(ctx)
	}
	return true
}

// repair cuts the bridges, then puts the rules back. The bridges stay down until it succeeds.
func (m *Manager) repair(ctx context.Context, cause error) bool {
	if m.currentPhase() == ready {
		m.setPhase(cut)
		if err := m.setBridges(netlink.LinkSetDown); err != nil {
			m.conf.Log.Error("bridges cannot be cut while the firewall is open", "error", err)
		}
		m.conf.Log.Warn("firewall was changed by somebody else; instances are cut off until it is back", "cause", cause)
		m.conf.OnBreach(fmt.Errorf("network cut off: %w", cause))
	}
	if err := m.firewall.Restore(ctx); err != nil {
		m.conf.Log.Error("firewall cannot be put back; instances stay cut off", "error", err)
		return false
	}
	return m.reopen(ctx)
}

func (m *Manager) reopen(context.Context) bool {
	if err := m.setBridges(netlink.LinkSetUp); err != nil {
		m.conf.Log.Error("bridges cannot be set up again", "error", err)
		return false
	}
	m.setPhase(ready)
	m.conf.Log.Info("firewall is back")
	m.conf.OnRestored()
	return true
}
