package buildkit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/session"
)

// headerSessionID carries the session's id; the name is BuildKit's.
const headerSessionID = "X-Docker-Expose-Session-Uuid"

// maxSessions bounds the sessions that are open at a time.
const maxSessions = 64

// sessionWait is how long Caller waits for a session that was announced but has not arrived.
const sessionWait = 10 * time.Second

var sessionID = regexp.MustCompile(`^[a-zA-Z0-9]{10,64}$`)

// Sessions holds the sessions that clients have opened, by id.
type Sessions struct {
	manager *session.Manager
	open    atomic.Int64
}

// NewSessions returns an empty set.
func NewSessions() (*Sessions, error) {
	m, err := session.NewManager()
	if err != nil {
		return nil, fmt.Errorf("make the session manager: %w", err)
	}
	return &Sessions{manager: m}, nil
}

// ServeHTTP turns a POST request into a session and blocks until the session ends: because the
// client hung up, stopped answering, or the request's context ended (a server that shuts down must
// end it through BaseContext, since a hijacked connection is no longer the server's).
func (s *Sessions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.open.Add(1) > maxSessions {
		s.open.Add(-1)
		http.Error(w, "too many open sessions: wait for a deploy to finish", http.StatusTooManyRequests)
		return
	}
	defer s.open.Add(-1)
	if !sessionID.MatchString(r.Header.Get(headerSessionID)) {
		http.Error(w, "the request carries no valid session id", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	h := &hijacker{ResponseWriter: w, gone: cancel}
	if err := s.manager.HandleHTTPRequest(ctx, h, r); err != nil && !h.hijacked {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// Caller returns the session of that id, waiting briefly for one that is on its way. The returned
// error is of class not found when none comes.
func (s *Sessions) Caller(ctx context.Context, id string) (session.Caller, error) {
	if !sessionID.MatchString(id) {
		return nil, fmt.Errorf("%q is no session id: %w", id, errdefs.ErrInvalidArgument)
	}
	wait, cancel := context.WithTimeoutCause(ctx, sessionWait, errSessionGone)
	defer cancel()
	caller, err := s.manager.Get(wait, id, false)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("session %s is not open: run the command again: %w", id, errdefs.ErrNotFound)
	}
	return caller, nil
}

var errSessionGone = errors.New("the client hung up")

// hijacker hands out a connection that starts with what the HTTP server has already read, that has
// no deadline of the server's, and that reports the end of the stream at once (BuildKit's own
// health check takes up to half a minute to notice).
type hijacker struct {
	http.ResponseWriter
	gone     context.CancelCauseFunc
	hijacked bool
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.hijacked = true
	if err := conn.SetDeadline(time.Time{}); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return &sessionConn{Conn: conn, r: rw.Reader, gone: h.gone}, rw, nil
}

type sessionConn struct {
	net.Conn
	r    *bufio.Reader
	gone context.CancelCauseFunc
}

func (c *sessionConn) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil {
		c.gone(errSessionGone)
	}
	return n, err
}
