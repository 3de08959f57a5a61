package pool

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// limit is room that pools share: the instances of one function across its versions, the instances of
// the host, or their memory. A pool that finds no room is noted as wanting and stands in a line; room that becomes
// free is given out one start at a time along the line, so that a long queue gets no more starts than
// a short one. Idle instances of others give way.
type limit struct {
	unit func(*Pool) int64 // what one instance of a pool takes
	// fair is for limits of the whole host: a function that has more than another one that waits gives way
	// to it, instance by instance.
	fair bool
	// stopped says that the function's active version must not run at all (concurrency.max: 0).
	stopped atomic.Bool

	wants atomic.Int32 // len(wanting), so that the warm path need not lock

	mu   sync.Mutex
	max  int64 // 0 means no limit
	used int64
	// freeing is the part of used that belongs to instances on their way out.
	freeing int64
	gauge   *gauge // what is really used, beside the book; nil where only the book counts
	wanting map[*Pool]*want
	pools   map[*Pool]struct{}
}

// want says that a pool found no room.
type want struct {
	// urgent: a request or a deploy waits; else it is only min that is not reached.
	urgent bool
	since  time.Time // when it went to the end of the line
	tried  time.Time // when others were last asked to give way
}

const (
	// patience is how long a pool that has nothing waits before a busy one gives up an instance for it.
	patience = time.Second
	// keepFrom and keepUntil say how long a pool must have waited so that room is kept for it from others
	// that have nothing either.
	keepFrom  = 2 * time.Second
	keepUntil = 10 * time.Second
	// askAgain is the pause before others are asked to give way again.
	askAgain = 100 * time.Millisecond
)

func newLimit(n int64, unit func(*Pool) int64) *limit {
	return &limit{unit: unit, max: n, wanting: map[*Pool]*want{}, pools: map[*Pool]struct{}{}}
}

func one(*Pool) int64 { return 1 }

// fits says whether one instance of p could ever have room.
func (l *limit) fits(p *Pool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return (l.max == 0 || l.unit(p) <= l.max) && l.gauge.couldHold(p)
}

// full says whether one instance of p finds no room now.
func (l *limit) full(p *Pool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.roomLocked(p)
}

// roomLocked says whether there is room for one instance of p now.
func (l *limit) roomLocked(p *Pool) bool {
	return (l.max == 0 || l.used+l.unit(p) <= l.max) && l.gauge.hasRoom(p)
}

// shortLocked says whether one instance of p finds no room even when all that leave are gone.
func (l *limit) shortLocked(p *Pool) bool {
	return l.max != 0 && l.used-l.freeing+l.unit(p) > l.max || l.gauge.short(p)
}

