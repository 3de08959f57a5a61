package histogram

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestBucketsCoverTheRangeWithoutGaps(t *testing.T) {
	for i := range buckets - 1 {
		end := upper(i)
		if got := index(end); got != i {
			t.Fatalf("the end of bucket %d, %v, is in bucket %d", i, end, got)
		}
		if got := index(end + least); got != i+1 {
			t.Fatalf("just above bucket %d, %v, is bucket %d", i, end+least, got)
		}
	}
	for d, want := range map[time.Duration]int{-time.Second: 0, 0: 0, 999: 0, least: 1, 1 << 62: buckets - 1} {
		if got := index(d); got != want {
			t.Errorf("index(%v) = %d, want %d", d, got, want)
		}
	}
	if end := upper(buckets - 1); end < 20*time.Minute {
		t.Errorf("the range ends at %v: an invocation may take 15 minutes", end)
	}
}

func TestQuantilesAreClose(t *testing.T) {
	var h Histogram
	random := rand.New(rand.NewPCG(1, 2))
	var all []time.Duration
	for range 10_000 {
		d := time.Duration(random.ExpFloat64() * float64(20*time.Millisecond))
		all = append(all, d)
		h.Record(d)
	}
	slices.Sort(all)
	s := h.Snapshot()
	for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999, 1} {
		exact := all[max(int(q*float64(len(all)))-1, 0)]
		got := s.Quantile(q)
		if got < exact-least || float64(got) > float64(exact)*1.07+float64(least) {
			t.Errorf("quantile %v: %v, exactly %v", q, got, exact)
		}
	}
}

func TestSubIsWhatCameSince(t *testing.T) {
	var h Histogram
	h.Record(time.Second)
	before := h.Snapshot()
	h.Record(time.Millisecond)
	h.Record(time.Millisecond)
	since := h.Snapshot().Sub(before)
	if n := since.Count(); n != 2 {
		t.Errorf("%d, want 2", n)
	}
	if p := since.Quantile(0.99); p > 2*time.Millisecond {
		t.Errorf("p99 %v still has what was before", p)
	}
	if again := before.Sub(h.Snapshot()); again.Count() != 0 || again.Quantile(0.5) != 0 {
		t.Errorf("the wrong way round: %d", again.Count())
	}
	var sum int64
	h.counts[3].Store(5)
	s := h.Snapshot()
	s.Buckets(func(end time.Duration, n int64) { sum += n })
	if sum != s.Count() {
		t.Errorf("the buckets have %d, all are %d", sum, s.Count())
	}
}

func TestRecordFromManyGoroutinesLosesNothing(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 1000 {
				h.Record(time.Duration(i) * time.Millisecond)
			}
		})
	}
	wg.Wait()
	if s := h.Snapshot(); s.Count() != 8000 {
		t.Errorf("%d, want 8000", s.Count())
	}
}

func TestRecordAllocatesNothing(t *testing.T) {
	var h Histogram
	if n := testing.AllocsPerRun(100, func() { h.Record(3 * time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	var h Histogram
	for b.Loop() {
		h.Record(3 * time.Millisecond)
	}
}
