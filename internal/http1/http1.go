// Package http1 parses heads of HTTP/1.1 requests without allocating: the part that our own codecs share.
//
// It is strict on purpose. Whatever is not plainly a request of the usual form is not refused but
// left to net/http, with the bytes already read; what is accepted here, net/http accepts too and reads in
// the same way. The fuzz targets of this package and of its users hold that.
//
// Strings and slices in a Head alias the parsed bytes and change when these do.
package http1

import (
	"bytes"
	"unsafe"
)

// MaxHeaders is how many header lines are read; a head with more is left to net/http.
const MaxHeaders = 64

// Head is the part of a request head that every codec needs.
type Head struct {
	Method, Target string
	// Host is never empty.
	Host string
	// Length is the Content-Length in bytes; 0 without one.
	Length int64
	// Chunked says that the body has the chunked coding; there is no Content-Length then.
	Chunked bool
	// Close says that the client wants the connection to end after the answer.
	Close bool

	hasLength, hasHost bool
}

// Fields takes the headers that are not about the framing of the message, Trailer among them.
type Fields interface {
	// Field returns false when net/http has to read the request. name is as the client wrote it; value
	// has no blanks around it and no control characters but tabs.
	Field(name, value []byte) bool
}

// End returns where the head in b ends, behind its empty line, or -1 when it is not complete. searched is
// how many bytes an earlier call has looked at.
func End(b []byte, searched int) int {
	searched = max(searched-3, 0)
	if i := bytes.Index(b[searched:], []byte("\r\n\r\n")); i >= 0 {
		return searched + i + 4
	}
	return -1
}

// BareLF reports a line end that is no CRLF: net/http decides what to make of it.
func BareLF(b []byte) bool {
	for i := 0; ; i++ {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return false
		}
		if i += j; i == 0 || b[i-1] != '\r' {
			return true
		}
	}
}

// Parse parses a complete head, which ends with an empty line. It returns false for everything that it
// does not plainly recognise; that is no judgement, net/http reads those. Method and Target are only
// split: the caller compares them with what it serves, see Path.
func Parse(b []byte, h *Head, f Fields) bool {
	*h = Head{}
	line, rest, ok := cutLine(b)
	if !ok || !h.requestLine(line) {
		return false
	}
	for n := 0; ; n++ {
		if line, rest, ok = cutLine(rest); !ok || n > MaxHeaders {
			return false
		}
		if len(line) == 0 {
			break
		}
		name, value, ok := SplitField(line)
		if !ok || !h.field(name, value, f) {
			return false
		}
	}
	return len(rest) == 0 && h.hasHost && !(h.Chunked && h.hasLength)
}

// cutLine cuts at the first CRLF.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	return b[:i-1], b[i+1:], true
}

// requestLine splits "METHOD target HTTP/1.1".
func (h *Head) requestLine(line []byte) bool {
	line, ok := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !ok {
		return false
	}
	i := bytes.IndexByte(line, ' ')
	if i < 1 {
		return false
	}
	h.Method, h.Target = View(line[:i]), View(line[i+1:])
	return true
}

// field takes one header.
func (h *Head) field(name, value []byte, f Fields) bool {
	switch len(name) {
	case len("Host"):
		if Fold(name, "host") {
			return h.host(value)
		}
	case len("Expect"):
		if Fold(name, "expect") {
			return false
		}
	case len("Upgrade"):
		if Fold(name, "upgrade") {
			return false
		}
	case len("Connection"):
		if Fold(name, "connection") {
			return h.connection(value)
		}
	case len("Content-Length"):
		if Fold(name, "content-length") {
			return h.contentLength(value)
		}
	case len("Transfer-Encoding"):
		if Fold(name, "transfer-encoding") {
			ok := !h.Chunked && Fold(value, "chunked")
			h.Chunked = true
			return ok
		}
	}
	return f.Field(name, value)
}

// SplitField splits "Name: value" and trims blanks around the value. ok is false for a name that is no
// token and for control characters in the value.
func SplitField(line []byte) (name, value []byte, ok bool) {
	i := bytes.IndexByte(line, ':')
	if i <= 0 {
		return nil, nil, false
	}
	name = line[:i]
	for _, c := range name {
		if !tokenByte[c] {
			return nil, nil, false
		}
	}
	value = line[i+1:]
	for _, c := range value {
		if c < 0x20 && c != '\t' || c == 0x7f {
			return nil, nil, false
		}
	}
	return name, bytes.Trim(value, " \t"), true
}

func (h *Head) host(v []byte) bool {
	for _, c := range v {
		if !hostByte[c] {
			return false
		}
	}
	ok := !h.hasHost && len(v) > 0
	h.hasHost, h.Host = true, View(v)
	return ok
}

func (h *Head) connection(v []byte) bool {
	if Fold(v, "close") {
		h.Close = true
		return true
	}
	return Fold(v, "keep-alive")
}

func (h *Head) contentLength(v []byte) bool {
	if h.hasLength || len(v) == 0 || len(v) > 18 {
		return false
	}
	h.hasLength = true
	for _, c := range v {
		if c < '0' || c > '9' {
			return false
		}
		h.Length = h.Length*10 + int64(c-'0')
	}
	return true
}

// Path reports whether p has only bytes that no client escapes and no parser rewrites.
func Path(p string) bool {
	for i := range len(p) {
		if !pathByte[p[i]] {
			return false
		}
	}
	return true
}

// Escaped reports whether p, a part of a path or of a query, is as net/url leaves it: plain bytes,
// those that need no escape there, and complete escapes.
func Escaped(p string) bool {
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case c == '%':
			if i+2 >= len(p) || HexValue(p[i+1]) < 0 || HexValue(p[i+2]) < 0 {
				return false
			}
			i += 2
		case !escapedByte[c]:
			return false
		}
	}
	return true
}

// Fold reports whether b equals the lower-case ASCII string s, ignoring case.
func Fold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// View is b as a string without a copy; it changes when b does.
func View(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// HexValue returns the value of a hexadecimal digit or -1.
func HexValue(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

const alphanumeric = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

var (
	pathByte    = byteSet(alphanumeric + "/-_.~")
	escapedByte = byteSet(alphanumeric + "-_.~$&+:=@")
	// tokenByte are the bytes of a header name (RFC 9110 section 5.6.2).
	tokenByte = byteSet(alphanumeric + "!#$%&'*+-.^_`|~")
	// hostByte are the bytes of a host name or address with port.
	hostByte = byteSet(alphanumeric + "-._:[]")
)

func byteSet(chars string) (set [256]bool) {
	for i := range len(chars) {
		set[chars[i]] = true
	}
	return set
}
