package policy

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"
)

// usual is a small Python function: 64 MiB, 300 ms to start, a third of that with a spare.
var usual = Cost{MemoryMB: 64, Start: 300 * time.Millisecond, SpareMB: 1, SpareStart: 100 * time.Millisecond}

// epoch is where the tests' time begins.
var epoch = time.Unix(1_800_000_000, 0)

// seen makes a Func that was idle for each of these times.
func seen(idle ...time.Duration) *Func {
	f := &Func{}
	for _, d := range idle {
		f.Observe(1, d)
	}
	return f
}

// times repeats d with jitter of one percent to either side.
func times(n int, d time.Duration) []time.Duration {
	out := make([]time.Duration, n)
	for i := range out {
		out[i] = d + time.Duration(float64(d)*0.01*float64(i%3-1))
	}
	return out
}

func TestFuncIsSmall(t *testing.T) {
	if got := unsafe.Sizeof(Func{}); got > 1024 {
		t.Errorf("a Func takes %d bytes, want at most 1024", got)
	}
}

func TestNothingAllocates(t *testing.T) {
	p, f, now := New(Defaults()), &Func{}, epoch
	i := 0
	if n := testing.AllocsPerRun(2000, func() {
		i++
		now = now.Add(time.Duration(i%700) * time.Second)
		level := 1 + i%5
		f.Observe(level, time.Duration(i%400)*time.Minute/3)
		f.GaveUp(level, now.Add(-time.Minute))
		if i%2 == 0 {
			f.Missed(level, now)
		}
		p.Window(f, usual, level)
		p.Score(f, usual, level, time.Minute)
	}); n > 0 {
		t.Errorf("%v allocations for each step, want none", n)
	}
}

func TestWindow(t *testing.T) {
	p := New(Defaults())
	large := usual
	large.MemoryMB, large.Start = 2048, 50*time.Millisecond
	for _, c := range []struct {
		name string
		f    *Func
		cost Cost
		ok   func(w Window) bool
	}{
		{"nothing is known: the fixed window", seen(), usual, func(w Window) bool { return w.KeepFor == 10*time.Minute && w.PrewarmUntil == 0 }},
		{"called every few minutes: kept over the pause", seen(times(50, 4*time.Minute)...), usual,
			func(w Window) bool { return w.KeepFor >= 5*time.Minute && w.KeepFor <= 8*time.Minute }},
		{"a timer of an hour: gone at once, back for the call", seen(times(12, time.Hour)...), usual,
			func(w Window) bool {
				return w.KeepFor <= time.Minute && w.PrewarmAt > 50*time.Minute && w.PrewarmAt <= 59*time.Minute && w.PrewarmUntil > 60*time.Minute && w.PrewarmUntil < 70*time.Minute
			}},
		{"large and quick to start: not kept for a call an hour", seen(times(12, time.Hour)...), large,
			func(w Window) bool { return w.KeepFor <= time.Minute && w.PrewarmUntil-w.PrewarmAt <= 3*time.Minute }},
		{"never within the range: the least, and no start ahead", seen(times(20, 9*time.Hour)...), usual,
			func(w Window) bool { return w.KeepFor == 10*time.Second && w.PrewarmUntil == 0 }},
		{"busy: kept for a while", seen(times(10_000, time.Second)...), usual, func(w Window) bool { return w.KeepFor >= time.Minute }},
	} {
		if w := p.Window(c.f, c.cost, 1); !c.ok(w) {
			t.Errorf("%s: got %+v", c.name, w)
		}
	}
}

// TestWindowFollowsThePrice: dearer memory never lengthens what is kept, slower starts never shorten it.
func TestWindowFollowsThePrice(t *testing.T) {
	p := New(Defaults())
	f := seen()
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		f.Observe(1, time.Duration(math.Exp(r.Float64()*9)*float64(time.Second)))
	}
	kept := func(c Cost) time.Duration {
		w := p.Window(f, c, 1)
		return w.KeepFor + w.PrewarmUntil - w.PrewarmAt
	}
	last := Range + 1
	for _, scarcity := range []float64{0.125, 0.5, 1, 2, 8, 64} {
		c := usual
		c.Scarcity = scarcity
		if got := kept(c); got > last {
			t.Errorf("scarcity %v keeps %v, a lower one %v", scarcity, got, last)
		} else {
			last = got
		}
	}
	if last > time.Minute {
		t.Errorf("at 64 times the price it is still kept for %v", last)
	}
	last = 0
	for _, start := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, 10 * time.Second} {
		c := usual
		c.Start, c.SpareMB = start, 0
		if got := kept(c); got < last {
			t.Errorf("a start of %v keeps %v, a faster one %v", start, got, last)
		} else {
			last = got
		}
	}
	if last < time.Hour {
		t.Errorf("a start of 10 s is kept for %v only", last)
	}
}

