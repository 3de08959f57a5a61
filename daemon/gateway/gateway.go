// Package gateway is the Invoke API: it reads a client's request, asks a Resolver which version
// serves it, and answers as AWS Lambda does (Invoke, API version 2015-03-31).
//
// It knows neither pools nor containers; it imports only function and invocation of ours.
package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

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

// FunctionName splits the path of an Invoke request; ok is false when the path is another one. The
// name is unescaped after the split, so that an escaped slash stays part of it.
func FunctionName(u *url.URL) (name string, ok bool) { return functionName(u.EscapedPath()) }

// NameInPath returns what stands for the name in the escaped path of an Invoke request, not unescaped; ok
// is false when the path is another one.
func NameInPath(path string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(path, InvokePrefix)
	if !ok {
		return "", false
	}
	name, ok = strings.CutSuffix(rest, InvokeSuffix)
	return name, ok && name != "" && !strings.Contains(name, "/")
}

func functionName(path string) (name string, ok bool) {
	seg, ok := NameInPath(path)
	if !ok {
		return "", false
	}
	if !strings.Contains(seg, "%") {
		return seg, true
	}
	name, err := url.PathUnescape(seg)
	return name, err == nil
}

// accept does all checks in Lambda's order: name, function, qualifier; then invocation type, payload size,
// payload syntax. false means that the call has its answer already.
func (g *Gateway) accept(ctx context.Context, c *Call, scope Scope) bool {
	qualifier, err := g.resolve(ctx, c, scope)
	if err == nil {
		err = c.readHeaders()
	}
	if err == nil {
		err = c.readPayload()
	}
	switch {
	case err != nil:
		c.discard()
		c.refuse(err)
		return false
	case c.dryRun:
		c.answer.Status = http.StatusNoContent
		c.observe(invocation.Call{Status: http.StatusNoContent})
		c.end()
		return false
	}
	v := c.route.Version()
	c.req.FunctionARN = function.ARN(g.opts.Region, g.opts.Account(v.Environment), v.Function, qualifier)
	return true
}

// resolve finds the call's route, which the end of the call closes.
func (g *Gateway) resolve(ctx context.Context, c *Call, scope Scope) (qualifier string, err error) {
	if c.Method != http.MethodPost {
		c.answer.set("Allow", http.MethodPost)
		return "", NewError("MethodNotAllowedException", "Invoke is a POST request")
	}
	name, ok := functionName(c.Path)
	if !ok {
		return "", NewError("UnknownOperationException", "there is nothing at "+c.Path)
	}
	if c.Query != "" {
		values, _ := url.ParseQuery(c.Query) // as net/http does: what can be read counts
		qualifier = values.Get("Qualifier")
	}
	ref, err := function.ParseRef(name, qualifier)
	if err != nil {
		return "", err
	}
	c.told.name, c.told.qualifier = ref.Name, ref.Qualifier
	route, err := g.opts.Resolver.Resolve(ctx, Target{Scope: scope, Host: hostname(c.Host), Ref: ref})
	if err != nil {
		return "", err
	}
	c.route = route
	c.told.version, c.told.release = route.Version(), route.ReleaseNumber()
	return ref.Qualifier, nil
}

// hostname returns the host of a Host header, without port, lower case.
func hostname(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.ToLower(host)
}

// readHeaders takes what Invoke's headers say.
func (c *Call) readHeaders() error {
	switch t := c.InvocationType; t {
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
	switch t := c.LogType; t {
	case "", "None":
	case "Tail":
		c.req.Tail = true
	default:
		return NewError("ValidationException", fmt.Sprintf("1 validation error detected: Value '%s' at 'logType' failed to satisfy constraint: "+
			"Member must satisfy enum value set: [None, Tail]", t))
	}
	if c.TenantID != "" && !tenantPattern.MatchString(c.TenantID) {
		return NewError("ValidationException", fmt.Sprintf("1 validation error detected: Value '%s' at 'tenantId' failed to satisfy constraint: "+
			"Member must satisfy regular expression pattern: %s", c.TenantID, tenantPattern))
	}
	c.req.TenantID, c.req.TraceID = c.TenantID, c.TraceID
	if c.req.TraceID == "" || !validTrace(c.req.TraceID) {
		c.req.TraceID = newTrace(c.id, time.Now())
	}
	return c.readClientContext(c.ClientContext)
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
func newTrace(id string, now time.Time) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 0, len("Root=1-")+8+1+24+len(";Parent=")+16+len(";Sampled=0"))
	b = append(b, "Root=1-"...)
	for shift := 28; shift >= 0; shift -= 4 {
		b = append(b, digits[uint32(now.Unix())>>shift&15]) //nolint:gosec // the header has 32 bits
	}
	b = append(b, '-')
	at := len(b)
	for i := 0; i < len(id) && len(b) < at+24; i++ {
		if id[i] != '-' {
			b = append(b, id[i])
		}
	}
	b = append(append(b, ";Parent="...), id[19:23]...)
	return string(append(append(b, id[24:]...), ";Sampled=0"...))
}

