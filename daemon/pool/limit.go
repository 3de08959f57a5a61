package pool

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// limit is room that pools share: the instances of one function across its versions, or the memory of
// all instances of the host. A pool that finds no room is noted as wanting; room that becomes free is
// offered to those that want it, oldest first, and idle instances of others give way.
type limit struct {
	unit func(*Pool) int64 // what one instance of a pool takes

	wants atomic.Int32 // len(wanting), so that the warm path need not lock

	mu   sync.Mutex
	max  int64 // 0 means no limit
	used int64
	// freeing is the part of used that belongs to instances on their way out.
	freeing int64
	wanting map[*Pool]*want
	pools   map[*Pool]struct{}
}

// want says that a pool found no room.
type want struct {
	// urgent: a request or a deploy waits; else it is only min that is not reached.
	urgent bool
	since  time.Time
	tried  time.Time // when others were last asked to give way
}

const (
	// patience is how long a pool that has nothing waits before a busy one gives up an instance for it.
	patience = time.Second
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
	return l.max == 0 || l.unit(p) <= l.max
}

// take reserves room for one instance of p; when there is none, p is noted as wanting and others are
// asked to give way. Called with p.mu held.
func (l *limit) take(p *Pool, urgent bool) bool {
	n := l.unit(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.max == 0 || l.used+n <= l.max {
		l.used += n
		l.forgetLocked(p)
		return true
	}
	if len(l.pools) < 2 {
		return false
	}
	now := time.Now()
	w := l.wanting[p]
	if w == nil {
		w = &want{since: now}
		l.wanting[p] = w
		l.wants.Add(1)
	}
	if urgent && !w.urgent {
		w.urgent, w.since, w.tried = true, now, time.Time{}
	}
	if now.Sub(w.tried) >= askAgain {
		w.tried = now
		p.group.Go(func() { l.evictFor(p, urgent) })
	}
	return false
}

// put gives the room of one instance of p back. Follow with offer, without locks held.
func (l *limit) put(p *Pool) {
	l.mu.Lock()
	l.used -= l.unit(p)
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

// shortLocked says whether one instance of p finds no room even when all that leave are gone.
func (l *limit) shortLocked(p *Pool) bool {
	return l.max != 0 && l.used-l.freeing+l.unit(p) > l.max
}

// evictFor asks idle instances of others to leave, the longest unused first, until p has room.
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

// others lists the pools that could give way to p, the one with the longest unused instance first;
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
	unused := make(map[*Pool]time.Time, len(all))
	for _, o := range all {
		if t, ok := o.coldest(); ok {
			unused[o] = t
		}
	}
	all = slices.DeleteFunc(all, func(o *Pool) bool { _, ok := unused[o]; return !ok })
	slices.SortFunc(all, func(a, b *Pool) int { return unused[a].Compare(unused[b]) })
	return all
}

// offer is called by p after it freed room or has an instance idle: others that want the room get it.
func (l *limit) offer(p *Pool) {
	if l.wants.Load() == 0 {
		return
	}
	type wanting struct {
		p *Pool
		want
		fits bool
	}
	var all []wanting
	l.mu.Lock()
	for o, w := range l.wanting {
		fits := l.used+l.unit(o) <= l.max
		if fits || (o != p && l.shortLocked(o)) {
			all = append(all, wanting{o, *w, fits})
		}
		if fits {
			l.forgetLocked(o) // it notes itself again if somebody else is quicker
		}
	}
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b wanting) int {
		return cmp.Or(b.p.rank(p, b.urgent)-a.p.rank(p, a.urgent), a.since.Compare(b.since))
	})
	for _, w := range all {
		switch {
		case w.fits:
			w.p.kick()
		case p.evictOne(w.p, w.urgent):
			return
		}
	}
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

// starved says whether another pool that has nothing, or that a deploy waits for, has been wanting
// room for so long that a busy instance of p should give way to it.
func (l *limit) starved(p *Pool) bool {
	if l.wants.Load() == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for o, w := range l.wanting {
		if o != p && w.urgent && time.Since(w.since) >= patience && l.shortLocked(o) && o.needy() {
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
