package gateway

import (
	"context"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"lfx.dev/lfxd/daemon/invocation"
)

// Request is one Invoke request as the gateway reads it, whoever has parsed it: net/http or the codec of
// package server. The gateway may keep its strings.
type Request struct {
	Method string
	// Path is the path as the client wrote it, with its escapes; Query what follows the question mark.
	Path, Query string
	// Host is the value of the Host header.
	Host string
	// First values of the headers that Invoke knows; empty when absent.
	InvocationType, LogType, TenantID, TraceID, ClientContext string
	// Length is the announced length of the body in bytes, -1 when it is not known.
	Length int64
	// Expect says that the client waits for "100 Continue" before it sends the body.
	Expect bool
	// Payload is the whole body when it is at hand: it stays as it is until the request was answered. Else
	// Body is read.
	Payload []byte
	Body    Body
}

// Body is a request body that is still to be read.
type Body interface {
	io.Reader
	// SetReadDeadline bounds the next reads; the zero time takes the bound away.
	SetReadDeadline(t time.Time) error
}

// Reply takes the answer to one request. Of Send and Drop exactly one is called, once, from any goroutine;
// the Call belongs to the Reply's owner again as soon as it is.
type Reply interface {
	// Send writes the answer and frees it. It does not block where Gateway.Serve is used.
	Send(a *Answer)
	// Drop ends the connection without an answer: the client has gone, or we have a bug.
	Drop()
}

// Field is one header of an answer.
type Field struct{ Name, Value string }

// Answer is what the client gets. Content-Length, Date and Connection are the writer's.
type Answer struct {
	Status int
	Body   []byte
	// Free gives Body back; may be nil. The Reply calls it once, when it needs Body no more.
	Free func()

	fields [12]Field
	n      int
}

// Fields lists the headers; names are in canonical form and none is there twice.
func (a *Answer) Fields() []Field { return a.fields[:a.n] }

func (a *Answer) set(name, value string) {
	a.fields[a.n] = Field{name, value}
	a.n++
}

// HasBody reports whether an answer of this status has a body and so a Content-Length.
func (a *Answer) HasBody() bool { return a.Status != http.StatusNoContent }

// WriteTimeout allows 10 s plus one second for each 64 KiB, so that a slow reader cannot hold a
// connection for ever.
func (a *Answer) WriteTimeout() time.Duration {
	return 10*time.Second + time.Duration(len(a.Body)>>16)*time.Second
}

// release gives the body back.
func (a *Answer) release() {
	if a.Free != nil {
		a.Free()
	}
}

// Call is one request on its way through the gateway. Its owner fills in the Request and hands it to
// Gateway.Serve; when the Reply has got its answer the Call can be used for the next request.
type Call struct {
	Request

	g      *Gateway
	reply  Reply
	id     string
	dryRun bool
	route  invocation.Route // nil when it is closed
	// req outlives the call: the instance's log needs it until the runtime is back in next.
	req    *invocation.Request
	answer Answer
	told   told
	waits  waits
}

// waits is what Leave needs: a copy, because another goroutine may end the call at the same time.
type waits struct {
	route invocation.Route
	req   *invocation.Request
}

// begin makes c a new call: the one place where a call begins.
func (g *Gateway) begin(c *Call, scope Scope, reply Reply) {
	c.g, c.reply, c.id, c.dryRun, c.route = g, reply, newID(), false, nil
	c.req = &invocation.Request{ID: c.id, Trace: invocation.Trace{Accepted: time.Now()}}
	c.told = told{scope: scope}
	c.answer, c.waits = Answer{}, waits{}
	c.answer.set("X-Amzn-Requestid", c.id)
}

// end sends the answer: the one place where a call ends. Nothing of c may be used after it.
func (c *Call) end() {
	c.closeRoute()
	c.reply.Send(&c.answer)
}

// drop ends a call whose client has gone.
func (c *Call) drop() {
	c.closeRoute()
	c.reply.Drop()
}

func (c *Call) closeRoute() {
	if r := c.route; r != nil {
		c.route = nil
		r.Close()
	}
}

// Serve answers one Invoke request of the given scope without waiting for an instance or for its answer,
// which may come long after Serve has returned. It reads the body before it returns.
func (g *Gateway) Serve(ctx context.Context, c *Call, scope Scope, reply Reply) {
	g.begin(c, scope, reply)
	if g.accept(ctx, c, scope) {
		c.waits = waits{c.route, c.req}
		c.waits.route.Begin(c.waits.req, c)
	}
}

