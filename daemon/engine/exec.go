package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// This file is for a service manager that supervises the children in our place: systemd's units run
// Exec as the service and Ready after it, so that they and --with-engine start the same programs with
// the same files.

// childNamed returns the child that a unit speaks of.
func (e *Engine) childNamed(name string) (*child, error) {
	for _, c := range []*child{e.containerd, e.buildkitd} {
		if c.name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("the engine has no part %q, only containerd and buildkitd: %w", name, errdefs.ErrInvalidArgument)
}

// Exec writes the configuration and becomes the child: on success it does not return, and the process goes on as
// containerd or buildkitd under the same process id. What the manager gave it, its limits, its cgroup and its
// notification socket, is passed on.
func (e *Engine) Exec(ctx context.Context, name string) error {
	c, err := e.childNamed(name)
	if err != nil {
		return err
	}
	if err := e.prepare(ctx); err != nil {
		return err
	}
	env := c.env
	if v, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
		env = append(env, "NOTIFY_SOCKET="+v)
	}
	if err := unix.Exec(c.bin, []string{c.bin, "--config", c.config}, env); err != nil {
		return fmt.Errorf("run %s: %w", c.bin, err)
	}
	return nil
}

// Ready waits until the child answers, at most for StartTimeout, and then does what follows each of its starts.
func (e *Engine) Ready(ctx context.Context, name string) error {
	c, err := e.childNamed(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := c.probe(ctx)
		if err == nil {
			return c.ready()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer on %s: %w", name, e.cfg.socket(name), errors.Join(err, errdefs.ErrUnavailable))
		case <-tick.C:
		}
	}
}

// Answers says whether "containerd" or "buildkitd" listens now, whoever started it.
func (e *Engine) Answers(ctx context.Context, name string) bool {
	return dialable(ctx, e.cfg.socket(name)) == nil
}
