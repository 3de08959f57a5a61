package logs

import "sync"

// queue is a bounded list of entries between one who must not wait and one who may: what does not
// fit is counted, not kept. Bounded in bytes, because entries differ so much.
type queue struct {
	limit int64

	mu      sync.Mutex
	entries []numbered
	bytes   int64
	lines   int64 // dropped and not taken yet
	lost    int64 // their bytes
	ready   chan struct{}
}

// numbered is an entry with its place in the store's order.
type numbered struct {
	Entry
	seq int64
}

func newQueue(limit int64) *queue { return &queue{limit: limit, ready: make(chan struct{}, 1)} }

// cost is what an entry weighs in memory, about.
func cost(e *Entry) int64 { return int64(len(e.Message)) + 256 }

// put never blocks.
func (q *queue) put(e Entry, seq int64) {
	q.mu.Lock()
	if c := cost(&e); q.bytes+c > q.limit {
		q.lines++
		q.lost += int64(len(e.Message))
	} else {
		q.entries = append(q.entries, numbered{e, seq})
		q.bytes += c
	}
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take returns what is there and how much was dropped after it.
func (q *queue) take() (entries []numbered, lines, lost int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	entries, lines, lost = q.entries, q.lines, q.lost
	q.entries, q.bytes, q.lines, q.lost = nil, 0, 0, 0
	return entries, lines, lost
}
