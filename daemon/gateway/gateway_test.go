package gateway

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestAnswerCarriesWhatLambdaSends(t *testing.T) {
	var seen invocation.Request
	f := &fake{invoke: func(_ context.Context, req *invocation.Request) (*invocation.Outcome, error) {
		seen = *req
		return &invocation.Outcome{Payload: []byte(`"ok"`), LogTail: []byte("START\nEND\n")}, nil
	}}
	s := serve(t, f)
	got := request{
		body: `{"name": "x"}`,
		header: http.Header{
			"X-Amz-Log-Type":       {"Tail"},
			"X-Amz-Client-Context": {base64.StdEncoding.EncodeToString([]byte(`{"custom": {"a":1}}`))},
			"X-Amzn-Trace-Id":      {"Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"},
			"X-Amz-Tenant-Id":      {"tenant-1"},
			"Content-Type":         {"application/x-www-form-urlencoded"}, // what curl -d says
		},
		path: InvokePrefix + "hello" + InvokeSuffix + "?Qualifier=7",
	}.do(t, s)
	if got.status != http.StatusOK || got.body != `"ok"` {
		t.Fatalf("got %d %q", got.status, got.body)
	}
	id := got.header.Get("X-Amzn-Requestid")
	if !uuidPattern.MatchString(id) {
		t.Errorf("request id %q is no UUID of version 4", id)
	}
	want := map[string]string{
		"Content-Type": "application/json", "X-Amz-Executed-Version": "7", "X-Lfx-Release": "3",
		"X-Amzn-Trace-Id": "root=1-5759e988-bd862e3fe1be46a994272793;sampled=0", "X-Amzn-Remapped-Content-Length": "0",
		"X-Amz-Function-Error": "", "Content-Length": "4",
		"X-Amz-Log-Result": base64.StdEncoding.EncodeToString([]byte("START\nEND\n")),
	}
	for k, v := range want {
		if got.header.Get(k) != v {
			t.Errorf("%s = %q, want %q", k, got.header.Get(k), v)
		}
	}
	wantReq := invocation.Request{
		ID: id, Payload: []byte(`{"name": "x"}`), TenantID: "tenant-1", Tail: true, ClientContext: `{"custom":{"a":1}}`,
		TraceID:     "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
		FunctionARN: "arn:aws:lambda:eu-west-1:" + function.Account(testEnv) + ":function:hello:7",
	}
	if diff := cmp.Diff(wantReq, seen, cmpopts.IgnoreFields(invocation.Request{}, "Trace")); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestFunctionErrorIsAnAnswer(t *testing.T) {
	freed := 0
	f := &fake{invoke: func(context.Context, *invocation.Request) (*invocation.Outcome, error) {
		return &invocation.Outcome{Payload: []byte(`{"errorType":"X"}`), FunctionError: "Unhandled", Free: func() { freed++ }}, nil
	}}
	got := request{body: "1"}.do(t, serve(t, f))
	if got.status != http.StatusOK || got.header.Get("X-Amz-Function-Error") != "Unhandled" || got.body != `{"errorType":"X"}` {
		t.Errorf("got %+v", got)
	}
	if freed != 1 {
		t.Errorf("the payload was freed %d times", freed)
	}
}

func TestPayloadsReachTheFunctionAsTheyAre(t *testing.T) {
	big := `"` + strings.Repeat("x", invocation.MaxRequestBytes-2) + `"`
	for name, tt := range map[string]struct{ send, want string }{
		"empty":        {"", "{}"},
		"null":         {"null", "null"},
		"number":       {" 1\n", " 1\n"},
		"string":       {`"ä\u0000"`, `"ä\u0000"`},
		"whitespace":   {"{ \"a\" :\t1 }\r\n", "{ \"a\" :\t1 }\r\n"},
		"above a page": {`"` + strings.Repeat("x", 5000) + `"`, `"` + strings.Repeat("x", 5000) + `"`},
		"at the limit": {big, big},
	} {
		t.Run(name, func(t *testing.T) {
			got := request{body: tt.send}.do(t, serve(t, &fake{}))
			if got.status != http.StatusOK || got.body != tt.want {
				t.Errorf("got %d and %d bytes, want %d bytes", got.status, len(got.body), len(tt.want))
			}
		})
	}
}

func TestChunkedPayload(t *testing.T) {
	c := dial(t, serve(t, &fake{}))
	c.send("POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n")
	if got := c.recv(); got.status != http.StatusOK || got.body != `{"a":1}` {
		t.Errorf("got %+v", got)
	}
}

// TestRefusals has one case for each check, in their order; a case may break later checks too.
func TestRefusals(t *testing.T) {
	invalidType := http.Header{"X-Amz-Invocation-Type": {"event"}}
	b64 := func(s string) http.Header {
		return http.Header{"X-Amz-Client-Context": {base64.StdEncoding.EncodeToString([]byte(s))}}
	}
	account := function.Account(testEnv)
	long := strings.Repeat("x", 171)
	for name, tt := range map[string]struct {
		req     request
		resolve error
		status  int
		code    string
		key     string // of the message
		message string // a prefix
	}{
		"method": {request{method: "GET"}, nil, 405, "MethodNotAllowedException", "message", "Invoke is a POST request"},
		"path": {request{path: "/2015-03-31/functions/a/b/invocations"}, nil, 404, "UnknownOperationException", "message",
			"there is nothing at /2015-03-31/functions/a/b/invocations"},
		"name syntax": {request{path: InvokePrefix + "a%20b" + InvokeSuffix, header: invalidType}, nil, 400, "ValidationException", "message",
			"1 validation error detected: Value 'a b' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: "},
		"escaped slash": {request{path: InvokePrefix + "a%2Fb" + InvokeSuffix}, nil, 400, "ValidationException", "message",
			"1 validation error detected: Value 'a/b' at 'functionName'"},
		"name length": {request{path: InvokePrefix + long + InvokeSuffix}, nil, 400, "ValidationException", "message", "1 validation error detected: Value '" + long + "'"},
		"qualifier": {request{path: InvokePrefix + "f" + InvokeSuffix + "?Qualifier=a%20b"}, nil, 400, "ValidationException", "message",
			"1 validation error detected: Value 'a b' at 'qualifier'"},
		"two qualifiers": {request{path: InvokePrefix + "f:1" + InvokeSuffix + "?Qualifier=2"}, nil, 400, "InvalidParameterValueException", "message",
			"The derived qualifier from the function name does not match the specified qualifier."},
		"unknown function": {request{body: "{", header: invalidType}, function.NotFound("eu-west-1", account, "hello", function.Latest), 404, "ResourceNotFoundException", "Message",
			"Function not found: arn:aws:lambda:eu-west-1:" + account + ":function:hello:$LATEST"},
		"foreign account": {request{}, NewError("AccessDeniedException", "no"), 403, "AccessDeniedException", "Message", "no"},
		"resolver fails":  {request{}, errors.New("secret of ours"), 500, "ServiceException", "Message", "An internal error occurred."},
		"invocation type": {request{header: invalidType, body: "{"}, nil, 400, "ValidationException", "message",
			"1 validation error detected: Value 'event' at 'invocationType' failed to satisfy constraint: Member must satisfy enum value set: [Event, RequestResponse, DryRun]"},
		"event": {request{header: http.Header{"X-Amz-Invocation-Type": {"Event"}}}, nil, 400, "InvalidParameterValueException", "message", "InvocationType Event"},
		"log type": {request{header: http.Header{"X-Amz-Log-Type": {"tail"}}}, nil, 400, "ValidationException", "message",
			"1 validation error detected: Value 'tail' at 'logType' failed to satisfy constraint: Member must satisfy enum value set: [None, Tail]"},
		"context not base64":   {request{header: http.Header{"X-Amz-Client-Context": {"{}"}}}, nil, 400, "InvalidRequestContentException", "message", "Client context must be a valid Base64-encoded JSON object: it is not base64"},
		"context not JSON":     {request{header: b64("{")}, nil, 400, "InvalidRequestContentException", "message", "Client context must be a valid Base64-encoded JSON object: it is not a JSON object"},
		"context array":        {request{header: b64("[]")}, nil, 400, "InvalidRequestContentException", "message", "Client context must be"},
		"context blank":        {request{header: b64("  \n")}, nil, 400, "InvalidRequestContentException", "message", "Client context must be"},
		"context two values":   {request{header: b64("{}{}")}, nil, 400, "InvalidRequestContentException", "message", "Client context must be"},
		"context too long":     {request{header: b64(`{"a":"` + strings.Repeat("x", 2700) + `"}`)}, nil, 400, "InvalidRequestContentException", "message", "Client context must be at most 3583 bytes, got "},
		"context line feed":    {request{header: b64("{\"a\":\"\n\"}")}, nil, 400, "InvalidRequestContentException", "message", "Client context must be"},
		"payload not JSON":     {request{body: "{\n \"a\": x}"}, nil, 400, "InvalidRequestContentException", "message", "Could not parse request body into json: Could not parse payload into json: invalid character 'x'"},
		"payload not UTF-8":    {request{body: "{\"a\":\n\"\xff\"}"}, nil, 400, "InvalidRequestContentException", "message", "Could not parse request body into json: Could not parse payload into json: Invalid UTF-8 byte 0xff\n at [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: 2, column: 2]"},
		"payload with a BOM":   {request{body: "\xef\xbb\xbf{}"}, nil, 400, "InvalidRequestContentException", "message", "Could not parse request body into json"},
		"tenant":               {request{header: http.Header{"X-Amz-Tenant-Id": {"t\xc3\xa9"}}}, nil, 400, "ValidationException", "message", "1 validation error detected: Value 't\u00e9' at 'tenantId'"},
		"tenant too long":      {request{header: http.Header{"X-Amz-Tenant-Id": {strings.Repeat("x", 257)}}}, nil, 400, "ValidationException", "message", "1 validation error detected: Value"},
		"payload two values":   {request{body: "1 2"}, nil, 400, "InvalidRequestContentException", "message", "Could not parse request body into json"},
		"payload blank":        {request{body: " "}, nil, 400, "InvalidRequestContentException", "message", "Could not parse request body into json"},
		"payload nested":       {request{body: strings.Repeat("[", 20000)}, nil, 400, "InvalidRequestContentException", "message", "Could not parse request body into json"},
		"payload too large":    {request{body: strings.Repeat(" ", invocation.MaxRequestBytes+1)}, nil, 413, "RequestTooLargeException", "message", "Request must be smaller than 6291456 bytes for the InvokeFunction operation"},
		"invalid and too long": {request{path: InvokePrefix + strings.Repeat("/", 3) + InvokeSuffix}, nil, 404, "UnknownOperationException", "message", "there is nothing at"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{}
			if tt.resolve != nil {
				f.resolve = func(Target) error { return tt.resolve }
			}
			got := tt.req.do(t, serve(t, f))
			text, key := got.message()
			if got.status != tt.status || got.header.Get("X-Amzn-Errortype") != tt.code || key != tt.key || !strings.HasPrefix(text, tt.message) {
				t.Errorf("got %d %s %s=%q", got.status, got.header.Get("X-Amzn-Errortype"), key, text)
			}
			if strings.Contains(got.body, "secret of ours") {
				t.Errorf("the answer tells what is ours alone: %s", got.body)
			}
			checkEnvelope(t, got)
			if f.calls.Load() != 0 {
				t.Error("the function was called")
			}
		})
	}
}

