package rapi

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	// maxHTTPHeader is how many bytes of headers net/http reads per request: error causes of 1 MiB
	// travel in a header.
	maxHTTPHeader = 1<<20 + 128<<10
	// reservedConns is how many connections net/http leaves to the codec, so that calls of the Lambda
	// API cannot keep the runtime from posting its answer.
	reservedConns = 4
)

// fallback is the net/http server for connections that the codec gave up.
type fallback struct {
	srv *http.Server
	// conns hands connections over to Accept.
	conns chan net.Conn
	done  <-chan struct{}
	addr  net.Addr
}

// Accept waits for the next connection that the codec hands over.
func (f *fallback) Accept() (net.Conn, error) {
	select {
	case nc := <-f.conns:
		return nc, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close does nothing: the fallback ends with its server.
func (f *fallback) Close() error   { return nil }
func (f *fallback) Addr() net.Addr { return f.addr }

// resumed is a connection that first returns the bytes the codec has read already.
type resumed struct {
	net.Conn
	prefix []byte
}

func (r *resumed) Read(p []byte) (int, error) {
	if len(r.prefix) > 0 {
		n := copy(p, r.prefix)
		if r.prefix = r.prefix[n:]; len(r.prefix) == 0 {
			r.prefix = nil
		}
		return n, nil
	}
	return r.Conn.Read(p)
}

// hand gives the connection to net/http; false when it is to be closed instead.
func (s *Server) hand(c *conn) bool {
	f := s.fallback(c)
	if f == nil {
		_ = c.write(replyBusy.wireClose)
		return false
	}
	if c.clearDeadline() != nil {
		return false
	}
	select {
	case f.conns <- &resumed{Conn: c.nc, prefix: c.buf[c.r:c.w]}:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// fallback notes that c belongs to net/http from now on and returns its server, made on first use; nil
// when net/http has all the connections it may have.
func (s *Server) fallback(c *conn) *fallback {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.httpConns >= s.opts.MaxConns-reservedConns {
		return nil
	}
	s.httpConns++
	s.conns[c.nc] = phaseHTTP
	if s.http != nil {
		return s.http
	}
	f := &fallback{conns: make(chan net.Conn), done: s.ctx.Done(), addr: s.opts.Listener.Addr()}
	f.srv = &http.Server{
		Handler:                      handler{s},
		ReadHeaderTimeout:            headTimeout,
		MaxHeaderBytes:               maxHTTPHeader,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return s.ctx },
		ConnState:                    s.httpState,
	}
	s.http = f
	s.wg.Go(func() { _ = f.srv.Serve(f) })
	return f
}

// httpState follows the connections of net/http.
func (s *Server) httpState(nc net.Conn, st http.ConnState) {
	r := nc.(*resumed)
	switch st {
	case http.StateClosed, http.StateHijacked:
		s.drop(r.Conn)
	case http.StateActive:
		s.setPhase(r.Conn, phaseHTTP)
	case http.StateIdle:
		if s.setPhase(r.Conn, phaseHTTPIdle) {
			_ = r.Close()
		}
	}
}

// setPhase notes whether a connection of net/http is idle and reports whether its place is wanted.
func (s *Server) setPhase(nc net.Conn, p connPhase) (wanted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[nc] = p
	return s.full
}

// makeRoom says whether a connection waits for a place; one idle connection of net/http gives way.
func (s *Server) makeRoom(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
	if !full {
		return
	}
	for nc, p := range s.conns {
		if p == phaseHTTPIdle {
			_ = nc.Close()
			return
		}
	}
}

// handler is the same Runtime API over net/http.
type handler struct{ s *Server }

// ServeHTTP answers our paths from the state machine and all others from Options.Fallback.
func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rt, id := resolve(r.Method, r.URL.EscapedPath())
	switch rt {
	case routeOther:
		if h.s.opts.Fallback != nil {
			h.s.opts.Fallback.ServeHTTP(w, r)
			return
		}
		replyNotFound.send(w)
	case routeNext:
		h.next(w, r)
	case routeResponse, routeError, routeInitError:
		h.post(w, r, rt, id)
	default:
		simple(rt, r.Header.Get(headerExtensionID)).send(w)
	}
}

// send writes the reply through net/http.
func (r *reply) send(w http.ResponseWriter) {
	w.Header().Set("Content-Type", r.contentType)
	w.WriteHeader(r.status)
	_, _ = io.WriteString(w, r.body)
}

// next parks the request until there is an event or the connection ends.
func (h handler) next(w http.ResponseWriter, r *http.Request) {
	ch := make(chan *Invocation, 1)
	v := h.s.next(waiter{http: ch})
	switch {
	case v.event != nil:
		sendEvent(w, v.event)
		return
	case v.refusal != nil:
		v.refusal.send(w)
		return
	case !v.parked:
		<-r.Context().Done()
		return
	}
	select {
	case inv := <-ch:
		h.answer(w, inv)
	case <-r.Context().Done():
		h.s.unparkHTTP(ch)
	}
}

// answer ends a parked next with its event, or with a refusal when a newer next replaced it.
func (h handler) answer(w http.ResponseWriter, inv *Invocation) {
	if inv == nil {
		transitionReply(stateReady, stateReady).send(w)
		return
	}
	sendEvent(w, inv)
}

// unparkHTTP takes back the next of a connection that ended.
func (s *Server) unparkHTTP(ch chan *Invocation) {
	s.mu.Lock()
	if s.many != nil {
		s.unparkOneOfMany(ch) // unlocks
		return
	}
	defer s.mu.Unlock()
	if s.parked.http == ch {
		s.parked = waiter{}
	}
}

// sendEvent writes an event with the same headers as appendEvent.
func sendEvent(w http.ResponseWriter, inv *Invocation) {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	h := w.Header()
	for _, f := range [...][2]string{
		{"Content-Type", inv.contentType()},
		{"Lambda-Runtime-Aws-Request-Id", inv.RequestID},
		{"Lambda-Runtime-Deadline-Ms", strconv.FormatInt(inv.Deadline.UnixMilli(), 10)},
		{"Lambda-Runtime-Invoked-Function-Arn", inv.FunctionARN},
		{"Lambda-Runtime-Trace-Id", inv.TraceID},
		{"Lambda-Runtime-Client-Context", inv.ClientContext},
		{"Lambda-Runtime-Cognito-Identity", inv.CognitoIdentity},
		{"Lambda-Runtime-Aws-Tenant-Id", inv.TenantID},
		{"Content-Length", strconv.Itoa(len(inv.event()))},
	} {
		if f[1] != "" {
			h.Set(f[0], string(appendValue(nil, f[1])))
		}
	}
	_, _ = w.Write(inv.event())
	_ = rc.Flush()
	_ = rc.SetWriteDeadline(time.Time{})
}

// post reads and answers response, error and init/error.
func (h handler) post(w http.ResponseWriter, r *http.Request, rt route, id string) {
	var m postMeta
	m.set(r.Header.Get(headerResponseMode), r.Header.Get(headerErrorType), r.Header.Get("Content-Type"))
	src := &httpSource{r: r, rc: http.NewResponseController(w)}
	if rt == routeInitError {
		src.expire(bodyTimeout)
	}
	rep, ok := h.s.post(rt, id, &m, src)
	switch {
	case src.failed:
		w.Header().Set("Connection", "close")
	case !ok:
		src.expire(bodyTimeout)
		_, _ = io.CopyN(io.Discard, r.Body, maxDrain)
	}
	_ = src.rc.SetReadDeadline(time.Time{})
	rep.send(w)
}

// httpSource is the body of a request that net/http reads.
type httpSource struct {
	r  *http.Request
	rc *http.ResponseController
	// failed says that the body ended with an error: nothing more can be read.
	failed bool
}

func (b *httpSource) Read(p []byte) (int, error) {
	n, err := b.r.Body.Read(p)
	b.failed = err != nil && err != io.EOF
	return n, err
}
func (b *httpSource) length() int64          { return b.r.ContentLength }
func (b *httpSource) expire(d time.Duration) { _ = b.rc.SetReadDeadline(time.Now().Add(d)) }
func (b *httpSource) trailers() (errorType, errorBody string) {
	return b.r.Trailer.Get(headerErrorType), b.r.Trailer.Get(headerErrorBody)
}
