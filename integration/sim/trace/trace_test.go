package trace

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestShape holds the generator against the published figures.
func TestShape(t *testing.T) {
	const n = 20_000
	tr := New(7, n)
	perFunction := func(name string, want, within float64, ok func(*Function) bool) {
		t.Helper()
		hits := 0.0
		for i := range tr.Functions {
			if ok(&tr.Functions[i]) {
				hits++
			}
		}
		if got := hits / n; math.Abs(got-want) > within {
			t.Errorf("%s: %.3f of the functions, want %.3f ± %.3f", name, got, want, within)
		}
	}
	const hair = 1 + 1e-9
	perFunction("at most a call an hour", 0.45, 0.03, func(f *Function) bool { return f.Rate <= hair/hour })
	perFunction("at most a call a minute", 0.81, 0.03, func(f *Function) bool { return f.Rate <= hair/minute })
	perFunction("mean duration under a second, by the published fit", 0.564, 0.03, func(f *Function) bool { return f.Mean < 1 })
	for k, share := range functionShare {
		perFunction(Trigger(k).String(), share, 0.03, func(f *Function) bool { return f.Trigger == Trigger(k) })
	}
	perApp := func(name string, want, within float64, ok func(*App) bool) {
		t.Helper()
		hits := 0.0
		for i := range tr.Apps {
			if ok(&tr.Apps[i]) {
				hits++
			}
		}
		if got := hits / float64(len(tr.Apps)); math.Abs(got-want) > within {
			t.Errorf("%s: %.3f of the apps, want %.3f ± %.3f", name, got, want, within)
		}
	}
	for _, c := range []struct {
		from, to int32
		want     float64
	}{{1, 1, 0.54}, {2, 2, 0.16}, {3, 3, 0.10}, {4, 5, 0.08}, {6, 10, 0.07}, {11, 1000, 0.05}} {
		perApp(fmt.Sprintf("%d to %d functions", c.from, c.to), c.want, 0.03, func(a *App) bool { return a.Functions >= c.from && a.Functions <= c.to })
	}
	perApp("at most 170 MB", 0.50, 0.03, func(a *App) bool { return a.MaxMB <= 170 })
	perApp("at most 400 MB", 0.90, 0.03, func(a *App) bool { return a.MaxMB <= 400 })
	for _, mb := range []float64{80, 120, 170, 250, 400} {
		perApp(fmt.Sprintf("at most %v MB on average", mb), 1-math.Pow(1+math.Pow(mb/107.083, 11.652), -0.221), 0.03,
			func(a *App) bool { return a.AverageMB <= mb })
	}
	for i := range tr.Apps {
		if a := &tr.Apps[i]; a.AverageMB > a.MaxMB {
			t.Fatalf("app %d takes %v MB on average and %v at most", i, a.AverageMB, a.MaxMB)
		}
	}
}

// TestShares: the top fifth makes nearly all calls, and triggers make their published parts, timers less.
func TestShares(t *testing.T) {
	for _, n := range []int{1000, 20_000} {
		tr := New(7, n)
		var rates []float64
		var calls [triggers]float64
		all := 0.0
		for i := range tr.Functions {
			f := &tr.Functions[i]
			rates = append(rates, f.Rate)
			calls[f.Trigger] += f.Rate
			all += f.Rate
		}
		slices.Sort(rates)
		top := 0.0
		for _, r := range rates[n*4/5:] {
			top += r
		}
		if top/all < 0.99 {
			t.Errorf("%d functions: the top fifth makes %.4f of the calls, want at least 0.99", n, top/all)
		}
		if got := all / float64(n); math.Abs(got/Load-1) > 0.05 {
			t.Errorf("%d functions: %v calls per second and function, want %v", n, got, Load)
		}
		for k, want := range callShare {
			if got := calls[k] / all; math.Abs(got-want) > 0.03 {
				t.Errorf("%d functions: %s makes %.3f of the calls, want %.3f", n, Trigger(k), got, want)
			}
		}
		if spread := rates[n-1] / rates[0]; spread < 1e5 {
			t.Errorf("%d functions: rates span a factor of %.0f", n, spread)
		}
	}
}

