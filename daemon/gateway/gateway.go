// Package gateway is the Invoke API: it reads a client's request, asks a Resolver which version
// serves it, and answers as AWS Lambda does (Invoke, API version 2015-03-31).
//
// It knows neither pools nor containers; it imports only function and invocation of ours.
package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// InvokePrefix and InvokeSuffix enclose the function name in the path of Invoke.
const (
	InvokePrefix = "/2015-03-31/functions/"
	InvokeSuffix = "/invocations"
)

// maxClientContext is the limit of X-Amz-Client-Context in bytes, encoded.
const maxClientContext = 3583

// Scope says where a request came from, which decides what names mean.
type Scope struct {
	// Function is set on a port of a function's own: whatever plain name the client uses is this one.
	Function *function.Key
	// Environment restricts names to one environment; nil means the whole host.
	Environment *function.Environment
	// Caller is the release binding of the calling instance's invocation; nil from outside.
	Caller invocation.Binding
	// Parent is the request id of that invocation; empty from outside.
	Parent string
}

// Target is what a request asks for.
type Target struct {
	Scope
	// Host is the request's host name without port, lower case; it may name an environment.
	Host string
	Ref  function.Ref
}

// Resolver finds the route of a target and binds the request to a release. Its errors are *Error, or
// others which become a ServiceException.
type Resolver interface {
	Resolve(ctx context.Context, t Target) (invocation.Route, error)
}

// Options are the settings of a Gateway.
type Options struct {
	Resolver Resolver
	Region   string
	// Account returns an environment's account id; function.Account when nil.
	Account func(function.Environment) string
	// Overhead is what a request may take beside the function's timeout: queue, init and a margin.
	Overhead time.Duration
	// Observer is told how every call ended; may be nil.
	Observer invocation.Observer
	Log      *slog.Logger
}

// Gateway serves Invoke.
type Gateway struct{ opts Options }

// New makes a gateway.
func New(opts Options) *Gateway {
	if opts.Account == nil {
		opts.Account = function.Account
	}
	return &Gateway{opts: opts}
}

func init() { uuid.EnableRandPool() }

// call is one request on its way through the gateway.
type call struct {
	w      http.ResponseWriter
	r      *http.Request
	id     string
	tail   bool
	dryRun bool
	req    invocation.Request
	told   told
}

// FunctionName splits the path of an Invoke request; ok is false when the path is another one. The
// name is unescaped after the split, so that an escaped slash stays part of it.
func FunctionName(u *url.URL) (name string, ok bool) {
	p := u.EscapedPath()
	rest, ok := strings.CutPrefix(p, InvokePrefix)
	if !ok {
		return "", false
	}
	seg, ok := strings.CutSuffix(rest, InvokeSuffix)
	if !ok || seg == "" || strings.Contains(seg, "/") {
		return "", false
	}
	if !strings.Contains(seg, "%") {
		return seg, true
	}
	name, err := url.PathUnescape(seg)
	return name, err == nil
}

// ServeInvoke answers one Invoke request of the given scope.
func (g *Gateway) ServeInvoke(w http.ResponseWriter, r *http.Request, scope Scope) {
	c := &call{w: w, r: r, id: uuid.NewString()}
	g.begin(c, scope)
	defer g.end(c)
	w.Header()["X-Amzn-Requestid"] = []string{c.id}
	route, qualifier, err := g.resolve(c, scope)
	if err != nil {
		discard(w, r)
		g.refuse(c, err)
		return
	}
	c.told.version, c.told.release = route.Version(), route.ReleaseNumber()
	defer route.Close()
	switch err := g.accept(c, route, qualifier); {
	case err != nil:
		discard(w, r)
		g.refuse(c, err)
	case c.dryRun:
		g.observe(c, invocation.Call{Status: http.StatusNoContent})
		w.WriteHeader(http.StatusNoContent)
	default:
		g.run(c, route)
	}
}

