package pool

import (
	"sync"
	"sync/atomic"
)

// limit is the cap on a function's instances across its versions. When one version wants room that
// another holds idle, the other gives it up.
type limit struct {
	wants atomic.Int32 // len(wanting), so that the warm path need not lock

	mu      sync.Mutex
	max     int
	used    int
	wanting map[*Pool]struct{}
	pools   map[*Pool]struct{}
}

func newLimit(n int) *limit {
	return &limit{max: n, wanting: map[*Pool]struct{}{}, pools: map[*Pool]struct{}{}}
}

// take reserves room for one instance of p; when there is none, p is noted as wanting.
// Called with p.mu held.
func (l *limit) take(p *Pool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used < l.max {
		l.used++
		if _, ok := l.wanting[p]; ok {
			delete(l.wanting, p)
			l.wants.Add(-1)
		}
		return true
	}
	if _, ok := l.wanting[p]; !ok && len(l.pools) > 1 {
		l.wanting[p] = struct{}{}
		l.wants.Add(1)
		p.group.Go(func() { l.evictFor(p) })
	}
	return false
}

// put gives room back. Followed by offer, without locks held.
func (l *limit) put() {
	l.mu.Lock()
	l.used--
	l.mu.Unlock()
}

// evictFor closes one idle instance of another version for p.
func (l *limit) evictFor(p *Pool) {
	for _, other := range l.others(p) {
		if other.evictOne(0) {
			return
		}
	}
}

// others lists the pools of the same function but p.
func (l *limit) others(p *Pool) []*Pool {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*Pool
	for o := range l.pools {
		if o != p {
			out = append(out, o)
		}
	}
	return out
}

// offer is called by p after it freed room or has an instance idle. Others that want room get it.
func (l *limit) offer(p *Pool) {
	if l.wants.Load() == 0 {
		return
	}
	l.mu.Lock()
	room := l.used < l.max
	var wanting []*Pool
	for o := range l.wanting {
		if room {
			delete(l.wanting, o)
			l.wants.Add(-1)
		}
		if o != p || room {
			wanting = append(wanting, o)
		}
	}
	l.mu.Unlock()
	switch {
	case len(wanting) == 0:
	case room:
		for _, o := range wanting {
			o.kick()
		}
	default:
		p.evictOne(0)
	}
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
	if _, ok := l.wanting[p]; ok {
		delete(l.wanting, p)
		l.wants.Add(-1)
	}
}

func (l *limit) setMax(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.max = n
}
