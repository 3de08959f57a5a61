package nbio

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
	if len(w.iov[1]) == 0 {
		w.sent, w.err = Write(int(fd), w.iov[0])
	} else {
		w.sent, w.err = writev(int(fd), w.iov[:])
	}
	if w.err == unix.EAGAIN { //nolint:errorlint // a plain errno
		w.err = nil
	}
	return true
}

func writev(fd int, iov [][]byte) (int, error) {
	for {
		n, err := unix.Writev(fd, iov)
		if err != unix.EINTR { //nolint:errorlint // a plain errno
			return max(n, 0), err
		}
	}
}
