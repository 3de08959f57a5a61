package metrics

import (
	"sync/atomic"
	"time"

	histograms "lfx.dev/lfxd/daemon/histogram"
)

// Upper bounds of the buckets of durations.
var (
	// fineBuckets are for what lfxd itself adds: 100 µs to 1 min.
	fineBuckets = milliseconds(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 60_000)
	// coarseBuckets are for what functions take: 1 ms to Lambda's maximum.
	coarseBuckets = milliseconds(1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 900_000)
	// deployBuckets are for deploys.
	deployBuckets = milliseconds(100, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 900_000)
)

func milliseconds(ms ...float64) []time.Duration {
	out := make([]time.Duration, len(ms))
	for i, m := range ms {
		out[i] = time.Duration(m * float64(time.Millisecond))
	}
	return out
}

// histogram counts durations by bucket. Observing takes no lock and allocates nothing.
type histogram struct {
	bounds []time.Duration // ascending; a duration belongs to the first that is not below it
	counts []atomic.Int64  // one more than bounds: the last has no bound
	sum    atomic.Int64    // nanoseconds
}

func newHistogram(bounds []time.Duration) *histogram {
	return &histogram{bounds: bounds, counts: make([]atomic.Int64, len(bounds)+1)}
}

// fromSnapshot counts what a finer histogram has, each of its buckets as the largest duration in it.
func fromSnapshot(s *histograms.Snapshot) *histogram {
	h := newHistogram(coarseBuckets)
	s.Buckets(func(upper time.Duration, count int64) {
		h.counts[h.bucket(upper)].Add(count)
		h.sum.Add(int64(upper) * count)
	})
	return h
}

// bucket is the index of the bucket that d belongs to.
func (h *histogram) bucket(d time.Duration) int {
	i := 0
	for i < len(h.bounds) && d > h.bounds[i] {
		i++
	}
	return i
}

func (h *histogram) observe(d time.Duration) {
	h.counts[h.bucket(d)].Add(1)
	h.sum.Add(int64(d))
}
