package logs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// Entry is one line; the same on the wire and on disk.
type Entry = api.LogEntry

// Streams of an entry.
const (
	StreamStdout   = "stdout"
	StreamStderr   = "stderr"
	StreamPlatform = "platform"
)

// Options bounds the store. Zero values mean the defaults.
type Options struct {
	// MaxBytesPerFunction bounds the files of one function; 16 MiB.
	MaxBytesPerFunction int64
	// SegmentBytes is the size at which a new file is begun; an eighth of MaxBytesPerFunction.
	SegmentBytes int64
	// FlushInterval is how often memory is written to disk; 200 ms.
	FlushInterval time.Duration
	// QueueBytes bounds what waits in memory for the disk, for each function; 1 MiB.
	QueueBytes int64
	// FollowBytes bounds what waits for each slow follower and for the sink; 4 MiB.
	FollowBytes int64
	// Sink gets every entry too, when it is not nil.
	Sink Sink
	// Log is told once when the disk stops taking entries and once when it takes them again.
	Log *slog.Logger
}

func (o *Options) setDefaults() {
	or := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	or(&o.MaxBytesPerFunction, 16<<20)
	or(&o.SegmentBytes, o.MaxBytesPerFunction/8)
	or((*int64)(&o.FlushInterval), int64(200*time.Millisecond))
	or(&o.QueueBytes, 1<<20)
	or(&o.FollowBytes, 4<<20)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Store keeps the functions' output. Its methods may be called from any goroutine.
type Store struct {
	root *os.Root
	opts Options
	wake chan struct{} // a nudge for the writer
	stop chan struct{} // closed by Close
	done sync.WaitGroup

	followers atomic.Pointer[[]*follower] // replaced as a whole under mu
	failing   atomic.Bool                 // the disk did not take the last batch
	buffers   sync.Pool                   // of *[]byte: encoded batches
	seq       atomic.Int64                // numbers entries, so that a query tells history from what is live

	mu      sync.RWMutex // guards streams, closed and replacing followers; taken before a stream's own
	streams map[function.Key]*stream
	closed  bool
}

// stream is one function's log.
type stream struct {
	key  function.Key
	disk disk

	writing sync.Mutex // one writer at a time: the goroutine, a Flush or a Remove; taken first

	mu      sync.Mutex // guards what follows; never held across I/O
	seq     int64      // of the last entry
	pending []Entry    // not on disk yet, oldest first
	bytes   int64      // of pending
	lines   int64      // dropped because pending was full, not reported yet
	lost    int64
	removed bool
}

// Open opens the store in dir, which it makes when it is missing, and starts its writer. Close it.
func Open(dir string, opts Options) (*Store, error) {
	opts.setDefaults()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the log directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the log directory: %w", err)
	}
	s := &Store{
		root: root, opts: opts, streams: make(map[function.Key]*stream),
		wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	s.followers.Store(&[]*follower{})
	s.done.Go(s.run)
	if opts.Sink != nil {
		f := s.follow(func(*Entry) bool { return true })
		s.done.Go(func() { s.feed(f) })
	}
	return s, nil
}

// Append takes one entry. It works in memory only and never waits for a disk or a reader; what does
// not fit is counted and reported by a platform line later. After Close it does nothing.
func (s *Store) Append(e Entry) {
	st := s.stream(e.Key)
	if st == nil {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.seq = s.seq.Add(1)
	if c := cost(&e); st.bytes+c > s.opts.QueueBytes {
		st.lines++
		st.lost += int64(len(e.Message))
	} else {
		st.pending = append(st.pending, e)
		st.bytes += c
	}
	if followers := *s.followers.Load(); len(followers) > 0 {
		e := e // this one is seen by a function that is not known here, and so lives on the heap
		for _, f := range followers {
			if f.matches(&e) {
				f.queue.put(e, st.seq)
			}
		}
	}
	if st.bytes > s.opts.QueueBytes/2 {
		s.nudge()
	}
}

func (s *Store) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// stream returns the function's stream, making it when needed; nil after Close.
func (s *Store) stream(k function.Key) *stream {
	s.mu.RLock()
	st, closed := s.streams[k], s.closed
	s.mu.RUnlock()
	if closed {
		return nil
	}
	if st != nil {
		return st
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st = s.streams[k]; st == nil && !s.closed {
		st = &stream{key: k, disk: disk{root: s.root, dir: folder(k)}}
		s.streams[k] = st
	}
	return st
}

// all returns the streams that exist now.
func (s *Store) all() []*stream {
	s.mu.RLock()
	defer s.mu.RUnlock()
	streams := make([]*stream, 0, len(s.streams))
	for _, st := range s.streams {
		streams = append(streams, st)
	}
	return streams
}

// run writes what waits, until Close.
func (s *Store) run() {
	ticker := time.NewTicker(s.opts.FlushInterval)
	defer ticker.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		case <-ticker.C:
		}
		s.note(s.writeAll())
		if s.failing.Load() {
			// Without this a nudge for each entry would try a full disk again and again.
			select {
			case <-s.stop:
				return
			case <-ticker.C:
			}
		}
	}
}

// writeAll writes every stream and returns what went wrong.
func (s *Store) writeAll() error {
	var errs []error
	for _, st := range s.all() {
		if err := s.write(st); err != nil {
			errs = append(errs, fmt.Errorf("log of %s: %w", st.key, err))
		}
	}
	return errors.Join(errs...)
}

// note says once when writing stops working and once when it works again.
func (s *Store) note(err error) {
	if failing := err != nil; s.failing.Swap(failing) != failing {
		if failing {
			s.opts.Log.Error("function output cannot be written to disk; it is kept in memory as far as it fits", "error", err)
		} else {
			s.opts.Log.Info("function output is written to disk again")
		}
	}
}

// write moves what waits in memory now to disk. What comes meanwhile waits for the next time: else every line of a busy function would be a
// write of its own. On an error it stays in memory.
func (s *Store) write(st *stream) error {
	st.writing.Lock()
	defer st.writing.Unlock()
	st.mu.Lock()
	left := len(st.pending)
	if left == 0 {
		st.pending = nil // nothing came since the last time: gives the array back
	}
	st.mu.Unlock()
	if left == 0 {
		return nil
	}
	buf, _ := s.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer s.buffers.Put(buf)
	for left > 0 {
		st.mu.Lock()
		batch := st.pending[:min(left, len(st.pending))]
		st.mu.Unlock()
		if len(batch) == 0 {
			return nil // removed
		}
		n := 0
		*buf, n = encode((*buf)[:0], batch, s.opts.SegmentBytes)
		if err := st.disk.write(*buf, s.opts.SegmentBytes, s.opts.MaxBytesPerFunction); err != nil {
			return err
		}
		left -= n
		st.written(n)
	}
	return nil
}

// encode appends the first entries to data as lines, at least one and at most about limit bytes.
func encode(data []byte, entries []Entry, limit int64) (_ []byte, n int) {
	for n < len(entries) && (n == 0 || int64(len(data)) < limit/2) {
		data = appendEntry(data, &entries[n])
		n++
	}
	return data, n
}

// written takes the first n entries out of memory, and says what was lost behind them.
func (st *stream) written(n int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.removed {
		return
	}
	last := st.pending[n-1]
	for i := range n {
		st.bytes -= cost(&st.pending[i])
	}
	rest := copy(st.pending, st.pending[n:]) // the array is filled again soon
	clear(st.pending[rest:])
	st.pending = st.pending[:rest]
	if st.lines > 0 {
		e := Entry{
			Time: time.Now().UTC(), Key: st.key, Version: last.Version, Instance: last.Instance, Stream: StreamPlatform,
			Message: DroppedLines(st.lines, st.lost, "they came faster than the disk took them"),
		}
		st.pending, st.bytes = append(st.pending, e), st.bytes+cost(&e)
		st.lines, st.lost = 0, 0
	}
}

// feed hands every entry to the sink, until Close.
func (s *Store) feed(f *follower) {
	failing := false
	send := func(e Entry) bool {
		err := s.opts.Sink.Send(e)
		if failed := err != nil; failed != failing {
			failing = failed
			s.opts.Log.Warn("the journal takes function output", "working", !failing, "error", err)
		}
		return true
	}
	for {
		select {
		case <-f.queue.ready:
		case <-s.stop:
			f.each(send)
			return
		}
		f.each(send)
	}
}

// Flush returns when everything that was appended before the call is on disk (not fsynced), with the
// error when the disk does not take it, or with the context's cause.
func (s *Store) Flush(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.writeAll() }() // ends by itself: local writes
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Remove forgets the function's output, in memory and on disk. Followers go on with what comes later.
func (s *Store) Remove(k function.Key) error {
	s.mu.Lock()
	st := s.streams[k]
	delete(s.streams, k)
	s.mu.Unlock()
	if st != nil {
		st.writing.Lock()
		defer st.writing.Unlock()
		st.mu.Lock()
		st.removed, st.pending, st.bytes = true, nil, 0
		st.mu.Unlock()
	}
	if err := s.root.RemoveAll(folder(k)); err != nil {
		return fmt.Errorf("remove the log of %s: %w", k, err)
	}
	// The folders above go when they are empty; Remove refuses otherwise.
	_ = s.root.Remove(path.Dir(folder(k)))
	_ = s.root.Remove(component(k.Project))
	return nil
}

// Close writes what is left, ends followers and waits for the store's goroutines. It returns what could not be
// written; that is lost.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	s.done.Wait()
	// The second time for what the first says about lost lines.
	return errors.Join(cmp.Or(s.writeAll(), s.writeAll()), s.root.Close())
}

// keys returns all functions that match, in memory or on disk.
func (s *Store) keys(q *Query) ([]function.Key, error) {
	if q.Key.Function != "" && q.Key.Project != "" && q.Key.Environment.Name != "" {
		return []function.Key{q.Key}, nil
	}
	found := make(map[function.Key]bool)
	s.mu.RLock()
	for k := range s.streams {
		found[k] = true
	}
	s.mu.RUnlock()
	dirs, err := fs.Glob(s.root.FS(), "*/*/*")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		if k, ok := keyOf(dir); ok {
			found[k] = true
		}
	}
	var keys []function.Key
	for k := range found {
		if q.matchesKey(k) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b function.Key) int { return bytes.Compare([]byte(a.String()), []byte(b.String())) })
	return keys, nil
}

func keyOf(dir string) (k function.Key, ok bool) {
	rest, name := path.Split(dir)
	rest, env := path.Split(path.Clean(rest))
	var ok1, ok2, ok3 bool
	k.Function, ok1 = uncomponent(name)
	k.Environment.Name, ok2 = uncomponent(env)
	k.Project, ok3 = uncomponent(path.Clean(rest))
	return k, ok1 && ok2 && ok3
}
