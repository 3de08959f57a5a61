package daemon

import (
	"context"
	"time"
)

// When images are looked for, and how seldom the daemon tries when it cannot bring them back.
const (
	healPause   = 15 * time.Second
	healMost    = 10 * time.Minute
	healTimeout = 30 * time.Minute // of one attempt: builds have their own, shorter
)

// healLoop brings back images that containerd has lost: it looks when the daemon starts, when containerd was away and
// when an instance could not be started for want of its image; after a failure again, ever more seldom.
func (d *Daemon) healLoop() {
	pause := healPause
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
		if d.heal() {
			pause = healPause
			timer.Stop()
		} else {
			timer.Reset(pause)
			pause = min(2*pause, healMost)
		}
		if !d.rest(healPause) { // whatever is missed, not more often
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

// heal makes one attempt and says whether nothing is missing.
func (d *Daemon) heal() bool {
	ctx, cancel := context.WithTimeout(d.ctx, healTimeout)
	defer cancel()
	healed, missing, err := d.deployer.Heal(ctx)
	for _, h := range healed {
		d.log.Info("images that containerd had lost are back", "environment", h.Environment.String(), "functions", h.Functions, "release", h.Release)
	}
	if err != nil && d.ctx.Err() == nil {
		d.log.Warn("images that containerd has lost are not back", "missing", missing, "error", err)
	}
	return err == nil && missing == 0
}
