package server

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/internal/http1"
)

// head is the head of an Invoke request as the codec understands it. Its strings alias the connection's
// buffer.
type head struct {
	http1.Head
	path, query string

	origin, invocationType, logType, tenantID, traceID, clientContext headerValue
}

// headerValue is the first value of a header, as http.Header.Get has it.
type headerValue struct {
	text string
	seen bool
}

func (v *headerValue) first(value []byte) {
	if !v.seen {
		v.text, v.seen = http1.View(value), true
	}
}

// parseHead parses a complete head. It returns false for everything that is not plainly an Invoke request,
// POST with a Content-Length or without a body; net/http reads those. Whatever it accepts, net/http
// accepts too and reads in the same way (FuzzCodec).
func parseHead(b []byte, h *head) bool {
	*h = head{}
	if !http1.Parse(b, &h.Head, h) || h.Method != http.MethodPost || h.Chunked {
		return false
	}
	h.path, h.query, _ = strings.Cut(h.Target, "?")
	name, ok := gateway.NameInPath(h.path)
	return ok && http1.Escaped(name) && http1.Escaped(h.query)
}

// Field implements http1.Fields.
func (h *head) Field(name, value []byte) bool {
	switch len(name) {
	case len("Origin"):
		if http1.Fold(name, "origin") {
			h.origin.first(value)
		}
	case len("Trailer"):
		return !http1.Fold(name, "trailer")
	case len("X-Amz-Log-Type"):
		if http1.Fold(name, "x-amz-log-type") {
			h.logType.first(value)
		}
	case len("X-Amz-Tenant-Id"): // and X-Amzn-Trace-Id
		switch {
		case http1.Fold(name, "x-amz-tenant-id"):
			h.tenantID.first(value)
		case http1.Fold(name, "x-amzn-trace-id"):
			h.traceID.first(value)
		}
	case len("X-Amz-Client-Context"):
		if http1.Fold(name, "x-amz-client-context") {
			h.clientContext.first(value)
		}
	case len("X-Amz-Invocation-Type"):
		if http1.Fold(name, "x-amz-invocation-type") {
			h.invocationType.first(value)
		}
	}
	return true
}

// appendAnswer appends the head of an answer as net/http would write it.
func appendAnswer(b []byte, a *gateway.Answer, now time.Time, end bool) []byte {
	if a.Status == http.StatusOK {
		b = append(b, "HTTP/1.1 200 OK\r\n"...)
	} else {
		b = append(b, "HTTP/1.1 "...)
		b = strconv.AppendInt(b, int64(a.Status), 10)
		b = append(append(append(b, ' '), http.StatusText(a.Status)...), "\r\n"...)
	}
	for _, f := range a.Fields() {
		b = append(append(append(append(b, f.Name...), ": "...), f.Value...), "\r\n"...)
	}
	b = append(append(append(b, "Date: "...), date(now)...), "\r\n"...)
	if a.HasBody() {
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, int64(len(a.Body)), 10), "\r\n"...)
	}
	if end {
		b = append(b, "Connection: close\r\n"...)
	}
	return append(b, "\r\n"...)
}

// dateText is the Date header of one second.
type dateText struct {
	second int64
	text   string
}

var lastDate atomic.Pointer[dateText]

// date words a time as the Date header does; made once a second.
func date(now time.Time) string {
	d := lastDate.Load()
	if s := now.Unix(); d == nil || d.second != s {
		d = &dateText{s, now.UTC().Format(http.TimeFormat)}
		lastDate.Store(d)
	}
	return d.text
}
