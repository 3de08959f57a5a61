package rapi

import (
	"bytes"
	"unsafe"
)

const (
	// maxHead is the largest request head in bytes that the codec reads; above it net/http goes on.
	maxHead = 64 << 10
	// maxHeaders is how many header lines the codec reads; above it net/http goes on.
	maxHeaders = 64
)

// head is a request head as the codec understands it. Slices and strings alias the connection's
// read buffer and are valid until the body is read.
type head struct {
	route route
	id    string
	// length is the Content-Length in bytes; 0 without one.
	length  int64
	chunked bool
	close   bool

	contentType, mode, errorType, extensionID string
	hasType, hasMode, hasErrorType, hasExtID  bool
	hasLength, hasHost, hasTrailer            bool
}

// parseHead parses a complete request head, which ends with an empty line. It returns false for
// everything that it does not plainly recognise; that is no judgement, net/http reads those.
// Whatever it accepts, net/http accepts too and reads in the same way (FuzzHead).
func parseHead(b []byte, h *head) bool {
	*h = head{}
	line, rest, ok := cutLine(b)
	if !ok {
		return false
	}
	method, ok := parseRequestLine(line, h)
	if !ok {
		return false
	}
	for n := 0; ; n++ {
		if line, rest, ok = cutLine(rest); !ok || n > maxHeaders {
			return false
		}
		if len(line) == 0 {
			break
		}
		if !parseHeader(line, h) {
			return false
		}
	}
	return len(rest) == 0 && h.consistent(method)
}

// consistent checks what only the whole head shows.
func (h *head) consistent(method string) bool {
	if !h.hasHost || h.hasTrailer && !h.chunked {
		return false
	}
	if h.chunked && h.hasLength {
		return false
	}
	return method != "GET" || !h.chunked && h.length == 0
}

// cutLine cuts at the first CRLF.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	return b[:i-1], b[i+1:], true
}

// parseRequestLine accepts "METHOD path HTTP/1.1" for the paths of this package.
func parseRequestLine(line []byte, h *head) (method string, ok bool) {
	line, ok = bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !ok {
		return "", false
	}
	i := bytes.IndexByte(line, ' ')
	if i < 0 || !knownMethod(line[:i]) {
		return "", false
	}
	path := line[i+1:]
	for _, c := range path {
		if !pathByte[c] {
			return "", false
		}
	}
	method = view(line[:i])
	h.route, h.id = resolve(method, view(path))
	return method, h.route != routeOther
}

func knownMethod(m []byte) bool {
	switch string(m) {
	case "GET", "POST", "PUT", "DELETE", "PATCH":
		return true
	}
	return false
}

// parseHeader reads one header line.
func parseHeader(line []byte, h *head) bool {
	name, value, ok := splitHeader(line)
	if !ok {
		return false
	}
	switch len(name) {
	case len("Host"):
		return !fold(name, "host") || h.host(value)
	case len("Expect"):
		return !fold(name, "expect")
	case len("Upgrade"): // and Trailer
		return !fold(name, "upgrade") && (!fold(name, "trailer") || h.trailer(value))
	case len("Connection"):
		return !fold(name, "connection") || h.connection(value)
	case len("Content-Type"):
		if fold(name, "content-type") {
			first(&h.contentType, &h.hasType, value)
		}
	case len("Content-Length"):
		return !fold(name, "content-length") || h.contentLength(value)
	case len("Transfer-Encoding"):
		return !fold(name, "transfer-encoding") || h.transferEncoding(value)
	case len("Lambda-Extension-Identifier"):
		if fold(name, "lambda-extension-identifier") {
			first(&h.extensionID, &h.hasExtID, value)
		}
	case len(headerErrorType):
		if fold(name, lowerErrorType) {
			first(&h.errorType, &h.hasErrorType, value)
		}
	case len(headerResponseMode):
		if fold(name, lowerResponseMode) {
			first(&h.mode, &h.hasMode, value)
		}
	}
	return true
}

// splitHeader splits "Name: value" and trims blanks around the value.
func splitHeader(line []byte) (name, value []byte, ok bool) {
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

// first keeps the first value of a header, as http.Header.Get does.
func first(dst *string, seen *bool, value []byte) {
	if !*seen {
		*dst, *seen = view(value), true
	}
}

func (h *head) host(v []byte) bool {
	for _, c := range v {
		if !hostByte[c] {
			return false
		}
	}
	ok := !h.hasHost && len(v) > 0
	h.hasHost = true
	return ok
}

func (h *head) connection(v []byte) bool {
	if fold(v, "close") {
		h.close = true
		return true
	}
	return fold(v, "keep-alive")
}

func (h *head) contentLength(v []byte) bool {
	if h.hasLength || len(v) == 0 || len(v) > 18 {
		return false
	}
	h.hasLength = true
	for _, c := range v {
		if c < '0' || c > '9' {
			return false
		}
		h.length = h.length*10 + int64(c-'0')
	}
	return true
}

func (h *head) transferEncoding(v []byte) bool {
	ok := !h.chunked && fold(v, "chunked")
	h.chunked = true
	return ok
}

// trailer accepts a declaration of the two error trailers and of nothing else.
func (h *head) trailer(v []byte) bool {
	h.hasTrailer = true
	for len(v) > 0 {
		var name []byte
		name, v, _ = bytes.Cut(v, []byte(","))
		name = bytes.Trim(name, " \t")
		if !fold(name, lowerErrorType) && !fold(name, lowerErrorBody) {
			return false
		}
	}
	return true
}

const (
	headerErrorType    = "Lambda-Runtime-Function-Error-Type"
	headerErrorBody    = "Lambda-Runtime-Function-Error-Body"
	headerResponseMode = "Lambda-Runtime-Function-Response-Mode"
	headerExtensionID  = "Lambda-Extension-Identifier"
	lowerErrorType     = "lambda-runtime-function-error-type"
	lowerErrorBody     = "lambda-runtime-function-error-body"
	lowerResponseMode  = "lambda-runtime-function-response-mode"
)

// fold reports whether b equals the lower-case ASCII string s, ignoring case.
func fold(b []byte, s string) bool {
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

// view is b as a string without a copy; it changes when b does.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// hexValue returns the value of a hexadecimal digit or -1.
func hexValue(c byte) int {
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
	// pathByte are the bytes of a path that no client escapes and no parser rewrites.
	pathByte = byteSet(alphanumeric + "/-_.~")
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
