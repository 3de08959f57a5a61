package policy

import "time"

// view is the expected course of an idle time, and what each minute of it is worth. The last bin stands for all
// beyond the range.
type view struct {
	p     [Bins + 1]float64 // weight of a call in this bin
	alive [Bins + 1]float64 // weight of no call before this bin
	hold  [Bins + 1]float64 // seconds for which an instance is held in this bin, × weight
	// warm and spare are what a bin gains at this temperature against cold, in MiB·s × weight.
	warm, spare [Bins + 1]float64
}

// weigh fills the view of a function.
func (p *Policy) weigh(v *view, f *Func, c Cost) {
	v.p[0] = float64(f.near)
	v.p[Bins] = float64(f.long) + 1
	once := 1 / (1 + float64(f.rest)/8) // the less is known, the wider it is spread
	for i, w := range p.prior {
		v.p[i] += w
		v.p[Bins] -= w
		v.spread(i, float64(f.bins[i]), once)
	}
	total := 0.0
	for _, w := range v.p {
		total += w
	}
	v.value(total, p.opts.Worth, c)
}

// spread adds n idle times to bin i, a part of them to the bins around, 5 % to either side: what was
// seen once comes again about then.
func (v *view) spread(i int, n, part float64) {
	if n == 0 {
		return
	}
	side := max(1, i/20)
	from, to := max(1, i-side), min(Bins-1, i+side)
	v.p[i] += n * (1 - part)
	each := n * part / float64(to-from+1)
	for j := from; j <= to; j++ {
		v.p[j] += each
	}
}

// value fills what follows from the weights.
func (v *view) value(alive, worth float64, c Cost) {
	scarcity := c.Scarcity
	if scarcity == 0 {
		scarcity = 1
	}
	width := BinWidth.Seconds()
	for i, w := range v.p {
		if i == Bins {
			width = (longest - Range).Seconds()
		}
		v.alive[i] = alive
		v.hold[i] = (alive - w/2) * width
		alive = max(0, alive-w)
		v.warm[i] = w*worth*c.Start.Seconds() - v.hold[i]*c.MemoryMB*scarcity
		v.spare[i] = w*worth*(c.Start-c.SpareStart).Seconds() - v.hold[i]*c.SpareMB*scarcity
	}
}

// window finds the minutes that gain most: those from the beginning up to KeepFor, and a later stretch, which
// has to gain more than the start in the background costs. None lies behind end.
func (v *view) window(end int, again float64) Window {
	var until [Bins + 1]int // where the best stretch from a bin on ends
	var gain [Bins + 1]float64
	for a := end - 1; a >= 0; a-- {
		gain[a], until[a] = v.warm[a], a+1
		if gain[a+1] > 0 {
			gain[a], until[a] = gain[a]+gain[a+1], until[a+1]
		}
	}
	var w Window
	var sum, head, best float64 // head is the most that bins before a gain, kept to keep
	keep := 0
	for a := 0; a <= end; a++ {
		if sum > head {
			head, keep = sum, a
		}
		if total := head + gain[a] - v.alive[a]*again; a > keep && a < end && total > best && gain[a] > v.alive[a]*again {
			best = total
			w = Window{KeepFor: bins(keep), PrewarmAt: bins(a), PrewarmUntil: bins(until[a])}
		}
		if a < end {
			sum += v.warm[a]
		}
	}
	if head >= best {
		w = Window{KeepFor: bins(keep)}
	}
	return w
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
	if end > Bins {
		return Forever
	}
	return bins(end)
}

// scores computes what Policy.Score answers.
func (v *view) scores(c Cost) (out [len(scoreAges)]float32) {
	for k, age := range scoreAges {
		var calls, held, best float64
		for i := int(age / BinWidth); i <= Bins; i++ {
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

func bins(n int) time.Duration { return time.Duration(n) * BinWidth }
