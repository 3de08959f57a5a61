package logs

import (
	"context"
	"iter"
	"slices"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/internal/procs"
)

// Query selects entries.
type Query struct {
	// Key selects the function; an empty part stands for all of them.
	Key function.Key
	// Since and Until bound the time, both included; zero means unbounded.
	Since, Until time.Time
	// RequestID selects the lines of one invocation.
	RequestID string
	// Limit is how many of the newest stored entries to return; 0 means all. What is followed later
	// does not count.
	Limit int
	// Follow goes on with entries as they come, until the context or the store ends.
	Follow bool
}

func (q *Query) matchesKey(k function.Key) bool {
	match := func(want, got string) bool { return want == "" || want == got }
	return match(q.Key.Function, k.Function) && match(q.Key.Project, k.Project) && match(q.Key.Environment.Name, k.Environment.Name)
}

func (q *Query) matches(e *Entry) bool {
	return q.matchesKey(e.Key) && (q.RequestID == "" || q.RequestID == e.RequestID) &&
		(q.Since.IsZero() || !e.Time.Before(q.Since)) && (q.Until.IsZero() || !e.Time.After(q.Until))
}

// Query returns the entries that match, oldest first, those still in memory included: an entry is
// visible as soon as Append returned. Entries of one function come in the order in which they were
// appended. The sequence ends after the first error. The end of ctx ends a following query without an
// error; a query that only reads ends with the context's cause. A follower that does not keep up
// gets a platform entry in place of what it missed.
func (s *Store) Query(ctx context.Context, q Query) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var f *follower
		if q.Follow {
			f = s.follow(q.matches)
			defer s.unfollow(f)
		}
		done := procs.Boost() // decodes up to MaxBytesPerFunction for each function
		defer done()
		history, err := s.history(ctx, &q, f)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		for e, err := range history {
			if ctx.Err() != nil && !q.Follow {
				err = context.Cause(ctx)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		done()
		if f != nil {
			s.live(ctx, f, func(e Entry) bool { return yield(e, nil) })
		}
	}
}

// history returns what is stored now. The follower, when there is one, is told where each stream
// stands, so that nothing comes twice and nothing is missed.
func (s *Store) history(ctx context.Context, q *Query, f *follower) (iter.Seq2[Entry, error], error) {
	if ctx.Err() != nil && !q.Follow {
		return nil, context.Cause(ctx)
	}
	keys, err := s.keys(q)
	if err != nil {
		return nil, err
	}
	var parts []iter.Seq2[Entry, error]
	for _, k := range keys {
		st := s.existing(k)
		if st == nil {
			continue
		}
		part, err := st.entries(q, f)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	if len(parts) == 1 {
		return newest(parts[0], q.Limit), nil
	}
	return newest(merge(parts), q.Limit), nil
}

// existing returns the function's stream, or nil when it never printed anything.
func (s *Store) existing(k function.Key) *stream {
	s.mu.RLock()
	st := s.streams[k]
	s.mu.RUnlock()
	if st != nil {
		return st
	}
	if _, err := s.root.Stat(folder(k)); err != nil {
		return nil
	}
	return s.stream(k)
}

// entries returns the stream's entries as of now.
func (st *stream) entries(q *Query, f *follower) (iter.Seq2[Entry, error], error) {
	// With the writer held off, what is on disk and what is in memory are disjoint and complete.
	st.writing.Lock()
	segments, err := st.disk.snapshot()
	st.mu.Lock()
	pending := slices.Clone(st.pending) // the writer uses the array again
	if f != nil {
		f.known[st.key] = st.seq
	}
	st.mu.Unlock()
	st.writing.Unlock()
	if err != nil {
		return nil, err
	}
	return func(yield func(Entry, error) bool) {
		for _, seg := range segments {
			more, err := st.disk.read(seg, func(e Entry) bool { return !q.matches(&e) || yield(e, nil) })
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if !more {
				return
			}
		}
		for i := range pending {
			if q.matches(&pending[i]) && !yield(pending[i], nil) {
				return
			}
		}
	}, nil
}

// newest returns the last n entries of seq, all when n is 0.
func newest(seq iter.Seq2[Entry, error], n int) iter.Seq2[Entry, error] {
	if n <= 0 {
		return seq
	}
	return func(yield func(Entry, error) bool) {
		var ring []Entry
		next := 0
		for e, err := range seq {
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if len(ring) < n {
				ring = append(ring, e)
				continue
			}
			ring[next] = e
			next = (next + 1) % n
		}
		for i := range ring {
			if !yield(ring[(next+i)%len(ring)], nil) {
				return
			}
		}
	}
}

// merge joins sequences by time; each keeps its own order.
func merge(parts []iter.Seq2[Entry, error]) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		type head struct {
			entry Entry
			err   error
			next  func() (Entry, error, bool)
		}
		var heads []*head
		for _, p := range parts {
			next, stop := iter.Pull2(p)
			defer stop()
			if e, err, ok := next(); ok {
				heads = append(heads, &head{e, err, next})
			}
		}
		for len(heads) > 0 {
			first := 0
			for i, h := range heads {
				if h.err != nil {
					yield(Entry{}, h.err)
					return
				}
				if h.entry.Time.Before(heads[first].entry.Time) {
					first = i
				}
			}
			h := heads[first]
			if !yield(h.entry, nil) {
				return
			}
			var ok bool
			if h.entry, h.err, ok = h.next(); !ok {
				heads = slices.Delete(heads, first, first+1)
			}
		}
	}
}

// follower gets entries as they are appended.
type follower struct {
	matches func(*Entry) bool
	queue   *queue
	// known is where each stream stood when the history was taken. Only the goroutine that takes
	// uses it.
	known map[function.Key]int64
}

// follow registers a follower; entries that are appended from now on reach it.
func (s *Store) follow(matches func(*Entry) bool) *follower {
	f := &follower{matches: matches, queue: newQueue(s.opts.FollowBytes), known: make(map[function.Key]int64)}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := append(slices.Clone(*s.followers.Load()), f)
	s.followers.Store(&list)
	return f
}

func (s *Store) unfollow(f *follower) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(*s.followers.Load()), func(o *follower) bool { return o == f })
	s.followers.Store(&list)
}

// each hands over what waits, and a platform entry for what was lost; false when f returned false.
func (f *follower) each(yield func(Entry) bool) bool {
	entries, lines, lost := f.queue.take()
	for i := range entries {
		e := &entries[i]
		if e.seq > f.known[e.Key] && !yield(e.Entry) {
			return false
		}
	}
	if lines == 0 {
		return true
	}
	marker := Entry{Time: time.Now().UTC(), Stream: StreamPlatform, Message: DroppedLines(lines, lost, "they came faster than they were read")}
	if len(entries) > 0 {
		marker.Key = entries[len(entries)-1].Key
	}
	return yield(marker)
}

// live hands over entries as they come, until the context, the store or the caller ends it.
func (s *Store) live(ctx context.Context, f *follower, yield func(Entry) bool) {
	for f.each(yield) {
		select {
		case <-f.queue.ready:
		case <-ctx.Done():
			return
		case <-s.stop:
			f.each(yield)
			return
		}
	}
}
