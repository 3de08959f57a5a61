package manifest

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// envEntry is one variable of an env file.
type envEntry struct {
	name, value string
	line        int
	// inherit is set for a name without "=": the value comes from lfxctl's environment.
	inherit bool
}

// parseEnvFile reads an env file:
//
//	# comment
//	NAME=value            # a comment needs a blank before it
//	export NAME='literal, may span lines'
//	NAME="with \n \r \t \" \\ \$ escapes, may span lines"
//	NAME                  taken from lfxctl's environment
//
// Nothing is interpolated, for secrets hold dollars. A later line wins. Messages never quote values.
func parseEnvFile(data string) ([]envEntry, []Error) {
	p := envParser{rest: strings.TrimPrefix(data, "\ufeff"), line: 1}
	if !utf8.ValidString(data) || strings.IndexByte(data, 0) >= 0 {
		return nil, []Error{{Line: 1, Msg: "is not text: it must be UTF-8 without NUL"}}
	}
	for p.rest != "" && len(p.errs) < maxErrors {
		p.entry()
	}
	return p.entries, p.errs
}

type envParser struct {
	rest    string
	line    int // of the start of rest
	entries []envEntry
	errs    []Error
}

func (p *envParser) wrong(line int, format string, args ...any) {
	p.errs = append(p.errs, Error{Line: line, Msg: fmt.Sprintf(format, args...)})
}

// takeLine takes the next line without its end.
func (p *envParser) takeLine() string {
	line, rest, _ := strings.Cut(p.rest, "\n")
	p.rest = rest
	p.line++
	return strings.TrimSuffix(line, "\r")
}

// entry reads one entry, which may span lines, or a line that holds none.
func (p *envParser) entry() {
	start := p.line
	text := strings.TrimLeft(p.takeLine(), " \t")
	if text == "" || text[0] == '#' {
		return
	}
	if after, ok := strings.CutPrefix(text, "export"); ok && strings.TrimLeft(after, " \t") != after {
		text = strings.TrimLeft(after, " \t")
	}
	name, value, assigned := strings.Cut(text, "=")
	if !assigned {
		name = cutComment(name)
	}
	name = strings.TrimRight(name, " \t")
	if name == "" || leadingName(name) != name {
		p.wrong(start, "this line is not NAME=value: a name has letters, digits and underscores, no digit first")
		return
	}
	if trimmed := strings.TrimLeft(value, " \t"); trimmed != "" && (trimmed[0] == '\'' || trimmed[0] == '"') {
		var ok bool
		if value, ok = p.quotedValue(start, name, trimmed); !ok {
			return
		}
	} else {
		value = cutComment(value)
	}
	p.entries = append(p.entries, envEntry{name: name, value: value, line: start, inherit: !assigned})
}

// quotedValue reads a value whose quote opens text; further lines are taken as needed.
func (p *envParser) quotedValue(start int, name, text string) (string, bool) {
	quote := text[0]
	var b strings.Builder
	for text = text[1:]; ; {
		for i := 0; i < len(text); i++ {
			switch c := text[i]; {
			case c == quote:
				if cutComment(text[i+1:]) != "" {
					p.wrong(p.line-1, "%s: there is text after the closing quote", name)
					return "", false
				}
				return b.String(), true
			case c == '\\' && quote == '"' && i+1 < len(text):
				i++
				b.WriteString(unescape(text[i]))
			default:
				b.WriteByte(c)
			}
		}
		if p.rest == "" {
			p.wrong(start, "%s: the quote is never closed", name)
			return "", false
		}
		b.WriteByte('\n')
		text = p.takeLine()
	}
}

// unescape returns what backslash and c mean between double quotes.
func unescape(c byte) string {
	switch c {
	case 'n':
		return "\n"
	case 'r':
		return "\r"
	case 't':
		return "\t"
	case '"', '\\', '$':
		return string(rune(c))
	}
	return `\` + string([]byte{c})
}

// cutComment cuts a comment, which is a # after a blank, and the blanks around what is left.
func cutComment(s string) string {
	for i := 1; i < len(s); i++ {
		if s[i] == '#' && (s[i-1] == ' ' || s[i-1] == '\t') {
			s = s[:i]
			break
		}
	}
	return strings.TrimSpace(s)
}