// newID makes a UUID of version 4. The source is the runtime's ChaCha8 of each thread, seeded by the kernel: no
// lock and no system call on the way of a request.
func newID() string {
	var raw [16]byte
	binary.BigEndian.PutUint64(raw[:8], rand.Uint64())
	binary.BigEndian.PutUint64(raw[8:], rand.Uint64())
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
	var b [36]byte
	hex.Encode(b[:8], raw[:4])
	hex.Encode(b[9:13], raw[4:6])
	hex.Encode(b[14:18], raw[6:8])
	hex.Encode(b[19:23], raw[8:10])
	hex.Encode(b[24:], raw[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// readClientContext decodes X-Amz-Client-Context: base64 of a JSON object.
func (c *Call) readClientContext(enc string) error {
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
func (c *Call) readPayload() error {
	if c.Length > invocation.MaxRequestBytes {
		return tooLarge()
	}
	body := c.Payload
	if body == nil {
		var err error
		if body, err = c.readAll(); err != nil {
			return err
		}
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
func (c *Call) discard() {
	if c.Length == 0 || c.Expect || c.Payload != nil {
		return
	}
	io.CopyN(io.Discard, &pacedReader{body: c.Body}, 4*invocation.MaxRequestBytes) //nolint:errcheck // the answer is the same either way
}

// readAll reads the body with a rolling deadline and a minimum rate, so that a slow sender cannot
// hold a connection.
func (c *Call) readAll() ([]byte, error) {
	n := c.Length
	if n == 0 {
		return nil, nil
	}
	if n > 0 && n <= 4096 { // whole in the connection's buffer most of the time
		b := make([]byte, n)
		if _, err := io.ReadFull(&pacedReader{body: c.Body}, b); err != nil {
			return nil, bodyError(err)
		}
		return b, nil
	}
	buf := bytes.NewBuffer(make([]byte, 0, max(n, 0)+512))
	_, err := buf.ReadFrom(io.LimitReader(&pacedReader{body: c.Body}, invocation.MaxRequestBytes+1))
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

// errDeadline is the cause when queue, init and the function's timeout together took too long.
var errDeadline = NewError("ServiceException", "The invocation did not end in the time for queueing, initialisation and its timeout.")

// succeed answers with the outcome.
func (c *Call) succeed(out *invocation.Outcome) {
	c.observeOutcome(out)
	a := &c.answer
	a.Status, a.Body, a.Free = http.StatusOK, out.Payload, out.Free
	a.set("Content-Type", "application/json")
	a.set("X-Amz-Executed-Version", strconv.Itoa(c.route.Version().Number))
	a.set(api.HeaderRelease, strconv.Itoa(c.route.ReleaseNumber()))
	a.set("X-Amzn-Trace-Id", rootOf(c.req.TraceID))
	a.set("X-Amzn-Remapped-Content-Length", "0")
	if out.FunctionError != "" {
		a.set("X-Amz-Function-Error", out.FunctionError)
	}
	if c.req.Tail {
		a.set("X-Amz-Log-Result", base64.StdEncoding.EncodeToString(out.LogTail))
	}
	c.end()
}

// rootOf returns the client's form of a trace header.
func rootOf(trace string) string {
	root, _, _ := strings.Cut(trace, ";")
	if id, ok := strings.CutPrefix(root, "Root="); ok {
		return "root=" + id + ";sampled=0"
	}
	return strings.Replace(root, "Root=", "root=", 1) + ";sampled=0"
}

// refuse answers with an error and logs what is ours to know.
func (c *Call) refuse(err error) {
	e := translate(err)
	c.observeRefusal(e, err)
	if e.Status >= 500 {
		c.g.opts.Log.Error("invocation refused", "request_id", c.id, "path", c.Path, "error", err)
	}
	e.fill(&c.answer)
	c.end()
}

func appendMember(b []byte, key, value string) []byte {
	b = strconv.AppendQuote(b, key)
	b = append(b, ':')
	v, _ := json.Marshal(value) //nolint:errchkjson // a string always marshals
	return append(b, v...)
}
