package daemon

import (
	"context"
	"time"
)

// When images are looked for, and how seldom the daemon tries when it cannot bring them back.
const (
	rebuildPause   = 15 * time.Second
	rebuildMost    = 10 * time.Minute
	rebuildTimeout = 30 * time.Minute // of one attempt: builds have their own, shorter
)

// rebuildLoop brings back images that containerd has lost: it looks when the daemon starts, when containerd was away and
// when an instance could not be started for want of its image; after a failure again, ever more seldom.
func (d *Daemon) rebuildLoop() {
	pause := rebuildPause
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-d.missed:
			timer.Reset(0)
			continue
		case <-timer.C:
		}
		if d.rebuild() {
			pause = rebuildPause
			timer.Stop()
		} else {
			timer.Reset(pause)
			pause = min(2*pause, rebuildMost)
		}
		if !d.rest(rebuildPause) { // whatever is missed, not more often
			return
		}
	}
}

// rest waits; false means that Close has begun.
func (d *Daemon) rest(pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-d.ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// lookForImages makes the loop look soon; it never blocks.
func (d *Daemon) lookForImages() {
	select {
	case d.missed <- struct{}{}:
	default: // it will look anyway
	}
}

// rebuild makes one attempt and says whether nothing is missing.
func (d *Daemon) rebuild() bool {
	ctx, cancel := context.WithTimeout(d.ctx, rebuildTimeout)
	defer cancel()
	rebuilt, missing, err := d.deployer.Rebuild(ctx)
	for _, h := range rebuilt {
		d.log.Info("images that containerd had lost are back", "environment", h.Environment.String(), "functions", h.Functions, "release", h.Release)
	}
	if err != nil && d.ctx.Err() == nil {
		d.log.Warn("images that containerd has lost are not back", "missing", missing, "error", err)
	}
	return err == nil && missing == 0
}
