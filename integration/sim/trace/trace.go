// Package trace makes synthetic invocations shaped like the public trace of Azure Functions of 2019
// (Shahrad et al., Serverless in the Wild, USENIX ATC 2020; AzurePublicDataset, CC-BY), from a seed and
// without any data: how functions group into apps and triggers, how their rates span eight orders
// of magnitude, how regular or bursty their calls are, how long they run and what memory they take. The trace's own
// files are large downloads; the points of its published figures are in tables here, and
// TestShape holds the generator against them.
//
// What is known of apps only (rates, regularity) is taken for functions. What the figures do not say is chosen:
// the length of batches, the correlation of memory's average and maximum, what a cold start costs.
package trace

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Trigger is what calls a function.
type Trigger uint8

// The triggers of the published table.
const (
	HTTP Trigger = iota
	Queue
	Event
	Timer
	Orchestration
	Other
	triggers
)

func (t Trigger) String() string {
	return [...]string{"http", "queue", "event", "timer", "orchestration", "others"}[t]
}

// functionShare and callShare are the triggers' parts of all functions and of all calls. Timers get fewer calls
// than their 2 %: their periods are given, and the most frequent is a minute.
var (
	functionShare = [triggers]float64{0.55, 0.15, 0.02, 0.16, 0.07, 0.05}
	callShare     = [triggers]float64{0.36, 0.34, 0.25, 0.02, 0.02, 0.01}
)

// Function is one function of the trace.
type Function struct {
	App     int32
	Trigger Trigger
	// Kind is the course of its calls.
	Kind Kind
	// Rate is the mean number of calls per second; a timer's is 1 / its period.
	Rate float64
	// Size is the mean number of calls in a batch, for batches and chains.
	Size float64
	// Synced says that a timer fires at full multiples of its period, as a third of them do.
	Synced bool
	// Mean is the mean duration of a call in seconds.
	Mean float64
	// MemoryMB is what an instance holds, in MiB: its part of the app's average.
	MemoryMB float64
	// Start is how long a cold start takes, and Spare how long when an instance was created before.
	Start, Spare time.Duration
	// seed is the state of its random numbers.
	seed uint64
}

// App is what functions share.
type App struct {
	Functions int32
	// AverageMB and MaxMB are the memory that the app is allocated.
	AverageMB, MaxMB float64
}

// Trace is a set of functions. It does not change; Calls makes the calls of one.
type Trace struct {
	Seed      uint64
	Functions []Function
	Apps      []App
}

// Load is the mean number of calls per second and function that New aims at. The published head (100/s at the
// 99.9th percentile) would keep thousands of cores busy; this one keeps the share of the top fifth of functions above 99 %.
const Load = 0.17

// New draws n functions.
func New(seed uint64, n int) *Trace {
	t := &Trace{Seed: seed, Functions: make([]Function, 0, n)}
	r := rand.New(rand.NewPCG(seed, 0x6c667864))
	for len(t.Functions) < n {
		t.addApp(r, n)
	}
	t.setRates(r)
	for i := range t.Functions {
		t.Functions[i].finish(r)
	}
	return t
}

// addApp draws an app and its functions; the last one may lack some, so that there are n.
func (t *Trace) addApp(r *rand.Rand, n int) {
	k := min(appSize(r), n-len(t.Functions))
	u := r.Float64()
	app := App{Functions: int32(k), AverageMB: burr(u)}
	app.MaxMB = max(app.AverageMB, 170*math.Exp(0.668*normQuantile(u)))
	main := pick(r, functionShare[:])
	for range k {
		f := Function{App: int32(len(t.Apps)), Trigger: Trigger(main), MemoryMB: max(leastMB, app.AverageMB/float64(k))}
		if r.Float64() < 0.3 { // so that combinations exist
			f.Trigger = Trigger(pick(r, functionShare[:]))
		}
		t.Functions = append(t.Functions, f)
	}
	t.Apps = append(t.Apps, app)
}

// leastMB is the least memory that an instance holds.
const leastMB = 16

// appSize draws the number of functions of an app.
func appSize(r *rand.Rand) int {
	switch pick(r, []float64{0.54, 0.16, 0.10, 0.08, 0.07, 0.05}) {
	case 0:
		return 1
	case 1:
		return 2
	case 2:
		return 3
	case 3:
		return 4 + r.IntN(2)
	case 4:
		return 6 + r.IntN(5)
	}
	return int(11 * math.Pow(4, r.Float64()))
}

// burr is the quantile of the fitted average memory of apps, in MB.
func burr(u float64) float64 {
	const c, k, lambda = 11.652, 0.221, 107.083
	return min(lambda*math.Pow(math.Pow(1-u, -1/k)-1, 1/c), 4096)
}

// normQuantile is the quantile of the normal distribution.
func normQuantile(u float64) float64 {
	return math.Sqrt2 * math.Erfinv(2*min(max(u, 1e-9), 1-1e-9)-1)
}

// pick draws an index by its share.
func pick(r *rand.Rand, shares []float64) int {
	u := r.Float64()
	for i, s := range shares {
		if u -= s; u < 0 {
			return i
		}
	}
	return len(shares) - 1
}

