package policy

import "time"

// cells divide all idle times: those below a minute, the minutes of the range, and all that lie beyond.
const cells = nearBins + Bins - 1 + 1

// cell returns from when to when a cell reaches.
func cell(i int) (from, to time.Duration) {
	switch {
	case i < nearBins:
		return time.Duration(i) * nearWidth, time.Duration(i+1) * nearWidth
	case i < cells-1:
		return bins(i - nearBins + 1), bins(i - nearBins + 2)
	}
	return Range, longest
}

// cellWidths are the cells in seconds.
var cellWidths = func() (out [cells]float64) {
	for i := range out {
		from, to := cell(i)
		out[i] = (to - from).Seconds()
	}
	return out
}()

// cellOf returns the cell that an idle time lies in.
func cellOf(idle time.Duration) int {
	switch {
	case idle < BinWidth:
		return int(max(idle, 0) / nearWidth)
	case idle < Range:
		return nearBins - 1 + int(idle/BinWidth)
	}
	return cells - 1
}

func bins(n int) time.Duration { return time.Duration(n) * BinWidth }

// view is the expected course of an idle time, and what each cell of it is worth.
type view struct {
	p     [cells]float64 // weight of a call in this cell
	alive [cells]float64 // weight of no call before this cell
	hold  [cells]float64 // seconds for which an instance is held in this cell, × weight
	// warm and spare are what a cell gains at this temperature against cold, in MiB·s × weight.
	warm, spare [cells]float64
}

// weigh fills the view of a function.
func (p *Policy) weigh(v *view, f *Func, c Cost) {
	v.p = p.prior
	for i, n := range f.near {
		v.p[i] += float64(n)
	}
	v.p[cells-1] += float64(f.long)
	sharp := (float64(f.again) + 0.5) / (float64(f.rest) + 1)
	for i, n := range f.bins {
		if n > 0 {
			v.spread(i, float64(n)*sharp)
			v.blur(i, float64(n)*(1-sharp))
		}
	}
	total := 0.0
	for _, w := range v.p {
		total += w
	}
	v.value(total, p.opts.Worth, c)
}

// spread adds n idle times around bin: what was seen comes again about then.
func (v *view) spread(bin int, n float64) {
	from, to := around(bin)
	each := n / float64(to-from+1) / 2
	v.p[nearBins-1+bin] += n / 2
	for j := from; j <= to; j++ {
		v.p[nearBins-1+j] += each
	}
}

// blur adds n idle times to all that are half as long up to twice as long: what was seen says little about when it
// comes again.
func (v *view) blur(bin int, n float64) {
	from, to := max(1, bin/2), 2*bin+1
	each := n / float64(to-from+1)
	if to >= Bins {
		v.p[cells-1] += each * float64(to-Bins+1)
		to = Bins - 1
	}
	for j := from; j <= to; j++ {
		v.p[nearBins-1+j] += each
	}
}

// value fills what follows from the weights.
func (v *view) value(alive, worth float64, c Cost) {
	scarcity := c.scarcity()
	warm, spare := worth*c.Start.Seconds(), worth*(c.Start-c.SpareStart).Seconds()
	for i, w := range v.p {
		v.alive[i] = alive
		v.hold[i] = (alive - w/2) * cellWidths[i]
		alive = max(0, alive-w)
		v.warm[i] = w*warm - v.hold[i]*c.MemoryMB*scarcity
		v.spare[i] = w*spare - v.hold[i]*c.SpareMB*scarcity
	}
}

// window finds the cells that gain most: those from the beginning up to KeepFor, and a later stretch, which
// has to gain more than the start in the background costs. All lie before end.
func (v *view) window(end int, again float64) Window {
	var until [cells + 1]int // where the best stretch from a cell on ends
	var gain [cells + 1]float64
	for a := end - 1; a >= 0; a-- {
		gain[a], until[a] = v.warm[a], a+1
		if gain[a+1] > 0 {
			gain[a], until[a] = gain[a]+gain[a+1], until[a+1]
		}
	}
	var w Window
	var sum, head, best float64 // head is the most that the cells before a gain, kept up to keep
	keep := 0
	for a := range end + 1 {
		if sum > head {
			head, keep = sum, a
		}
		if a == end {
			break
		}
		if later := gain[a] - v.alive[a]*again; a > keep && later > 0 && head+later > best {
			best = head + later
			w = Window{KeepFor: begin(keep), PrewarmAt: begin(a), PrewarmUntil: begin(until[a])}
		}
		sum += v.warm[a]
	}
	if head >= best {
		w = Window{KeepFor: begin(keep)}
	}
	return w
}

func begin(i int) time.Duration {
	from, _ := cell(i)
	return from
}

// spareFor finds until when a spare gains.
func (v *view) spareFor() time.Duration {
	var sum, best float64
	end := 0
	for i, g := range v.spare {
		if sum += g; sum > best {
			best, end = sum, i+1
		}
	}
	if end == cells {
		return Forever
	}
	return begin(end)
}

// scores computes what Policy.Score answers.
func (v *view) scores(c Cost) (out [len(scoreAges)]float32) {
	for k, age := range scoreAges {
		var calls, held, best float64
		for i := cellOf(age); i < cells; i++ {
			calls += v.p[i]
			held += v.hold[i]
			if held > 0 {
				best = max(best, calls/held)
			}
		}
		out[k] = float32(best * c.Start.Seconds() / max(c.MemoryMB, 1))
	}
	return out
}

// step returns from when to when a cell of a group reaches.
func step(i int) (from, to time.Duration) {
	if i > 0 {
		from = steps[i-1]
	}
	if i == len(steps) {
		return from, longest
	}
	return from, steps[i]
}

// widths are the cells of a group in seconds.
var widths = func() (out [len(steps) + 1]float64) {
	for i := range out {
		from, to := step(i)
		out[i] = (to - from).Seconds()
	}
	return out
}()

// alive returns the weight of no call before a cell of a group.
func (p *Policy) alive(g *group, first int) (sum float64) {
	for i := first; i < len(g); i++ {
		sum += float64(g[i]) + p.more[i]
	}
	return sum
}

// keep finds until when an instance of a group gains.
func (p *Policy) keep(g *group, c Cost) time.Duration {
	var sum, best float64
	end := 0
	saves, costs := p.opts.Worth*c.Start.Seconds(), c.MemoryMB*c.scarcity()
	alive := p.alive(g, 0)
	for i := range steps {
		w := float64(g[i]) + p.more[i]
		sum += w*saves - (alive-w/2)*widths[i]*costs
		if sum > best {
			best, end = sum, i+1
		}
		alive -= w
	}
	if end == 0 {
		return 0
	}
	return steps[end-1]
}

// score is Policy.Score for an instance of a group.
func (p *Policy) score(g *group, c Cost, idle time.Duration) float64 {
	var calls, held, best float64
	first := 0
	for first < len(steps) && idle >= steps[first] {
		first++
	}
	alive := p.alive(g, first)
	for i := first; i < len(g); i++ {
		w := float64(g[i]) + p.more[i]
		calls, held = calls+w, held+(alive-w/2)*widths[i]
		best = max(best, calls/held)
		alive -= w
	}
	return best * c.Start.Seconds() / max(c.MemoryMB, 1)
}
