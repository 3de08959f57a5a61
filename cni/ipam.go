package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ipam reads and repairs the directory of one network in which host-local keeps one file per
// reserved address. We touch it only under host-local's own lock, so a file that is empty then was
// not just being written: a crash left it (containernetworking/plugins issue 498).
type ipam struct{ dir string }

func (m *Manager) ipam(n *network) ipam { return ipam{filepath.Join(m.conf.ipamDir(), n.bridge)} }

// reservation is one address file; holder is empty when the file does not say.
type reservation struct {
	addr   netip.Addr
	holder string
}

// locked runs f under host-local's lock; it does nothing when the directory is not there. The wait
// is as long as one reservation takes, microseconds.
func (p ipam) locked(f func() error) error {
	lock, err := os.OpenFile(filepath.Join(p.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock addresses: %w", err)
	}
	defer lock.Close() // releases the lock
	for {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
		if err == nil {
			return f()
		}
		if !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("lock addresses: %w", err)
		}
	}
}

// list returns all reservations; call it under the lock to act on it.
func (p ipam) list() ([]reservation, error) {
	entries, err := os.ReadDir(p.dir)
	if err := ignoreMissing(err); err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []reservation
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // the lock, and where the last search ended
		}
		data, err := os.ReadFile(filepath.Join(p.dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read address %s: %w", addr, err)
		}
		out = append(out, reservation{addr, parseHolder(data)})
	}
	return out, nil
}

// parseHolder returns the id in "id\r\nifname", or nothing when the file does not read like that.
func parseHolder(data []byte) string {
	id, ifname, ok := strings.Cut(string(data), "\r\n")
	if !ok || ifname == "" || !validID.MatchString(id) {
		return ""
	}
	return id
}

// free removes the reservations for which stale returns true.
func (p ipam) free(stale func(reservation) bool) error {
	return p.locked(func() error {
		list, err := p.list()
		errs := []error{err}
		for _, r := range list {
			if stale(r) {
				errs = append(errs, ignoreMissing(os.Remove(filepath.Join(p.dir, r.addr.String()))))
			}
		}
		return errors.Join(errs...)
	})
}
