package manifest

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int{
		"512": 512, "256MiB": 256, "256 MB": 256, "256m": 256, "256Mi": 256, "1GiB": 1024, "1.5g": 1536, "0.5GB": 512, "512.0": 512, "0": 0,
	} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "-1", "+1", "12 potatoes", "1.5MiB", "0.1GiB", "1e3", "0x10", ".5GiB", "5.", "1_000", "MiB", "1KiB", "1TiB", "1.2.3", "99999999999999999999", "999999999GiB", "inf", "NaN"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q: got %d", s, got)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"30": 30 * time.Second, "30s": 30 * time.Second, "1m30s": 90 * time.Second, "1.5s": 1500 * time.Millisecond, "0.1": 100 * time.Millisecond, "1500ms": 1500 * time.Millisecond,
	} {
		if got, err := parseDuration(s); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "-30s", "+30s", "30 s", "1:30", "soon", "1e3", "99999999999999999999", "9999999999h"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("%q: got %v", s, got)
		}
	}
}

func TestParseCores(t *testing.T) {
	for s, want := range map[string]float64{"0.5": 0.5, "2": 2, "500m": 0.5, "1500m": 1.5} {
		if got, err := parseCores(s); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "0m", "-1", "1 core", "500M", "inf", "1e1"} {
		if got, err := parseCores(s); err == nil {
			t.Errorf("%q: got %v", s, got)
		}
	}
}

func TestSplitWords(t *testing.T) {
	for s, want := range map[string][]string{
		"":                     nil,
		" a  b\tc\n":           {"a", "b", "c"},
		`a 'b c' "d e"`:        {"a", "b c", "d e"},
		`a''b "" ''`:           {"ab", "", ""},
		`"a\"b\\c\$d\n" 'a\b'`: {`a"b\c$d\n`, `a\b`},
		`a\ b \'`:              {"a b", "'"},
		"app.handler":          {"app.handler"},
		`--x="a b"'c d'e`:      {"--x=a bc de"},
	} {
		got, err := splitWords(s)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v (-want +got):\n%s", s, err, diff)
		}
	}
	for _, s := range []string{"'", `"a`, `a\`, `"a\`} {
		if got, err := splitWords(s); err == nil {
			t.Errorf("%q: got %q", s, got)
		}
	}
}

func TestInterpolate(t *testing.T) {
	lookup := vars(map[string]string{"A": "1", "EMPTY": "", "DOLLAR": "${A}"})
	for s, want := range map[string]string{
		"plain": "plain", "${A}": "1", "x${A}y${A}z": "x1y1z", "$$": "$", "$${A}": "${A}", "$$$${A}": "$${A}", "^a$": "^a$", "$1": "$1", "a$ b": "a$ b", "$": "$",
		"${EMPTY}": "", "${EMPTY:-d}": "d", "${NOPE:-d}": "d", "${NOPE:-}": "", "${NOPE:-${A}}": "1", "${NOPE:-${NOPE:-x}y}": "xy", "${A:-${NOPE}}": "1",
		"${A:?must}": "1", "${DOLLAR}": "${A}", "${NOPE:-$$}": "$", "${NOPE:-a:b-c?d}": "a:b-c?d",
	} {
		if got, problems := interpolate(s, lookup); got != want || problems != nil {
			t.Errorf("%q: got %q, %q, want %q", s, got, problems, want)
		}
	}
	for s, want := range map[string]string{
		"${NOPE}":                 "${NOPE} is not set: set it, or give it a default with ${NOPE:-default}",
		"${NOPE:?run make first}": "${NOPE} is not set: run make first",
		"${EMPTY:?}":              "${EMPTY} is not set: it must be set",
		"$A":                      "$A needs braces: write ${A}, or $$A for the text itself",
		"${A":                     `"${A" has no closing brace: write ${NAME}, or $$ for a dollar`,
		"${}":                     `"${}" is not a variable: write ${NAME}, ${NAME:-default} or ${NAME:?message}`,
		"${A-b}":                  `"${A-b}" is not a variable: write ${NAME}, ${NAME:-default} or ${NAME:?message}`,
		"${1}":                    `"${1}" is not a variable: write ${NAME}, ${NAME:-default} or ${NAME:?message}`,
		strings.Repeat("${N:-", 20) + strings.Repeat("}", 20): "${N} is nested too deeply",
	} {
		_, problems := interpolate(s, lookup)
		if diff := cmp.Diff([]string{want}, problems); diff != "" {
			t.Errorf("%q (-want +got):\n%s", s, diff)
		}
	}
	if _, problems := interpolate("${X} $Y ${A} ${Z:?z}", lookup); len(problems) != 3 {
		t.Errorf("got %q, want three problems", problems)
	}
}

func TestParseEnvFile(t *testing.T) {
	got, errs := parseEnvFile("\ufeff# comment\r\n" + `
A=plain value # comment
export B = 'literal $x \n # y' # comment
C="esc \n\t\"\\\$ \x"
D='two
  lines  
end'
E=#no comment
F= # comment
INHERIT
export G="x"
H=a=b
exported=1
I='a'"b`)
	want := []envEntry{
		{name: "A", value: "plain value", line: 3},
		{name: "B", value: `literal $x \n # y`, line: 4},
		{name: "C", value: "esc \n\t\"\\$ \\x", line: 5},
		{name: "D", value: "two\n  lines  \nend", line: 6},
		{name: "E", value: "#no comment", line: 9},
		{name: "F", line: 10},
		{name: "INHERIT", line: 11, inherit: true},
		{name: "G", value: "x", line: 12},
		{name: "H", value: "a=b", line: 13},
		{name: "exported", value: "1", line: 14},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(envEntry{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Error{{Line: 15, Msg: "I: there is text after the closing quote"}}, errs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	_, errs = parseEnvFile("A B=secret\n=secret\n1A=secret\nX='a\n'secret\nY=\"secret\n")
	want2 := []Error{
		{Line: 1, Msg: "this line is not NAME=value: a name has letters, digits and underscores, no digit first"},
		{Line: 2, Msg: "this line is not NAME=value: a name has letters, digits and underscores, no digit first"},
		{Line: 3, Msg: "this line is not NAME=value: a name has letters, digits and underscores, no digit first"},
		{Line: 5, Msg: "X: there is text after the closing quote"},
		{Line: 6, Msg: "Y: the quote is never closed"},
	}
	if diff := cmp.Diff(want2, errs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSuggest(t *testing.T) {
	for key, want := range map[string]string{
		"Memory": "did you mean memory?", "memroy": "did you mean memory?", "env": "did you mean environment?", "env-file": "did you mean env_file?", "time_out": "did you mean timeout?",
		"ports": "did you mean port?", "working_dir": "did you mean workdir?", "zzz": "the keys here are " + strings.Join(keys(functionFields), ", "),
	} {
		if got := suggest(key, keys(functionFields)); got != want {
			t.Errorf("%q: got %q, want %q", key, got, want)
		}
	}
}
