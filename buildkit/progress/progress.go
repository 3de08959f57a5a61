// Package progress shows the progress of builds in a terminal.
//
// It has no Linux dependencies, because lfxctl runs on macOS and Windows too.
package progress

import (
	"context"
	"fmt"
	"io"

	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
)

// Modes of Display.
const (
	// Auto is TTY on a terminal and Plain elsewhere.
	Auto = "auto"
	// TTY redraws; it fails when out is not a terminal.
	TTY = "tty"
	// Plain prints one line per event, for logs.
	Plain = "plain"
	// Quiet reads the channel and prints nothing.
	Quiet = "quiet"
)

// Display shows what arrives on the channel until it is closed or the context ends, and blocks
// for as long. The statuses of several builds may come interleaved on one channel, because
// buildkit.Client makes their steps distinct.
//
// Whoever sends on the channel must not be kept waiting: when the context ends first, Display
// leaves the channel unread.
func Display(ctx context.Context, out io.Writer, mode string, ch <-chan *bkclient.SolveStatus) error {
	d, err := progressui.NewDisplay(out, progressui.DisplayMode(mode))
	if err != nil {
		return fmt.Errorf("show progress as %q: %w", mode, err)
	}
	// progressui wants a bidirectional channel; the pump ends with ch or with the display.
	both := make(chan *bkclient.SolveStatus)
	ctx, cancel := context.WithCancelCause(ctx)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		pump(ctx, ch, both)
	}()
	_, err = d.UpdateFrom(ctx, both)
	cancel(nil)
	<-finished
	return err
}

func pump(ctx context.Context, from <-chan *bkclient.SolveStatus, to chan<- *bkclient.SolveStatus) {
	defer close(to)
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-from:
			if !ok {
				return
			}
			select {
			case to <- s:
			case <-ctx.Done():
				return
			}
		}
	}
}
