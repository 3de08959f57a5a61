package cgroup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Units talks to systemd of the scopes that it has made for instances. It tells it of limits that change afterwards: at the next daemon-reload
// systemd writes what it was told over what was written since. And it stops scopes. It connects when it is needed, and again after the connection broke.
type Units struct {
	turn chan struct{} // holds one while nobody uses what follows
	conn *sd.Conn
	end  context.CancelFunc // ends conn
	over bool
}

// NewUnits returns Units; Close them.
func NewUnits() *Units {
	u := &Units{turn: make(chan struct{}, 1)}
	u.turn <- struct{}{}
	return u
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
	err := u.call(ctx, func(ctx context.Context) error { return u.conn.SetUnitPropertiesContext(ctx, unit, true, p...) })
	if err != nil {
		return fmt.Errorf("tell systemd the limits of %s: %w", unit, err)
	}
	return nil
}

// Stop kills what is in a scope, ends it and waits until it has ended, at most unitTimeout. One that systemd does not know is no error. A scope
// whose cgroup somebody else removes stays active for ever, because systemd hears of its last process from that cgroup.
func (u *Units) Stop(ctx context.Context, unit string) error {
	done := make(chan string, 1)
	err := u.call(ctx, func(ctx context.Context) error {
		_ = u.conn.KillUnitWithTarget(ctx, unit, sd.All, int32(unix.SIGKILL)) // a stop alone asks them to go, and waits for a minute or more
		_, err := u.conn.StopUnitContext(ctx, unit, "replace", done)
		return err
	})
	if e := (dbus.Error{}); errors.As(err, &e) && e.Name == "org.freedesktop.systemd1.NoSuchUnit" {
		return nil
	}
	if err == nil {
		err = await(ctx, done)
	}
	if err == nil { // one that ended by a signal stays in systemd's list until somebody has seen it
		err = u.call(ctx, func(ctx context.Context) error {
			_ = u.conn.ResetFailedUnitContext(ctx, unit) // gone already, as a rule
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", unit, err)
	}
	return nil
}

// await waits for the end of a job of systemd.
func await(ctx context.Context, done <-chan string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, unitTimeout, errors.New("its processes do not end"))
	defer cancel()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// call makes a call over the connection, one at a time.
func (u *Units) call(ctx context.Context, do func(context.Context) error) error {
	select {
	case <-u.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { u.turn <- struct{}{} }()
	ctx, cancel := context.WithTimeoutCause(ctx, unitTimeout, errors.New("systemd does not answer"))
	defer cancel()
	if err := u.connect(ctx); err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	err := do(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // D-Bus says that a deadline has passed, not whose
	}
	return err
}

// connect makes sure that there is a connection. A connection lives as long as the context that it was made with, so that context ends with
// ctx only while it is being made.
func (u *Units) connect(ctx context.Context) error {
	if u.over {
		return errdefs.ErrUnavailable
	}
	if u.conn != nil && u.conn.Connected() {
		return nil
	}
	u.hangUp()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, end)
	conn, err := sd.NewSystemdConnectionContext(life)
	if !stop() && err == nil {
		conn.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		end()
		return err
	}
	u.conn, u.end = conn, end
	return nil
}

func (u *Units) hangUp() {
	if u.conn != nil {
		u.conn.Close()
		u.end()
		u.conn = nil
	}
}

// Close ends the connection, for good. It waits for a call under way.
func (u *Units) Close() {
	<-u.turn
	defer func() { u.turn <- struct{}{} }()
	u.over = true
	u.hangUp()
}