// take reserves room for one instance of p; when there is none, p is noted as wanting and others are
// asked to give way. Called with p.mu held.
func (l *limit) take(p *Pool, urgent bool) bool {
	n := l.unit(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.roomLocked(p) && !l.keptLocked(l.keepersLocked(), p) {
		l.used += n
		l.gauge.begin(p)
		l.forgetLocked(p)
		return true
	}
	if len(l.pools) < 2 && l.used <= int64(p.live.Load())*n {
		return false // nobody could give way, and p learns itself when its own instances go
	}
	now := time.Now()
	w := l.noteLocked(p, now)
	if urgent && !w.urgent {
		w.urgent, w.since, w.tried = true, now, time.Time{}
	}
	if now.Sub(w.tried) >= askAgain {
		w.tried = now
		p.group.Go(func() { l.evictFor(p, urgent) })
	}
	return false
}

// keepers are those for whom room is kept: they have nothing and wait for long. Without it a large instance would never find
// room beside many small ones.
type keepers struct {
	// some: room is kept from all that have something.
	some bool
	// since is when the oldest came for whom room is kept also from those that have nothing and came later; zero without one.
	// What has waited for so long that room seems not to come is not among them.
	since time.Time
}

// keepersLocked finds them.
func (l *limit) keepersLocked() (k keepers) {
	if l.wants.Load() == 0 {
		return k
	}
	now := time.Now()
	for o, w := range l.wanting {
		waited := now.Sub(w.since)
		if !w.urgent || waited < patience || !o.needy() {
			continue
		}
		k.some = true
		if waited >= keepFrom && waited < keepUntil && (k.since.IsZero() || w.since.Before(k.since)) {
			k.since = w.since
		}
	}
	return k
}

// keptLocked says whether the room that is left is kept from p.
func (l *limit) keptLocked(k keepers, p *Pool) bool {
	switch {
	case !k.some:
		return false
	case !p.needy():
		return true
	case k.since.IsZero():
		return false
	}
	w := l.wanting[p]
	return w == nil || k.since.Before(w.since)
}

// noteLocked returns the place of p in the line, at its end when it had none.
func (l *limit) noteLocked(p *Pool, now time.Time) *want {
	w := l.wanting[p]
	if w == nil {
		w = &want{since: now}
		l.wanting[p] = w
		l.wants.Add(1)
	}
	return w
}

// put gives the room of one instance of p back that never became ready. Follow with offer, without locks held.
func (l *limit) put(p *Pool) {
	l.mu.Lock()
	l.used -= l.unit(p)
	l.gauge.failed(p)
	l.mu.Unlock()
}

// ready notes that an instance of p has started: from the next reading on, what it really uses counts.
func (l *limit) ready(p *Pool) {
	if l.gauge == nil {
		return
	}
	l.mu.Lock()
	l.gauge.ready(p)
	l.mu.Unlock()
}

// leaving notes that one instance of p is on its way out; left, that it is out and gives its room back.
func (l *limit) leaving(p *Pool) {
	l.mu.Lock()
	l.freeing += l.unit(p)
	l.mu.Unlock()
}

func (l *limit) left(p *Pool) {
	l.mu.Lock()
	l.freeing -= l.unit(p)
	l.used -= l.unit(p)
	l.mu.Unlock()
}

// evictFor asks idle instances of others to leave until p has room: those first that are worth least.
func (l *limit) evictFor(p *Pool, urgent bool) {
	for {
		evicted := false
		for _, o := range l.others(p) {
			if o.evictOne(p, urgent) {
				evicted = true
				break
			}
		}
		if !evicted {
			return
		}
	}
}

// others lists the pools that could give way to p, the one whose coldest instance is worth least first;
// none when p has room or will have it.
func (l *limit) others(p *Pool) []*Pool {
	l.mu.Lock()
	var all []*Pool
	if l.shortLocked(p) {
		for o := range l.pools {
			if o != p {
				all = append(all, o)
			}
		}
	}
	l.mu.Unlock()
	return byWorth(all, time.Now())
}

// byWorth drops the pools without an idle instance that could leave, and orders the others by what their coldest instance is
// worth, the least first.
func byWorth(all []*Pool, now time.Time) []*Pool {
	worth := make(map[*Pool]float64, len(all))
	for _, o := range all {
		if w, ok := o.worth(now); ok {
			worth[o] = w
		}
	}
	all = slices.DeleteFunc(all, func(o *Pool) bool { _, ok := worth[o]; return !ok })
	slices.SortFunc(all, func(a, b *Pool) int { return cmp.Compare(worth[a], worth[b]) })
	return all
}

// offer is called after room became free or p has an instance idle (p may be nil): those that stand in the line get it,
// one start each in turn, until there is no room or nobody who wants it.
func (l *limit) offer(p *Pool) {
	if l.wants.Load() == 0 {
		return
	}
	tried := map[*Pool]bool{}
	for {
		o, urgent, room := l.next(p, tried)
		if o == nil {
			return
		}
		if !room {
			if p != nil && p.evictOne(o, urgent) {
				return
			}
			tried[o] = true
			continue
		}
		started, more := o.startNext()
		if !started {
			tried[o] = true
		}
		if more {
			l.again(o, urgent)
		}
	}
}

// next finds the one whose turn it is, and whether there is room for it; without room only one to which p could give way. One that
// gets room leaves the line; it stands at its end again when it wants more, or when somebody else was quicker.
func (l *limit) next(p *Pool, tried map[*Pool]bool) (next *Pool, urgent, room bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var first *want
	kept := l.keepersLocked()
	for o, w := range l.wanting {
		fits := l.roomLocked(o) && !l.keptLocked(kept, o)
		if tried[o] || !fits && (o == p || !l.shortLocked(o)) {
			continue
		}
		if next == nil || cmp.Or(o.rank(p, w.urgent)-next.rank(p, first.urgent), first.since.Compare(w.since)) > 0 {
			next, first, room = o, w, fits
		}
	}
	if next == nil {
		return nil, false, false
	}
	urgent = first.urgent
	if room {
		l.forgetLocked(next)
	}
	return next, urgent, room
}

// again puts p at the end of the line: it was served and wants more.
func (l *limit) again(p *Pool, urgent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, in := l.pools[p]; !in {
		return
	}
	w := l.noteLocked(p, time.Now())
	w.urgent = w.urgent || urgent
}

// rank orders pools that want the room that giver has: those that have nothing or that a deploy waits
// for come first, then those for which a request waits, and the giver comes last.
func (p *Pool) rank(giver *Pool, urgent bool) int {
	switch {
	case p == giver:
		return 0
	case !urgent:
		return 1
	case p.needy():
		return 3
	}
	return 2
}

// needy says that the pool has no instance, or that a deploy waits for one.
func (p *Pool) needy() bool { return p.live.Load() == 0 || p.warming.Load() > 0 }

// starved says whether a busy instance of p should give way because another pool has been wanting room for
// long: one that has nothing, or that a deploy waits for, and where fair one that would still not have more than p.
func (l *limit) starved(p *Pool) bool {
	if l.wants.Load() == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for o, w := range l.wanting {
		if o == p || !w.urgent || time.Since(w.since) < patience || !l.shortLocked(o) {
			continue
		}
		if o.needy() || l.fair && (int64(o.live.Load())+1)*l.unit(o) <= (int64(p.live.Load())-1)*l.unit(p) {
			return true
		}
	}
	return false
}

// join and leave keep the list of pools; setMax changes the cap for later starts.
func (l *limit) join(p *Pool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pools[p] = struct{}{}
}

func (l *limit) leave(p *Pool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pools, p)
	l.forgetLocked(p)
}

// forget notes that p wants no room any more.
func (l *limit) forget(p *Pool) {
	if l.wants.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetLocked(p)
}

func (l *limit) forgetLocked(p *Pool) {
	if _, ok := l.wanting[p]; ok {
		delete(l.wanting, p)
		l.wants.Add(-1)
	}
}

// setMax sets the cap, raise only lifts it.
func (l *limit) setMax(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.max = n
}

func (l *limit) raise(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.max = max(l.max, n)
}
