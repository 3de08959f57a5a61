package dns

import (
	"net"
	"net/netip"
	"sync"
)

// What one asker and all askers together may hold of TCP connections; more are closed at once, so
// that no function can use up the daemon's descriptors or keep others from asking.
const (
	maxConnsPerClient = 16
	maxConns          = 1024
)

// limitListener is a net.Listener that closes connections above the two limits.
type limitListener struct {
	net.Listener
	mu    sync.Mutex // guards what follows
	total int
	by    map[netip.Addr]int
}

func newLimitListener(l net.Listener) *limitListener {
	return &limitListener{Listener: l, by: map[netip.Addr]int{}}
}

// Accept returns the next connection that is within the limits.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ap, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		if err == nil && l.take(ap.Addr()) {
			return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { l.give(ap.Addr()) })}, nil
		}
		conn.Close()
	}
}

func (l *limitListener) take(client netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= maxConns || l.by[client] >= maxConnsPerClient {
		return false
	}
	l.total++
	l.by[client]++
	return true
}

func (l *limitListener) give(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.by[client]--; l.by[client] == 0 {
		delete(l.by, client)
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

// Close closes the connection and gives its place back, once.
func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}