// TestWindowGainsMost compares with every possible window.
func TestWindowGainsMost(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const end, again = 14, 2.0
	for round := range 300 {
		var v view
		for i := range end {
			v.warm[i] = r.NormFloat64() * 3
			v.alive[i] = float64(end-i) / end
		}
		worth := func(keep, a, e int) (sum float64) {
			for i := range keep {
				sum += v.warm[i]
			}
			for i := a; i < e; i++ {
				sum += v.warm[i]
			}
			if e > a {
				sum -= v.alive[a] * again
			}
			return sum
		}
		best := 0.0
		for keep := range end + 1 {
			best = max(best, worth(keep, 0, 0))
			for a := keep + 1; a < end; a++ {
				for e := a + 1; e <= end; e++ {
					best = max(best, worth(keep, a, e))
				}
			}
		}
		w := v.window(end, again)
		got := worth(cellOf(w.KeepFor), cellOf(w.PrewarmAt), cellOf(w.PrewarmUntil))
		if math.Abs(got-best) > 1e-9 {
			t.Fatalf("round %d: %+v gains %v, the best window %v", round, w, got, best)
		}
	}
}

func TestSpare(t *testing.T) {
	p := New(Defaults())
	rare := seen(times(6, 9*time.Hour)...)
	if w := p.Window(rare, usual, 1); w.Spare(time.Minute) != (w.SpareFor > time.Minute) {
		t.Errorf("Spare and SpareFor differ: %+v", w)
	}
	hourly := seen(times(12, time.Hour)...)
	w := p.Window(hourly, usual, 1)
	if !w.Spare(30*time.Minute) || w.Warm(30*time.Minute) {
		t.Errorf("between the calls of an hourly timer a spare is worth its megabyte and an instance is not: %+v", w)
	}
	none := usual
	none.SpareMB = 0
	if w := p.Window(hourly, none, 1); w.SpareFor != 0 {
		t.Errorf("spares are not to be had, got %+v", w)
	}
	dear := usual
	dear.SpareMB, dear.SpareStart = 64, 299*time.Millisecond
	if w := p.Window(hourly, dear, 1); w.SpareFor >= 30*time.Minute {
		t.Errorf("a spare that saves a millisecond is kept for %v", w.SpareFor)
	}
}

func TestMissedCountsFromWhenTheInstanceBecameIdle(t *testing.T) {
	p, f, now := New(Defaults()), &Func{}, epoch
	for range 12 { // a timer whose instance is given up each time after ten minutes
		f.GaveUp(1, now)
		now = now.Add(time.Hour)
		f.Missed(1, now)
	}
	if w := p.Window(f, usual, 1); !w.Warm(60*time.Minute) || w.Warm(20*time.Minute) {
		t.Errorf("got %+v, want a start ahead of the hour", w)
	}
	if f.Seen() != 12 {
		t.Errorf("seen %d idle times, want 12", f.Seen())
	}
	f.Missed(1, now) // a second instance was never there
	if f.Seen() != 12 {
		t.Errorf("a start that no earlier instance could have saved was counted")
	}
}

func TestPrewarmedTakesThePlaceOfTheLast(t *testing.T) {
	f := &Func{}
	if _, ok := f.Absent(); ok {
		t.Fatal("nothing was given up")
	}
	if _, ok := f.Prewarmed(); ok {
		t.Fatal("nothing was given up")
	}
	f.GaveUp(1, epoch)
	f.GaveUp(1, epoch.Add(time.Hour))
	if since, ok := f.Absent(); !ok || !since.Equal(epoch.Add(time.Hour)) {
		t.Errorf("Absent: %v %v, want the later one", since, ok)
	}
	if since, ok := f.Prewarmed(); !ok || !since.Equal(epoch.Add(time.Hour)) {
		t.Errorf("Prewarmed: %v %v, want the later one", since, ok)
	}
	if since, ok := f.Absent(); !ok || !since.Equal(epoch) {
		t.Errorf("Absent: %v %v, want the earlier one", since, ok)
	}
	f.Prewarmed()
	f.GaveUp(1, epoch) // in vain
	if since, ok := f.Absent(); ok {
		t.Errorf("Absent: %v once more, want a start ahead of need once", since)
	}
	f.Missed(1, epoch.Add(3*time.Hour))
	if f.Seen() != 1 {
		t.Errorf("seen %d idle times, want that of three hours", f.Seen())
	}
	f.GaveUp(1, epoch.Add(5*time.Hour))
	if _, ok := f.Absent(); !ok {
		t.Error("the next absence is one again")
	}
}

