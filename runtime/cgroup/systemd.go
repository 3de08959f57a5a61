package cgroup

import (
	"context"
	"fmt"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Units tells systemd of limits that change after it has made a scope: at the next daemon-reload it writes what it was told over what
// was written since. The zero value is ready to use; it connects when it is needed, and again after the connection broke.
type Units struct {
	mu   sync.Mutex
	conn *sd.Conn
}

// unitTimeout bounds a call.
const unitTimeout = 5 * time.Second

// SetMemory tells a scope its hard limit of memory in bytes, and on v2 the tripwire below it. systemd writes them on its own soon after.
func (u *Units) SetMemory(ctx context.Context, unit string, version int, limit, high uint64) error {
	if version == 1 {
		return u.set(ctx, unit, property("MemoryLimit", limit))
	}
	return u.set(ctx, unit, property("MemoryMax", limit), property("MemoryHigh", high))
}

// SetCPU tells a scope its weight in shares, 1024 for a core, and its quota in cores.
func (u *Units) SetCPU(ctx context.Context, unit string, version int, shares uint64, cores float64) error {
	w := property("CPUShares", shares)
	if version == 2 {
		w = property("CPUWeight", weight(shares))
	}
	return u.set(ctx, unit, w, property("CPUQuotaPerSecUSec", quotaPerSecond(cores)))
}

// quotaPerSecond is a quota as systemd has it, in steps of 10 ms as runc rounds it up.
func quotaPerSecond(cores float64) uint64 {
	us := uint64(quota(cores).Microseconds()) * uint64(time.Second/Period)
	return (us + 9999) / 10000 * 10000
}

func property(name string, value uint64) sd.Property {
	return sd.Property{Name: name, Value: dbus.MakeVariant(value)}
}

func (u *Units) set(ctx context.Context, unit string, p ...sd.Property) error {
	ctx, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn != nil && !u.conn.Connected() {
		u.conn.Close()
		u.conn = nil
	}
	if u.conn == nil {
		conn, err := sd.NewSystemdConnectionContext(context.WithoutCancel(ctx)) // it lives as long as its context
		if err != nil {
			return fmt.Errorf("connect to systemd: %w", err)
		}
		u.conn = conn
	}
	if err := u.conn.SetUnitPropertiesContext(ctx, unit, true, p...); err != nil {
		return fmt.Errorf("tell systemd the limits of %s: %w", unit, err)
	}
	return nil
}

// Close ends the connection.
func (u *Units) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn != nil {
		u.conn.Close()
		u.conn = nil
	}
}
