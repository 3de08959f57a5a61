package manifest

import (
	"errors"
	"strings"
)

// splitWords splits a command line as a POSIX shell does before any expansion: blanks separate
// words, '…' is literal, in "…" a backslash escapes a double quote, a backslash or a dollar,
// elsewhere it escapes anything. There is no shell: no variables, pipes or globs.
func splitWords(s string) ([]string, error) {
	var (
		words []string
		word  strings.Builder
		open  bool // word has begun, if only by an empty pair of quotes
	)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case ' ', '\t', '\n', '\r':
			if open {
				words = append(words, word.String())
				word.Reset()
				open = false
			}
			continue
		case '\'', '"':
			end, err := quoted(s, i, &word)
			if err != nil {
				return nil, err
			}
			i = end
		case '\\':
			if i++; i == len(s) {
				return nil, errors.New("ends with a backslash that escapes nothing")
			}
			word.WriteByte(s[i])
		default:
			word.WriteByte(c)
		}
		open = true
	}
	if open {
		words = append(words, word.String())
	}
	return words, nil
}

// quoted appends the quoted text that starts at i to word and returns the index of the closing quote.
func quoted(s string, i int, word *strings.Builder) (int, error) {
	quote := s[i]
	for i++; i < len(s); i++ {
		switch c := s[i]; {
		case c == quote:
			return i, nil
		case c == '\\' && quote == '"' && i+1 < len(s) && strings.IndexByte(`"\$`, s[i+1]) >= 0:
			i++
			word.WriteByte(s[i])
		default:
			word.WriteByte(c)
		}
	}
	return 0, errors.New("has a quote that is never closed")
}
