package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Defaults of CaptureOptions.
const (
	DefaultLineLimit = 256 << 10
	DefaultRate      = 8 << 20
	DefaultBurst     = 16 << 20
)

// Sizes of reading.
const (
	readSize = 64 << 10
	// drainLimit is the most that one Drain reads: no unprivileged pipe holds more
	// (/proc/sys/fs/pipe-max-size), so what was in it at the call is out.
	drainLimit = 1 << 20
	// A stream over its rate is read and thrown away at no more than floodStep every floodPause, so
	// that it costs neither much CPU here nor hangs the writer.
	floodStep  = 1 << 20
	floodPause = 4 * time.Millisecond
	// lineCost is what a line weighs beside its bytes: to store many short lines is more work than to store as many
	// bytes in long ones.
	lineCost = 128
)

// CaptureOptions bounds one stream. Zero values mean the defaults.
type CaptureOptions struct {
	// LineLimit is the longest line in bytes; a longer one is emitted in pieces.
	LineLimit int
	// Rate (bytes per second) and Burst (bytes) bound what is emitted, a line costing lineCost more than its bytes. What
	// comes faster is read and dropped.
	Rate, Burst int
	// Dropped is told how many bytes and lines (at least 1) were dropped, once the stream is within its rate
	// again, and at every Drain. Called like emit.
	Dropped func(lines, bytes int64)
}

// Capture reads one stream of an instance. Its read end is registered with Go's poller, so a silent
// stream costs no thread and no buffer.
type Capture struct {
	file *os.File
	raw  syscall.RawConn
	opts CaptureOptions
	done chan struct{} // closed when the reader has ended
	stop chan struct{} // closed by Close
	now  func() time.Time
	// empty is emptyLocked as a value, made once.
	empty func(fd uintptr)

	mu     sync.Mutex // serialises reading, so that lines are emitted in order; guards what follows
	framer framer
	closed bool
	tokens float64
	filled time.Time
	lines  int64 // dropped and not reported yet
	bytes  int64
	burst  int // dropped since the reader last paused
}

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// NewCapture starts reading file, the non-blocking read end of a FIFO or pipe, and owns it from now on.
// emit gets every line in order; line is valid during the call only, and more says that the line
// was over the limit and goes on in the next call. emit must not block and must not call the
// Capture. A FIFO without a writer is no end: the next writer is read too. Close ends it.
func NewCapture(file *os.File, emit func(line []byte, more bool), opts CaptureOptions) (*Capture, error) {
	raw, err := file.SyscallConn()
	if err == nil {
		// Succeeds exactly when the poller knows the file.
		err = file.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, fmt.Errorf("capture %s: it must be open in non-blocking mode: %w", file.Name(), err)
	}
	setDefault(&opts.LineLimit, DefaultLineLimit)
	setDefault(&opts.Rate, DefaultRate)
	setDefault(&opts.Burst, DefaultBurst)
	opts.LineLimit = max(opts.LineLimit, 16)
	c := &Capture{
		file: file, raw: raw, opts: opts, now: time.Now,
		done: make(chan struct{}), stop: make(chan struct{}),
		framer: framer{limit: opts.LineLimit, emit: emit}, tokens: float64(opts.Burst),
	}
	c.filled, c.empty = c.now(), c.emptyLocked
	go c.run() // ends with Close, which waits for done
	return c, nil
}

func setDefault(v *int, d int) {
	if *v == 0 {
		*v = d
	}
}

// run reads whatever comes until the file is closed. Between two events it holds no buffer.
func (c *Capture) run() {
	defer close(c.done)
	for {
		var n int
		err := c.raw.Read(func(fd uintptr) bool {
			var again bool
			n, again = c.readOnce(fd, true)
			return !again
		})
		if err != nil || n < 0 {
			return
		}
		if !c.pause() {
			return
		}
	}
}

// pause holds the reader back while the stream is flooding; false when the capture was closed.
func (c *Capture) pause() bool {
	c.mu.Lock()
	flooding := c.burst >= floodStep
	if flooding {
		c.burst = 0
	}
	c.mu.Unlock()
	if !flooding {
		return true
	}
	timer := time.NewTimer(floodPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.stop:
		return false
	}
}

// readOnce reads what is there, once. again says that there was nothing (or no writer) and that the
// caller should wait; n is negative when the file cannot be read any more.
func (c *Capture) readOnce(fd uintptr, flushAtEOF bool) (n int, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readLocked(fd, flushAtEOF)
}

func (c *Capture) readLocked(fd uintptr, flushAtEOF bool) (n int, again bool) {
	buf := readBuffers.Get().(*[readSize]byte)
	defer readBuffers.Put(buf)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), buf[:]) })
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, true
	case err != nil:
		return -1, false
	case n == 0:
		if flushAtEOF {
			c.framer.flush()
		}
		return 0, true
	}
	c.takeLocked(buf[:n])
	return n, false
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// takeLocked emits p, or drops it when the stream is over its rate.
func (c *Capture) takeLocked(p []byte) {
	now := c.now()
	c.tokens = min(float64(c.opts.Burst), c.tokens+now.Sub(c.filled).Seconds()*float64(c.opts.Rate))
	c.filled = now
	lines := bytes.Count(p, []byte{'\n'})
	cost := float64(len(p) + lines*lineCost)
	// More than a burst can never be saved up for: a full bucket is enough.
	if c.tokens < min(cost, float64(c.opts.Burst)) {
		c.lines += int64(lines)
		c.bytes += int64(len(p))
		c.burst += len(p)
		return
	}
	c.tokens -= cost
	c.reportLocked()
	c.framer.write(p)
}

// reportLocked tells what was dropped. The line in which the gap began ends there.
func (c *Capture) reportLocked() {
	if c.bytes == 0 {
		return
	}
	lines, n := max(c.lines, 1), c.bytes
	c.lines, c.bytes, c.burst = 0, 0, 0
	c.framer.flush()
	if c.opts.Dropped != nil {
		c.opts.Dropped(lines, n)
	}
}

// Drain returns after everything that was in the pipe at the call has been emitted, an unfinished
// last line included. With an empty pipe that is one system call.
func (c *Capture) Drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.drainLocked()
	}
}

func (c *Capture) drainLocked() {
	// Control, not Read: the reader holds the file's read lock while it waits.
	_ = c.raw.Control(c.empty)
	c.reportLocked()
	c.framer.flush()
}

// emptyLocked reads what is in the pipe.
func (c *Capture) emptyLocked(fd uintptr) {
	for total := 0; total < drainLimit; {
		n, again := c.readLocked(fd, false)
		if again || n < 0 {
			return
		}
		total += n
	}
}

// Close drains, closes the file and waits for the reader. What is written later gets a broken pipe.
func (c *Capture) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.done
		return nil
	}
	c.drainLocked()
	c.closed = true
	close(c.stop)
	c.mu.Unlock()
	err := c.file.Close()
	<-c.done
	return err
}
