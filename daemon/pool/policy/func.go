package policy

import (
	"math/bits"
	"time"
)

const (
	// Bins, BinWidth and Range are the shape of the histogram of the first instance's idle times.
	Bins     = 240
	BinWidth = time.Minute
	Range    = Bins * BinWidth

	// Idle times below a minute are counted apart, in nearBins of nearWidth: a busy function has millions of
	// them.
	nearBins  = 6
	nearWidth = BinWidth / nearBins

	// memory is how many idle times above a minute are remembered with full weight: when there are as many, all
	// counts are halved, so that old habits fade. It fits the type of bins.
	memory = 255
	// absences is how many groups of given-up instances are remembered.
	absences = 8
)

// Func is what is known of one function. The zero value knows nothing and is ready for use. It holds
// no pointers, takes less than a KiB, and none of its methods allocates. It may be copied. Its owner
// guards it; Policy.Window keeps its last answer in it.
type Func struct {
	// Of the first instance:
	near  [nearBins]uint32 // idle times below a minute
	bins  [Bins]uint8      // by minute; bins[0] is not used
	long  uint16           // idle times beyond the range, and instances whose call never came
	rest  uint16           // the sum of bins and long
	again uint16           // the part of rest that came about as long after as one before it did

	ngone uint8
	// gone are the instances that were given up and not asked for since, the latest last, those
	// that became idle within a minute of each other in one group.
	gone [absences]absence
	// ahead is the absence for which an instance was started ahead of need last.
	ahead int64

	more [groups]group // of the further instances

	made made
}

// absence is a group of instances that were given up.
type absence struct {
	since int64 // when the latest of them became idle, in Unix nanoseconds
	n     uint16
	level uint16 // of the first of them: the highest
}

// made is the window of the first instance as last computed, and from what.
type made struct {
	ok     bool
	news   uint16 // how many longer idle times came since
	near   uint32 // how many below a minute there were
	cost   Cost
	window Window
	scored bool // score is computed when it is asked for
	score  [len(scoreAges)]float32
}

// Seen returns how many idle times of the first instance are known.
func (f *Func) Seen() int { return int(f.short()) + int(f.rest) }

// short returns the number of idle times below a minute.
func (f *Func) short() uint32 {
	var sum uint32
	for _, n := range f.near {
		sum += n
	}
	return sum
}

// Observe notes that an invocation took an instance that had been idle for this long. Level is which one it
// is: one more than those that are busy or start.
func (f *Func) Observe(level int, idle time.Duration) { f.add(level, idle, 1) }

// Missed notes that an invocation found no idle instance, so that one has to be started. Level is as in
// Observe. When one had been given up before, this is how long it would have been idle.
func (f *Func) Missed(level int, now time.Time) {
	if f.ngone > 0 {
		f.add(level, now.Sub(time.Unix(0, f.pop())), 1)
	}
}

// GaveUp notes that an instance that became idle at since was ended because its time was over or its
// room was wanted. Level is how many there were with it: the one that is idle for longest goes first, and stands for
// the most that run at a time. Instances that end for other reasons (a release, an error) are not reported.
func (f *Func) GaveUp(level int, since time.Time) {
	at := since.UnixNano()
	if f.ngone > 0 {
		last := &f.gone[f.ngone-1]
		if d := at - last.since; d < int64(BinWidth) && d > -int64(BinWidth) && last.n < memory {
			last.since = max(last.since, at)
			last.n++
			return
		}
	}
	if f.ngone == absences {
		// The oldest are forgotten; nobody asked for them again.
		f.add(int(f.gone[0].level), Range, f.gone[0].n)
		copy(f.gone[:], f.gone[1:])
		f.ngone--
	}
	f.gone[f.ngone] = absence{since: at, n: 1, level: uint16(min(level, 1<<15))}
	f.ngone++
}

// Absent returns when the instance that was given up last had become idle: the zero of a Window's
// times for a function of which no instance lives. False when none was given up, or when one was started
// in its place already and given up, too: a call that did not come is waited for once.
func (f *Func) Absent() (since time.Time, ok bool) {
	if f.ngone == 0 || f.gone[f.ngone-1].since == f.ahead {
		return time.Time{}, false
	}
	return time.Unix(0, f.gone[f.ngone-1].since), true
}

