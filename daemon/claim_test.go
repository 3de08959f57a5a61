package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"lfx.dev/lfxd/daemon/config"
	"lfx.dev/lfxd/daemon/store"
)

// opened is a daemon that has come as far as its state.
func opened(t *testing.T, c *config.Config) (*Daemon, error) {
	t.Helper()
	d := &Daemon{opts: Options{Config: c}, cfg: c, log: slog.New(slog.DiscardHandler)}
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	t.Cleanup(d.Close)
	return d, errors.Join(d.openDirs(t.Context()))
}

// TestSecondDaemonTakesNothing: one on the same state, or on the same run directory, is told so and
// leaves the first one's sockets alone.
func TestSecondDaemonTakesNothing(t *testing.T) {
	c := config.Default()
	c.StateDir, c.RunDir = filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "run")
	d, err := opened(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.openState(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", c.ControlSocketPath())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing is left to do

	same, elsewhere := *c, *c
	elsewhere.StateDir = filepath.Join(t.TempDir(), "other")
	for _, second := range []struct {
		config *config.Config
		want   error
	}{{&same, store.ErrLocked}, {&elsewhere, ErrInUse}} {
		opts := Options{Config: second.config, Log: slog.New(slog.DiscardHandler)}
		if _, err := Open(t.Context(), opts); !errors.Is(err, second.want) {
			t.Errorf("the second daemon says %v, want %v", err, second.want)
		}
		if _, err := os.Lstat(c.ControlSocketPath()); err != nil {
			t.Fatalf("the second daemon took the first one's socket: %v", err)
		}
	}
	l.Close() //nolint:errcheck // so that the directory is empty
	d.Close()
	if _, err := os.Lstat(c.RunDir); err == nil {
		t.Error("the run directory is left after Close")
	}
	again, err := opened(t, &elsewhere)
	if err != nil {
		t.Errorf("after the first daemon: %v", err)
	}
	again.Close()
}
