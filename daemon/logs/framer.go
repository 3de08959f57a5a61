package logs

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// framer cuts a byte stream into lines; see the package's documentation. Not safe for concurrent use.
type framer struct {
	// limit is the longest line in bytes; at least utf8.UTFMax.
	limit int
	// emit gets each line, valid only during the call. more says that the line goes on in the next one.
	emit func(line []byte, more bool)
	// part is the beginning of a line whose end has not come; never longer than limit.
	part []byte
}

// write takes the next bytes of the stream. It modifies p.
func (f *framer) write(p []byte) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			f.keep(p)
			return
		}
		if len(f.part) == 0 && end <= f.limit {
			f.line(p[:end])
		} else {
			f.keep(p[:end])
			f.line(f.part)
			f.part = f.part[:0]
		}
		p = p[end+1:]
	}
	f.trim()
}

// keep adds to the unfinished line and emits pieces while it is over the limit.
func (f *framer) keep(p []byte) {
	for len(f.part)+len(p) > f.limit {
		n := max(f.limit-len(f.part), 0)
		f.part = append(f.part, p[:n]...)
		p = p[n:]
		cut := boundary(f.part)
		f.emit(unreturn(f.part[:cut]), true)
		f.part = append(f.part[:0], f.part[cut:]...)
	}
	f.part = append(f.part, p...)
}

// boundary returns the length of p without a character that p cuts in two.
func boundary(p []byte) int {
	for i := len(p) - 1; i >= 0 && i >= len(p)-utf8.UTFMax; i-- {
		if utf8.RuneStart(p[i]) {
			if i > 0 && !utf8.FullRune(p[i:]) {
				return i
			}
			break
		}
	}
	return len(p)
}

func (f *framer) line(p []byte) {
	f.emit(unreturn(bytes.TrimSuffix(p, []byte{'\r'})), false)
}

// flush emits what has no line end yet.
func (f *framer) flush() {
	if len(f.part) > 0 {
		f.line(f.part)
		f.part = nil
	}
}

// trim gives back memory: most streams rest between two lines.
func (f *framer) trim() {
	if len(f.part) == 0 {
		f.part = nil
	}
}

// unreturn turns lone carriage returns into line feeds, in place.
func unreturn(p []byte) []byte {
	for i := bytes.IndexByte(p, '\r'); i >= 0; {
		p[i] = '\n'
		next := bytes.IndexByte(p[i:], '\r')
		if next < 0 {
			break
		}
		i += next
	}
	return p
}

// continued marks a piece of a line that was over the limit.
const continued = " […]"

// Message makes the text of an entry from a line: valid UTF-8, with a mark when the line goes on in
// the next entry.
func Message(line []byte, more bool) string {
	s := string(line)
	if !utf8.ValidString(s) {
		s = string(bytes.Runes(line)) // one U+FFFD for each bad byte
	}
	if more {
		s += continued
	}
	return s
}

// fields joins with tabs, as the platform's lines do.
func fields(s ...string) string { return strings.Join(s, "\t") }
