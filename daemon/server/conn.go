package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/internal/http1"
	"lfx.dev/lfxd/internal/nbio"
)

// connBuffer is the size in bytes of an idle connection's buffer: an ordinary request with its event,
// and room to read on while that is being answered.
const connBuffer = 4 << 10

var (
	// errFallback says that net/http has to go on with this connection.
	errFallback = errors.New("not for the codec")
	// errDone says that the connection is to be closed.
	errDone = errors.New("the connection has ended")
	// longAgo is a deadline that has passed.
	longAgo = time.Unix(1, 0)
)

// conn is one client's connection, while it carries nothing but plain Invoke requests.
//
// Its goroutine (serve) reads requests and hands each to the gateway, which also writes the event to the
// instance on it. Then it goes on reading: it learns so that the client has gone, and the next request
// wakes it with no hop in between. The answer is written by whoever has it, mostly the goroutine that
// reads it from the instance's Runtime API: as much as the socket takes at once. What that leaves, and the
// end of the connection, are the connection's goroutine's, which is woken by a read deadline in the past.
//
// No timer is set for a request: the read deadline stands at the time when the connection would be idle for too
// long if nothing came, and is looked at again when it passes.
type conn struct {
	l  *Served
	nc net.Conn

	// buf[r:w] is what was read and not yet consumed. While a request is being answered its event may lie
	// before r, and what is read meanwhile only goes behind w. These are the goroutine's own.
	buf  []byte
	r, w int
	in   nbio.Reader
	head head
	call gateway.Call
	// left is what was not yet read of the current request's body, in bytes.
	left int64
	// path and host are those of the last request that was taken, so that the same need not be copied nor
	// checked again.
	path, host string
	// begun is when the first byte of an incomplete head was seen; armed says that a read deadline is set.
	begun time.Time
	armed bool
	// gone says that the client sends no more, asked that leave was called for this request.
	gone, asked bool

	// turn wakes the goroutine where it waits for the end of the request without reading; capacity 1.
	turn chan struct{}

	// mu guards what follows, and writing. It is held across one attempt to write, never across a wait.
	mu   sync.Mutex
	busy bool // the gateway has a request of this connection
	// reading says that the gateway is reading the event.
	reading bool
	// answered is when the newest answer was written, and before the first when the connection came.
	answered time.Time
	fresh    bool // nothing was asked yet
	end      bool // close after the answer
	dead     bool // close now
	waiting  bool // the goroutine waits for turn
	kicked   bool // somebody else set the read deadline
	rest     *rest
	out      []byte // for heads of answers
	nb       nbio.Writer
}

// rest is what is left to be written of an answer.
type rest struct {
	bufs    net.Buffers // none is empty
	free    func()
	timeout time.Duration
}

// newConn wraps an accepted connection.
func newConn(l *Served, nc net.Conn) *conn {
	c := &conn{l: l, nc: nc, buf: make([]byte, connBuffer), turn: make(chan struct{}, 1), answered: time.Now(), fresh: true}
	c.in.Reset(nc)
	c.nb.Reset(nc)
	return c
}

// serve answers requests until the connection ends. It returns errFallback when net/http has to
// continue; the connection is still open then, otherwise the caller closes it.
func (c *conn) serve() error {
	for {
		if err := c.await(); err != nil {
			return err
		}
		n, err := c.readHead()
		switch {
		case err != nil:
			return err
		case !c.acceptable():
			return errFallback
		}
		c.r += n
		c.process()
	}
}

// await returns when the request of before is answered. Until then it reads on, to learn of a client that
// goes away; one that sends its next request early waits its turn.
func (c *conn) await() error {
	for {
		c.mu.Lock()
		c.tookKick()
		switch {
		case c.rest != nil:
			r := c.rest
			c.mu.Unlock()
			c.writeRest(r)
		case c.busy && !c.asked && (c.gone || c.l.server.opts.BaseContext.Err() != nil):
			c.mu.Unlock()
			c.leave()
		case c.busy && (c.gone || c.r < c.w || c.w == len(c.buf)):
			c.waiting = true
			c.mu.Unlock()
			<-c.turn
		case c.busy:
			err := c.arm(time.Now().Add(idleTimeout)) // only so that none stands that has passed
			c.mu.Unlock()
			if err == nil {
				err = c.readMore()
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				c.gone = true
			}
		default:
			over := c.dead || c.end
			c.mu.Unlock()
			if over {
				return errDone
			}
			return nil
		}
	}
}

