// Package server owns the daemon's listeners and the one route table that says who may call what.
//
// Every listener has a Kind; every route has the Access it needs; a request that no route allows is
// refused (default deny). The Invoke API itself is the gateway's; the control API's handlers are here
// and turn requests into calls of a Backend.
//
// Connections begin with a codec of our own (conn), which answers plain Invoke requests without a goroutine
// that waits for the function; net/http goes on where anything else comes.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
)

// Access is the right that a route needs.
type Access uint8

const (
	// AccessInvoke: call functions.
	AccessInvoke Access = iota + 1
	// AccessControl: everything, including to deploy, which is to run code.
	AccessControl
)

// Kind says what a listener is, and so what its callers may do without credentials.
type Kind uint8

const (
	// KindControl is the control socket: everything.
	KindControl Kind = iota + 1
	// KindInvoke is the invoke socket: invoke only.
	KindInvoke
	// KindTCP is TCP on loopback: invoke only; Host and Origin are checked, because a browser can reach it.
	KindTCP
	// KindPort is the TCP port of one function's own: invoke of that function only.
	KindPort
)

// grants lists what each kind of listener may carry. Absent means denied.
var grants = map[Kind]map[Access]bool{
	KindControl: {AccessInvoke: true, AccessControl: true},
	KindInvoke:  {AccessInvoke: true},
	KindTCP:     {AccessInvoke: true},
	KindPort:    {AccessInvoke: true},
}

// Limits on connections, so that slow or many clients cannot exhaust the daemon.
const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 16 << 10
	maxConnections    = 4096
)

// Options are the settings of a Server.
type Options struct {
	Gateway *gateway.Gateway
	Backend Backend
	// Sessions takes over the connections of deploys (POST /lfx/v1/session).
	Sessions http.Handler
	// AllowedHosts are the host names accepted on TCP; "*.name" accepts any below name.
	AllowedHosts []string
	// BaseContext is every request's; when it ends, hijacked connections (sessions) end too.
	BaseContext context.Context
	Log         *slog.Logger
}

// Server serves any number of listeners.
type Server struct {
	opts   Options
	routes []route
	group  sync.WaitGroup

	mu     sync.Mutex
	served map[*Served]struct{}
	closed bool
}

// New makes a server; Serve starts a listener.
func New(opts Options) *Server {
	s := &Server{opts: opts, served: map[*Served]struct{}{}}
	s.routes = s.table()
	return s
}

// ErrStopped says that the server takes no listener any more.
var ErrStopped = errors.New("the daemon is shutting down")

// Serve serves l in the background until Retire, Stop or Shutdown; after the last two it closes l and returns
// ErrStopped. fn is set for KindPort only and names the function that the port belongs to now.
func (s *Server) Serve(l net.Listener, kind Kind, fn func() *function.Key) (*Served, error) {
	if kind == KindControl {
		l = peerListener{l, s.opts.Log}
	}
	v := newServed(s, l, kind, fn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		v.forget()
		l.Close() //nolint:errcheck // nothing was served
		return nil, ErrStopped
	}
	s.served[v] = struct{}{}
	s.group.Go(v.accept)
	s.group.Go(v.serveHTTP)
	return v, nil
}

// Stop closes the listeners and returns; it waits for nobody. Requests that run go on; what comes now waits in the backlog of who
// else holds a socket (systemd), for the next lfxd, and is refused elsewhere.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for v := range s.served {
		v.stop()
	}
}

// Shutdown stops all listeners and lets requests finish until ctx ends; then it cuts the connections.
// A request whose function still runs ends with its instance: Wait waits for those.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	all := s.served
	s.served = map[*Served]struct{}{}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for v := range all {
		wg.Go(func() {
			v.stop()
			v.finish(ctx)
		})
	}
	wg.Wait()
}

// Wait waits, after Shutdown and after the instances have ended, until nothing of the server runs, or ctx ends.
func (s *Server) Wait(ctx context.Context) error {
	ended := make(chan struct{})
	go func() { defer close(ended); s.group.Wait() }() // ends with the last request; the caller gives up on it earlier
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("requests are still being served: %w", context.Cause(ctx))
	}
}

