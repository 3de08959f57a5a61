package trace

import (
	"math"
	"math/rand/v2"
	"time"
)

// Kind is the course of a function's calls.
type Kind uint8

const (
	// Poisson calls come independently of each other, by the hour of the day.
	Poisson Kind = iota
	// Periodic calls come at a fixed period, with 1 % jitter.
	Periodic
	// Batches come as Poisson calls do; each has many calls in a short time.
	Batches
	// Chains are 2 to 5 calls after one another.
	Chains
)

// setKind draws the course of the calls: by the triggers' nature, and so that a fifth of the functions are regular and two
// fifths bursty, as published.
func (f *Function) setKind(r *rand.Rand) {
	u := r.Float64()
	switch f.Trigger {
	case Timer:
		f.Kind, f.Synced = Periodic, u < 1.0/3
	case Orchestration:
		f.Kind, f.Size = Chains, 3.5
	case Queue, Event:
		f.Kind, f.Size = Batches, sizeFor(2+8*u)
	case HTTP:
		if u < 0.3 { // people come in sessions
			f.Kind, f.Size = Batches, sizeFor(1.5+2.5*r.Float64())
		}
	case Other:
		if u < 0.8 { // polled from outside
			f.Kind = Periodic
		}
	}
}

// atATime is how many calls of a batch run side by side.
const atATime = 16

// sizeFor returns the mean of a geometric batch size that gives this coefficient of variation.
func sizeFor(cv float64) float64 { return (cv*cv + 1) / 2 }

// dayCurve is the load by minute of the day, 1 on average and twice as high at its peak as at its lowest; at
// weekends a quarter less calls come. A trace begins on a Wednesday at midnight.
var dayCurve = func() (curve [24 * 60]float64) {
	for i := range curve {
		curve[i] = 1 - math.Cos(2*math.Pi*float64(i-120)/float64(len(curve)))/3
	}
	return curve
}()

const peak = 4.0 / 3

func curveAt(at time.Duration) float64 {
	c := dayCurve[at/time.Minute%(24*60)]
	if d := (at/(24*time.Hour) + 2) % 7; d >= 5 {
		c *= 0.75
	}
	return c
}

// Calls are the calls of one function, in order and without an end. It is a plain value of about a hundred bytes.
type Calls struct {
	f    *Function
	rng  rand.PCG      // of times
	long rand.PCG      // of durations: how they interleave with times depends on the host
	at   time.Duration // of the last call, or of the last nominal time of a periodic function
	left int           // calls of the batch that are still to come
	gap  float64       // mean seconds between batches
	step float64       // mean seconds between the calls of a batch
}

// Calls begins the calls of function i.
func (t *Trace) Calls(i int) Calls {
	f := &t.Functions[i]
	c := Calls{f: f, rng: *rand.NewPCG(t.Seed, f.seed), long: *rand.NewPCG(^t.Seed, f.seed), gap: 1 / f.Rate}
	switch f.Kind {
	case Batches:
		// Who takes from a queue takes some at a time.
		c.step = min(max(min(1, 0.02/f.Rate), f.Mean/atATime), 0.3/f.Rate)
	case Chains:
		c.step = min(f.Mean, 0.05/f.Rate)
	case Periodic:
		if !f.Synced {
			c.at = -time.Duration(c.float() * c.gap * 1e9)
		}
		return c
	}
	if f.Size > 1 {
		c.gap = f.Size/f.Rate - (f.Size-1)*c.step
	}
	return c
}

func (c *Calls) float() float64 { return float64(c.rng.Uint64()>>11) / (1 << 53) }

func (c *Calls) exp(mean float64) time.Duration {
	return time.Duration(rand.New(&c.rng).ExpFloat64() * mean * 1e9)
}

// Next returns the time of the next call, since the beginning of the trace.
func (c *Calls) Next() time.Duration {
	switch c.f.Kind {
	case Periodic:
		return c.nextPeriodic()
	case Poisson:
		return c.nextRoot()
	}
	if c.left > 0 {
		c.left--
		c.at += c.exp(c.step)
		return c.at
	}
	if c.f.Kind == Chains {
		c.left = 1 + int(c.float()*4)
	} else {
		// Geometric with this mean, of which the first call is the root.
		c.left = int(math.Log(1-c.float()) / math.Log(1-1/c.f.Size))
	}
	return c.nextRoot()
}

// nextRoot draws from a Poisson process by the day's curve, by leaving out calls of one at its peak.
func (c *Calls) nextRoot() time.Duration {
	for {
		c.at += c.exp(c.gap / peak)
		if c.float()*peak < curveAt(c.at) {
			return c.at
		}
	}
}

// nextPeriodic has a jitter of half a percent to either side around the nominal time.
func (c *Calls) nextPeriodic() time.Duration {
	period := time.Duration(c.gap * 1e9)
	for {
		c.at += period
		jitter := time.Duration((c.float() - 0.5) * 0.01 * c.gap * 1e9)
		if at := c.at + jitter; at >= 0 {
			return at
		}
	}
}

// sigma is how much the durations of one function differ.
const sigma = 0.5

// Duration draws how long the next call runs, whatever calls came meanwhile.
func (c *Calls) Duration() time.Duration {
	s := c.f.Mean * math.Exp(sigma*rand.New(&c.long).NormFloat64()-sigma*sigma/2)
	return time.Duration(min(max(s, 1e-4), 300) * 1e9)
}