// leave takes the request out of the queue, if it is in one: the client sends no more, or the daemon shuts
// down. A request that runs goes on, and its answer is written: the client may have closed only its side.
func (c *conn) leave() {
	c.asked = true
	cause := error(context.Canceled)
	if !c.gone {
		cause = &invocation.UnavailableError{Err: context.Cause(c.l.server.opts.BaseContext)}
	}
	c.call.Leave(cause)
}

// readHead reads up to the end of a head, parses it and returns its length. Nothing is consumed yet.
func (c *conn) readHead() (int, error) {
	c.shrink()
	// Behind another request, net/http takes what follows for one that begins, and answers it, from four bytes
	// on.
	begins := c.fresh
	for searched := 0; ; {
		b := c.buf[c.r:c.w]
		if !begins && len(b) >= 4 {
			begins = true
			c.r += leadingLineEnds(b[:4])
			b, searched = c.buf[c.r:c.w], 0
		}
		if end := http1.End(b, searched); end >= 0 {
			if end > maxHeaderBytes || !parseHead(b[:end], &c.head) {
				return 0, errFallback
			}
			c.begun = time.Time{}
			return end, nil
		}
		if len(b) >= maxHeaderBytes || begins && http1.BareLF(b) {
			return 0, errFallback
		}
		searched = len(b)
		if len(b) > 0 && c.begun.IsZero() {
			c.begun, c.armed = time.Now(), false
		}
		if err := c.ready(); err != nil {
			return 0, err
		}
		switch err := c.fill(); {
		case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		case err == io.EOF && begins && c.r < c.w: //nolint:errorlint // a connection's own
			return 0, errFallback // net/http tells the client what is wrong with its half a head
		default:
			return 0, err
		}
	}
}

// leadingLineEnds counts what old clients send too much behind a POST; net/http skips as much.
func leadingLineEnds(b []byte) (n int) {
	for n < len(b) && (b[n] == '\r' || b[n] == '\n') {
		n++
	}
	return n
}

// shrink gives back a buffer that a large head made grow.
func (c *conn) shrink() {
	if c.r == c.w && len(c.buf) > connBuffer {
		c.buf, c.r, c.w = make([]byte, connBuffer), 0, 0
	}
}

// ready is called before the goroutine reads while it has no request: it sets the deadline, and says when
// the connection has to end.
func (c *conn) ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tookKick()
	if c.dead {
		return errDone
	}
	due := c.answered.Add(idleTimeout)
	switch {
	case !c.begun.IsZero():
		due = c.begun.Add(readHeaderTimeout)
	case c.fresh:
		due = c.answered.Add(readHeaderTimeout)
	case c.l.closing.Load():
		due, c.armed = c.l.closed.Add(closingGrace), false
	}
	return c.arm(due)
}

// arm sets the read deadline, unless one is set; errDone when the time has passed. mu is held, so that no
// kick gets lost.
func (c *conn) arm(due time.Time) error {
	if c.armed {
		return nil
	}
	if !time.Now().Before(due) {
		return errDone
	}
	c.armed = true
	return c.nc.SetReadDeadline(due)
}

// tookKick notes that the read deadline is not ours any more. mu is held.
func (c *conn) tookKick() {
	if c.kicked {
		c.kicked, c.armed = false, false
	}
}

// fill reads more bytes into the buffer, making room first.
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
	return c.readMore()
}

// readMore reads what comes behind what is there. A deadline that passes is an error of its own.
func (c *conn) readMore() error {
	n, err := c.in.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.armed = false
	}
	return err
}

// acceptable reports whether the gateway may have the request that was read. The others are for net/http,
// which refuses them with the words of browserSafe.
func (c *conn) acceptable() bool {
	h := &c.head
	if !c.l.checked {
		if h.Host != c.host {
			c.host = strings.Clone(h.Host)
		}
		return true
	}
	if h.Host != c.host {
		if !c.l.server.hostAllowed(h.Host) {
			return false
		}
		c.host = strings.Clone(h.Host)
	}
	return h.origin.text == ""
}

