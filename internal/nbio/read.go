package nbio

import (
	"io"
	"net"
	"syscall"
	"time"
)

// Reader reads from one connection as its Read does, but for the scheduler (see the package comment). Its user serialises the calls.
type Reader struct {
	nc  net.Conn
	raw syscall.RawConn // nil when the connection has no descriptor (net.Pipe in tests)
	fn  func(fd uintptr) bool
	// p is what the current call reads into, n and err are its outcome.
	p   []byte
	n   int
	err error
}

// Reset prepares r for a connection.
func (r *Reader) Reset(nc net.Conn) {
	r.nc, r.raw, r.fn = nc, nil, nil
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			r.raw, r.fn = raw, r.attempt
		}
	}
}

// Read implements io.Reader. It waits until there is something, the peer has closed (io.EOF), or the read deadline passes
// (os.ErrDeadlineExceeded).
func (r *Reader) Read(p []byte) (int, error) {
	if r.raw == nil {
		return r.nc.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	r.p, r.n, r.err = p, 0, nil
	err := r.raw.Read(r.fn)
	r.p = nil
	switch {
	case err != nil:
		return 0, err
	case r.err != nil:
		return 0, r.err
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// attempt is one read; false when there is nothing yet.
func (r *Reader) attempt(fd uintptr) bool {
	r.n, r.err = Read(int(fd), r.p)
	return r.err != syscall.EAGAIN //nolint:errorlint // a plain errno
}

// Spin waits without sleeping until there is something to read, limit has passed or goOn says no. It may be called while another goroutine
// is in Read.
func (r *Reader) Spin(limit time.Duration, goOn func() bool) {
	if r.raw == nil {
		return
	}
	r.raw.Control(func(fd uintptr) { //nolint:errcheck // closed: there is nothing to wait for
		for begun := time.Now(); !Poll(int(fd)) && goOn() && time.Since(begun) < limit; {
		}
	})
}
