package policy

import (
	"math"
	"time"
)

// Cost is what a function's instances cost. Give the same values as long as they are about the same (round what
// is measured): another Cost makes Window compute anew.
type Cost struct {
	// MemoryMB is what an idle instance holds, in MiB.
	MemoryMB float64
	// Start is how long an invocation waits for a cold start.
	Start time.Duration
	// SpareMB is what a spare holds, in MiB, and SpareStart how long an invocation waits when there is one.
	// SpareMB 0 means that spares are not to be had.
	SpareMB    float64
	SpareStart time.Duration
	// Scarcity multiplies the price of memory: see Scarcity. 0 means 1.
	Scarcity float64
}

func (c Cost) scarcity() float64 {
	if c.Scarcity == 0 {
		return 1
	}
	return c.Scarcity
}

// Scarcity says how dear memory is while used of budget are taken (same unit): an eighth of the
// usual price while half is free, twice when nearly all is taken. It has few steps, so that windows
// need not be computed at each change. A budget of 0 means unknown: 1.
func Scarcity(used, budget int64) float64 {
	if budget <= 0 {
		return 1
	}
	switch share := float64(used) / float64(budget); {
	case share < 0.5:
		return 0.125
	case share < 0.75:
		return 0.5
	case share < 0.9:
		return 1
	}
	return 2
}

// Options are the knobs of a Policy.
type Options struct {
	// Worth is how many MiB·s of idle memory one second of waiting is worth.
	Worth float64
	// Least is how long any idle instance is kept.
	Least time.Duration
	// Fallback is how long an instance is kept while less than Learn idle times are known.
	Fallback time.Duration
	Learn    int
	// Background is what a start ahead of need costs, as a part of a start that somebody waits for.
	Background float64
}

// Defaults are the Options of the daemon.
func Defaults() Options {
	return Options{Worth: 400_000, Least: 10 * time.Second, Fallback: 10 * time.Minute, Learn: 2, Background: 0.1}
}

// Forever is a time that does not end.
const Forever = time.Duration(math.MaxInt64)

// Window says what is worth its memory, as ages: times since the newest idle instance became idle.
type Window struct {
	// KeepFor is how long an idle instance is kept.
	KeepFor time.Duration
	// PrewarmAt and PrewarmUntil enclose a later time in which a call is so likely that an instance is
	// started for it; both are 0 when there is none.
	PrewarmAt, PrewarmUntil time.Duration
	// SpareFor is until when a spare is worth its memory where no idle instance is; 0 for not at all, Forever
	// without an end.
	SpareFor time.Duration
}

// Warm says whether an instance should be idle at this age.
func (w Window) Warm(age time.Duration) bool {
	return age < w.KeepFor || w.Prewarm(age)
}

// Prewarm says whether an instance should be started ahead of need at this age.
func (w Window) Prewarm(age time.Duration) bool {
	return age >= w.PrewarmAt && age < w.PrewarmUntil
}

// Spare says whether a spare should be there at this age, given that no idle instance is.
func (w Window) Spare(age time.Duration) bool { return age < w.SpareFor }

// Until returns until which age an instance that is idle at age is kept.
func (w Window) Until(age time.Duration) time.Duration {
	if w.Prewarm(age) {
		return w.PrewarmUntil
	}
	return w.KeepFor
}

// Policy weighs what is known of functions. It does not change and may be used by many goroutines, each
// with Funcs of its own.
type Policy struct {
	opts Options
	// prior is what is believed of a function of which nothing is known, more the same in the cells of a group; both sum up to 1.
	prior [cells]float64
	more  [len(steps) + 1]float64
}

// longest is the idle time up to which the prior reaches, and all that lie beyond the range are taken for.
const longest = 24 * time.Hour

// New makes a Policy.
func New(opts Options) *Policy {
	p := &Policy{opts: opts}
	// Idle times of functions are spread over magnitudes: evenly over the logarithm from a second to a day.
	weight := func(from, to time.Duration) float64 {
		return math.Log(to.Seconds()/max(1, from.Seconds())) / math.Log(longest.Seconds())
	}
	for i := range p.prior {
		p.prior[i] = weight(cell(i))
	}
	for i := range p.more {
		p.more[i] = weight(step(i))
	}
	return p
}

// Options returns the policy's options.
func (p *Policy) Options() Options { return p.opts }

// Window returns what is worth its memory. Level is how many instances there are, busy and idle ones: the
// window is that of the one that is idle for longest. Of the further instances only KeepFor and SpareFor
// are told: one at a time is started ahead of need. For the first one the answer is kept in f and computed
// anew, in some microseconds, only when the cost differs or an eighth more is known than then.
func (p *Policy) Window(f *Func, c Cost, level int) Window {
	p.refresh(f, c)
	w := f.made.window
	if level > 1 && f.Seen() >= p.opts.Learn {
		w.PrewarmAt, w.PrewarmUntil = 0, 0
		w.KeepFor = max(p.keep(&f.more[groupOf(level)], c), p.opts.Least)
	}
	return w
}

// Score returns what an instance is worth that has been idle for this long: the expected seconds of
// waiting that it saves for each MiB·s that it holds from now on, at best. Level is as in Window. When room
// is wanted, the instance with the lowest score goes first.
func (p *Policy) Score(f *Func, c Cost, level int, idle time.Duration) float64 {
	if level > 1 {
		return p.score(&f.more[groupOf(level)], c, idle)
	}
	p.refresh(f, c)
	if !f.made.scored {
		var v view
		p.weigh(&v, f, c)
		f.made.score, f.made.scored = v.scores(c), true
	}
	i := len(scoreAges) - 1
	for i > 0 && idle < scoreAges[i] {
		i--
	}
	return float64(f.made.score[i])
}

// scoreAges are the ages at which a Func remembers its score: hazards fall slower and slower.
var scoreAges = [...]time.Duration{
	0, 1 * time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute,
	30 * time.Minute, 60 * time.Minute, 120 * time.Minute, 180 * time.Minute, Range,
}

func (p *Policy) refresh(f *Func, c Cost) {
	m := &f.made
	short := f.short()
	if m.ok && m.cost == c && m.news <= f.rest/8 && short <= m.near+m.near/4 && short >= m.near/2 {
		return
	}
	var v view
	p.weigh(&v, f, c)
	*m = made{ok: true, near: short, cost: c}
	if f.Seen() < p.opts.Learn {
		m.window.KeepFor = p.opts.Fallback
	} else {
		m.window = v.window(f.percentile(), p.opts.Background*p.opts.Worth*c.Start.Seconds())
	}
	m.window.KeepFor = max(m.window.KeepFor, p.opts.Least)
	if c.SpareMB > 0 {
		m.window.SpareFor = v.spareFor()
	}
}
