package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"lfx.dev/lfxd/daemon/pool/policy"
	"lfx.dev/lfxd/integration/sim/trace"
)

// What the daemon adds to a call, as measured on a small machine: a warm call, and the thaw of an
// instance that was idle for longer than freezeAfter.
const (
	warmCost    = 150 * time.Microsecond
	thawCost    = 400 * time.Microsecond
	freezeAfter = time.Second
	// A spare is a created container, and takes this long to make.
	spareMB   = 1.5
	spareTime = 90 * time.Millisecond
)

// keeper says how long idle instances are kept: for a fixed time, or as a policy says.
type keeper struct {
	fixed  time.Duration  // without a policy; policy.Forever for always
	policy *policy.Policy // nil for a fixed time
	spares bool
}

// setup is one simulated host.
type setup struct {
	keeper
	budget      float64 // MiB for all instances; 0 for no limit
	from, until time.Duration
}

const never = time.Duration(math.MaxInt64)

type eventKind uint8

const (
	done  eventKind = iota // a call ends
	ready                  // a start ends
	ahead                  // a start ahead of need ends
)

type event struct {
	at   time.Duration
	kind eventKind
	// since is when the call or the start began; for a start ahead it is from when the instance counts as idle.
	since time.Duration
	begun time.Duration
}

// fn is a function on the host: its pool.
type fn struct {
	host   *host
	weight float64
	mb     float64
	start  time.Duration
	spare  time.Duration
	cost   policy.Cost
	calls  trace.Calls
	known  policy.Func

	next     time.Duration   // the next call
	timer    time.Duration   // when to look at idle instances again
	events   []event         // a heap by time
	idle     []spell         // the longest idle first
	queue    []time.Duration // when those that wait came
	first    int             // the first of the queue that still waits
	starting int
	busy     int
	wanting  bool
	where    int // position in host.idlers, -1 for none
	turn     int // position in host.queue

	spareFrom, spareUntil time.Duration // when the spare is usable; spareFrom is never without one
}

// spell is the time for which an instance is idle: the policy counts it from since, which for one that was started
// ahead of need lies before it was there.
type spell struct{ since, from time.Duration }

// host runs functions. Without a budget functions do not touch each other, and each runs alone, from
// beginning to end; with one, they run side by side.
type host struct {
	setup
	result

	// These are for hosts with a budget.
	used, unused float64 // MiB of all instances, and of those that are idle
	idlers       []*fn   // functions with idle instances
	wants        []*fn   // functions that found no room, oldest first
	queue        *queue
	rng          *rand.Rand
}

// origin is the time that the policy is told for the beginning of the trace.
var origin = time.Unix(1_600_000_000, 0)

// reset prepares f for function i of the trace.
func (f *fn) reset(h *host, t *trace.Trace, i int, weight float64) {
	d := &t.Functions[i]
	*f = fn{
		host: h, weight: weight, mb: d.MemoryMB, start: d.Start, spare: d.Spare,
		cost:  policy.Cost{MemoryMB: d.MemoryMB, Start: d.Start},
		calls: t.Calls(i), timer: never, where: -1, spareFrom: never,
		events: f.events[:0], idle: f.idle[:0], queue: f.queue[:0],
	}
	if h.spares {
		f.cost.SpareMB, f.cost.SpareStart = spareMB, d.Spare
		f.keepSpare(0)
	}
	f.next = f.calls.Next()
}

// at returns when something happens next.
func (f *fn) at() time.Duration {
	at := min(f.next, f.timer)
	if len(f.events) > 0 {
		at = min(at, f.events[0].at)
	}
	return at
}

// step lets the next thing happen.
func (f *fn) step() time.Duration {
	now := f.at()
	switch {
	case len(f.events) > 0 && f.events[0].at == now:
		f.end(now, f.pop())
	case f.next == now:
		f.arrive(now)
	default:
		f.look(now)
	}
	return now
}

