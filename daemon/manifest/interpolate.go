package manifest

import (
	"fmt"
	"strings"
)

const (
	// maxText bounds a text after its variables were replaced, in bytes.
	maxText = 1 << 20
	// maxNested bounds ${A:-${B:-…}}.
	maxNested = 16
)

// Lookup finds a variable of the environment lfxctl runs in.
type Lookup func(name string) (value string, set bool)

// interpolate replaces ${VAR}, ${VAR:-default} and ${VAR:?message} in s, and $$ by one dollar. Any
// other dollar stays, except before a name, where braces were surely meant. What a variable holds is
// never looked at again. All problems are returned.
func interpolate(s string, lookup Lookup) (string, []string) {
	if !strings.Contains(s, "$") {
		return s, nil
	}
	in := interpolation{lookup: lookup}
	in.replace(s, 0)
	if in.out.Len() > maxText {
		in.problem("is longer than 1 MiB after its variables were replaced")
	}
	return in.out.String(), in.problems
}

type interpolation struct {
	lookup   Lookup
	out      strings.Builder
	problems []string
}

func (in *interpolation) problem(format string, args ...any) {
	if len(in.problems) < maxErrors {
		in.problems = append(in.problems, fmt.Sprintf(format, args...))
	}
}

func (in *interpolation) write(s string) {
	if in.out.Len() <= maxText {
		in.out.WriteString(s)
	}
}

func (in *interpolation) replace(s string, depth int) {
	for s != "" {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			in.write(s)
			return
		}
		in.write(s[:i])
		s = in.dollar(s[i:], depth)
	}
}

// dollar handles s, which starts with a dollar, and returns what follows it.
func (in *interpolation) dollar(s string, depth int) (rest string) {
	switch {
	case strings.HasPrefix(s, "$$"):
		in.write("$")
		return s[2:]
	case strings.HasPrefix(s, "${"):
		end := closingBrace(s)
		if end < 0 {
			in.problem("%s has no closing brace: write ${NAME}, or $$ for a dollar", quote(s))
			return ""
		}
		in.variable(s[2:end], depth)
		return s[end+1:]
	}
	if name := leadingName(s[1:]); name != "" {
		in.problem("$%s needs braces: write ${%s}, or $$%s for the text itself", name, name, name)
		return s[1+len(name):]
	}
	in.write("$")
	return s[1:]
}

// variable handles what stands between the braces.
func (in *interpolation) variable(expr string, depth int) {
	name := leadingName(expr)
	op := expr[len(name):]
	if name == "" || op != "" && !strings.HasPrefix(op, ":-") && !strings.HasPrefix(op, ":?") {
		in.problem("%s is not a variable: write ${NAME}, ${NAME:-default} or ${NAME:?message}", quote("${"+expr+"}"))
		return
	}
	value, set := in.lookup(name)
	switch {
	case op == "" && !set:
		in.problem("${%s} is not set: set it, or give it a default with ${%s:-default}", name, name)
	case op == "" || value != "":
		in.write(value)
	case op[1] == '?':
		message := op[2:]
		if message == "" {
			message = "it must be set"
		}
		in.problem("${%s} is not set: %s", name, message)
	case depth == maxNested:
		in.problem("${%s} is nested too deeply", name)
	default:
		in.replace(op[2:], depth+1)
	}
}

// closingBrace returns the index of the brace that closes the ${ at the start of s, or -1. Braces
// of nested variables are skipped.
func closingBrace(s string) int {
	open := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '$' && i+1 < len(s) && s[i+1] == '$':
			i++
		case s[i] == '$' && i+1 < len(s) && s[i+1] == '{':
			open++
			i++
		case s[i] == '}':
			if open--; open == 0 {
				return i
			}
		}
	}
	return -1
}

// leadingName returns the [A-Za-z_][A-Za-z0-9_]* at the start of s.
func leadingName(s string) string {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return s[:i]
		}
	}
	return s
}