// process hands the request whose head was read to the gateway.
func (c *conn) process() {
	h := &c.head
	if h.path != c.path {
		c.path = strings.Clone(h.path)
	}
	c.call.Request = gateway.Request{
		Method: http.MethodPost, Path: c.path, Query: strings.Clone(h.query), Host: c.host,
		InvocationType: strings.Clone(h.invocationType.text), LogType: strings.Clone(h.logType.text),
		TenantID: strings.Clone(h.tenantID.text), TraceID: strings.Clone(h.traceID.text), ClientContext: strings.Clone(h.clientContext.text),
		Length: h.Length,
	}
	if n := int(min(h.Length, int64(c.w-c.r))); int64(n) == h.Length {
		c.call.Payload = c.buf[c.r : c.r+n : c.r+n]
		c.r += n
		c.left = 0
	} else {
		c.call.Body, c.left = c, h.Length
	}
	c.asked = false
	c.mu.Lock()
	c.busy, c.fresh, c.end, c.reading = true, false, h.Close, c.left > 0
	c.mu.Unlock()
	if c.left > 0 {
		defer c.hasRead()
	}
	defer c.recovered()
	c.l.server.opts.Gateway.Serve(c.l.server.opts.BaseContext, &c.call, c.l.scope(), c)
}

// hasRead says that the gateway reads nothing any more.
func (c *conn) hasRead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = false
}

// recovered makes a panic of the gateway an error in the log, and ends the connection.
func (c *conn) recovered() {
	v := recover()
	if v == nil {
		return
	}
	c.l.server.opts.Log.Error("request handler panicked", "method", c.call.Method, "path", c.call.Path, "panic", v, "stack", string(debug.Stack()))
	c.call.Abort()
	c.Drop()
}

// Read implements gateway.Body, for an event that did not come with its head.
func (c *conn) Read(p []byte) (n int, err error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.left)]
	if c.r < c.w {
		n = copy(p, c.buf[c.r:c.w])
		c.r += n
	} else {
		n, err = c.in.Read(p)
	}
	c.left -= int64(n)
	if err == io.EOF { //nolint:errorlint // a connection's own
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// SetReadDeadline implements gateway.Body.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.armed = false
	return c.nc.SetReadDeadline(t)
}

// joinLimit is up to which size in bytes an answer's body is copied behind its head instead of being
// written with writev.
const joinLimit = 4 << 10

// Send implements gateway.Reply.
func (c *conn) Send(a *gateway.Answer) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end = c.end || c.left > 0 || c.l.closing.Load()
	head, body := appendAnswer(c.out[:0], a, now, c.end), a.Body
	if !a.HasBody() {
		body = nil
	}
	if len(body) <= joinLimit {
		head, body = append(head, body...), nil
	}
	c.out = head
	n, err := c.nb.Try(head, body)
	if err == nil && n < len(head)+len(body) {
		c.rest = &rest{free: a.Free, timeout: a.WriteTimeout()}
		for _, b := range [][]byte{head[min(n, len(head)):], body[max(n-len(head), 0):]} {
			if len(b) > 0 {
				c.rest.bufs = append(c.rest.bufs, b)
			}
		}
		c.wake()
		return
	}
	if a.Free != nil {
		a.Free()
	}
	c.finishLocked(now, err)
}

// writeRest writes what the first attempt left over, on the connection's goroutine.
func (c *conn) writeRest(r *rest) {
	err := c.nc.SetWriteDeadline(time.Now().Add(r.timeout))
	if err == nil {
		_, err = r.bufs.WriteTo(c.nc)
	}
	if err == nil {
		err = c.nc.SetWriteDeadline(time.Time{})
	}
	if r.free != nil {
		r.free()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rest = nil
	c.finishLocked(time.Now(), err)
}

// finishLocked ends the current request: its answer is written, or cannot be.
func (c *conn) finishLocked(now time.Time, err error) {
	c.busy, c.answered = false, now
	c.dead = c.dead || err != nil
	if cap(c.out) > maxKeptHead {
		c.out = nil
	}
	if c.waiting || c.dead || c.end {
		c.wake()
	}
}

// maxKeptHead is the largest buffer for answers that a connection keeps, in bytes.
const maxKeptHead = joinLimit + 4<<10

// wake makes the connection's goroutine look. mu is held.
func (c *conn) wake() {
	if c.waiting {
		c.waiting = false
		c.turn <- struct{}{}
		return
	}
	c.kicked = true
	c.nc.SetReadDeadline(longAgo) //nolint:errcheck // of a closed connection: nobody waits
}

// Drop implements gateway.Reply.
func (c *conn) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	c.finishLocked(time.Now(), nil)
}

// closingGrace is how long connections without a request are kept when the listener has closed: one may be on its
// way, and would be lost. Its answer asks the client to connect anew.
const closingGrace = 200 * time.Millisecond

// retire makes the connection end closingGrace from now, if it has no request until then.
func (c *conn) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.busy {
		c.wake()
	}
}

// hurry makes the connection's goroutine look at the base context, which has ended. While the event is still
// arriving that would break it off; the goroutine looks afterwards.
func (c *conn) hurry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy && !c.reading {
		c.wake()
	}
}
