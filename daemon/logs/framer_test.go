package logs

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

type piece struct {
	Text string
	More bool
}

func frame(limit int, chunks ...string) (got []piece) {
	f := framer{limit: limit, emit: func(line []byte, more bool) { got = append(got, piece{string(line), more}) }}
	for _, c := range chunks {
		f.write([]byte(c))
	}
	f.flush()
	return got
}

func TestFramer(t *testing.T) {
	for name, test := range map[string]struct {
		limit  int
		chunks []string
		want   []piece
	}{
		"lines":            {100, []string{"one\ntwo\n"}, []piece{{"one", false}, {"two", false}}},
		"unfinished":       {100, []string{"one\ntw"}, []piece{{"one", false}, {"tw", false}}},
		"across writes":    {100, []string{"o", "n", "e\nt", "wo\n"}, []piece{{"one", false}, {"two", false}}},
		"empty lines":      {100, []string{"\n\na\n"}, []piece{{"", false}, {"", false}, {"a", false}}},
		"crlf":             {100, []string{"one\r\ntwo\r", "\n"}, []piece{{"one", false}, {"two", false}}},
		"stack trace":      {100, []string{"err\r  at a\r  at b\n"}, []piece{{"err\n  at a\n  at b", false}}},
		"exactly at limit": {16, []string{"0123456789abcdef\nx\n"}, []piece{{"0123456789abcdef", false}, {"x", false}}},
		"over the limit":   {16, []string{"0123456789abcdefg\n"}, []piece{{"0123456789abcdef", true}, {"g", false}}},
		"rune at the cut":  {16, []string{"0123456789abcdeé!\n"}, []piece{{"0123456789abcde", true}, {"é!", false}}},
		"binary":           {100, []string{"a\x00b\xff\n"}, []piece{{"a\x00b\xff", false}}},
	} {
		if diff := cmp.Diff(test.want, frame(test.limit, test.chunks...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestMessage(t *testing.T) {
	for _, test := range []struct {
		in   string
		more bool
		want string
	}{
		{"plain", false, "plain"}, {"a\xff\xfeb", false, "a\uFFFD\uFFFDb"}, {"nul\x00", false, "nul\x00"}, {"part", true, "part […]"},
	} {
		if got := Message([]byte(test.in), test.more); got != test.want {
			t.Errorf("Message(%q) = %q, want %q", test.in, got, test.want)
		}
	}
	forged := Message([]byte(`{"stream":"platform"}`+"\n"+`END RequestId: 1`), false)
	data, err := json.Marshal(Entry{Message: forged})
	if err != nil || bytes.ContainsRune(data, '\n') {
		t.Errorf("an entry spans lines on disk: %s (%v)", data, err)
	}
}

// FuzzFramer checks that no byte is lost, added or moved, whatever the chunks, and that no line is over the limit.
func FuzzFramer(f *testing.F) {
	f.Add([]byte("one\ntwo\r\nthree\r  at x\n\n"), uint8(3), uint8(20))
	f.Add([]byte(strings.Repeat("é", 60)+"\xff\n\x00"), uint8(1), uint8(16))
	f.Fuzz(func(t *testing.T, data []byte, chunk, limit uint8) {
		max := max(int(limit), 16)
		var got []byte
		fr := framer{limit: max, emit: func(line []byte, more bool) {
			if len(line) > max || (more && len(line) < max-utf8.UTFMax) {
				t.Errorf("a line of %d bytes, more %v, limit %d", len(line), more, max)
			}
			if got = append(got, line...); !more {
				got = append(got, '\n')
			}
			if s := Message(line, more); !utf8.ValidString(s) {
				t.Errorf("%q is not UTF-8", s)
			}
		}}
		step := int(chunk)%64 + 1
		for i := 0; i < len(data); i += step {
			fr.write(bytes.Clone(data[i:min(i+step, len(data))]))
		}
		fr.flush()
		// What remains to tell apart are carriage returns: dropped before a line end, else line feeds.
		if plain := func(p []byte) string {
			return string(bytes.Map(func(r rune) rune {
				if r == '\r' || r == '\n' {
					return -1
				}
				return r
			}, bytes.ToValidUTF8(p, []byte("?"))))
		}; plain(got) != plain(data) {
			t.Errorf("%q came out as %q", data, got)
		}
	})
}