// TestRegularity measures how regular the calls are: a fifth of the functions nearly like clockwork, two fifths in bursts.
func TestRegularity(t *testing.T) {
	const n = 3000
	tr := New(7, n)
	var regular, bursty float64
	for i := range n {
		c := tr.Calls(i)
		var sum, squares float64
		last := c.Next()
		const gaps = 400
		for range gaps {
			at := c.Next()
			if at < last && tr.Functions[i].Kind != Periodic {
				t.Fatalf("function %d: a call at %v after one at %v", i, at, last)
			}
			d := (at - last).Seconds()
			sum, squares, last = sum+d, squares+d*d, at
		}
		mean := sum / gaps
		cv := math.Sqrt(max(0, squares/gaps-mean*mean)) / mean
		if cv < 0.1 {
			regular++
		}
		if cv > 1.3 {
			bursty++
		}
	}
	if got := regular / n; math.Abs(got-0.20) > 0.03 {
		t.Errorf("%.3f of the functions are regular, want 0.20", got)
	}
	if got := bursty / n; math.Abs(got-0.40) > 0.03 {
		t.Errorf("%.3f of the functions are bursty, want 0.40", got)
	}
}

// TestRate: the calls of each kind come at the rate that the function has, over a week.
func TestRate(t *testing.T) {
	tr := New(3, 3000)
	counted := map[Kind][2]float64{}
	const week = 7 * 24 * time.Hour
	for i := range tr.Functions {
		f := &tr.Functions[i]
		if f.Rate > 0.2 || f.Rate < 1/hour {
			continue
		}
		c := tr.Calls(i)
		n := 0.0
		for c.Next() < week {
			n++
		}
		k := counted[f.Kind]
		counted[f.Kind] = [2]float64{k[0] + n, k[1] + f.Rate*week.Seconds()}
	}
	weekends := (5 + 2*0.75) / 7
	for kind, k := range counted {
		want := weekends
		if kind == Periodic {
			want = 1
		}
		if got := k[0] / k[1]; math.Abs(got-want) > 0.05 {
			t.Errorf("kind %d: %.3f of the nominal calls, want %.3f", kind, got, want)
		}
	}
	if len(counted) != 4 {
		t.Errorf("%d kinds of calls, want 4", len(counted))
	}
}

func TestDay(t *testing.T) {
	low, high, sum := math.Inf(1), 0.0, 0.0
	for i := range 24 * 60 {
		c := curveAt(time.Duration(i) * time.Minute)
		low, high, sum = min(low, c), max(high, c), sum+c
	}
	if math.Abs(low/high-0.5) > 0.01 || math.Abs(sum/(24*60)-1) > 0.01 || high > peak {
		t.Errorf("from %v to %v, mean %v", low, high, sum/(24*60))
	}
	if sat, wed := curveAt(3*24*time.Hour), curveAt(0); math.Abs(sat/wed-0.75) > 1e-9 {
		t.Errorf("Saturday is %v of Wednesday", sat/wed)
	}
}

// TestSynced: a third of the timers fire together.
func TestSynced(t *testing.T) {
	tr := New(7, 20_000)
	timers, synced := 0.0, 0.0
	for i := range tr.Functions {
		if f := &tr.Functions[i]; f.Trigger == Timer {
			timers++
			if f.Synced {
				synced++
				c := tr.Calls(i)
				if off := c.Next().Seconds()*f.Rate - 1; math.Abs(off) > 0.006 {
					t.Fatalf("timer %d fires %v of its period off", i, off)
				}
			}
		}
	}
	if got := synced / timers; math.Abs(got-1.0/3) > 0.03 {
		t.Errorf("%.3f of the timers are synchronised", got)
	}
}

func TestSampleHot(t *testing.T) {
	tr := New(7, 5000)
	for _, k := range []int{1, 16, 64} {
		index, weight := tr.SampleHot(k)
		all, calls, want := 0.0, 0.0, 0.0
		for j, i := range index {
			all += weight[j]
			calls += weight[j] * tr.Functions[i].Rate
		}
		for i := range tr.Functions {
			want += tr.Functions[i].Rate
		}
		if all != 5000 {
			t.Errorf("k %d: stands for %v functions", k, all)
		}
		if math.Abs(calls/want-1) > 0.25 {
			t.Errorf("k %d: %.0f calls per second, all functions have %.0f", k, calls, want)
		}
		if k > 1 && len(index) > 5000-500 {
			t.Errorf("k %d: %d functions are simulated", k, len(index))
		}
	}
}

