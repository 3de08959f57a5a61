package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/cni"
	"lfx.dev/lfxd/daemon/engine"
	"lfx.dev/lfxd/daemon/store"
)

// stopTimeout bounds the wait for a running daemon to stop: its drain, and the removal of instances.
const stopTimeout = 2 * time.Minute

// Down stops the daemon that has the configured state, if one runs, and then removes whatever it or
// one that was killed left on the host: instances, network, engine, sockets. It blocks until all is
// gone. The data in state_dir stays.
func Down(ctx context.Context, opts Options) error {
	for {
		d := &Daemon{opts: opts, cfg: opts.Config, log: opts.Log}
		d.ctx, d.cancel = context.WithCancelCause(context.Background())
		err := d.sweep(ctx)
		if !errors.Is(err, store.ErrLocked) {
			return err
		}
		if err := stopOwner(ctx, filepath.Join(opts.Config.StateDir, "state", "lock")); err != nil {
			return err
		}
	}
}

// stopOwner tells the daemon that holds the lock to stop, and waits until it has ended.
func stopOwner(ctx context.Context, lock string) error {
	text, err := os.ReadFile(lock)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("%s does not say which process holds it: stop lfxd by hand", lock)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it ended in this moment
	}
	if err != nil {
		return fmt.Errorf("find process %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	return waitExit(ctx, fd, pid)
}

// waitExit waits until the process behind a pidfd has ended.
func waitExit(ctx context.Context, fd, pid int) error {
	deadline := time.Now().Add(stopTimeout)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("lfxd (process %d) did not stop within %s: look at its log", pid, stopTimeout)
}

// sweep opens what is needed to remove leftovers, and closes it, which removes them.
func (d *Daemon) sweep(ctx context.Context) error {
	if _, err := os.Stat(d.cfg.StateDir); errors.Is(err, fs.ErrNotExist) {
		return nil // it never ran
	}
	defer d.Close()
	if err := d.openState(ctx); err != nil {
		return err
	}
	left, err := os.ReadDir(d.cfg.RunDir)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(left) == 0) {
		return nil
	}
	d.log.Info("removing what an earlier run left", "run_dir", d.cfg.RunDir)
	c, err := d.networkConfig()
	if err != nil {
		return err
	}
	if d.network, err = cni.New(c); err != nil {
		return err
	}
	d.onClose(func() { d.close("network", d.network.Teardown) })
	d.sweeping = true
	if d.lone, err = d.engineIsDown(ctx); err != nil {
		return err
	}
	if err := d.openEngine(ctx); err != nil {
		return err
	}
	return d.openInstances(ctx)
}

// engineIsDown says whether our own engine is stopped, so that it must be started to remove what is left in it.
func (d *Daemon) engineIsDown(ctx context.Context) (bool, error) {
	if d.opts.WithEngine || d.cfg.Engine.ContainerdAddress != "" || d.cfg.Engine.BuildkitAddress != "" {
		return false, nil
	}
	e, err := engine.New(d.opts.engineConfig())
	if err != nil {
		return false, err
	}
	return !e.Answers(ctx, "containerd"), nil
}

// removeRunDir removes the volatile directory; only what others put there stays.
func (d *Daemon) removeRunDir() {
	for _, name := range []string{"instances", "shims", "net", "engine", filepath.Join("runc", d.cfg.Namespace), "runc"} {
		os.Remove(filepath.Join(d.cfg.RunDir, name)) //nolint:errcheck // not empty means that something is left, which was reported
	}
	for _, s := range []string{d.cfg.ControlSocketPath(), d.cfg.InvokeSocketPath()} {
		if !slices.Contains(d.passed, filepath.Base(s)) {
			os.Remove(s) //nolint:errcheck // gone already
		}
	}
	os.Remove(d.cfg.RunDir) //nolint:errcheck // as above
}
