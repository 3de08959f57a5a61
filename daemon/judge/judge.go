// Package judge decides about canaries: it compares what a canary and the active release did since the canary
// was seen first, and promotes it, aborts it, or gives it more time. It changes nothing itself and reads no
// figures itself: Source counts, Actions acts. Verdict is the rule alone: no clock, no state.
//
// What is compared, and when:
//
//	always       clearly worse (many more errors, on enough requests): aborted at once
//	at After     enough requests: promoted when it is not worse, else aborted
//	             too few requests: extended, again at 2 × After; aborted at 3 × After
//
// Only root requests count, nested calls run on their caller's release. The first tenth of After (at most a
// minute) does not count for the p99: the canary's first requests start instances that the active release has.
// A p99 is compared when both sides have enough requests beyond that; too few of the canary's are too few requests.
// After a restart of the daemon the counting begins anew, and so does the time for too few requests; After does not.
package judge

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/histogram"
)

// Counters is what a release did since the daemon was started; they only grow. Only root requests count.
type Counters struct {
	Requests, Errors int64
	Latency          histogram.Snapshot
}

// Source counts what releases do.
type Source interface {
	Figures(env function.Environment, release int) Counters
}

// Canary is a canary that lfxd decides about, with the release beside it.
type Canary struct {
	function.Environment
	function.Canary // Auto is not nil
	// Active is the number of the active release.
	Active int
	// Extended is how often its time was extended.
	Extended int
}

// Actions finds the canaries and carries decisions out, each of which it records. An error leaves everything as it
// was; the judge decides anew a little later.
type Actions interface {
	// Canaries lists the canaries with Auto.
	Canaries() []Canary
	Promote(ctx context.Context, env function.Environment, d function.Decision) error
	Abort(ctx context.Context, env function.Environment, d function.Decision) error
	Extend(ctx context.Context, env function.Environment, d function.Decision) error
}

// Options are the settings of a Judge.
type Options struct {
	Source  Source
	Actions Actions
	// Interval is the pause between two looks.
	Interval time.Duration
	Log      *slog.Logger
}

// Judge looks at the canaries again and again.
type Judge struct {
	opts    Options
	begun   time.Time // of the first look: nothing was counted before
	watched map[watchKey]*watch
}

// New makes a Judge; Run runs it.
func New(opts Options) *Judge {
	return &Judge{opts: opts, watched: map[watchKey]*watch{}}
}

// watchKey names one run of a canary: the same release may be one again later.
type watchKey struct {
	function.Environment
	release, active int
	since           int64
}

// watch is where the counting of a canary began.
type watch struct {
	begun          time.Time
	canary, active Counters
	// canaryLatency and activeLatency are where that of the latencies began.
	canaryLatency, activeLatency histogram.Snapshot
}

