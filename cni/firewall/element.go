package firewall

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Add lets frames of p.IP and p.MAC enter through p.Port, and nothing else through that port. It
// takes below a millisecond. When the tables are gone it installs them again, p included.
// Adding a pin twice is no error.
func (f *Firewall) Add(ctx context.Context, p Pin) error {
	if err := p.validate(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old, had := f.pins[p.Port]
	f.pins[p.Port] = p
	err := f.change((*nftables.Conn).SetAddElements, p)
	if errors.Is(err, unix.ENOENT) {
		err = f.installLocked(ctx)
	}
	if err != nil {
		delete(f.pins, p.Port)
		if had {
			f.pins[p.Port] = old
		}
		return fmt.Errorf("pin %s to %s: %w", p.IP, p.Port, err)
	}
	return nil
}

// Delete removes p's elements. Absent elements and absent tables are no error. The veth must be
// gone by then: a port that is in no set is not pinned.
func (f *Firewall) Delete(p Pin) error {
	if err := p.validate(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pins, p.Port)
	// one transaction per set, because an element that is missing makes its whole transaction fail
	for _, half := range []func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error{onlyPorts, onlyWho} {
		if err := f.change(half, p); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unpin %s from %s: %w", p.IP, p.Port, err)
		}
	}
	return nil
}

func onlyPorts(c *nftables.Conn, s *nftables.Set, e []nftables.SetElement) error {
	if s.Name != "ports" {
		return nil
	}
	return c.SetDeleteElements(s, e)
}

func onlyWho(c *nftables.Conn, s *nftables.Set, e []nftables.SetElement) error {
	if s.Name != "who" {
		return nil
	}
	return c.SetDeleteElements(s, e)
}

// change applies op to both sets in one transaction.
func (f *Firewall) change(op func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error, p Pin) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables socket: %w", err)
	}
	table := &nftables.Table{Name: f.rules.Table, Family: nftables.TableFamilyBridge}
	for name, key := range map[string][]byte{"ports": portKey(p), "who": whoKey(p)} {
		if err := op(conn, &nftables.Set{Table: table, Name: name}, []nftables.SetElement{{Key: key}}); err != nil {
			return err
		}
	}
	return conn.Flush()
}

// portKey is an interface name as the kernel compares it: 16 bytes, zero padded.
func portKey(p Pin) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, p.Port)
	return key
}

// whoKey is ifname . ipv4_addr . ether_addr; each part of a concatenation fills whole 4-byte registers.
func whoKey(p Pin) []byte {
	ip := p.IP.As4()
	key := make([]byte, unix.IFNAMSIZ+12)
	copy(key, p.Port)
	copy(key[unix.IFNAMSIZ:], ip[:])
	copy(key[unix.IFNAMSIZ+4:], p.MAC)
	return key
}

// Forget drops the recorded pins for which stale returns true; the kernel's sets follow at the next
// Check and Restore.
func (f *Firewall) Forget(stale func(Pin) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for port, p := range f.pins {
		if stale(p) {
			delete(f.pins, port)
		}
	}
}