// checkEnvelope holds an error answer against the model.
func checkEnvelope(t testing.TB, a answer) {
	t.Helper()
	code := a.header.Get("X-Amzn-Errortype")
	c, ok := codes[code]
	if !ok {
		t.Errorf("status %d with the code %q, which is none of the model", a.status, code)
	}
	if !uuidPattern.MatchString(a.header.Get("X-Amzn-Requestid")) {
		t.Errorf("an error without a request id")
	}
	var m map[string]string
	if err := json.Unmarshal([]byte(a.body), &m); err != nil {
		t.Fatalf("the body is no JSON object of strings: %v: %q", err, a.body)
	}
	kind := "User"
	if a.status >= 500 {
		kind = "Server"
	}
	if code == "ValidationException" {
		kind = ""
	}
	if m["Type"] != kind {
		t.Errorf("Type = %q, want %q", m["Type"], kind)
	}
	if _, capital := m["Message"]; capital != c.capital {
		t.Errorf("the message's key of %s is wrong: %s", code, a.body)
	}
	if a.header.Get("Content-Type") != "application/json" {
		t.Errorf("Content-Type = %q", a.header.Get("Content-Type"))
	}
}

func TestPositionOfASyntaxError(t *testing.T) {
	got := request{body: "{\n \"a\": x}"}.do(t, serve(t, &fake{}))
	text, _ := got.message()
	// As Jackson counts: the column after the character.
	if want := "\n at [Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: 2, column: 8]"; !strings.HasSuffix(text, want) {
		t.Errorf("message %q does not end with %q", text, want)
	}
}

