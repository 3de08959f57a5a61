package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/activation"

	"lfx.dev/lfxd/daemon/server"
)

// door is a listener as the configuration describes it.
type door struct {
	name    string // of the socket that systemd may pass, see FileDescriptorName= in contrib/systemd
	unit    string // that passes it
	key     string // of the configuration
	network string
	address string // empty for none
	group   string
	kind    server.Kind
}

func (d *Daemon) doors() []door {
	l := d.cfg.Listen
	return []door{
		{"control", "lfxd.socket", "listen.control_socket", "unix", d.cfg.ControlSocketPath(), l.ControlGroup, server.KindControl},
		{"invoke", "lfxd-invoke.socket", "listen.invoke_socket", "unix", d.cfg.InvokeSocketPath(), l.InvokeGroup, server.KindInvoke},
		{"tcp", "lfxd-tcp.socket", "listen.tcp", "tcp", l.TCP, "", server.KindTCP},
	}
}

// bind takes the listeners early: a second daemon or a foreign program on the port is found before
// anything is started, and early requests wait in the backlog instead of being refused. Those that systemd holds
// are taken over; they stay open while lfxd is restarted.
func (d *Daemon) bind(context.Context) error {
	passed, err := activation.ListenersWithNames()
	if err != nil {
		return fmt.Errorf("take over the sockets from systemd: %w", err)
	}
	for _, door := range d.doors() {
		l := passed[door.name]
		delete(passed, door.name)
		if len(l) > 0 {
			err = d.adopt(door, l)
		} else if door.address != "" {
			err = d.open(door)
		}
		if err != nil {
			return errors.Join(err, closeAll(passed))
		}
	}
	for name := range passed {
		d.log.Warn("systemd passed a socket that lfxd has no use for", "name", name)
	}
	return closeAll(passed)
}

// adopt serves a listener that systemd holds, if it is the one that the configuration describes.
func (d *Daemon) adopt(door door, all []net.Listener) error {
	for _, l := range all {
		d.onClose(func() { l.Close() }) //nolint:errcheck // closed by its server already; systemd has its own descriptor
		if !sameAddress(l.Addr(), door) {
			return fmt.Errorf("%s listens on %s, but %s in the configuration says %q: give both the same address (systemctl edit %[1]s), or let lfxd listen by itself (systemctl disable --now %[1]s)",
				door.unit, l.Addr(), door.key, door.address)
		}
		d.bound = append(d.bound, boundListener{l, door.kind})
		d.passed = append(d.passed, filepath.Base(door.address))
	}
	return nil
}

// sameAddress compares what is open with what is wanted; "localhost" is the same as its address.
func sameAddress(open net.Addr, want door) bool {
	if open.Network() != want.network {
		return false
	}
	if want.network == "unix" {
		return open.String() == want.address
	}
	a, err := net.ResolveTCPAddr("tcp", want.address)
	return err == nil && a.String() == open.String()
}

func (d *Daemon) open(door door) error {
	var l net.Listener
	var err error
	if door.network == "unix" {
		var note string
		if l, note, err = server.ListenUnix(door.address, door.group); note != "" {
			d.log.Info(note, "socket", door.address)
		}
	} else if l, err = net.Listen("tcp", door.address); err != nil {
		err = fmt.Errorf("listen on %s: %w: stop the program that has the port, or set %s in the configuration", door.address, err, door.key)
	}
	if err != nil {
		return err
	}
	d.bound = append(d.bound, boundListener{l, door.kind})
	d.onClose(func() { l.Close() }) //nolint:errcheck // closed by its server already
	return nil
}

func closeAll(listeners map[string][]net.Listener) error {
	var errs []error
	for _, all := range listeners {
		for _, l := range all {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}