// arrive is a call that comes.
func (f *fn) arrive(now time.Duration) {
	f.next = f.calls.Next()
	h := f.host
	if now >= h.from {
		h.Calls += f.weight
	}
	n := len(f.idle)
	if n == 0 {
		f.queue = append(f.queue, now)
		f.startForQueue(now)
		return
	}
	last := f.idle[n-1]
	f.idle = f.idle[:n-1]
	f.idleEnds(last, now)
	if h.policy != nil {
		f.known.Observe(f.busy+f.starting+1, now-last.since)
	}
	added, bucket := warmCost, warmBucket
	if now-last.from > freezeAfter {
		added, bucket = warmCost+thawCost, thawBucket
	}
	if now >= h.from {
		h.Added.addTo(bucket, added, f.weight)
	}
	f.run(now, added)
}

// run begins a call on an instance.
func (f *fn) run(now, added time.Duration) {
	f.busy++
	f.push(event{at: now + added + f.calls.Duration(), kind: done, since: now})
}

// end is the end of a call or of a start: the instance serves the one who waits longest, or becomes idle.
func (f *fn) end(now time.Duration, e event) {
	h := f.host
	since := now
	switch e.kind {
	case done:
		f.busy--
		h.Busy += f.need() * h.span(e.since, now)
	case ready, ahead:
		f.starting--
		h.Idle += f.need() * h.span(e.begun, now)
		if e.kind == ahead {
			since = e.since
		}
	}
	if f.first < len(f.queue) {
		came := f.queue[f.first]
		if f.first++; f.first == len(f.queue) {
			f.queue, f.first = f.queue[:0], 0
		}
		if came >= h.from {
			h.Waited += f.weight
			h.Wait.add(now-came, f.weight)
			h.Added.add(now-came+warmCost, f.weight)
		}
		f.run(now, warmCost)
		return
	}
	f.becomeIdle(now, since)
}

// becomeIdle keeps an instance, or ends it at once.
func (f *fn) becomeIdle(now, since time.Duration) {
	h := f.host
	at := len(f.idle)
	for at > 0 && f.idle[at-1].since > since {
		at--
	}
	f.idle = slices.Insert(f.idle, at, spell{since: since, from: now})
	if h.budget > 0 {
		h.unused += f.need()
		if f.where < 0 {
			f.where = len(h.idlers)
			h.idlers = append(h.idlers, f)
		}
	}
	if h.spares {
		f.keepSpare(now)
	}
	if at > 0 && f.timer != never {
		return // the one that goes first is the same as before
	}
	w := f.window()
	switch age := now - f.idle[0].since; {
	case w.Until(age) == policy.Forever:
	case age >= w.Until(age):
		f.look(now)
	default:
		f.timer = min(f.timer, f.idle[0].since+w.Until(age))
	}
}

// need is the room of one instance, in MiB.
func (f *fn) need() float64 { return f.mb * f.weight }

// idleEnds books the time that an instance was idle. It is no longer in f.idle.
func (f *fn) idleEnds(s spell, now time.Duration) {
	h := f.host
	h.Idle += f.need() * h.span(s.from, now)
	if h.budget > 0 {
		h.unused -= f.need()
	}
	if len(f.idle) == 0 && f.where >= 0 {
		last := h.idlers[len(h.idlers)-1]
		h.idlers[f.where], last.where = last, f.where
		h.idlers = h.idlers[:len(h.idlers)-1]
		f.where = -1
	}
}

func (f *fn) window() policy.Window {
	if p := f.host.policy; p != nil {
		return p.Window(&f.known, f.cost, f.busy+f.starting+len(f.idle))
	}
	return policy.Window{KeepFor: f.host.fixed}
}

// look ends the instances whose time is over, and starts one when its time comes.
func (f *fn) look(now time.Duration) {
	f.timer = never
	for len(f.idle) > 0 {
		w := f.window()
		age := now - f.idle[0].since
		keep := w.Until(age)
		if age < keep {
			if keep != policy.Forever {
				f.timer = f.idle[0].since + keep
			}
			return
		}
		f.giveUp(now)
	}
	f.plan(now, f.window())
}

// giveUp ends the instance that is idle for longest.
func (f *fn) giveUp(now time.Duration) {
	first := f.idle[0]
	f.idle = slices.Delete(f.idle, 0, 1)
	f.idleEnds(first, now)
	f.host.used -= f.need()
	if f.host.policy != nil {
		f.known.GaveUp(f.busy+f.starting+len(f.idle)+1, origin.Add(first.since))
	}
}

