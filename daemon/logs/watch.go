package logs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/internal/nbio"
)

// watch tells captures when their streams have something to read. Go's own poller does that too, but it
// cannot be told to keep quiet: here a stream that was reported is not watched before it is armed again
// (EPOLLONESHOT, epoll_ctl(2)). All captures of the process share one; it lives while there are any.
type watch struct {
	file *os.File // the epoll instance, which Go's poller watches
	raw  syscall.RawConn
	done chan struct{} // closed when run has ended

	// guarded by watches.mu
	captures map[int32]*Capture // by descriptor
}

var watches struct {
	mu  sync.Mutex
	one *watch
}

// watchStream begins to watch the stream of c.
func watchStream(c *Capture) error {
	watches.mu.Lock()
	defer watches.mu.Unlock()
	w := watches.one
	if w == nil {
		var err error
		if w, err = newWatch(); err != nil {
			return err
		}
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(c.fd)}
	w.captures[int32(c.fd)] = c
	c.watch = w // before the first event
	if err := unix.EpollCtl(w.fd(), unix.EPOLL_CTL_ADD, c.fd, &event); err != nil {
		delete(w.captures, int32(c.fd))
		if watches.one == nil {
			w.end()
		}
		return fmt.Errorf("watch a stream: %w", err)
	}
	watches.one = w
	return nil
}

func newWatch() (*watch, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // what os.NewFile goes by
		return nil, errors.Join(err, unix.Close(ep))
	}
	w := &watch{file: os.NewFile(uintptr(ep), "epoll"), done: make(chan struct{}), captures: map[int32]*Capture{}}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	go w.run(ep) // end waits for it
	return w, nil
}

// fd is the epoll instance, -1 once it is closed.
func (w *watch) fd() (fd int) {
	fd = -1
	w.raw.Control(func(v uintptr) { fd = int(v) }) //nolint:errcheck // -1 says so
	return fd
}

// run hands out events until the epoll instance is closed.
func (w *watch) run(ep int) {
	defer close(w.done)
	var events [64]unix.EpollEvent
	for {
		n := 0
		err := w.raw.Read(func(uintptr) bool {
			var err error
			n, err = nbio.EpollPoll(ep, events[:])
			return n > 0 || err != nil
		})
		if err != nil || n <= 0 {
			return
		}
		w.dispatch(events[:n])
	}
}

// dispatch has every stream read that has something.
func (w *watch) dispatch(events []unix.EpollEvent) {
	watches.mu.Lock()
	defer watches.mu.Unlock()
	for i := range events {
		if c := w.captures[events[i].Fd]; c != nil {
			c.handle.Go(c.ready)
		}
	}
}

// arm watches a stream again that was reported.
func (w *watch) arm(fd int) {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)}
	nbio.EpollMod(w.fd(), fd, &event) //nolint:errcheck // both are open
}

// remove ends the watching of c's stream. The last one ends the watch and waits for it.
func (w *watch) remove(c *Capture) {
	watches.mu.Lock()
	delete(w.captures, int32(c.fd))
	unix.EpollCtl(w.fd(), unix.EPOLL_CTL_DEL, c.fd, nil) //nolint:errcheck // closing it does the same
	last := len(w.captures) == 0
	if last {
		watches.one = nil
	}
	watches.mu.Unlock()
	if last {
		w.end()
	}
}

// end closes the epoll instance and waits for run. Nobody else has the watch any more.
func (w *watch) end() {
	w.file.Close() //nolint:errcheck // run sees it
	<-w.done
}
