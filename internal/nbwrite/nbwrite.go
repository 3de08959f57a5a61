// Package nbwrite writes to a socket as much as it takes at once: one system call, no wait. Go's own Write
// waits, which the goroutine that answers for somebody else must not.
package nbwrite

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Writer writes to one connection. Its user serialises the calls.
type Writer struct {
	raw syscall.RawConn // nil when the connection has no descriptor (net.Pipe in tests)
	fn  func(fd uintptr) bool
	// iov is what the current attempt writes, sent and err are its outcome.
	iov  [2][]byte
	sent int
	err  error
}

// Reset prepares w for a connection.
func (w *Writer) Reset(nc net.Conn) {
	w.raw, w.fn = nil, nil
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw, w.fn = raw, w.attempt
		}
	}
}

// Try writes as much of head and then payload as the socket takes and returns how many bytes that was. A
// connection without a descriptor takes none.
func (w *Writer) Try(head, payload []byte) (int, error) {
	if w.raw == nil {
		return 0, nil
	}
	w.iov[0], w.iov[1] = head, payload
	err := w.raw.Write(w.fn)
	w.iov[0], w.iov[1] = nil, nil
	if err == nil {
		err = w.err
	}
	return w.sent, err
}

// attempt is one write or writev; it always returns true, because it never waits.
func (w *Writer) attempt(fd uintptr) bool {
	for {
		if len(w.iov[1]) == 0 {
			w.sent, w.err = unix.Write(int(fd), w.iov[0])
		} else {
			w.sent, w.err = unix.Writev(int(fd), w.iov[:])
		}
		switch w.err { //nolint:errorlint // plain errnos
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			w.err = nil
		}
		w.sent = max(w.sent, 0)
		return true
	}
}