// handler decides for each request of a listener whether it may pass, and who answers it.
// The client learns from the answer that the connection ends when closing says so.
func (s *Server) handler(kind Kind, fn func() *function.Key, closing *atomic.Bool) http.Handler {
	checked := checksHost(kind)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer s.logPanic(r)
		if closing.Load() {
			w.Header().Set("Connection", "close")
		}
		if checked && !s.browserSafe(w, r) {
			return
		}
		if strings.HasPrefix(r.URL.Path, gateway.InvokePrefix) && strings.HasSuffix(r.URL.Path, gateway.InvokeSuffix) {
			if !grants[kind][AccessInvoke] {
				refuseAccess(w)
				return
			}
			var scope gateway.Scope
			if fn != nil {
				scope.Function = fn()
			}
			s.opts.Gateway.ServeInvoke(w, r, scope)
			return
		}
		s.control(w, r, kind)
	})
}

// checksHost says whether a browser can reach listeners of this kind.
func checksHost(kind Kind) bool { return kind == KindTCP || kind == KindPort }

// logPanic makes a handler's panic an error in the log; net/http then cuts the connection.
func (s *Server) logPanic(r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v != http.ErrAbortHandler { //nolint:errorlint // the value itself, as net/http compares it
		s.opts.Log.Error("request handler panicked", "method", r.Method, "path", r.URL.EscapedPath(), "panic", v, "stack", string(debug.Stack()))
	}
	panic(http.ErrAbortHandler)
}

// control serves the routes of the table.
func (s *Server) control(w http.ResponseWriter, r *http.Request, kind Kind) {
	if !grants[kind][AccessControl] {
		refuseAccess(w)
		return
	}
	for i := range s.routes {
		rt := &s.routes[i]
		if rest, ok := rt.match(r.URL.Path); ok && rt.method == r.Method {
			if !grants[kind][rt.access] {
				refuseAccess(w)
				return
			}
			rt.serve(w, r, rest)
			return
		}
	}
	s.unknown(w, r)
}

// browserSafe refuses requests that a web page could have made a browser send to loopback: a foreign
// Host (DNS rebinding) or any Origin.
func (s *Server) browserSafe(w http.ResponseWriter, r *http.Request) bool {
	if !s.hostAllowed(r.Host) {
		refuse(w, http.StatusForbidden, "AccessDeniedException",
			"the host name of the request is not one of listen.allowed_hosts in the daemon's configuration")
		return false
	}
	if r.Header.Get("Origin") != "" {
		refuse(w, http.StatusForbidden, "AccessDeniedException", "requests from web pages (with an Origin header) are not accepted here")
		return false
	}
	return true
}

func (s *Server) hostAllowed(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	for _, allowed := range s.opts.AllowedHosts {
		allowed = strings.Trim(allowed, "[]")
		if strings.EqualFold(host, allowed) {
			return true
		}
		if suffix, ok := strings.CutPrefix(allowed, "*"); ok && len(host) > len(suffix) && strings.EqualFold(host[len(host)-len(suffix):], suffix) {
			return true
		}
	}
	return false
}

// refuseAccess answers a request that this listener may not carry.
func refuseAccess(w http.ResponseWriter) {
	refuse(w, http.StatusForbidden, "AccessDeniedException", "only Invoke is open on this listener; use the control socket for everything else")
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("X-Amzn-Requestid", uuid.NewString())
	w.Header().Set("X-Amzn-Errortype", code)
	writeJSON(w, status, map[string]string{"Type": "User", "Message": message})
}

// InstanceHandler serves the Lambda API as one instance sees it: Invoke within its own environment,
// bound to the release of the instance's invocation in progress.
func InstanceHandler(g *gateway.Gateway, env function.Environment, caller func() invocation.Caller) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := gateway.FunctionName(r.URL); !ok {
			refuse(w, http.StatusNotFound, "UnknownOperationException", "only Invoke is served inside an instance")
			return
		}
		c := caller()
		g.ServeInvoke(w, r, gateway.Scope{Environment: &env, Caller: c.Binding, Parent: c.RequestID})
	})
}
