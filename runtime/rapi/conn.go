package rapi

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"lfx.dev/lfxd/internal/http1"
	"lfx.dev/lfxd/internal/nbio"
)

const (
	// readBuffer is the size in bytes of an idle connection's buffer: the head of an ordinary request.
	readBuffer = 2 << 10
	// headTimeout bounds the time from the first to the last byte of a request head.
	headTimeout = 10 * time.Second
	// bodyTimeout bounds a body that no invocation bounds.
	bodyTimeout = 10 * time.Second
	// writeTimeout bounds a reply that the runtime does not read.
	writeTimeout = 30 * time.Second
	// maxDrain is how much of a refused or oversized body is read and dropped before the connection
	// is closed instead, in bytes.
	maxDrain = 64 << 20
)

// errFallback says that net/http has to go on with this connection.
var errFallback = errors.New("not for the codec")

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// conn is one connection that the codec reads. One goroutine owns it (serve); only the fields that say
// so are touched by others.
type conn struct {
	s  *Server
	nc net.Conn

	// buf[r:w] is what was read and not yet consumed. Owned by the connection's goroutine.
	buf  []byte
	r, w int
	// deadline says that a read deadline is set.
	deadline bool
	body     body
	meta     postMeta
	in       nbio.Reader

	// pipelined says that bytes arrived while next was parked. Guarded by Server.mu.
	pipelined bool

	// wmu serialises writers: the connection's goroutine and the invoker of a parked next. It is taken
	// with Server.mu held only for a parked connection, whose goroutine never writes.
	wmu sync.Mutex
	// out is the buffer for the head of an event. Guarded by wmu.
	out []byte
	// nb writes without waiting. Guarded by wmu.
	nb nbio.Writer
}

// newConn wraps an accepted connection.
func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc, buf: make([]byte, readBuffer)}
	c.in.Reset(nc)
	c.nb.Reset(nc)
	return c
}

// serve answers requests until the connection ends. It returns errFallback when net/http has to
// continue; the connection is still open then, otherwise the caller closes it.
func (c *conn) serve() error {
	var h head
	for {
		if err := c.readHead(&h); err != nil {
			return err
		}
		if err := c.handle(&h); err != nil {
			return err
		}
		c.shrink()
	}
}

// shrink gives back a buffer that a large request made grow.
func (c *conn) shrink() {
	if c.r == c.w && len(c.buf) > readBuffer {
		c.buf, c.r, c.w = make([]byte, readBuffer), 0, 0
	}
}