func TestRefusalsOfTheRoute(t *testing.T) {
	for name, tt := range map[string]struct {
		err        error
		status     int
		code       string
		reason     string
		retryAfter string
		message    string
	}{
		"throttled": {&invocation.ThrottledError{Reason: "ConcurrentInvocationLimitExceeded", RetryAfter: 1500 * time.Millisecond, Detail: "full"},
			429, "TooManyRequestsException", "ConcurrentInvocationLimitExceeded", "2", "Rate Exceeded."},
		"unavailable": {fmt.Errorf("x: %w", &invocation.UnavailableError{Err: errors.New("containerd is not answering")}), 503, "ServiceException", "", "", "The function could not be started: containerd is not answering"},
		"deadline":    {errDeadline, 500, "ServiceException", "", "", "The invocation did not end in the time for queueing, initialisation and its timeout."},
		"other":       {errors.New("secret of ours"), 500, "ServiceException", "", "", "An internal error occurred."},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{invoke: func(context.Context, *invocation.Request) (*invocation.Outcome, error) { return nil, tt.err }}
			got := request{}.do(t, serve(t, f))
			var m map[string]string
			json.Unmarshal([]byte(got.body), &m)
			text, _ := got.message()
			if got.status != tt.status || got.header.Get("X-Amzn-Errortype") != tt.code || m["Reason"] != tt.reason ||
				got.header.Get("Retry-After") != tt.retryAfter || !strings.HasPrefix(text, tt.message) {
				t.Errorf("got %+v", got)
			}
			checkEnvelope(t, got)
		})
	}
}

