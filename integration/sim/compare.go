package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"lfx.dev/lfxd/daemon/pool/policy"
	"lfx.dev/lfxd/integration/sim/trace"
)

const (
	// fixedWindow is the keep-alive that policies are compared with.
	fixedWindow = 10 * time.Minute
	// Above manyFunctions only one of hotSample functions that are called often is simulated, and stands for all.
	manyFunctions = 10_000
	hotSample     = 128
)

// comparison is what one set of functions costs under each policy.
type comparison struct {
	functions, simulated int
	seed                 uint64
	until, shared        time.Duration // how long, without and with a budget
	rows                 []row
	budget               float64 // MiB
	tight                []row   // with the budget
	worth                float64 // of the policy that holds as much as the fixed window
}

type row struct {
	name string
	*result
}

// Names of the rows, which the figures below the table are taken from.
const (
	rowNone   = "none"
	rowFixed  = "fixed 10 min"
	rowSame   = "ours, same memory"
	rowOurs   = "ours"
	rowSpares = "ours with spares"
	rowAlways = "always"
)

// compare simulates a trace under each policy.
func compare(t *trace.Trace, until time.Duration) *comparison {
	fl := &fleet{trace: t}
	k := 1
	if len(t.Functions) > manyFunctions {
		k = hotSample
	}
	fl.index, fl.weight = t.SampleHot(k)
	c := &comparison{functions: len(t.Functions), simulated: len(fl.index), seed: t.Seed, until: until, shared: until}
	if k > 1 {
		c.shared = until / 4
	}
	alone := func(name string, k keeper) *result {
		r := fl.run(setup{keeper: k, until: until})
		c.rows = append(c.rows, row{name, r})
		return r
	}
	ours := policy.New(policy.Defaults())
	alone(rowNone, keeper{})
	fixed := alone(rowFixed, keeper{fixed: fixedWindow})
	known := alone(rowOurs, keeper{policy: ours})
	c.rows = append(c.rows, row{rowSame, c.match(fl, known, fixed.held())})
	alone(rowSpares, keeper{policy: ours, spares: true})
	alone(rowAlways, keeper{fixed: policy.Forever})

	// A host with less room than the fixed window would take on average, and never too little for what runs.
	c.budget = fl.room(fixed, until)
	tight := []row{{name: rowFixed}, {name: rowOurs}}
	var group sync.WaitGroup
	for i, k := range []keeper{{fixed: fixedWindow}, {policy: ours}} {
		group.Go(func() { tight[i].result = fl.run(setup{keeper: k, until: c.shared, budget: c.budget}) })
	}
	group.Wait()
	c.tight = tight
	return c
}

// room is the budget of the host with little memory.
func (fl *fleet) room(fixed *result, until time.Duration) float64 {
	largest := 0.0
	for k, i := range fl.index {
		largest = max(largest, fl.trace.Functions[i].MemoryMB*fl.weight[k])
	}
	return max((fixed.Busy+fixed.held()*3/4)/until.Seconds(), 8*largest)
}

// match finds the policy that holds about as much memory × time as is given: within half a percent, or as near as a few runs
// come. The result of the default policy is known.
func (c *comparison) match(fl *fleet, known *result, held float64) *result {
	opts := policy.Defaults()
	// Of two points the line through them says where to look next; memory grows about with the eighth root of worth.
	at, slope := math.Log(opts.Worth), 0.12
	off := math.Log(known.held() / held)
	best, nearest := known, math.Abs(off)
	c.worth = opts.Worth
	for i := 0; i < 5 && nearest > 0.005; i++ {
		before := at
		at = min(max(at-off/slope, at-2), at+2)
		opts.Worth = math.Exp(at)
		r := fl.run(setup{keeper: keeper{policy: policy.New(opts)}, until: c.until})
		now := math.Log(r.held() / held)
		if math.Abs(now) < nearest {
			best, nearest, c.worth = r, math.Abs(now), opts.Worth
		}
		slope = min(max((now-off)/(at-before), 0.03), 1)
		off = now
	}
	return best
}

func (c *comparison) row(name string) *result {
	for _, r := range c.rows {
		if r.name == name {
			return r.result
		}
	}
	return &result{}
}

// print writes the tables.
func (c *comparison) print(out io.Writer) {
	fmt.Fprintf(out, "%s functions for %s, seed %d: %s calls", group(float64(c.functions)), hours(c.until), c.seed, group(c.rows[0].Calls))
	if c.simulated < c.functions {
		fmt.Fprintf(out, "; %s functions are simulated, one of %d of those that are called more than once in 10 s", group(float64(c.simulated)), hotSample)
	}
	fmt.Fprint(out, "\n\nenough memory for all\n")
	table(out, c.rows)
	fixed, same, spares, always := c.row(rowFixed), c.row(rowSame), c.row(rowSpares), c.row(rowAlways)
	fmt.Fprintf(out, "P1  cold starts, ours ÷ fixed 10 min at the same memory-time: %.2f (waits of calls: %.2f; worth %.0f)\n",
		same.Starts/fixed.Starts, same.Wait.sum/fixed.Wait.sum, c.worth)
	fmt.Fprintf(out, "P2  added latency, ours with spares ÷ always: %.2f (memory-time: %.2f)\n",
		spares.Added.sum/always.Added.sum, spares.held()/always.held())
	fmt.Fprintf(out, "\n%s GiB for all, for %s\n", group(c.budget/1024), hours(c.shared))
	table(out, c.tight)
}

// table prints rows.
func table(out io.Writer, rows []row) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\tcold starts\tcold\tahead\tevicted\theld GB·s\tspares GB·s\tbusy GB·s\tadded p50\tp99\tp99.9\twait p50\tp99\tp99.9\t\n")
	for _, r := range rows {
		cells := []string{r.name, group(r.Starts), fmt.Sprintf("%.3f %%", 100*r.Starts/max(r.Calls, 1)), group(r.Ahead), group(r.Evicted),
			group(r.Idle / 1024), group(r.Spares / 1024), group(r.Busy / 1024)}
		for _, h := range []*hist{&r.Added, &r.Wait} {
			for _, q := range []float64{0.5, 0.99, 0.999} {
				cells = append(cells, short(h.quantile(q)))
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t")+"\t")
	}
	w.Flush()
}

// group writes a number with commas.
func group(x float64) string {
	s := fmt.Sprintf("%.0f", x)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func hours(d time.Duration) string { return fmt.Sprintf("%g h", d.Hours()) }

// short writes a time with two or three digits.
func short(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%.2f ms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1000)
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}