// Prewarmed notes that an instance was started ahead of need, in place of the one that was given
// up last. It counts as idle since the time that is returned (see Absent), not since its start.
func (f *Func) Prewarmed() (since time.Time, ok bool) {
	if f.ngone == 0 {
		return time.Time{}, false
	}
	f.ahead = f.pop()
	return time.Unix(0, f.ahead), true
}

// pop takes one instance out of those that were given up; there must be one.
func (f *Func) pop() int64 {
	last := &f.gone[f.ngone-1]
	last.n--
	if last.n == 0 {
		f.ngone--
	}
	return last.since
}

// add counts n idle times.
func (f *Func) add(level int, idle time.Duration, n uint16) {
	switch {
	case level > 1:
		f.more[groupOf(level)].add(idle, n)
	case idle < BinWidth:
		f.addNear(idle, uint32(n))
	default:
		f.addFar(idle, min(n, memory/4))
	}
}

func (f *Func) addNear(idle time.Duration, n uint32) {
	b := &f.near[max(idle, 0)/nearWidth]
	if *b += n; *b >= 1<<29 { // so that the sum fits
		for i := range f.near {
			f.near[i] /= 2
		}
	}
}

// addFar counts idle times of a minute or more; n is less than memory.
func (f *Func) addFar(idle time.Duration, n uint16) {
	if f.rest+n > memory {
		f.halve()
	}
	bin := min(int(idle/BinWidth), Bins)
	if f.known(bin) {
		f.again += n
	}
	f.rest += n
	f.made.news += n
	if bin < Bins {
		f.bins[bin] += uint8(n)
	} else {
		f.long += n
	}
}

// around returns the bins that are about the same idle time as bin.
func around(bin int) (from, to int) {
	side := max(1, bin/20)
	return max(1, bin-side), min(Bins-1, bin+side)
}

// known says whether an idle time about as long was seen before.
func (f *Func) known(bin int) bool {
	if bin >= Bins {
		return f.long > 0
	}
	from, to := around(bin)
	for _, n := range f.bins[from : to+1] {
		if n > 0 {
			return true
		}
	}
	return false
}

// halve makes all that is known of the first instance count half.
func (f *Func) halve() {
	f.long /= 2
	f.rest = f.long
	for i := range f.near {
		f.near[i] /= 2
	}
	for i := range f.bins {
		f.bins[i] /= 2
		f.rest += uint16(f.bins[i])
	}
	f.again = min(f.again/2, f.rest)
}

// percentile returns the cell behind which less than one in a hundred of the idle times within the range lie, with a
// tenth of margin; the last one while too few are known.
func (f *Func) percentile() int {
	within := int(f.rest - f.long)
	if within < 16 {
		return cells - 1
	}
	sum := 0
	for i, n := range f.bins {
		if sum += int(n); sum*100 >= within*99 {
			return cellOf(bins(min(Bins, i+i/10+2)))
		}
	}
	return cells - 1
}

// groups of instances beyond the first: the 2nd, the 3rd, then each half octave, the last one without an end. The
// more run at a time, the less an idle one is used, and each group has a histogram of its own.
const groups = 10

// groupOf returns the group of a level above 1.
func groupOf(level int) int {
	n := bits.Len(uint(level))
	return min(2*(n-1)+int(uint(level)>>(n-2)&1)-2, groups-1)
}

// steps are where the cells of a group's histogram end; the last one has all that lie beyond.
var steps = [...]time.Duration{
	10 * time.Second, 20 * time.Second, 30 * time.Second, 60 * time.Second, 90 * time.Second, 2 * time.Minute, 3 * time.Minute,
	4 * time.Minute, 5 * time.Minute, 7 * time.Minute, 10 * time.Minute, 15 * time.Minute, 20 * time.Minute, 30 * time.Minute,
	45 * time.Minute, 60 * time.Minute, 90 * time.Minute, 120 * time.Minute, 180 * time.Minute, Range,
}

// group is the histogram of some further instances.
type group [len(steps) + 1]uint16

// add counts n idle times. The first cell does not fade with the others: busy instances would wash out all else.
func (g *group) add(idle time.Duration, n uint16) {
	i := 0
	for i < len(steps) && idle >= steps[i] {
		i++
	}
	n = min(n, memory)
	if i == 0 {
		g[0] = min(g[0], 1<<15) + n
		return
	}
	if g[i] += n; g[i] >= 2*memory {
		for k := range g {
			g[k] /= 2
		}
	}
}