// plan starts an instance ahead of need, or sets the timer for it.
func (f *fn) plan(now time.Duration, w policy.Window) {
	if w.PrewarmUntil == 0 || f.busy+f.starting+len(f.idle) > 0 {
		return
	}
	absent, ok := f.known.Absent()
	if !ok {
		return
	}
	since := absent.Sub(origin)
	switch {
	case now < since+w.PrewarmAt-f.start:
		f.timer = since + w.PrewarmAt - f.start
	case now < since+w.PrewarmUntil && f.host.take(f, false, now):
		f.known.Prewarmed()
		if now >= f.host.from {
			f.host.Ahead += f.weight
		}
		f.starting++
		f.push(event{at: now + f.start, kind: ahead, since: since, begun: now})
	}
}

// startForQueue starts an instance for each call that none is starting for.
func (f *fn) startForQueue(now time.Duration) {
	h := f.host
	for f.starting < len(f.queue)-f.first {
		if !h.take(f, true, now) {
			return
		}
		if h.policy != nil {
			f.known.Missed(f.busy+f.starting+1, origin.Add(now))
		}
		takes := f.start
		spared := f.takeSpare(now)
		if spared {
			takes = f.spare
		}
		if now >= h.from {
			h.Starts += f.weight
			if spared {
				h.Spared += f.weight
			}
		}
		f.starting++
		f.push(event{at: now + takes, kind: ready, begun: now})
	}
}

// keepSpare is called when an instance becomes idle: a spare is kept, or made, for as long as the policy says.
func (f *fn) keepSpare(now time.Duration) {
	if f.spareUntil < now {
		f.spareEnds(f.spareUntil)
	}
	keep := f.window().SpareFor
	if keep == 0 {
		return
	}
	if f.spareFrom == never {
		f.spareFrom = now + spareTime
	}
	f.spareUntil = never
	if keep < never-now {
		f.spareUntil = now + keep
	}
}

// takeSpare uses the spare, if there is one, and has another made.
func (f *fn) takeSpare(now time.Duration) bool {
	if f.spareFrom > now || f.spareUntil < now {
		return false
	}
	f.spareEnds(now)
	f.spareFrom = now + spareTime
	return true
}

// spareEnds books the spare's memory.
func (f *fn) spareEnds(at time.Duration) {
	if f.spareFrom != never {
		f.host.Spares += spareMB * f.weight * f.host.span(f.spareFrom, at)
	}
	f.spareFrom = never
}

// finish books what is still there when the trace ends.
func (f *fn) finish() {
	h := f.host
	for _, s := range f.idle {
		h.Idle += f.need() * h.span(s.from, h.until)
	}
	for _, e := range f.events {
		if e.kind == done {
			h.Busy += f.need() * h.span(e.since, h.until)
		} else {
			h.Idle += f.need() * h.span(e.begun, h.until)
		}
	}
	f.spareEnds(min(f.spareUntil, h.until))
	for _, came := range f.queue[f.first:] {
		h.Waited += f.weight
		h.Wait.add(h.until-came, f.weight)
	}
}

// span is the measured part of a time, in seconds.
func (h *host) span(from, to time.Duration) float64 {
	return max(0, (min(to, h.until) - max(from, h.from)).Seconds())
}

// push and pop keep the heap.
func (f *fn) push(e event) {
	f.events = append(f.events, e)
	ev := f.events
	for i := len(ev) - 1; i > 0; {
		up := (i - 1) / 2
		if ev[up].at <= ev[i].at {
			break
		}
		ev[up], ev[i] = ev[i], ev[up]
		i = up
	}
}

func (f *fn) pop() event {
	ev := f.events
	top, n := ev[0], len(ev)-1
	ev[0] = ev[n]
	f.events = ev[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && ev[c+1].at < ev[c].at {
			c++
		}
		if ev[i].at <= ev[c].at {
			break
		}
		ev[i], ev[c] = ev[c], ev[i]
		i = c
	}
	return top
}
