package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/daemon/engine"
)

// builderGrace is how long after its start lfxd waits for buildkitd before it says that it is down: the unit of
// buildkitd starts after lfxd's, which must have set up the network of builds.
const builderGrace = 20 * time.Second

// connectGrace is how long a connection to a buildkitd that listens may take.
const connectGrace = 5 * time.Second

// EngineUnit is what the units lfx-containerd.service and lfx-buildkitd.service are made of: one part of lfxd's own
// engine, with the same files as --with-engine uses.
type EngineUnit struct {
	opts Options
	name string
}

// NewEngineUnit returns the unit of "containerd" or "buildkitd".
func NewEngineUnit(opts Options, name string) EngineUnit { return EngineUnit{opts, name} }

// Wanted says whether this host uses lfxd's own part; class errdefs.ErrNotFound says why not.
func (u EngineUnit) Wanted() error {
	key, address := "containerd_address", u.opts.Config.Engine.ContainerdAddress
	if u.name == "buildkitd" && address == "" {
		key, address = "buildkit_address", u.opts.Config.Engine.BuildkitAddress
	}
	if address != "" {
		return fmt.Errorf("engine.%s in the configuration names another one, %s: %w", key, address, errdefs.ErrNotFound)
	}
	return nil
}

// Exec becomes the part; see engine.Engine.Exec.
func (u EngineUnit) Exec(ctx context.Context) error {
	e, err := engine.New(u.opts.engineConfig())
	if err != nil {
		return err
	}
	return e.Exec(ctx, u.name)
}

// Ready waits until the part answers; see engine.Engine.Ready.
func (u EngineUnit) Ready(ctx context.Context) error {
	e, err := engine.New(u.opts.engineConfig())
	if err != nil {
		return err
	}
	return e.Ready(ctx, u.name)
}

// awaitBuilder gives a buildkitd that systemd is just starting the time to do so, and our connection to one that is
// there again the time to be made: until gRPC tries again, it answers with the old failure. What is wrong
// after that, the build says.
func (b *backend) awaitBuilder(ctx context.Context) {
	if b.engine == nil {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, later(b.started.Add(builderGrace), time.Now().Add(connectGrace)))
	defer cancel()
	if time.Since(b.started) < builderGrace && b.engine.Ready(ctx, "buildkitd") != nil {
		return
	}
	for b.engine.Answers(ctx, "buildkitd") {
		if _, err := b.builder.Info(ctx); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookInterval):
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
