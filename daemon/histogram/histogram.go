// Package histogram counts durations in buckets whose width grows with the value: 16 buckets for each
// doubling, so that a quantile is off by less than 7 %. Recording is one atomic addition and allocates
// nothing.
package histogram

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// subBits is the logarithm of the number of buckets in a doubling.
	subBits = 4
	// least is the unit: durations are counted in microseconds, and below it all are alike.
	least = time.Microsecond
	// octaves is how many doublings there are: up to 2^31 µs, more than half an hour.
	octaves = 31 - subBits

	buckets = (octaves + 1) << subBits
)

// Histogram counts durations. The zero value is empty; it must not be copied.
type Histogram struct {
	counts [buckets]atomic.Int64
}

// index is the bucket of a duration. Values below 2^subBits have a bucket each.
func index(d time.Duration) int {
	v := uint64(max(d, 0) / least)
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return min(shift<<subBits+int(v>>shift), buckets-1)
}

// upper is the largest duration of a bucket, rounded to the unit.
func upper(i int) time.Duration {
	if i < 1<<subBits {
		return time.Duration(i) * least
	}
	shift := i>>subBits - 1
	return time.Duration((i&(1<<subBits-1)+1<<subBits+1)<<shift-1) * least
}

// Record counts one duration. Negative ones count as zero, those beyond the range as its end.
func (h *Histogram) Record(d time.Duration) { h.counts[index(d)].Add(1) }

// Snapshot copies the counts. Durations that are recorded meanwhile may be in it or not.
func (h *Histogram) Snapshot() Snapshot {
	var s Snapshot
	for i := range h.counts {
		s.counts[i] = h.counts[i].Load()
	}
	return s
}

// Snapshot is a histogram as of one moment; the zero value is empty.
type Snapshot struct {
	counts [buckets]int64
}

// Sub returns what was counted since before. What before has more of counts as nothing.
func (s Snapshot) Sub(before Snapshot) Snapshot {
	for i := range s.counts {
		s.counts[i] = max(s.counts[i]-before.counts[i], 0)
	}
	return s
}

// Count is how many durations were counted.
func (s *Snapshot) Count() (n int64) {
	for _, c := range s.counts {
		n += c
	}
	return n
}

// Quantile returns the duration that the share q (0 to 1) of all does not exceed, rounded up to its bucket's
// end; 0 when there are none.
func (s *Snapshot) Quantile(q float64) time.Duration {
	total := s.Count()
	if total == 0 {
		return 0
	}
	rank := min(max(int64(math.Ceil(q*float64(total))), 1), total)
	for i, c := range s.counts {
		if rank -= c; rank <= 0 {
			return upper(i)
		}
	}
	return upper(buckets - 1) // unreachable: the ranks add up
}

// Buckets calls f for every bucket that is not empty, in ascending order, with the largest duration of the
// bucket and its count.
func (s *Snapshot) Buckets(f func(upper time.Duration, count int64)) {
	for i, c := range s.counts {
		if c > 0 {
			f(upper(i), c)
		}
	}
}
