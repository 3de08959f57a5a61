package rapi

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"lfx.dev/lfxd/internal/http1"
)

// FuzzHead holds the codec against net/http: a head that the codec accepts must mean the same there.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		rawNext, rawResponse("0123", "x", "Content-Type: a/b"), rawError("a", "{}", "Lambda-Runtime-Function-Error-Type: Runtime.X"),
		rawPost("init/error", "x", "Connection: close"), "PUT /2020-08-15/logs HTTP/1.1\r\nhost:x\r\nTRANSFER-ENCODING: Chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n",
		"GET /2020-01-01/extension/event/next HTTP/1.1\r\nHost: [::1]:80\r\nLambda-Extension-Identifier: x\r\n\r\n",
		"POST /2018-06-01/runtime/invocation/%61/response HTTP/1.1\r\nHost: x\r\n\r\n", "GET http://x/2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\nFold: a\r\n b\r\n\r\n", "GET /2018-06-01/../2015-03-31 HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		i := bytes.Index(b, []byte("\r\n\r\n"))
		if i < 0 {
			return
		}
		b = b[:i+4]
		var h head
		if !parseHead(b, &h) {
			return // net/http reads it
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", b, err)
		}
		rt, id := resolve(r.Method, r.URL.EscapedPath())
		if rt != h.route || id != h.id || rt == routeOther {
			t.Errorf("route %d %q, net/http %d %q", h.route, h.id, rt, id)
		}
		length := h.Length
		if h.Chunked {
			length = -1
		}
		if r.ContentLength != length || r.Close != h.Close {
			t.Errorf("length %d close %v, net/http %d %v", length, h.Close, r.ContentLength, r.Close)
		}
		for name, got := range map[string]string{"Content-Type": h.contentType, headerErrorType: h.errorType, headerResponseMode: h.mode, headerExtensionID: h.extensionID} {
			if want := r.Header.Get(name); got != want {
				t.Errorf("%s: %q, net/http %q", name, got, want)
			}
		}
		if r.Host == "" || r.Header.Get("Expect") != "" || r.Header.Get("Upgrade") != "" || r.ProtoMinor != 1 {
			t.Errorf("should have gone to net/http: %q", b)
		}
	})
}

// bytesConn is a connection that delivers fixed bytes, at most step at a time.
type bytesConn struct {
	net.Conn
	r    io.Reader
	step int
}

func (c *bytesConn) Read(p []byte) (int, error)      { return c.r.Read(p[:min(len(p), c.step)]) }
func (c *bytesConn) SetReadDeadline(time.Time) error { return nil }

// FuzzChunked holds the decoder of chunked bodies and trailers against net/http.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{
		"3\r\nabc\r\n0\r\n\r\n", "0\r\nLambda-Runtime-Function-Error-Type: Runtime.A\r\n\r\n", "A;x=y\r\n0123456789\r\n00\r\n\r\nrest",
		"3 \r\nabc\r\n0\r\n\r\n", "3\nabc\n0\n\n", "ffffffffffffffff\r\n", "1\r\na\r\n0\r\nLambda-Runtime-Function-Error-Body: eA==\r\nx: y\r\n\r\n",
	} {
		f.Add([]byte(s), 7)
	}
	f.Fuzz(func(t *testing.T, raw []byte, step int) {
		const head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
		r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(raw))))
		if err != nil {
			t.Fatal(err)
		}
		want, wantErr := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		c := newConn(nil, &bytesConn{r: bytes.NewReader(raw), step: max(1, step)})
		c.buf = make([]byte, 64)
		c.body.start(c, &head2)
		got, gotErr := io.ReadAll(io.LimitReader(&c.body, 1<<20))
		if gotErr != nil {
			return // stricter is fine: the request is refused
		}
		if wantErr != nil {
			t.Fatalf("net/http refuses %q: %v", raw, wantErr)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%q: %q, net/http %q", raw, got, want)
		}
		if a, b := c.body.trailers(); a != r.Trailer.Get(headerErrorType) || b != r.Trailer.Get(headerErrorBody) {
			t.Errorf("%q: trailers %q, %q, net/http %v", raw, a, b, r.Trailer)
		}
	})
}

var head2 = head{Head: http1.Head{Chunked: true}}

func FuzzErrorType(f *testing.F) {
	for _, s := range []string{"", "unhandled", "Runtime.Foo", "Runtime.foo", "Function.", "Function.X", "Function.Xy.Z", "Runtime.Übel"} {
		f.Add(s)
	}
	valid := regexp.MustCompile(`\A(Runtime|Function)\.[A-Z][a-zA-Z]+\z`)
	f.Fuzz(func(t *testing.T, s string) {
		want := "Runtime.Unknown"
		switch {
		case valid.MatchString(s):
			want = s
		case strings.HasPrefix(s, "Function."):
			want = "Function.Unknown"
		}
		if got := normalErrorType(s); got != want {
			t.Errorf("normalErrorType(%q) = %q, want %q", s, got, want)
		}
	})
}