func TestDryRunChecksAndDoesNotCall(t *testing.T) {
	f := &fake{}
	s := serve(t, f)
	dry := http.Header{"X-Amz-Invocation-Type": {"DryRun"}}
	got := request{header: dry, body: "{}"}.do(t, s)
	if got.status != http.StatusNoContent || got.body != "" || got.header.Get("X-Amz-Executed-Version") != "" {
		t.Errorf("got %+v", got)
	}
	if got := (request{header: dry, body: "{"}).do(t, s); got.status != http.StatusBadRequest {
		t.Errorf("a payload that is no JSON: %d", got.status)
	}
	if f.calls.Load() != 0 {
		t.Error("the function was called")
	}
}

func TestBadTraceHeaderIsReplaced(t *testing.T) {
	var seen string
	f := &fake{invoke: func(_ context.Context, req *invocation.Request) (*invocation.Outcome, error) {
		seen = req.TraceID
		return &invocation.Outcome{Payload: []byte("1")}, nil
	}}
	s := serve(t, f)
	made := regexp.MustCompile(`^Root=1-[0-9a-f]{8}-[0-9a-f]{24};Parent=[0-9a-f]{16};Sampled=0$`)
	for _, h := range []string{"", "Root=\xff", strings.Repeat("x", 600)} {
		got := request{header: http.Header{"X-Amzn-Trace-Id": {h}}}.do(t, s)
		if !made.MatchString(seen) {
			t.Errorf("header %.10q gave the trace %q", h, seen)
		}
		if want := "root=" + seen[5:40] + ";sampled=0"; got.header.Get("X-Amzn-Trace-Id") != want {
			t.Errorf("answered trace %q, want %q", got.header.Get("X-Amzn-Trace-Id"), want)
		}
	}
}