// Run looks every Interval until ctx ends.
func (j *Judge) Run(ctx context.Context) {
	tick := time.NewTicker(j.opts.Interval)
	defer tick.Stop()
	for {
		j.Look(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Look decides about every canary once. Not for concurrent use.
func (j *Judge) Look(ctx context.Context, now time.Time) {
	if j.begun.IsZero() {
		j.begun = now
	}
	canaries := j.opts.Actions.Canaries()
	seen := make(map[watchKey]bool, len(canaries))
	for _, c := range canaries {
		key := watchKey{c.Environment, c.Release, c.Active, c.Since.UnixNano()}
		seen[key] = true
		if j.watched[key] == nil {
			j.watched[key] = j.begin(c, now)
			continue
		}
		j.decide(ctx, c, j.watched[key], now)
	}
	for key := range j.watched {
		if !seen[key] {
			delete(j.watched, key)
		}
	}
}

func (j *Judge) begin(c Canary, now time.Time) *watch {
	w := &watch{begun: now, canary: j.opts.Source.Figures(c.Environment, c.Release), active: j.opts.Source.Figures(c.Environment, c.Active)}
	w.canaryLatency, w.activeLatency = w.canary.Latency, w.active.Latency
	return w
}

// warmUp is how long the latencies of a canary do not count.
func warmUp(after time.Duration) time.Duration { return min(after/10, time.Minute) }

func (j *Judge) decide(ctx context.Context, c Canary, w *watch, now time.Time) {
	canary, active := j.opts.Source.Figures(c.Environment, c.Release), j.opts.Source.Figures(c.Environment, c.Active)
	if now.Sub(w.begun) <= warmUp(c.Auto.After) {
		w.canaryLatency, w.activeLatency = canary.Latency, active.Latency
	}
	d := function.Decision{
		Time: now.UTC(), Release: c.Release, By: function.ByJudge,
		Canary: figures(canary, w.canary, w.canaryLatency), Active: figures(active, w.active, w.activeLatency),
	}
	t := Time{Running: now.Sub(c.Since), Watched: min(now.Sub(w.begun), now.Sub(c.Since)), Restarted: c.Since.Before(j.begun), Extended: c.Extended}
	d.Action, d.Reason = Verdict(*c.Auto, t, *d.Canary, *d.Active)
	var err error
	switch d.Action {
	case "":
		return
	case function.CanaryPromoted:
		err = j.opts.Actions.Promote(ctx, c.Environment, d)
	case function.CanaryAborted:
		err = j.opts.Actions.Abort(ctx, c.Environment, d)
	case function.CanaryExtended:
		err = j.opts.Actions.Extend(ctx, c.Environment, d)
	}
	if err != nil && ctx.Err() == nil {
		j.opts.Log.Warn("a decision about a canary could not be carried out; it is made again", "environment", c.Environment.String(), "release", c.Release,
			"action", d.Action, "reason", d.Reason, "error", err)
	}
}

// figures is what was counted since.
func figures(now, before Counters, latency histogram.Snapshot) *function.Figures {
	f := &function.Figures{Requests: max(now.Requests-before.Requests, 0), Errors: max(now.Errors-before.Errors, 0)}
	if f.Requests > 0 {
		f.ErrorRate = min(float64(f.Errors)/float64(f.Requests), 1)
	}
	since := now.Latency.Sub(latency)
	f.Samples, f.P50, f.P99 = since.Count(), since.Quantile(0.5), since.Quantile(0.99)
	return f
}

const (
	// extensions is how often After may pass before a canary without requests is aborted.
	extensions = 3
	// clearlyErrors is the least number of errors, and clearlyRate the least distance of the rates, that are
	// clearly worse; the distance is also clearlyTimes what the manifest allows.
	clearlyErrors = 5
	clearlyRate   = 0.1
	clearlyTimes  = 5
	// leastCompared is how many requests a release must have served after the warm-up for its p99 to say
	// something.
	leastCompared = 20
	// leastSlower is a difference of p99 that is never too much: below it the clock and the scheduler decide.
	leastSlower = time.Millisecond
)

// clearlyRequests is how many requests are enough to see that a canary is clearly worse.
func clearlyRequests(j function.Judgement) int64 {
	return min(int64(j.MinRequests), max(int64(j.MinRequests)/4, 20))
}

// Time is how long a canary runs.
type Time struct {
	// Running is the time since the canary's begin, Watched that since its requests are counted: it is less after
	// a restart of the daemon.
	Running, Watched time.Duration
	// Restarted says that the canary is older than the counting.
	Restarted bool
	// Extended is how often its time was extended.
	Extended int
}

// Verdict decides about a canary by what it and the active release did. action is one of function's Canary
// constants, or empty to wait; reason is a sentence for people.
func Verdict(j function.Judgement, t Time, canary, active function.Figures) (action, reason string) {
	worse := canary.ErrorRate - active.ErrorRate
	if canary.Requests >= clearlyRequests(j) && canary.Errors >= clearlyErrors && worse > max(clearlyRate, clearlyTimes*j.MaxErrorRate) {
		return function.CanaryAborted, "clearly worse: " + rates(canary, active)
	}
	if t.Running < j.After {
		return "", ""
	}
	if canary.Requests < int64(j.MinRequests) {
		return tooFew(j, t, fmt.Sprintf("it served %d of the %d requests that it is judged on", canary.Requests, j.MinRequests))
	}
	if worse > j.MaxErrorRate {
		return function.CanaryAborted, fmt.Sprintf("%s: more than %s above it is too much", rates(canary, active), percent(j.MaxErrorRate))
	}
	if active.Samples < leastCompared {
		return function.CanaryPromoted, fmt.Sprintf("%s; the active release served too few requests to compare p99", rates(canary, active))
	}
	if canary.Samples < leastCompared {
		return tooFew(j, t, fmt.Sprintf("it served %d of the %d requests after its warm-up that its p99 is judged on", canary.Samples, leastCompared))
	}
	if canary.P99-active.P99 > leastSlower && float64(canary.P99) > float64(active.P99)*j.MaxP99Ratio {
		return function.CanaryAborted, fmt.Sprintf("its p99 is %s, the active release's %s: more than %v times is too much", canary.P99, active.P99, j.MaxP99Ratio)
	}
	return function.CanaryPromoted, fmt.Sprintf("%s; its p99 is %s, the active release's %s", rates(canary, active), canary.P99, active.P99)
}

// tooFew is the verdict when the time is over and the requests were too few; served says how many there were.
func tooFew(j function.Judgement, t Time, served string) (action, reason string) {
	since := ""
	if t.Restarted {
		since = " since lfxd was started"
	}
	periods := int(t.Watched / j.After)
	switch {
	case periods >= extensions:
		return function.CanaryAborted, fmt.Sprintf("%s within %s%s", served, extensions*j.After, since)
	case periods > t.Extended:
		return function.CanaryExtended, fmt.Sprintf("%s%s: it gets %s more", served, since, j.After)
	}
	return "", ""
}

func rates(canary, active function.Figures) string {
	return fmt.Sprintf("%s of its %d requests failed, %s of the active release's %d", percent(canary.ErrorRate), canary.Requests, percent(active.ErrorRate), active.Requests)
}

func percent(rate float64) string { return fmt.Sprintf("%.4g %%", 100*rate) }
