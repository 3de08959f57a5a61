package rapi

import (
	"bytes"

	"lfx.dev/lfxd/internal/http1"
)

// maxHead is the largest request head in bytes that the codec reads; above it net/http goes on.
const maxHead = 64 << 10

// head is a request head as the codec understands it. Slices and strings alias the connection's
// read buffer and are valid until the body is read.
type head struct {
	http1.Head
	route route
	id    string

	contentType, mode, errorType, extensionID string
	hasType, hasMode, hasErrorType, hasExtID  bool
	hasTrailer                                bool
}

// parseHead parses a complete request head, which ends with an empty line. It returns false for
// everything that it does not plainly recognise; that is no judgement, net/http reads those.
// Whatever it accepts, net/http accepts too and reads in the same way (FuzzHead).
func parseHead(b []byte, h *head) bool {
	*h = head{}
	if !http1.Parse(b, &h.Head, h) || !knownMethod(h.Method) || !http1.Path(h.Target) {
		return false
	}
	h.route, h.id = resolve(h.Method, h.Target)
	return h.route != routeOther && (!h.hasTrailer || h.Chunked) && (h.Method != "GET" || !h.Chunked && h.Length == 0)
}

func knownMethod(m string) bool {
	switch m {
	case "GET", "POST", "PUT", "DELETE", "PATCH":
		return true
	}
	return false
}

// Field implements http1.Fields.
func (h *head) Field(name, value []byte) bool {
	switch len(name) {
	case len("Trailer"):
		return !http1.Fold(name, "trailer") || h.trailer(value)
	case len("Content-Type"):
		if http1.Fold(name, "content-type") {
			first(&h.contentType, &h.hasType, value)
		}
	case len("Lambda-Extension-Identifier"):
		if http1.Fold(name, "lambda-extension-identifier") {
			first(&h.extensionID, &h.hasExtID, value)
		}
	case len(headerErrorType):
		if http1.Fold(name, lowerErrorType) {
			first(&h.errorType, &h.hasErrorType, value)
		}
	case len(headerResponseMode):
		if http1.Fold(name, lowerResponseMode) {
			first(&h.mode, &h.hasMode, value)
		}
	}
	return true
}

// first keeps the first value of a header, as http.Header.Get does.
func first(dst *string, seen *bool, value []byte) {
	if !*seen {
		*dst, *seen = http1.View(value), true
	}
}

// trailer accepts a declaration of the two error trailers and of nothing else.
func (h *head) trailer(v []byte) bool {
	h.hasTrailer = true
	for len(v) > 0 {
		var name []byte
		name, v, _ = bytes.Cut(v, []byte(","))
		name = bytes.Trim(name, " \t")
		if !http1.Fold(name, lowerErrorType) && !http1.Fold(name, lowerErrorBody) {
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