func TestTargetHasHostAndScope(t *testing.T) {
	var got Target
	f := &fake{resolve: func(tg Target) error { got = tg; return errors.New("enough") }}
	g := newGateway(f)
	key := &function.Key{Environment: testEnv, Function: "f"}
	r := httptest.NewRequest("POST", "http://Staging.Shop.LOCALHOST:9000/2015-03-31/functions/shop.1/invocations", nil)
	g.ServeInvoke(httptest.NewRecorder(), r, Scope{Function: key})
	if got.Host != "staging.shop.localhost" || got.Scope.Function != key || got.Ref.Name != "shop.1" {
		t.Errorf("target %+v", got)
	}
}

func TestHostname(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "localhost": "localhost", "LOCALHOST:9000": "localhost", "127.0.0.1:1": "127.0.0.1",
		"[::1]": "[::1]", "[::1]:9000": "[::1]", "a.b.localhost:": "a.b.localhost",
	} {
		if got := hostname(in); got != want {
			t.Errorf("hostname(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestFunctionName(t *testing.T) {
	for path, want := range map[string]string{
		"/2015-03-31/functions/hello/invocations":          "hello",
		"/2015-03-31/functions/hello%3A1/invocations":      "hello:1",
		"/2015-03-31/functions/a%2Fb/invocations":          "a/b",
		"/2015-03-31/functions/invocations":                "",
		"/2015-03-31/functions//invocations":               "",
		"/2015-03-31/functions/a/b/invocations":            "",
		"/2015-03-31/functions/x%2Finvocations":            "",
		"/2015-03-31/functions/hello/invocations/":         "",
		"/2015-03-31/functions/hello":                      "",
		"/2014-11-13/functions/hello/invoke-async":         "",
		"/2015-03-31/functions/function:hello/invocations": "function:hello",
	} {
		u, err := url.Parse("http://h" + path)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := FunctionName(u); got != want || ok != (want != "") {
			t.Errorf("FunctionName(%s) = %q, %v; want %q", path, got, ok, want)
		}
	}
}

func TestClientThatLeavesTheQueueEndsItsWait(t *testing.T) {
	waiting, left := make(chan struct{}), make(chan error, 1)
	f := &fake{invoke: func(ctx context.Context, _ *invocation.Request) (*invocation.Outcome, error) {
		close(waiting)
		<-ctx.Done()
		left <- context.Cause(ctx)
		return nil, context.Cause(ctx)
	}}
	c := dial(t, serve(t, f))
	c.send("POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
	<-waiting
	c.nc.Close()
	select {
	case err := <-left:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cause: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the wait did not end")
	}
}

// TestSenderOfTooMuchReadsTheAnswer: a reset in the middle of sending would hide the 413.
func TestSenderOfTooMuchReadsTheAnswer(t *testing.T) {
	s := serve(t, &fake{})
	for name, head := range map[string]string{
		"declared": fmt.Sprintf("Content-Length: %d", 2*invocation.MaxRequestBytes),
		"chunked":  "Transfer-Encoding: chunked",
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, s)
			c.send("POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost\r\n" + head + "\r\n\r\n")
			if name == "chunked" {
				c.send(fmt.Sprintf("%x\r\n", 2*invocation.MaxRequestBytes))
			}
			c.send(strings.Repeat(" ", 2*invocation.MaxRequestBytes))
			if name == "chunked" {
				c.send("\r\n0\r\n\r\n")
			}
			if got := c.recv(); got.status != http.StatusRequestEntityTooLarge {
				t.Errorf("got %d", got.status)
			}
		})
	}
}