// readHead reads and parses one request head. It waits without limit for the first byte.
func (c *conn) readHead(h *head) error {
	for searched := 0; ; {
		b := c.buf[c.r:c.w]
		if end := http1.End(b, searched); end >= 0 {
			if !parseHead(b[:end], h) {
				return errFallback
			}
			c.r += end
			return c.clearDeadline()
		}
		if len(b) >= maxHead || http1.BareLF(b) {
			return errFallback
		}
		searched = len(b)
		if len(b) > 0 && !c.deadline {
			if err := c.setDeadline(headTimeout); err != nil {
				return err
			}
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
}

func (c *conn) setDeadline(d time.Duration) error {
	c.deadline = true
	return c.nc.SetReadDeadline(time.Now().Add(d))
}

func (c *conn) clearDeadline() error {
	if !c.deadline {
		return nil
	}
	c.deadline = false
	return c.nc.SetReadDeadline(time.Time{})
}

// fill reads more bytes into the buffer, growing it when it is full.
func (c *conn) fill() error {
	switch {
	case c.r == c.w:
		c.r, c.w = 0, 0
	case c.w == len(c.buf) && c.r > 0:
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	case c.w == len(c.buf):
		c.buf = append(c.buf, make([]byte, len(c.buf))...)
	}
	n, err := c.in.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

// readSome reads body bytes, buffered ones first.
func (c *conn) readSome(p []byte) (int, error) {
	if c.r < c.w {
		n := copy(p, c.buf[c.r:c.w])
		c.r += n
		return n, nil
	}
	return c.in.Read(p)
}

// readLine reads one line of at most limit bytes and returns it without CRLF. The line aliases the
// buffer until the next read.
func (c *conn) readLine(limit int) ([]byte, error) {
	for searched := 0; ; {
		b := c.buf[c.r:c.w]
		if i := bytes.IndexByte(b[searched:], '\n'); i >= 0 {
			i += searched
			if i < 1 || b[i-1] != '\r' || i+1 > limit+2 || bytes.IndexByte(b[:i-1], '\r') >= 0 {
				return nil, errMalformed
			}
			c.r += i + 1
			return b[:i-1], nil
		}
		if len(b) > limit+2 {
			return nil, errMalformed
		}
		searched = len(b)
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// handle answers one request whose head was read.
func (c *conn) handle(h *head) error {
	c.body.start(c, h)
	var err error
	switch h.route {
	case routeNext:
		err = c.next()
	case routeResponse, routeError, routeInitError:
		err = c.post(h)
	default:
		rep := simple(h.route, h.extensionID)
		err = c.refuse(rep)
	}
	if err == nil && h.Close {
		return io.EOF
	}
	return err
}

// post answers response, error and init/error.
func (c *conn) post(h *head) error {
	c.meta.take(h)
	if h.route == routeInitError && !c.body.done {
		if err := c.setDeadline(bodyTimeout); err != nil {
			return err
		}
	}
	rep, ok := c.s.post(h.route, h.id, &c.meta, &c.body)
	if !ok {
		return c.refuse(rep)
	}
	if err := c.clearDeadline(); err != nil {
		return err
	}
	return c.write(rep.wire)
}

// refuse drops the request's body, if it has one, and writes the reply; the connection ends when the body
// was too long, too slow or broken.
func (c *conn) refuse(rep *reply) error {
	if !c.body.done && !c.drain() {
		_ = c.write(rep.wireClose)
		return io.EOF
	}
	if err := c.clearDeadline(); err != nil {
		return err
	}
	return c.write(rep.wire)
}

// drain reads and drops the rest of the body; false when it was given up.
func (c *conn) drain() bool {
	if c.body.failed != nil || c.setDeadline(bodyTimeout) != nil {
		return false
	}
	scratch := drainBuffers.Get().(*[32 << 10]byte)
	defer drainBuffers.Put(scratch)
	for n := 0; n < maxDrain; {
		m, err := c.body.Read(scratch[:])
		if n += m; err != nil {
			return err == io.EOF
		}
	}
	return false
}

var drainBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// next answers GET next: with an event, a refusal, or by parking.
func (c *conn) next() error {
	v := c.s.next(waiter{conn: c})
	switch {
	case v.event != nil:
		return c.write(append(appendEvent(nil, v.event), v.event.event()...))
	case v.refusal != nil:
		return c.write(v.refusal.wire)
	case v.parked:
		return c.waitAnswered()
	}
	return c.hold()
}

// waitAnswered stays in Read while next is parked and returns when it was answered. Bytes that arrive
// before are kept for later; a connection that ends, or sends more than a head's worth, is unparked.
func (c *conn) waitAnswered() error {
	for early := c.r < c.w; ; {
		err := c.fill()
		switch {
		case err == nil && c.s.stillParked(c):
			early = true
			if c.w-c.r < maxHead {
				continue
			}
			c.s.unpark(c)
			return io.EOF
		case err != nil && (c.s.unpark(c) || !errors.Is(err, os.ErrDeadlineExceeded)):
			return err
		case early:
			return c.clearWake()
		}
		return err
	}
}

// clearWake takes back the read deadline by which the writer of the event woke this goroutine.
func (c *conn) clearWake() error {
	c.wmu.Lock() // the writer holds it from its claim until the deadline is set
	defer c.wmu.Unlock()
	return c.nc.SetReadDeadline(time.Time{})
}

// hold keeps the runtime waiting for ever: its instance is to be destroyed. It returns when the
// connection ends.
func (c *conn) hold() error {
	for {
		c.r, c.w = 0, 0
		if err := c.fill(); err != nil {
			return err
		}
	}
}

// write writes a reply on the connection's own goroutine. A runtime that does not read it within
// writeTimeout loses the connection.
func (c *conn) write(b []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	n, err := c.nb.Try(b, nil)
	if err != nil || n == len(b) {
		return err
	}
	if err := c.nc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := c.nc.Write(b[n:]); err != nil {
		return err
	}
	return c.nc.SetWriteDeadline(time.Time{})
}