// TestFurtherInstances: those that run only in peaks are kept for as long as peaks come again, whatever the first
// one does.
func TestFurtherInstances(t *testing.T) {
	p, f := New(Defaults()), seen(times(1000, time.Second)...)
	for range 200 { // the second is used each two minutes, the twentieth never again
		f.Observe(2, 2*time.Minute)
	}
	for i := range 40 {
		f.GaveUp(20, epoch.Add(time.Duration(i)*10*time.Minute))
	}
	if w := p.Window(f, usual, 2); w.KeepFor < 2*time.Minute || w.KeepFor > 5*time.Minute || w.PrewarmUntil != 0 {
		t.Errorf("the second: %+v", w)
	}
	if w := p.Window(f, usual, 20); w.KeepFor > 30*time.Second {
		t.Errorf("the twentieth: %+v", w)
	}
	if second, twentieth := p.Score(f, usual, 2, time.Minute), p.Score(f, usual, 20, time.Minute); twentieth >= second {
		t.Errorf("scores %v of the second and %v of the twentieth", second, twentieth)
	}
	if first := p.Window(f, usual, 1).KeepFor; first < time.Minute {
		t.Errorf("the first is kept for %v", first)
	}
}

// TestPeaksAreForgotten: more instances that were given up than are remembered count as never asked for.
func TestPeaksAreForgotten(t *testing.T) {
	f := &Func{}
	for i := range 400 {
		f.GaveUp(3, epoch.Add(time.Duration(i)*10*time.Minute))
	}
	if f.ngone != absences {
		t.Errorf("%d groups, want %d", f.ngone, absences)
	}
	if n := f.more[groupOf(3)][len(steps)]; n != 400-absences {
		t.Errorf("%d count as never asked for, want %d", n, 400-absences)
	}
}

func TestGroups(t *testing.T) {
	last := 0
	for level := 2; level <= 5000; level++ {
		g := groupOf(level)
		if g < last || g > last+1 || g >= groups {
			t.Fatalf("level %d is in group %d, the one before in %d", level, g, last)
		}
		last = g
	}
	for level, want := range map[int]int{2: 0, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3, 8: 4, 12: 5, 16: 6, 31: 7, 32: 8, 48: 9, 1 << 40: 9} {
		if got := groupOf(level); got != want {
			t.Errorf("level %d is in group %d, want %d", level, got, want)
		}
	}
	if got := total(New(Defaults()).more[:]); math.Abs(got-1) > 1e-9 {
		t.Errorf("the prior sums up to %v", got)
	}
}

// TestOldHabitsFade: a timer that moves from 20 to 40 minutes is found again.
func TestOldHabitsFade(t *testing.T) {
	p := New(Defaults())
	f := seen(times(3000, 20*time.Minute)...)
	for _, d := range times(600, 40*time.Minute) {
		f.Observe(1, d)
	}
	if w := p.Window(f, usual, 1); !w.Warm(40 * time.Minute) {
		t.Errorf("got %+v after 600 calls each 40 minutes", w)
	}
}

func TestScoreOrdersEviction(t *testing.T) {
	p := New(Defaults())
	busy, hourly, rare := seen(times(500, 2*time.Minute)...), seen(times(12, time.Hour)...), seen(times(12, 9*time.Hour)...)
	quick, large := usual, usual
	quick.Start = 20 * time.Millisecond
	large.MemoryMB = 1024
	idle := 90 * time.Second
	for _, c := range []struct {
		name      string
		low, high float64
	}{
		{"rare before busy", p.Score(rare, usual, 1, idle), p.Score(busy, usual, 1, idle)},
		{"hourly before busy", p.Score(hourly, usual, 1, idle), p.Score(busy, usual, 1, idle)},
		{"rare before hourly", p.Score(rare, usual, 1, idle), p.Score(hourly, usual, 1, idle)},
		{"quick before slow", p.Score(seen(times(500, 2*time.Minute)...), quick, 1, idle), p.Score(busy, usual, 1, idle)},
		{"large before small", p.Score(seen(times(500, 2*time.Minute)...), large, 1, idle), p.Score(busy, usual, 1, idle)},
		{"unused for long before just used", p.Score(busy, usual, 1, 2*time.Hour), p.Score(busy, usual, 1, idle)},
		{"a timer just gone before one that is due", p.Score(hourly, usual, 1, 3*time.Hour), p.Score(hourly, usual, 1, 45*time.Minute)},
	} {
		if !(c.low < c.high) {
			t.Errorf("%s: scores %v and %v", c.name, c.low, c.high)
		}
	}
}

