package main

import (
	"container/heap"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"lfx.dev/lfxd/integration/sim/trace"
)

// fleet is what is simulated: functions of a trace, each with the number that it stands for.
type fleet struct {
	trace  *trace.Trace
	index  []int32
	weight []float64
}

// run simulates a setup. The same setup and fleet give the same result, on any number of cores.
func (fl *fleet) run(s setup) *result {
	if s.budget > 0 {
		return fl.together(s)
	}
	return fl.apart(s)
}

// parts is into how many parts a fleet is divided: a constant, so that sums do not depend on the machine.
const parts = 64

// apart simulates function by function.
func (fl *fleet) apart(s setup) *result {
	results := make([]result, parts)
	next := make(chan int)
	var group sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			f := &fn{}
			for part := range next {
				h := &host{setup: s}
				for k := part; k < len(fl.index); k += parts {
					f.reset(h, fl.trace, int(fl.index[k]), fl.weight[k])
					for f.at() < s.until {
						f.step()
					}
					f.finish()
				}
				results[part] = h.result
			}
		})
	}
	for part := range parts {
		next <- part
	}
	close(next)
	group.Wait()
	var all result
	for i := range results {
		all.merge(&results[i])
	}
	return &all
}

// together simulates all functions side by side, for they share a budget.
func (fl *fleet) together(s setup) *result {
	h := &host{setup: s, rng: rand.New(rand.NewPCG(fl.trace.Seed, 0x686f7374))}
	q := make(queue, len(fl.index))
	all := make([]fn, len(fl.index))
	for k := range all {
		f := &all[k]
		f.reset(h, fl.trace, int(fl.index[k]), fl.weight[k])
		q[k] = turn{f.at(), f}
		f.turn = k
	}
	heap.Init(&q)
	h.queue = &q
	for q[0].at < s.until {
		f := q[0].f
		now := f.step()
		h.moved(f)
		h.grant(now)
	}
	for k := range all {
		all[k].finish()
	}
	return &h.result
}

// turn is when a function wants to act.
type turn struct {
	at time.Duration
	f  *fn
}

// queue orders functions by what happens next.
type queue []turn

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].f.turn, q[j].f.turn = i, j }
func (q queue) Push(any)           { panic("the number of functions is fixed") }
func (q queue) Pop() any           { panic("the number of functions is fixed") }

// moved puts a function where it belongs after something changed for it.
func (h *host) moved(f *fn) {
	(*h.queue)[f.turn].at = f.at()
	heap.Fix(h.queue, f.turn)
}
