package main

import (
	"math"
	"time"
)

// hist counts times in buckets of 4.4 %, from a microsecond to days.
type hist struct {
	n   [buckets]float64
	sum float64 // seconds
	all float64
}

const (
	buckets   = 640
	perOctave = 16
)

// Most calls are one of these two.
var warmBucket, thawBucket = bucketOf(warmCost), bucketOf(warmCost + thawCost)

func bucketOf(d time.Duration) int {
	if d <= time.Microsecond {
		return 0
	}
	return min(int(perOctave*math.Log2(float64(d)/float64(time.Microsecond)))+1, buckets-1)
}

func (h *hist) add(d time.Duration, weight float64) { h.addTo(bucketOf(d), d, weight) }

func (h *hist) addTo(bucket int, d time.Duration, weight float64) {
	h.n[bucket] += weight
	h.all += weight
	h.sum += d.Seconds() * weight
}

func (h *hist) merge(o *hist) {
	for i, n := range o.n {
		h.n[i] += n
	}
	h.sum += o.sum
	h.all += o.all
}

// quantile returns the upper end of the bucket that q lies in; 0 when nothing was counted.
func (h *hist) quantile(q float64) time.Duration {
	if h.all == 0 {
		return 0
	}
	rest := q * h.all
	for i, n := range h.n {
		if rest -= n; rest <= 0 && n > 0 {
			return time.Duration(math.Exp2(float64(i)/perOctave) * float64(time.Microsecond))
		}
	}
	return time.Duration(math.Exp2(buckets/perOctave) * float64(time.Microsecond))
}

// result is what a run counts, each call times the number of functions that its function stands for.
type result struct {
	Calls float64 // that came in the measured time
	// Starts are those that a call waited for, Spared the part of them that found a spare, Ahead those that were made ahead of need.
	Starts, Spared, Ahead float64
	Waited                float64 // calls that waited for an instance
	Evicted               float64 // instances that gave up their room to others
	// Idle is the memory × time of instances that start or are idle, Spares that of spares, Busy that of those that run a call, in MiB·s.
	Idle, Spares, Busy float64
	// Added is all time of calls but that of the function, Wait that in the queue of those that waited.
	Added, Wait hist
	// Peak is the most memory that was in use at a time, in MiB; only with a budget.
	Peak float64
}

func (r *result) merge(o *result) {
	r.Calls += o.Calls
	r.Starts += o.Starts
	r.Spared += o.Spared
	r.Ahead += o.Ahead
	r.Waited += o.Waited
	r.Evicted += o.Evicted
	r.Idle += o.Idle
	r.Spares += o.Spares
	r.Busy += o.Busy
	r.Added.merge(&o.Added)
	r.Wait.merge(&o.Wait)
	r.Peak = max(r.Peak, o.Peak)
}

// held is the memory-time that no call used, in MiB·s.
func (r *result) held() float64 { return r.Idle + r.Spares }