// TestWindowIsKept: a busy function's window is not computed at every call, and still follows.
func TestWindowIsKept(t *testing.T) {
	p, f := New(Defaults()), &Func{}
	computed := 0
	for range 100_000 {
		f.Observe(1, time.Second)
		f.Observe(1, 3*time.Minute)
		before := f.made
		p.Window(f, usual, 1)
		if f.made.near != before.near || f.made.news < before.news {
			computed++
		}
	}
	if computed == 0 || computed > 5000 {
		t.Errorf("computed %d times in 100,000", computed)
	}
}

func TestScarcity(t *testing.T) {
	last := 0.0
	for used := int64(0); used <= 110; used++ {
		s := Scarcity(used, 100)
		if s < last || s <= 0 {
			t.Errorf("%d %% used: %v after %v", used, s, last)
		}
		last = s
	}
	if Scarcity(5, 0) != 1 {
		t.Error("an unknown budget is not 1")
	}
}

// FuzzFunc holds what is known together through any course of events.
func FuzzFunc(f *testing.F) {
	f.Add([]byte{0, 10, 1, 200, 2, 3, 3, 100})
	f.Add([]byte{2, 0, 2, 255, 2, 255, 1, 255, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, events []byte) {
		p, fn, now := New(Defaults()), &Func{}, epoch
		for i := 0; i+1 < len(events); i += 2 {
			d := time.Duration(events[i+1]) * 97 * time.Second
			level := 1 + int(events[i]/6)
			switch events[i] % 6 {
			case 0:
				fn.Observe(level, d/16)
			case 1:
				fn.Missed(level, now)
			case 2:
				fn.GaveUp(level, now.Add(-d))
			case 3:
				now = now.Add(d)
			case 4:
				fn.Prewarmed()
			case 5:
				fn.add(level, d, uint16(events[i+1])*3)
			}
			sum := fn.long
			for _, n := range fn.bins {
				sum += uint16(n)
			}
			if fn.again > fn.rest {
				t.Fatalf("%d of %d came again", fn.again, fn.rest)
			}
			if sum != fn.rest || fn.rest > memory || fn.bins[0] != 0 {
				t.Fatalf("bins sum up to %d, rest is %d, bin 0 %d", sum, fn.rest, fn.bins[0])
			}
			w := p.Window(fn, usual, level)
			if w.KeepFor < p.opts.Least || w.PrewarmAt > w.PrewarmUntil || w.PrewarmUntil > Range || (w.PrewarmUntil > 0 && w.PrewarmAt <= w.KeepFor-p.opts.Least && w.PrewarmAt < w.KeepFor) {
				t.Fatalf("window %+v", w)
			}
			if s := p.Score(fn, usual, level, d); !(s >= 0) || math.IsInf(s, 0) {
				t.Fatalf("score %v", s)
			}
		}
	})
}

func BenchmarkObserve(b *testing.B) {
	f := &Func{}
	for i := 0; b.Loop(); i++ {
		f.Observe(1, time.Duration(i%7)*20*time.Second)
	}
}

func BenchmarkWindowAnew(b *testing.B) {
	p, f := New(Defaults()), seen(times(100, 20*time.Minute)...)
	for b.Loop() {
		f.made.ok = false
		p.Window(f, usual, 1)
	}
}

func TestCells(t *testing.T) {
	last := time.Duration(0)
	for i := range cells {
		from, to := cell(i)
		if from != last || to <= from {
			t.Fatalf("cell %d reaches from %v to %v, the one before to %v", i, from, to, last)
		}
		if cellOf(from) != i || cellOf(to-1) != i {
			t.Errorf("%v…%v lie in %d and %d, want %d", from, to-1, cellOf(from), cellOf(to-1), i)
		}
		last = to
	}
	if last != longest {
		t.Errorf("the cells end at %v", last)
	}
	if p := New(Defaults()); math.Abs(total(p.prior[:])-1) > 1e-9 {
		t.Errorf("the prior sums up to %v", total(p.prior[:]))
	}
	f := seen(append(times(30, time.Hour), 3*time.Hour, 3*time.Minute, 30*time.Second, 20*time.Hour)...)
	var v view
	New(Defaults()).weigh(&v, f, usual)
	if got, want := total(v.p[:]), float64(f.Seen()+1); math.Abs(got-want) > 1e-6 {
		t.Errorf("weights sum up to %v, want %v: each idle time counts once", got, want)
	}
}

func total(w []float64) (sum float64) {
	for _, x := range w {
		sum += x
	}
	return sum
}