// TestRefusalLongAfterAnAnswerArrives: the write deadline of an answer is not that of the next one.
func TestRefusalLongAfterAnAnswerArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(&fake{})
		l := &pipeListener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
		h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.ServeInvoke(w, r, Scope{}) })}
		go h.Serve(l) // ends with Close
		defer h.Close()
		ours, theirs := net.Pipe()
		l.conns <- theirs
		c := &raw{t, ours, bufio.NewReader(ours)}
		c.send("POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
		if got := c.recv(); got.status != http.StatusOK {
			t.Fatalf("got %+v", got)
		}
		time.Sleep(50 * time.Second)
		c.send("POST /2015-03-31/functions/a%20b/invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
		if got := c.recv(); got.status != http.StatusBadRequest {
			t.Errorf("got %+v", got)
		}
	})
}

func TestBodyThatIsCutOffIsRefused(t *testing.T) {
	s := serve(t, &fake{})
	for name, n := range map[string]int{"small": 100, "large": 100000} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, s)
			c.send(fmt.Sprintf("POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n{}", n))
			if err := c.nc.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got := c.recv(); got.status != http.StatusRequestTimeout {
				t.Errorf("got %d %s", got.status, got.body)
			}
		})
	}
}

// BenchmarkServeInvoke is what the gateway itself costs a warm invocation.
func BenchmarkServeInvoke(b *testing.B) {
	g := newGateway(&fake{})
	w := &nullWriter{h: http.Header{}}
	r := httptest.NewRequest("POST", InvokePrefix+"hello"+InvokeSuffix, nil)
	body := &loopBody{text: []byte(`{"name":"steve"}`)}
	r.Body, r.ContentLength = body, int64(len(body.text))
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		body.at = 0
		g.ServeInvoke(w, r, Scope{})
	}
}

type nullWriter struct{ h http.Header }

func (w *nullWriter) Header() http.Header              { return w.h }
func (w *nullWriter) WriteHeader(int)                  {}
func (w *nullWriter) Write(b []byte) (int, error)      { return len(b), nil }
func (w *nullWriter) SetReadDeadline(time.Time) error  { return nil }
func (w *nullWriter) SetWriteDeadline(time.Time) error { return nil }

type loopBody struct {
	text []byte
	at   int
}

func (l *loopBody) Read(b []byte) (int, error) {
	n := copy(b, l.text[l.at:])
	l.at += n
	return n, nil
}
func (l *loopBody) Close() error { return nil }

// TestRefusedWithoutABody: a client that waits for "100 Continue" is answered without having to send.
func TestRefusedWithoutABody(t *testing.T) {
	unknown := &fake{resolve: func(Target) error { return function.NotFound("eu-west-1", "1", "hello", function.Latest) }}
	for name, tt := range map[string]struct {
		f      *fake
		length int
		status int
	}{"unknown function": {unknown, 1 << 20, 404}, "too large": {&fake{}, invocation.MaxRequestBytes + 1, 413}} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, serve(t, tt.f))
			c.send(fmt.Sprintf("POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", tt.length))
			if got := c.recv(); got.status != tt.status {
				t.Errorf("got %d, want %d", got.status, tt.status)
			}
		})
	}
}

// TestSenderToAnUnknownFunctionReadsTheAnswer: however large what it sends.
func TestSenderToAnUnknownFunctionReadsTheAnswer(t *testing.T) {
	c := dial(t, serve(t, &fake{resolve: func(Target) error { return function.NotFound("eu-west-1", "1", "hello", function.Latest) }}))
	c.send("POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000000\r\n\r\n")
	c.send(strings.Repeat(" ", 6000000))
	if got := c.recv(); got.status != http.StatusNotFound {
		t.Errorf("got %d", got.status)
	}
}

// TestWaitEndedByTheDaemon: a request in the queue of a daemon that shuts down may be retried elsewhere.
func TestWaitEndedByTheDaemon(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	f := &fake{invoke: func(ctx context.Context, _ *invocation.Request) (*invocation.Outcome, error) {
		cancel(errors.New("the daemon is shutting down"))
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, InvokePrefix+"hello"+InvokeSuffix, strings.NewReader("{}"))
	w := httptest.NewRecorder()
	newGateway(f).ServeInvoke(w, r, Scope{})
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "shutting down") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}