// Leave takes the request out of the queue, if it waits for an instance. cause is context.Canceled when the
// client has gone; else it is what the client is told. Only the one who called Serve may call it, afterwards and
// before the Call is used again.
func (c *Call) Leave(cause error) {
	if c.waits.route != nil {
		c.waits.route.Leave(c.waits.req, cause)
	}
}

// Complete implements invocation.Completion, for what Serve began.
func (c *Call) Complete(out *invocation.Outcome, err error) {
	defer c.logPanic()
	switch {
	case err == nil:
		c.succeed(out)
	case err == context.Canceled: //nolint:errorlint // Leave's own
		c.left()
	default:
		c.refuse(err)
	}
}

// left ends a call whose client has gone.
func (c *Call) left() {
	c.observe(invocation.Call{Result: invocation.Gone, Detail: "the client went away before an instance was free"})
	c.drop()
}

// logPanic keeps a bug in one call from ending the goroutine of an instance's connection.
func (c *Call) logPanic() {
	if v := recover(); v != nil {
		c.g.opts.Log.Error("request handler panicked", "method", c.Method, "path", c.Path, "panic", v, "stack", string(debug.Stack()))
		c.failed()
		c.drop()
	}
}

// Abort gives back what a call holds whose goroutine panicked; its owner then ends the connection. It does
// nothing to a call that has its answer.
func (c *Call) Abort() {
	c.failed()
	c.closeRoute()
}

// wait invokes and answers, for net/http. A client that goes away while the request waits takes it out of the
// queue; once it runs, it runs to its end, as on Lambda.
func (c *Call) wait(client context.Context) {
	timeout := c.route.Version().Config.Timeout
	ctx, cancel := context.WithTimeoutCause(client, timeout+c.g.opts.Overhead, errDeadline)
	defer cancel()
	out, err := c.route.Invoke(ctx, c.req)
	switch cause := context.Cause(client); {
	case err == nil:
		c.succeed(out)
	case cause == context.Canceled: //nolint:errorlint // the client left, nobody reads an answer
		c.left()
	case cause != nil:
		c.refuse(&invocation.UnavailableError{Err: cause}) // the daemon shuts down
	default:
		c.refuse(err)
	}
}

// ServeInvoke answers one Invoke request of the given scope that net/http has read.
func (g *Gateway) ServeInvoke(w http.ResponseWriter, r *http.Request, scope Scope) {
	h := r.Header
	c := &Call{Request: Request{
		Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Host: r.Host,
		InvocationType: h.Get("X-Amz-Invocation-Type"), LogType: h.Get("X-Amz-Log-Type"), TenantID: h.Get("X-Amz-Tenant-Id"),
		TraceID: h.Get("X-Amzn-Trace-Id"), ClientContext: h.Get("X-Amz-Client-Context"),
		Length: r.ContentLength, Expect: h.Get("Expect") != "",
		Body: &httpBody{r.Body, http.NewResponseController(w)},
	}}
	g.begin(c, scope, &httpReply{w})
	defer c.Abort()
	if g.accept(r.Context(), c, scope) {
		c.wait(r.Context())
	}
}

// httpBody is a body that net/http reads.
type httpBody struct {
	io.Reader
	c *http.ResponseController
}

// SetReadDeadline implements Body; not every writer has one.
func (b *httpBody) SetReadDeadline(t time.Time) error { return b.c.SetReadDeadline(t) }

// httpReply answers through net/http, on the handler's goroutine.
type httpReply struct{ w http.ResponseWriter }

// Send implements Reply.
func (h *httpReply) Send(a *Answer) {
	defer a.release()
	header := h.w.Header()
	for _, f := range a.Fields() {
		header[f.Name] = []string{f.Value}
	}
	http.NewResponseController(h.w).SetWriteDeadline(time.Now().Add(a.WriteTimeout())) //nolint:errcheck // not every writer has one
	if !a.HasBody() {
		h.w.WriteHeader(a.Status)
		return
	}
	header["Content-Length"] = []string{strconv.Itoa(len(a.Body))}
	h.w.WriteHeader(a.Status)
	h.w.Write(a.Body) //nolint:errcheck // the client is gone
}

// Drop implements Reply. net/http cuts the connection.
func (h *httpReply) Drop() { panic(http.ErrAbortHandler) }
