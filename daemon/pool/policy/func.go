package policy

import (
	"math"
	"time"
)

const (
	// Bins, BinWidth and Range are the shape of the histogram.
	Bins     = 240
	BinWidth = time.Minute
	Range    = Bins * BinWidth

	// Idle times below a minute are counted apart, in nearBins of nearWidth: a busy function has millions of
	// them.
	nearBins  = 6
	nearWidth = BinWidth / nearBins

	// memory is how many idle times above a minute are remembered with full weight: at each multiple all
	// counts are halved, so that old habits fade.
	memory = 512
	// absences is how many groups of given-up instances are remembered.
	absences = 16
)

// Func is what is known of one function. The zero value knows nothing and is ready for use. It holds
// no pointers, takes less than a KiB, and none of its methods allocates. It may be copied. Its owner
// guards it; Policy.Window keeps its last answer in it.
type Func struct {
	near [nearBins]uint32 // idle times below a minute
	bins [Bins]uint16     // by minute; bins[0] is not used
	long uint32           // idle times beyond the range, and instances whose call never came
	rest uint32           // the sum of bins and long
	// again is the part of rest that came about as long after as one before it did.
	again uint32

	// gone are the instances that were given up and not asked for since, the latest last, those
	// that became idle within a bin's width of each other in one group.
	gone  [absences]absence
	ngone uint8

	made made
}

// absence is a group of instances that were given up.
type absence struct {
	since int64 // when the latest of them became idle, in Unix nanoseconds
	n     uint32
}

// made is the window as last computed, and from what.
type made struct {
	ok     bool
	near   uint32 // how many idle times below a minute there were
	news   uint32 // how many longer ones came since
	cost   Cost
	window Window
	score  [len(scoreAges)]float32
}

// Seen returns how many idle times the function is known by.
func (f *Func) Seen() int { return int(f.short()) + int(f.rest) }

// short returns the number of idle times below a minute.
func (f *Func) short() uint32 {
	var sum uint32
	for _, n := range f.near {
		sum += n
	}
	return sum
}

// Observe notes that an invocation took an instance that had been idle for this long.
func (f *Func) Observe(idle time.Duration) {
	if idle >= BinWidth {
		f.add(idle, 1)
		return
	}
	n := &f.near[max(idle, 0)/nearWidth]
	if *n++; *n == math.MaxUint32/nearBins {
		for i := range f.near {
			f.near[i] /= 2
		}
	}
}

// Missed notes that an invocation found no idle instance, so that one has to be started. When one had been
// given up before, this is how long it would have been idle.
func (f *Func) Missed(now time.Time) {
	if f.ngone == 0 {
		return
	}
	f.Observe(now.Sub(time.Unix(0, f.pop())))
}

// GaveUp notes that an instance that became idle at since was ended because its time was over or its
// room was wanted. Instances that end for other reasons (a release, an error) are not reported.
func (f *Func) GaveUp(since time.Time) {
	at := since.UnixNano()
	if f.ngone > 0 {
		last := &f.gone[f.ngone-1]
		if d := at - last.since; d < int64(BinWidth) && d > -int64(BinWidth) && last.n < math.MaxUint32 {
			last.since = max(last.since, at)
			last.n++
			return
		}
	}
	if f.ngone == absences {
		// The oldest are forgotten; nobody asked for them again.
		f.add(Range, f.gone[0].n)
		copy(f.gone[:], f.gone[1:])
		f.ngone--
	}
	f.gone[f.ngone] = absence{since: at, n: 1}
	f.ngone++
}

// Absent returns when the instance that was given up last had become idle: the zero of a Window's
// times for a function of which no instance lives. False when none was given up.
func (f *Func) Absent() (since time.Time, ok bool) {
	if f.ngone == 0 {
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
	return time.Unix(0, f.pop()), true
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

// add counts n idle times of a minute or more.
func (f *Func) add(idle time.Duration, n uint32) {
	n = min(n, memory)
	bin := min(int(idle/BinWidth), Bins)
	if f.known(bin) {
		f.again += n
	}
	f.rest += n
	f.made.news += n
	if bin < Bins {
		f.bins[bin] += uint16(n)
	} else {
		f.long += n
	}
	for f.rest >= memory {
		f.halve()
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

// halve makes all that is known count half.
func (f *Func) halve() {
	f.long /= 2
	f.rest = f.long
	for i := range f.near {
		f.near[i] /= 2
	}
	for i := range f.bins {
		f.bins[i] /= 2
		f.rest += uint32(f.bins[i])
	}
	f.again = min(f.again/2, f.rest)
}

// percentile returns the cell behind which less than one in a hundred of the idle times within the range lie, with a
// tenth of margin; the last one while too few are known.
func (f *Func) percentile() int {
	within := f.rest - f.long
	if within < 16 {
		return cells - 1
	}
	var sum uint32
	for i, n := range f.bins {
		if sum += uint32(n); sum*100 >= within*99 {
			return cellOf(bins(min(Bins, i+i/10+2)))
		}
	}
	return cells - 1
}
