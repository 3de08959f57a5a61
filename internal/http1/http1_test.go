package http1

import (
	"bufio"
	"bytes"
	"net/http"
	"net/textproto"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// collected keeps every field that is not about framing, canonical names.
type collected http.Header

func (c collected) Field(name, value []byte) bool {
	k := textproto.CanonicalMIMEHeaderKey(string(name))
	c[k] = append(c[k], string(value))
	return true
}

func TestParse(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want *Head // nil: for net/http
	}{
		"plain":                {"POST /a?b HTTP/1.1\r\nhost: x:1\r\n\r\n", &Head{Method: "POST", Target: "/a?b", Host: "x:1"}},
		"length":               {"POST / HTTP/1.1\r\nHost: x\r\nContent-LENGTH:\t12 \r\n\r\n", &Head{Method: "POST", Target: "/", Host: "x", Length: 12}},
		"chunked, close":       {"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\nConnection: Close\r\n\r\n", &Head{Method: "PUT", Target: "/", Host: "x", Chunked: true, Close: true}},
		"keep-alive":           {"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", &Head{Method: "GET", Target: "/", Host: "x"}},
		"HTTP/1.0":             {"GET / HTTP/1.0\r\nHost: x\r\n\r\n", nil},
		"no host":              {"GET / HTTP/1.1\r\n\r\n", nil},
		"two hosts":            {"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", nil},
		"odd host":             {"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", nil},
		"two lengths":          {"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", nil},
		"signed length":        {"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n", nil},
		"endless length":       {"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000000000\r\n\r\n", nil},
		"length and chunked":   {"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", nil},
		"other coding":         {"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", nil},
		"expect":               {"GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n", nil},
		"upgrade":              {"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n", nil},
		"connection list":      {"GET / HTTP/1.1\r\nHost: x\r\nConnection: close, x\r\n\r\n", nil},
		"bare line feed":       {"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", nil},
		"folded":               {"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", nil},
		"blank before a colon": {"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", nil},
		"control character":    {"GET / HTTP/1.1\r\nHost: x\r\nA: b\x01\r\n\r\n", nil},
		"return in a value":    {"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", nil},
		"something behind":     {"GET / HTTP/1.1\r\nHost: x\r\n\r\nx", nil},
		"many headers":         {"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", MaxHeaders) + "\r\n", nil},
		"as many as may be":    {"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", MaxHeaders-1) + "\r\n", &Head{Method: "GET", Target: "/", Host: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			var h Head
			ok := Parse([]byte(tt.text), &h, collected{})
			if ok != (tt.want != nil) {
				t.Fatalf("Parse = %v", ok)
			}
			if ok {
				if d := cmp.Diff(tt.want, &h, cmpopts.IgnoreUnexported(Head{})); d != "" {
					t.Errorf("head (-want +got):\n%s", d)
				}
			}
		})
	}
}

func TestEnd(t *testing.T) {
	const text = "GET / HTTP/1.1\r\nHost: x\r\n\r\nrest"
	for n := range len(text) {
		want := -1
		if end := strings.Index(text, "rest"); n >= end {
			want = end
		}
		for searched := range n + 1 {
			if searched > 0 && End([]byte(text[:searched]), 0) >= 0 {
				break // nobody searches behind an end
			}
			if got := End([]byte(text[:n]), searched); got != want {
				t.Fatalf("End of %d bytes, %d searched = %d, want %d", n, searched, got, want)
			}
		}
	}
}

func TestEscaped(t *testing.T) {
	for p, want := range map[string]bool{
		"": true, "hello": true, "a%20b": true, "f:$LATEST": true, "a=b&c=@1": true,
		"%": false, "%2": false, "%2g": false, "a b": false, "a#b": false, "a;b": false, "a/b": false, "ä": false, "\"": false,
	} {
		if got := Escaped(p); got != want {
			t.Errorf("Escaped(%q) = %v", p, got)
		}
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	b := []byte("POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: localhost:9000\r\nX-Amz-Log-Type: None\r\nContent-Length: 2\r\n\r\n")
	var h Head
	var f Fields = ignored{}
	if n := testing.AllocsPerRun(100, func() {
		if !Parse(b, &h, f) {
			t.Error("not parsed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type ignored struct{}

func (ignored) Field(_, _ []byte) bool { return true }

// FuzzParse: what Parse accepts, net/http accepts and reads in the same way.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /%41?b HTTP/1.1\r\nhost: [::1]:1\r\nContent-Length: 007\r\nA: b\r\na:c\r\n\r\n",
		"M-X * HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n", "GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n", "GET //x/ HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Head
		fields := collected{}
		if !Parse(b, &h, fields) || !Path(h.Target) || !strings.HasPrefix(h.Target, "/") {
			return // net/http reads it, or the caller does not serve it
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			if strings.Contains(err.Error(), "invalid method") {
				return // callers compare the method
			}
			t.Fatalf("net/http refuses %q: %v", b, err)
		}
		length := h.Length
		if h.Chunked {
			length = -1
		}
		if r.Method != h.Method || r.URL.EscapedPath() != h.Target || r.Host != h.Host || r.ContentLength != length || r.Close != h.Close {
			t.Errorf("%+v, net/http %s %s host %s length %d close %v", h, r.Method, r.URL.EscapedPath(), r.Host, r.ContentLength, r.Close)
		}
		for k, v := range fields {
			if k == "Trailer" {
				continue // net/http moves it
			}
			if d := cmp.Diff(r.Header[k], v); d != "" {
				t.Errorf("%s (-net/http +http1):\n%s", k, d)
			}
		}
	})
}
