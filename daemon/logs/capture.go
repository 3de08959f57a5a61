package logs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/internal/nbio"
)

// Defaults of CaptureOptions.
const (
	DefaultLineLimit = 256 << 10
	DefaultRate      = 8 << 20
	DefaultBurst     = 16 << 20
)

// Sizes and times of reading.
const (
	readSize = 64 << 10
	// drainLimit is the most that one Drain reads: no unprivileged pipe holds more
	// (/proc/sys/fs/pipe-max-size), so what was in it at the call is out.
	drainLimit = 1 << 20
	// A stream over its rate is read and thrown away at no more than floodStep every floodPause, so
	// that it costs neither much CPU here nor hangs the writer.
	floodStep  = 1 << 20
	floodPause = 4 * time.Millisecond
	// restPause is how long a stream that had a little to read is not looked at: what a short invocation prints is read
	// by its Drain, and need not wake anybody before. In that time a pipe of the usual 64 KiB takes more than DefaultRate.
	// A stream that had more than restBytes is looked at again at once.
	restPause = 5 * time.Millisecond
	restBytes = 16 << 10
	// endPause is how long a FIFO that nobody writes to is left alone: the kernel calls that ready all the time.
	endPause = 100 * time.Millisecond
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

// Capture reads one stream of an instance. A silent stream costs no thread, no goroutine and no buffer.
type Capture struct {
	fd     int
	watch  *watch
	opts   CaptureOptions
	now    func() time.Time
	rearm  *time.Timer
	handle sync.WaitGroup // calls of ready under way

	mu     sync.Mutex // serialises reading, so that lines are emitted in order; guards what follows
	framer framer
	closed bool
	tokens float64
	filled time.Time
	lines  int64 // dropped and not reported yet
	bytes  int64
	burst  int // dropped since the stream last rested
}

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// NewCapture starts reading file, the non-blocking read end of a FIFO or pipe, and owns it from now on; it is closed
// on an error, too. emit gets every line in order; line is valid during the call only, and more says that the line
// was over the limit and goes on in the next call. emit must not block and must not call the
// Capture. A FIFO without a writer is no end: the next writer is read too. Close ends it.
func NewCapture(file *os.File, emit func(line []byte, more bool), opts CaptureOptions) (*Capture, error) {
	// Go's poller would be woken by every write, so the stream gets a descriptor that it does not know.
	fd, err := takeOver(file)
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", file.Name(), err)
	}
	setDefault(&opts.LineLimit, DefaultLineLimit)
	setDefault(&opts.Rate, DefaultRate)
	setDefault(&opts.Burst, DefaultBurst)
	opts.LineLimit = max(opts.LineLimit, 16)
	c := &Capture{
		fd: fd, opts: opts, now: time.Now,
		framer: framer{limit: opts.LineLimit, emit: emit}, tokens: float64(opts.Burst),
	}
	c.filled = c.now()
	c.rearm = time.AfterFunc(time.Hour, c.again) // stopped by Close
	c.rearm.Stop()
	if err := watchStream(c); err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was read
		return nil, fmt.Errorf("capture %s: %w", file.Name(), err)
	}
	return c, nil
}

// takeOver closes file and returns another descriptor of the same stream.
func takeOver(file *os.File) (fd int, err error) {
	defer file.Close() //nolint:errcheck // fd is what counts
	raw, err := file.SyscallConn()
	if err != nil {
		return -1, err
	}
	var flags int
	cerr := raw.Control(func(old uintptr) {
		if flags, err = unix.FcntlInt(old, unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK == 0 {
			err = errors.New("it must be open in non-blocking mode")
		}
		if err == nil {
			fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
		}
	})
	if err = cmp.Or(err, cerr); err != nil {
		return -1, err
	}
	return fd, nil
}

func setDefault(v *int, d int) {
	if *v == 0 {
		*v = d
	}
}

// ready reads what has come, and says when the stream is to be looked at again.
func (c *Capture) ready() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	total, end := 0, false
	for total < floodStep && c.burst < floodStep {
		n, again := c.readLocked(true)
		if n < 0 {
			return // it cannot be read any more
		}
		if again {
			end = n == 0 && total == 0
			break
		}
		total += n
	}
	pause := restPause
	switch {
	case c.burst >= floodStep:
		c.burst, pause = 0, floodPause
	case end:
		pause = endPause
	case total > restBytes:
		pause = 0
	}
	c.rearm.Reset(pause)
}

// again has the stream looked at again.
func (c *Capture) again() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.watch.arm(c.fd)
	}
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// readLocked reads what is there, once. again says that there was nothing, or no writer, and that the
// caller should wait; n is negative when the file cannot be read any more.
func (c *Capture) readLocked(flushAtEOF bool) (n int, again bool) {
	if !nbio.Poll(c.fd) { // the usual case, and the cheaper question
		return 0, true
	}
	buf := readBuffers.Get().(*[readSize]byte)
	defer readBuffers.Put(buf)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(c.fd, buf[:]) })
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
	for total := 0; total < drainLimit; {
		n, again := c.readLocked(false)
		if again || n < 0 {
			break
		}
		total += n
	}
	c.reportLocked()
	c.framer.flush()
}

// Close drains, closes the stream and waits for whoever reads it. What is written later gets a broken pipe.
func (c *Capture) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.handle.Wait()
		return nil
	}
	c.drainLocked()
	c.closed = true
	c.rearm.Stop()
	c.mu.Unlock()
	c.watch.remove(c)
	c.handle.Wait()
	return unix.Close(c.fd)
}
