package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// maxErrors bounds what one reading reports.
const maxErrors = 100

// Error is one thing that is wrong with a manifest, an env file or a folder.
type Error struct {
	// File is relative to the project folder and slash-separated.
	File string
	// Line and Column count from 1; zero when the trouble is not in a line (a folder).
	Line, Column int
	// Path is the dotted path of the key, for example "functions.hello.memory"; empty for the file.
	Path string
	// Msg is one clause with the remedy.
	Msg string
}

// Error returns "lfx.yaml:12: functions.hello.memory: …".
func (e Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// Errors are all things that are wrong, by file and line. As an error it is an errdefs.ErrInvalidArgument.
type Errors []Error

// Error returns one line for each.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap classes the errors.
func (e Errors) Unwrap() error { return errdefs.ErrInvalidArgument }

// Lines returns one line for each, for an api.Error's details.
func (e Errors) Lines() []string {
	return strings.Split(e.Error(), "\n")
}

// sorted returns the errors by position, the manifest's own before those of other files.
func (e Errors) sorted(manifest string) Errors {
	slices.SortStableFunc(e, func(a, b Error) int {
		if (a.File == manifest) != (b.File == manifest) {
			if a.File == manifest {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return e
}

// quote quotes s for a person and cuts it short.
func quote(s string) string {
	const most = 60
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}