// TestSum holds the traces of a seed as they are: a change of the generator makes figures incomparable, and should be
// meant.
func TestSum(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the last bits of logarithms differ between architectures")
	}
	h := sha256.New()
	tr := New(1, 200)
	for i := range tr.Functions {
		f := &tr.Functions[i]
		fmt.Fprintf(h, "%d %s %d %.6g %.6g %.6g %v %v\n", f.App, f.Trigger, f.Kind, f.Rate, f.Mean, f.MemoryMB, f.Start, f.Spare)
		c := tr.Calls(i)
		for range 10 {
			fmt.Fprintln(h, c.Next().Milliseconds(), c.Duration().Milliseconds())
		}
	}
	const want = "ca5f39848d381b52"
	if got := hex.EncodeToString(h.Sum(nil))[:16]; got != want {
		t.Errorf("the trace of seed 1 is %s, was %s", got, want)
	}
}

// TestSchemas: the files have the columns that are published, and the counts of the calls that were made.
func TestSchemas(t *testing.T) {
	tr := New(1, 30)
	var counts, durations, memory, calls bytes.Buffer
	if err := tr.WriteDay(&counts, &durations, &memory, 0); err != nil {
		t.Fatal(err)
	}
	if err := tr.WriteCalls(&calls, 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	rows := func(b *bytes.Buffer) [][]string {
		var out [][]string
		for line := range strings.Lines(b.String()) {
			out = append(out, strings.Split(strings.TrimSuffix(line, "\n"), ","))
		}
		for i, row := range out {
			if len(row) != len(out[0]) {
				t.Fatalf("row %d has %d columns, the header %d", i, len(row), len(out[0]))
			}
		}
		return out
	}
	c, d, m, k := rows(&counts), rows(&durations), rows(&memory), rows(&calls)
	if got := strings.Join(c[0][:6], ","); got != "HashOwner,HashApp,HashFunction,Trigger,1,2" || len(c[0]) != 4+1440 {
		t.Errorf("invocations: %s… with %d columns", got, len(c[0]))
	}
	if got, want := strings.Join(d[0], ","), "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,"+
		"percentile_Average_0,percentile_Average_1,percentile_Average_25,percentile_Average_50,percentile_Average_75,percentile_Average_99,percentile_Average_100"; got != want {
		t.Errorf("durations: %s", got)
	}
	if got, want := strings.Join(m[0], ","), "HashOwner,HashApp,SampleCount,AverageAllocatedMb,AverageAllocatedMb_pct1,AverageAllocatedMb_pct5,"+
		"AverageAllocatedMb_pct25,AverageAllocatedMb_pct50,AverageAllocatedMb_pct75,AverageAllocatedMb_pct95,AverageAllocatedMb_pct99,AverageAllocatedMb_pct100"; got != want {
		t.Errorf("memory: %s", got)
	}
	if got := strings.Join(k[0], ","); got != "app,func,end_timestamp,duration" {
		t.Errorf("calls: %s", got)
	}
	if len(m)-1 != len(tr.Apps) {
		t.Errorf("%d rows of memory, %d apps", len(m)-1, len(tr.Apps))
	}
	perFunction := map[string]int{}
	for _, row := range k[1:] {
		perFunction[row[1]]++
	}
	total := 0
	for _, row := range c[1:] {
		sum := 0
		for _, n := range row[4:] {
			var v int
			if _, err := fmt.Sscan(n, &v); err != nil {
				t.Fatal(err)
			}
			sum += v
		}
		if sum != perFunction[row[2]] {
			t.Errorf("function %s: %d calls by the minute, %d one by one", row[2], sum, perFunction[row[2]])
		}
		total += sum
	}
	if total < 10_000 {
		t.Errorf("%d calls in a day", total)
	}
}
