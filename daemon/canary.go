package daemon

import (
	"context"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/judge"
)

// judgeInterval is the pause between two looks at the canaries that lfxd decides about.
const judgeInterval = 2 * time.Second

// canaries is what the judge sees and does. Every decision is recorded with the switch that it makes, or
// alone when it makes none.
type canaries Daemon

var (
	_ judge.Source  = (*canaries)(nil)
	_ judge.Actions = (*canaries)(nil)
)

// runJudge decides about canaries until the daemon closes.
func (d *Daemon) runJudge() {
	c := (*canaries)(d)
	judge.New(judge.Options{Source: c, Actions: c, Interval: judgeInterval, Log: d.log}).Run(d.ctx)
}

// Figures implements judge.Source.
func (c *canaries) Figures(env function.Environment, release int) judge.Counters {
	n := c.pools.Counters(env, release)
	return judge.Counters{Requests: n.Roots, Errors: n.RootErrors, Latency: n.Latency}
}

// Canaries implements judge.Actions.
func (c *canaries) Canaries() (out []judge.Canary) {
	view := c.store.View()
	for _, e := range view.Environments() {
		canary, active := view.Canary(e.Environment), view.ActiveRelease(e.Environment)
		if canary == nil || canary.Auto == nil || active == nil {
			continue
		}
		out = append(out, judge.Canary{
			Environment: e.Environment, Canary: *canary, Active: active.Number, Extended: extensions(view.Decisions(e.Environment), canary),
		})
	}
	return out
}

// extensions counts how often the canary's time was extended.
func extensions(decisions []function.Decision, c *function.Canary) (n int) {
	for _, d := range decisions {
		if d.Action == function.CanaryExtended && d.Release == c.Release && !d.Time.Before(c.Since) {
			n++
		}
	}
	return n
}

// Promote implements judge.Actions.
func (c *canaries) Promote(ctx context.Context, env function.Environment, d function.Decision) error {
	return c.deployer.Promote(ctx, api.ReleaseRequest{Environment: env, Release: d.Release}, d)
}

// Abort implements judge.Actions.
func (c *canaries) Abort(ctx context.Context, env function.Environment, d function.Decision) error {
	return c.deployer.Abort(ctx, api.ReleaseRequest{Environment: env, Release: d.Release}, d)
}

// Extend implements judge.Actions.
func (c *canaries) Extend(ctx context.Context, env function.Environment, d function.Decision) error {
	if err := c.store.NoteDecision(ctx, env, d); err != nil {
		return err
	}
	c.log.Info("canary extended", "environment", env.String(), "release", d.Release, "reason", d.Reason)
	return nil
}