// resolve and accept do all checks in Lambda's order: name, function, qualifier; then invocation type,
// payload size, payload syntax. The route must be closed.
func (g *Gateway) resolve(c *call, scope Scope) (route invocation.Route, qualifier string, err error) {
	if c.r.Method != http.MethodPost {
		c.w.Header().Set("Allow", http.MethodPost)
		return nil, "", NewError("MethodNotAllowedException", "Invoke is a POST request")
	}
	name, ok := FunctionName(c.r.URL)
	if !ok {
		return nil, "", NewError("UnknownOperationException", "there is nothing at "+c.r.URL.EscapedPath())
	}
	if c.r.URL.RawQuery != "" {
		qualifier = c.r.URL.Query().Get("Qualifier")
	}
	ref, err := function.ParseRef(name, qualifier)
	if err != nil {
		return nil, "", err
	}
	c.told.name, c.told.qualifier = ref.Name, ref.Qualifier
	route, err = g.opts.Resolver.Resolve(c.r.Context(), Target{Scope: scope, Host: hostname(c.r.Host), Ref: ref})
	return route, ref.Qualifier, err
}

func (g *Gateway) accept(c *call, route invocation.Route, qualifier string) error {
	if err := c.readHeaders(); err != nil {
		return err
	}
	if err := c.readPayload(); err != nil {
		return err
	}
	v := route.Version()
	c.req.FunctionARN = function.ARN(g.opts.Region, g.opts.Account(v.Environment), v.Function, qualifier)
	return nil
}

// hostname returns the host of a Host header, without port, lower case.
func hostname(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.ToLower(host)
}

// readHeaders takes what Invoke's headers say.
func (c *call) readHeaders() error {
	h := c.r.Header
	c.req.ID = c.id
	switch t := h.Get("X-Amz-Invocation-Type"); t {
	case "", "RequestResponse":
	case "DryRun":
		c.dryRun = true
	case "Event":
		return NewError("InvalidParameterValueException",
			"InvocationType Event (asynchronous invocation) is not available in this version of lfxd: use RequestResponse")
	default:
		return NewError("ValidationException", fmt.Sprintf("1 validation error detected: Value '%s' at 'invocationType' failed to satisfy constraint: "+
			"Member must satisfy enum value set: [Event, RequestResponse, DryRun]", t))
	}
	switch t := h.Get("X-Amz-Log-Type"); t {
	case "", "None":
	case "Tail":
		c.req.Tail = true
	default:
		return NewError("ValidationException", fmt.Sprintf("1 validation error detected: Value '%s' at 'logType' failed to satisfy constraint: "+
			"Member must satisfy enum value set: [None, Tail]", t))
	}
	if c.req.TenantID = h.Get("X-Amz-Tenant-Id"); c.req.TenantID != "" && !tenantPattern.MatchString(c.req.TenantID) {
		return NewError("ValidationException", fmt.Sprintf("1 validation error detected: Value '%s' at 'tenantId' failed to satisfy constraint: "+
			"Member must satisfy regular expression pattern: %s", c.req.TenantID, tenantPattern))
	}
	c.req.TraceID = h.Get("X-Amzn-Trace-Id")
	if c.req.TraceID == "" || !validTrace(c.req.TraceID) {
		c.req.TraceID = newTrace(c.id)
	}
	return c.readClientContext(h.Get("X-Amz-Client-Context"))
}

// tenantPattern is the model's for TenantId, with its length.
var tenantPattern = regexp.MustCompile(`^[a-zA-Z0-9\._:\/=+\-@ ]{1,256}$`)

