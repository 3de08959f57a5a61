// Package client is the typed Go client of lfxd: the control API of daemon/api (/lfx/v1/…) and the
// Invoke call of the Lambda API, over the daemon's Unix socket or over TCP. It owns dialling, the
// translation of failed calls into errors a person can act on, and the reading of the two streams
// (deploys and logs). It holds no state besides idle connections and builds on every platform.
//
//	c, err := client.New(os.Getenv("LFX_HOST"))
//	…
//	functions, err := c.Functions(ctx, function.Environment{})
package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

// DefaultSocket is where lfxd listens for control calls unless its configuration says otherwise.
const DefaultSocket = "/run/lfxd/lfxd.sock"

// Bounds of calls that the caller's context does not bound by itself.
const (
	// callTimeout bounds one call that only reads the daemon's record.
	callTimeout = 30 * time.Second
	// doctorTimeout bounds Doctor, which probes the kernel, the engine and the network.
	doctorTimeout = 2 * time.Minute
	// cancelWait bounds how long a cancelled Deploy waits for the daemon to say that it stopped.
	cancelWait = 30 * time.Second
	// dialTimeout bounds one connection attempt.
	dialTimeout = 10 * time.Second
)

// Client talks to one daemon. It is safe for concurrent use. Close releases idle connections.
type Client struct {
	host       host
	http       *http.Client
	cancelWait time.Duration
}

// host is a parsed LFX_HOST.
type host struct {
	network string // "unix" or "tcp"
	address string // socket path, or host:port
	tls     bool
	base    url.URL // scheme and authority of every request
	display string  // how errors name it
}

// New returns a client of the daemon at addr, which has the form of LFX_HOST:
//
//	""                       the default socket, /run/lfxd/lfxd.sock
//	unix:///path, /path      a Unix socket: control and invoke
//	http://localhost:9000    TCP: what the daemon allows there, invoke by default
//	https://host:port        the same over TLS
//
// It does not connect; an address of any other form is an error.
func New(addr string) (*Client, error) {
	h, err := parseHost(addr)
	if err != nil {
		return nil, err
	}
	c := &Client{host: h, cancelWait: cancelWait}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dialPlain(ctx) },
			// Never through a proxy: the daemon is this host, or was named by address.
			Proxy:               nil,
			DisableCompression:  true,
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     30 * time.Second,
		},
		// The API has no redirects; following one would resend a payload to a stranger.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Close drops idle connections. Calls in flight go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Host returns the address for people: a socket path or a URL.
func (c *Client) Host() string { return c.host.display }

// Authority returns the Host header of requests: a placeholder over a Unix socket.
func (c *Client) Authority() string { return c.host.base.Host }

// Dial opens a raw connection to the daemon, for the upgrade that a BuildKit session makes on
// api.PathSession. The caller closes it. Errors are *ConnectError.
func (c *Client) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := c.dialPlain(ctx)
	if err != nil || !c.host.tls {
		return conn, err
	}
	name, _, err := net.SplitHostPort(c.host.address)
	if err != nil {
		name = c.host.address
	}
	secure := tls.Client(conn, &tls.Config{ServerName: name, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, c.connectError(err)
	}
	return secure, nil
}

func (c *Client) dialPlain(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, c.host.network, c.host.address)
	if err != nil {
		return nil, c.connectError(err)
	}
	return conn, nil
}

// url returns the URL of an escaped path with a query.
func (c *Client) url(escapedPath string, query url.Values) string {
	u := c.host.base.String() + escapedPath
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return u
}

func parseHost(addr string) (host, error) {
	switch {
	case addr == "":
		return unixHost(DefaultSocket), nil
	case strings.HasPrefix(addr, "/"):
		return unixHost(addr), nil
	case strings.HasPrefix(addr, "ssh://"):
		return host{}, fmt.Errorf("the host %q is not supported yet: forward the socket with `ssh -L /tmp/lfxd.sock:%s HOST` and use unix:///tmp/lfxd.sock", addr, DefaultSocket)
	}
	u, err := url.Parse(addr)
	if err != nil {
		return host{}, fmt.Errorf("the host %q is not a URL: use unix:///path or http://localhost:9000", addr)
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !path.IsAbs(u.Path) {
			return host{}, fmt.Errorf("the host %q names no absolute path: use three slashes, as in unix://%s", addr, DefaultSocket)
		}
		return unixHost(u.Path), nil
	case "http", "https":
		return tcpHost(u, addr)
	}
	return host{}, fmt.Errorf("the host %q has an unknown scheme: use unix:///path or http://localhost:9000", addr)
}

func unixHost(socket string) host {
	return host{network: "unix", address: socket, base: url.URL{Scheme: "http", Host: "lfx"}, display: socket}
}

func tcpHost(u *url.URL, addr string) (host, error) {
	if u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return host{}, fmt.Errorf("the host %q must be a scheme, a name and a port only, as in http://localhost:9000", addr)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return host{
		network: "tcp",
		address: net.JoinHostPort(u.Hostname(), port),
		tls:     u.Scheme == "https",
		base:    url.URL{Scheme: u.Scheme, Host: u.Host},
		display: u.Scheme + "://" + u.Host,
	}, nil
}
