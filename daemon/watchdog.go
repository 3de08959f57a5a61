package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"lfx.dev/lfxd/daemon/server"
)

// statusInterval is how often systemd is told how lfxd is when no watchdog asks more often.
const statusInterval = 10 * time.Second

// lookInterval is how often lfxd looks whether a containerd that was away listens again.
const lookInterval = 200 * time.Millisecond

// partTimeout bounds the question to containerd: its silence is its own fault and no reason to be restarted.
const partTimeout = 3 * time.Second

// Notify tells systemd something (sd_notify(3)); without systemd it does nothing.
func (d *Daemon) Notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		d.log.Warn("systemd cannot be told", "state", state, "error", err)
	}
}

// watchdog tells systemd that lfxd works, until Close begins: each time only after a pass through what would hang
// if lfxd did: the store's way of writing, a call of containerd that came back, with or without success, and a
// request through the control socket's own accept loop. containerd being down is in the status and
// no reason to stop: warm functions go on.
func (d *Daemon) watchdog() {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	interval := statusInterval
	if timeout, err := sd.SdWatchdogEnabled(false); err == nil && timeout > 0 {
		interval = min(interval, timeout/3)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if status, err := d.alive(); err == nil {
			d.Notify(sd.SdNotifyWatchdog + "\nSTATUS=" + status)
		} else if d.ctx.Err() == nil {
			d.log.Error("lfxd does not work as it should; systemd's watchdog restarts it if this lasts", "error", err)
		}
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// alive goes through everything that a working daemon gets through, and says how things are.
func (d *Daemon) alive() (status string, err error) {
	if err := d.store.Probe(d.ctx); err != nil {
		return "", fmt.Errorf("the state cannot be written: %w", err)
	}
	ctx, cancel := context.WithTimeout(d.ctx, partTimeout)
	defer cancel()
	_, engineErr := d.client.Version(ctx)
	if err := d.knock(d.ctx); err != nil && d.ctx.Err() == nil {
		return "", fmt.Errorf("the control socket does not answer: %w", err)
	}
	if engineErr != nil && d.ctx.Err() == nil {
		return "containerd is not answering, warm functions go on: " + d.engineRemedy(), nil
	}
	functions, instances := 0, 0
	for _, p := range d.pools.Pools() {
		functions++
		instances += p.Stats().Instances
	}
	return fmt.Sprintf("%d functions, %d instances", functions, instances), d.ctx.Err() // what was cut off says nothing
}

// knock sends a request through the control socket, and gives up when ctx ends. Any answer will do.
func (d *Daemon) knock(ctx context.Context) error {
	for _, l := range d.bound {
		if l.kind == server.KindControl {
			return knockAt(ctx, l.Addr())
		}
	}
	return nil
}

func knockAt(ctx context.Context, addr net.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, addr.Network(), addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })() //nolint:errcheck // ends what waits
	if _, err = io.WriteString(conn, "HEAD / HTTP/1.1\r\nHost: lfx\r\nConnection: close\r\n\r\n"); err == nil {
		_, err = io.ReadFull(conn, make([]byte, len("HTTP/1.1 "+strconv.Itoa(http.StatusOK))))
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// followEngine reconciles at once when the connection to containerd is back, until Close begins: whatever ended
// while it was away was seen by nobody.
func (d *Daemon) followEngine() {
	conn, ok := d.client.Conn().(*grpc.ClientConn)
	if !ok {
		return
	}
	state, lost := conn.GetState(), false
	for d.ctx.Err() == nil {
		switch state {
		case connectivity.Ready:
			if lost {
				lost = false
				d.log.Info("containerd is back")
				d.reconcileNow()
				d.lookForImages()
			}
		case connectivity.Idle: // the connection has ended, and would stay so until somebody calls
			lost = true
			conn.Connect()
		case connectivity.TransientFailure:
			if !lost {
				d.log.Warn("containerd is not answering; warm functions go on", "remedy", d.engineRemedy())
			}
			lost = true
		}
		d.awaitChange(conn, state)
		state = conn.GetState()
	}
}

// awaitChange returns when the state of the connection is another one or Close begins. gRPC tries again at growing
// intervals, up to seconds, and answers every call with the old failure until then: as soon as somebody
// listens again it is told to try at once.
func (d *Daemon) awaitChange(conn *grpc.ClientConn, state connectivity.State) {
	if state != connectivity.TransientFailure {
		conn.WaitForStateChange(d.ctx, state)
		return
	}
	for d.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(d.ctx, lookInterval)
		changed := conn.WaitForStateChange(ctx, state)
		cancel()
		if changed {
			return
		}
		if c, err := net.DialTimeout("unix", strings.TrimPrefix(conn.Target(), "unix://"), lookInterval); err == nil {
			c.Close() //nolint:errcheck // nothing was said
			conn.ResetConnectBackoff()
		}
	}
}

// engineRemedy says what a person can do about an engine that is down.
func (d *Daemon) engineRemedy() string {
	switch {
	case d.opts.WithEngine:
		return "lfxd starts it again; its log says why it ended"
	case d.engine != nil:
		return "systemctl start lfx-containerd"
	}
	return "start the containerd that engine.containerd_address names"
}