// validTrace refuses what could not be a header of the Runtime API.
func validTrace(s string) bool {
	if len(s) > 512 {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// newTrace makes a trace header whose ids come from the request id.
func newTrace(id string) string {
	hex := strings.ReplaceAll(id, "-", "")
	return fmt.Sprintf("Root=1-%08x-%s;Parent=%s;Sampled=0", time.Now().Unix(), hex[:24], hex[16:32])
}

// readClientContext decodes X-Amz-Client-Context: base64 of a JSON object.
func (c *call) readClientContext(enc string) error {
	if enc == "" {
		return nil
	}
	if len(enc) > maxClientContext {
		return NewError("InvalidRequestContentException", fmt.Sprintf("Client context must be at most %d bytes, got %d", maxClientContext, len(enc)))
	}
	b, err := base64.StdEncoding.DecodeString(enc)
	if err != nil {
		return NewError("InvalidRequestContentException", "Client context must be a valid Base64-encoded JSON object: it is not base64")
	}
	var compact bytes.Buffer
	if !bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte{'{'}) || json.Compact(&compact, b) != nil {
		return NewError("InvalidRequestContentException", "Client context must be a valid Base64-encoded JSON object: it is not a JSON object")
	}
	c.req.ClientContext = compact.String()
	return nil
}

// readPayload reads and checks the event. An empty one becomes {}.
func (c *call) readPayload() error {
	if c.r.ContentLength > invocation.MaxRequestBytes {
		return tooLarge()
	}
	body, err := readAll(c.w, c.r)
	if err != nil {
		return err
	}
	if len(body) == 0 {
		c.req.Payload = []byte("{}")
		return nil
	}
	if !utf8.Valid(body) || !json.Valid(body) {
		return notJSON(body)
	}
	c.req.Payload = body
	return nil
}

func tooLarge() error {
	return NewError("RequestTooLargeException", fmt.Sprintf("Request must be smaller than %d bytes for the InvokeFunction operation", invocation.MaxRequestBytes))
}

// discard reads what a refused client still sends, up to a bound: one that is still sending when the
// connection is closed sees a reset instead of the answer. One that waits for "100 Continue" sends
// nothing before the answer, and reading would ask for it.
func discard(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 || r.Header.Get("Expect") != "" {
		return
	}
	body := &pacedReader{r: r.Body, c: http.NewResponseController(w)}
	io.CopyN(io.Discard, body, 4*invocation.MaxRequestBytes) //nolint:errcheck // the answer is the same either way
}

// readAll reads the body with a rolling deadline and a minimum rate, so that a slow sender cannot
// hold a connection.
func readAll(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	n := r.ContentLength
	if n == 0 {
		return nil, nil
	}
	if n > 0 && n <= 4096 { // whole in the connection's buffer most of the time
		b := make([]byte, n)
		if _, err := io.ReadFull(&pacedReader{r: r.Body, c: http.NewResponseController(w)}, b); err != nil {
			return nil, bodyError(err)
		}
		return b, nil
	}
	buf := bytes.NewBuffer(make([]byte, 0, max(n, 0)+512))
	_, err := buf.ReadFrom(io.LimitReader(&pacedReader{r: r.Body, c: http.NewResponseController(w)}, invocation.MaxRequestBytes+1))
	switch {
	case err != nil:
		return nil, bodyError(err)
	case buf.Len() > invocation.MaxRequestBytes:
		return nil, tooLarge()
	}
	return buf.Bytes(), nil
}

func bodyError(err error) error {
	return NewError("RequestTimeoutException", "The request body did not arrive in time or was cut off: "+err.Error())
}

// notJSON words a payload's syntax error as AWS does.
func notJSON(body []byte) error {
	var v any
	err := json.Unmarshal(body, &v)
	line, column := 1, 1
	text := "invalid JSON"
	var syntax *json.SyntaxError
	if n := validPrefix(body); n < len(body) {
		line = 1 + bytes.Count(body[:n], []byte{'\n'})
		column = n - bytes.LastIndexByte(body[:n], '\n')
		text = fmt.Sprintf("Invalid UTF-8 byte 0x%02x", body[n])
	} else if errors.As(err, &syntax) {
		before := body[:min(int(syntax.Offset), len(body))]
		line = 1 + bytes.Count(before, []byte{'\n'})
		column = len(before) - bytes.LastIndexByte(before, '\n')
		text = syntax.Error()
	}
	return NewError("InvalidRequestContentException", fmt.Sprintf("Could not parse request body into json: Could not parse payload into json: %s\n"+
		" at [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: %d, column: %d]", text, line, column))
}

// validPrefix returns how many bytes of b are UTF-8.
func validPrefix(b []byte) (n int) {
	for n < len(b) {
		r, size := utf8.DecodeRune(b[n:])
		if r == utf8.RuneError && size == 1 {
			return n
		}
		n += size
	}
	return n
}

// run invokes and answers. A client that goes away while the request waits takes it out of the
// queue; once it runs, it runs to its end, as on Lambda.
func (g *Gateway) run(c *call, route invocation.Route) {
	timeout := route.Version().Config.Timeout
	ctx, cancel := context.WithTimeoutCause(c.r.Context(), timeout+g.opts.Overhead, errDeadline)
	defer cancel()
	out, err := route.Invoke(ctx, &c.req)
	switch cause := context.Cause(c.r.Context()); {
	case err == nil:
		g.answer(c, route, out)
	case cause == context.Canceled: //nolint:errorlint // net/http's own: the client left, nobody reads an answer
		g.observe(c, invocation.Call{Result: invocation.Gone, Detail: "the client went away before an instance was free"})
	case cause != nil:
		g.refuse(c, &invocation.UnavailableError{Err: cause}) // the daemon shuts down
	default:
		g.refuse(c, err)
	}
}

// errDeadline is the cause when queue, init and the function's timeout together took too long.
var errDeadline = NewError("ServiceException", "The invocation did not end in the time for queueing, initialisation and its timeout.")

// answer writes the outcome to the client.
func (g *Gateway) answer(c *call, route invocation.Route, out *invocation.Outcome) {
	g.observeOutcome(c, out)
	h := c.w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["X-Amz-Executed-Version"] = []string{strconv.Itoa(route.Version().Number)}
	h[api.HeaderRelease] = []string{strconv.Itoa(route.ReleaseNumber())}
	h["X-Amzn-Trace-Id"] = []string{rootOf(c.req.TraceID)}
	h["X-Amzn-Remapped-Content-Length"] = []string{"0"}
	if out.FunctionError != "" {
		h["X-Amz-Function-Error"] = []string{out.FunctionError}
	}
	if c.req.Tail {
		h["X-Amz-Log-Result"] = []string{base64.StdEncoding.EncodeToString(out.LogTail)}
	}
	h["Content-Length"] = []string{strconv.Itoa(len(out.Payload))}
	http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(writeTimeout(len(out.Payload)))) //nolint:errcheck // not every writer has one
	c.w.WriteHeader(http.StatusOK)
	c.w.Write(out.Payload) //nolint:errcheck // the client is gone
	if out.Free != nil {
		out.Free()
	}
}

// writeTimeout allows 10 s plus one second for each 64 KiB, so that a slow reader cannot hold a
// connection for ever.
func writeTimeout(n int) time.Duration {
	return 10*time.Second + time.Duration(n>>16)*time.Second
}

// rootOf returns the client's form of a trace header.
func rootOf(trace string) string {
	root, _, _ := strings.Cut(trace, ";")
	return strings.Replace(root, "Root=", "root=", 1) + ";sampled=0"
}

// refuse answers with an error and logs what is ours to know.
func (g *Gateway) refuse(c *call, err error) {
	e := translate(err)
	g.observeRefusal(c, e, err)
	if e.Status >= 500 {
		g.opts.Log.Error("invocation refused", "request_id", c.id, "path", c.r.URL.EscapedPath(), "error", err)
	}
	writeError(c.w, e)
}

func appendMember(b []byte, key, value string) []byte {
	b = strconv.AppendQuote(b, key)
	b = append(b, ':')
	v, _ := json.Marshal(value) //nolint:errchkjson // a string always marshals
	return append(b, v...)
}