// periods are those of timers, with their shares.
var (
	periods      = []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 24 * time.Hour}
	periodShares = []float64{0.15, 0.25, 0.15, 0.10, 0.20, 0.15}
)

// Published points of the rates' distribution: the shares of functions with at most a call an hour, and a minute.
const (
	perHour   = 0.45
	perMinute = 0.81
)

// setRates gives every function its rate: timers by their period, the others so that all together meet
// the published points, with a head that meets Load and the triggers' shares of calls.
func (t *Trace) setRates(r *rand.Rand) {
	var others []int
	hourly := 0.0 // timers with at most a call an hour
	for i := range t.Functions {
		f := &t.Functions[i]
		if f.Trigger != Timer {
			others = append(others, i)
			continue
		}
		p := periods[pick(r, periodShares)]
		f.Rate = 1 / p.Seconds()
		if p >= time.Hour {
			hourly++
		}
	}
	n := float64(len(t.Functions))
	timers := n - float64(len(others))
	low := max(0, perHour*n-hourly) / float64(len(others))
	mid := max(low, perMinute*n-timers) / float64(len(others))
	mid = max(mid, low)
	// Each of equal strata of the distribution is drawn once, so that small sets have its shape, too.
	r.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	var head [triggers][]int
	var calls [triggers]float64
	for rank, i := range others {
		f := &t.Functions[i]
		u := (float64(rank) + r.Float64()) / float64(len(others))
		switch {
		case u < low:
			f.Rate = logBetween(1/day, 1/hour, u/low)
		case u < mid:
			f.Rate = logBetween(1/hour, 1/minute, (u-low)/(mid-low))
		default:
			f.Rate = logBetween(1/minute, 100, min((u-mid)/(1-mid), 1))
			head[f.Trigger] = append(head[f.Trigger], i)
			continue
		}
		calls[f.Trigger] += f.Rate
	}
	t.fitHead(head, calls)
}

const (
	minute = 60.0
	hour   = 3600.0
	day    = 86400.0
)

// logBetween is evenly spread over the logarithm from a to b.
func logBetween(a, b, u float64) float64 { return a * math.Pow(b/a, u) }

// fitHead bends the rates above one a minute of each trigger so that its calls are its share of the load: an exponent
// on rate ÷ (1/min) keeps the order, and the published points, as they are.
func (t *Trace) fitHead(head [triggers][]int, calls [triggers]float64) {
	present := 0.0
	for k, fns := range head {
		if len(fns) > 0 {
			present += callShare[k]
		}
	}
	for k, fns := range head {
		if len(fns) == 0 {
			continue
		}
		want := max(Load*float64(len(t.Functions))*callShare[k]/present-calls[k], 0)
		sum := func(e float64) (sum float64) {
			for _, i := range fns {
				sum += math.Pow(t.Functions[i].Rate*minute, e) / minute
			}
			return sum
		}
		lo, hi := 0.02, 3.0
		for range 60 {
			if mid := (lo + hi) / 2; sum(mid) < want {
				lo = mid
			} else {
				hi = mid
			}
		}
		for _, i := range fns {
			f := &t.Functions[i]
			f.Rate = min(math.Pow(f.Rate*minute, lo)/minute, maxRate)
		}
	}
}

// maxRate is the most calls per second of one function.
const maxRate = 200

// maxBusy is the most instances that one function keeps busy on average: what is called often is short.
const maxBusy = 10

// finish draws what the rate does not decide, and bounds what it does.
func (f *Function) finish(r *rand.Rand) {
	f.seed = r.Uint64()
	f.setKind(r)
	f.Mean = min(math.Exp(-0.38+2.36*r.NormFloat64()), 300)
	if f.Rate*f.Mean > maxBusy {
		f.Mean = maxBusy / f.Rate
	}
	// The sandbox takes 110 ms, 20 of them left when a spare is there; the runtime and the handler's imports the rest.
	init := min(max(0.15*math.Exp(0.9*r.NormFloat64()), 0.005), 10)
	f.Start = time.Duration((0.11 + init) * 1e9).Round(time.Millisecond)
	f.Spare = time.Duration((0.02 + init) * 1e9).Round(time.Millisecond)
}

// SampleHot returns the functions to simulate instead of all, and how many each stands for: those called more than once in
// ten seconds differ little from their neighbours by rate, so one of each k neighbours is enough.
func (t *Trace) SampleHot(k int) (index []int32, weight []float64) {
	var hot []int32
	for i := range t.Functions {
		if t.Functions[i].Rate > 0.1 && k > 1 {
			hot = append(hot, int32(i))
			continue
		}
		index, weight = append(index, int32(i)), append(weight, 1)
	}
	slices.SortStableFunc(hot, func(a, b int32) int {
		switch ra, rb := t.Functions[a].Rate, t.Functions[b].Rate; {
		case ra < rb:
			return -1
		case ra > rb:
			return 1
		}
		return 0
	})
	for at := 0; at < len(hot); at += k {
		group := hot[at:min(at+k, len(hot))]
		index, weight = append(index, group[len(group)/2]), append(weight, float64(len(group)))
	}
	return index, weight
}
