package cgroup

import (
	"os"
	"sync"
	"time"
)

// highPoll is how often memory is computed while usage is over the tripwire: at most at the first, at
// least at the second interval.
const (
	highPollMin = 20 * time.Millisecond
	highPollMax = time.Second
)

// WatchOptions says what a Watch looks for.
type WatchOptions struct {
	// MemoryLimit is the tripwire in bytes; zero means none.
	MemoryLimit uint64
	// Tmpfs returns the bytes in tmpfs files that are not the function's memory; nil means none. It may be called
	// from another goroutine at any time until Close has returned.
	Tmpfs func() uint64
}

// Reason says why a Watch has fired.
type Reason uint8

// The reasons.
const (
	// OOMKilled: the kernel has killed a process of the cgroup.
	OOMKilled Reason = iota + 1
	// OverLimit: the function's memory is over the tripwire.
	OverLimit
)

// Watch reports that an instance is out of memory. It fires at most once.
type Watch struct {
	g     Group
	o     WatchOptions
	base  uint64 // OOM kills before the watch began
	fired chan Reason

	once    sync.Once
	readers []func()
	wake    chan struct{}
	stop    chan struct{}
	wg      sync.WaitGroup

	mu    sync.Mutex // guards what follows
	files []*os.File
	ended bool
}

func newWatch(g Group, o WatchOptions) *Watch {
	w := &Watch{g: g, o: o, fired: make(chan Reason, 1), wake: make(chan struct{}, 1), stop: make(chan struct{})}
	w.base, _ = g.OOMKills()
	return w
}

// Fired delivers the reason, once.
func (w *Watch) Fired() <-chan Reason { return w.fired }

// Close ends the watch and waits for its goroutines.
func (w *Watch) Close() error {
	w.mu.Lock()
	if !w.ended {
		w.ended = true
		close(w.stop)
		for _, f := range w.files {
			_ = f.Close()
		}
	}
	w.mu.Unlock()
	w.wg.Wait()
	return nil
}

// keep makes f one of the descriptors that Close closes; false, and f is closed, when that has been.
func (w *Watch) keep(f *os.File) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		_ = f.Close()
		return false
	}
	w.files = append(w.files, f)
	return true
}

// add registers a descriptor whose every successful read of up to size bytes is an event.
func (w *Watch) add(f *os.File, size int, fn func([]byte)) {
	w.keep(f)
	w.readers = append(w.readers, func() { w.read(f, size, fn) })
}

func (w *Watch) read(f *os.File, size int, fn func([]byte)) {
	buf := make([]byte, size)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return // closed by Close
		}
		select {
		case <-w.stop:
			return
		default:
			fn(buf[:n])
		}
	}
}

// poll takes the place of events that the kernel does not send.
func (w *Watch) poll() {
	for {
		select {
		case <-w.stop:
			return
		case <-time.After(highPollMax):
			w.high()
		}
	}
}

func (w *Watch) run() {
	for _, r := range w.readers {
		w.wg.Go(r)
	}
	if w.o.MemoryLimit > 0 {
		w.wg.Go(w.measure)
	}
}

func (w *Watch) fire(r Reason) { w.once.Do(func() { w.fired <- r }) }

func (w *Watch) oom() {
	if n, err := w.g.OOMKills(); err == nil && n > w.base {
		w.fire(OOMKilled)
	}
}

// high is called when usage may have crossed the limit.
func (w *Watch) high() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// measure waits for high and then computes the function's memory until usage is below the limit again,
// the more rarely the longer nothing changes.
func (w *Watch) measure() {
	for {
		select {
		case <-w.stop:
			return
		case <-w.wake:
		}
		var last uint64
		for wait := highPollMin; ; {
			m, over := w.check()
			if over || m.Usage < w.o.MemoryLimit {
				break
			}
			if wait = min(2*wait, highPollMax); m.Usage != last {
				wait = highPollMin
			}
			last = m.Usage
			select {
			case <-w.stop:
				return
			case <-w.wake:
			case <-time.After(wait):
			}
		}
	}
}

// check fires when the function's memory is over the limit. On v2 it moves memory.high above what is
// legitimately there (the kernel throttles everything over it).
func (w *Watch) check() (m Memory, over bool) {
	m, err := w.g.Memory()
	if err != nil {
		return Memory{}, false
	}
	var tmpfs uint64
	if w.o.Tmpfs != nil {
		tmpfs = w.o.Tmpfs()
	}
	if m.Function(tmpfs) > w.o.MemoryLimit {
		w.fire(OverLimit)
		return m, true
	}
	if g, ok := w.g.(*v2); ok {
		_ = g.setHigh(w.o.MemoryLimit + min(tmpfs, m.Shmem))
	}
	return m, false
}
