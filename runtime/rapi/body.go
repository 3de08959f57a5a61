package rapi

import (
	"bytes"
	"errors"
	"io"
	"time"

	"lfx.dev/lfxd/internal/http1"
)

const (
	// maxChunkLine bounds a chunk-size line with its extensions, in bytes.
	maxChunkLine = 1 << 10
	// maxTrailer bounds all trailer lines together, in bytes; the error body travels in one of them.
	maxTrailer = 1<<20 + 64<<10
	// maxChunkExcess bounds what chunk framing may cost beyond 16 bytes per chunk and the data itself.
	maxChunkExcess = 16 << 10
)

// errMalformed says that the chunked framing of a body is broken.
var errMalformed = errors.New("malformed chunked body")

// body reads one request body from a connection's buffer and socket. The zero value is an empty body.
type body struct {
	c       *conn
	chunked bool
	// left is what remains of the body, or of the current chunk.
	left int64
	// begun says that the first chunk line was read; done that the end of the body was.
	begun, done bool
	excess      int64
	// failed is the error after which nothing more can be read.
	failed error
	// errorType and errorBody are the error trailers, present when hasErrorType.
	errorType, errorBody string
	hasErrorType         bool
}

// start prepares the body that the head announced.
func (b *body) start(c *conn, h *head) {
	*b = body{c: c, chunked: h.Chunked, left: h.Length, done: !h.Chunked && h.Length == 0}
}

// length returns the announced length in bytes, -1 when it is not known ahead.
func (b *body) length() int64 {
	if b.chunked {
		return -1
	}
	return b.left
}

// trailers returns the error trailers of a body that was read to its end.
func (b *body) trailers() (errorType, errorBody string) { return b.errorType, b.errorBody }

// expire makes the body end with an error after d. Any goroutine may call it.
func (b *body) expire(d time.Duration) { _ = b.c.nc.SetReadDeadline(time.Now().Add(d)) }

// Read reads body bytes; io.EOF at the end. Any other error means that the connection cannot be
// used any more: io.ErrUnexpectedEOF, errMalformed, or what the socket says.
func (b *body) Read(p []byte) (int, error) {
	switch {
	case b.failed != nil:
		return 0, b.failed
	case b.done:
		return 0, io.EOF
	}
	n, err := b.read(p)
	if err != nil && err != io.EOF {
		b.failed = err
	}
	return n, err
}

func (b *body) read(p []byte) (int, error) {
	if b.chunked && b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
	}
	n, err := b.c.readSome(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && b.left == 0 && !b.chunked {
		b.done = true
	}
	return n, err
}

// nextChunk reads the framing up to the data of the next chunk; io.EOF after the last one.
func (b *body) nextChunk() error {
	if b.begun {
		if line, err := b.c.readLine(2); err != nil || len(line) != 0 {
			return malformed(err)
		}
	}
	b.begun = true
	line, err := b.c.readLine(maxChunkLine)
	if err != nil {
		return malformed(err)
	}
	size, ok := chunkSize(line)
	if !ok {
		return errMalformed
	}
	if b.excess = max(b.excess+int64(len(line))+2-16-2*size, 0); b.excess > maxChunkExcess {
		return errMalformed
	}
	b.left = size
	if size > 0 {
		return nil
	}
	if err := b.readTrailers(); err != nil {
		return err
	}
	b.done = true
	return io.EOF
}

// malformed is err, or errMalformed when only the text was wrong.
func malformed(err error) error {
	switch {
	case err == nil:
		return errMalformed
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// chunkSize parses "hex[;extension]".
func chunkSize(line []byte) (size int64, ok bool) {
	line, _, _ = bytes.Cut(line, []byte(";"))
	line = bytes.TrimRight(line, " \t")
	if len(line) == 0 || len(line) > 15 {
		return 0, false
	}
	for _, c := range line {
		v := http1.HexValue(c)
		if v < 0 {
			return 0, false
		}
		size = size<<4 | int64(v)
	}
	return size, true
}

// readTrailers reads the lines after the last chunk and keeps the two error trailers.
func (b *body) readTrailers() error {
	hasBody := false
	for left := maxTrailer; ; {
		line, err := b.c.readLine(left)
		if err != nil {
			return malformed(err)
		}
		if len(line) == 0 {
			return nil
		}
		left -= len(line) + 2
		name, value, ok := http1.SplitField(line)
		switch {
		case !ok:
			return errMalformed
		case http1.Fold(name, lowerErrorType) && !b.hasErrorType:
			b.errorType, b.hasErrorType = string(value), true
		case http1.Fold(name, lowerErrorBody) && !hasBody:
			b.errorBody, hasBody = string(value), true
		}
	}
}
