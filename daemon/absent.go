package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"lfx.dev/lfxd/daemon/worker"
	"lfx.dev/lfxd/runtime/instance"
)

// engineGrace is how long the start of an instance waits for a containerd that has gone away: one that
// is supervised is back sooner.
const engineGrace = 10 * time.Second

// noAnswer is the one sentence about a containerd that cannot be used: what, where, and what to do.
func (d *Daemon) noAnswer(address string, cause error) error {
	address = strings.TrimPrefix(address, "unix://")
	if errors.Is(cause, fs.ErrPermission) || errdefs.IsPermissionDenied(cause) {
		return fmt.Errorf("containerd's socket %s may not be used by this process: run lfxd as root: %w", address, errdefs.ErrPermissionDenied)
	}
	d.log.Debug("containerd is not answering", "address", address, "error", cause)
	return fmt.Errorf("containerd is not answering on %s: %s: %w", address, d.engineRemedy(), errdefs.ErrUnavailable)
}

// builderRemedy says what a person can do about a buildkitd that is down.
func (d *Daemon) builderRemedy() string {
	switch {
	case d.cfg.Engine.BuildkitAddress != "":
		return "start the buildkitd that engine.buildkit_address names"
	case d.opts.WithEngine:
		return "lfxd starts it again, try once more in a moment; its log says why it ended"
	case d.engine != nil:
		return "systemctl start lfx-buildkitd"
	}
	return "start buildkitd, or name its socket with engine.buildkit_address"
}

// creator makes instances while containerd answers, and waits for it for a while when it does not.
type creator struct{ d *Daemon }

// NewID implements worker.Creator.
func (c creator) NewID(image string) string { return c.d.instances.NewID(image) }

// Create implements worker.Creator.
func (c creator) Create(ctx context.Context, s instance.Spec) (worker.Instance, error) {
	if err := c.d.awaitEngine(ctx); err != nil {
		c.d.instances.GiveBack(s.ID)
		return nil, err
	}
	in, err := c.d.instances.Create(ctx, s)
	if errdefs.IsNotFound(err) {
		c.d.lookForImages()
		return nil, fmt.Errorf("its image is not in containerd any more: lfxd makes it again from what it has stored, or deploy the project again: %w", err)
	}
	if err != nil {
		return nil, err // not a nil instance in an interface
	}
	return in, nil
}

// awaitEngine returns at once while the connection to containerd stands.
func (d *Daemon) awaitEngine(ctx context.Context) error {
	conn, ok := d.client.Conn().(*grpc.ClientConn)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, engineGrace, errors.New("it did not come back"))
	defer cancel()
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return nil
		}
		conn.Connect() // does nothing unless it is idle
		if !conn.WaitForStateChange(ctx, state) {
			return d.noAnswer(conn.Target(), context.Cause(ctx))
		}
	}
}
