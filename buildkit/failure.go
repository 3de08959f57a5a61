package buildkit

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	bkerrdefs "github.com/moby/buildkit/solver/errdefs"
)

// BuildError is a build that failed because of what it was asked to build. Its class is failed
// precondition.
type BuildError struct {
	// Function is the request's ID.
	Function string
	// File and Line say which instruction of which Dockerfile; Line is zero when that is unknown.
	File string
	Line int
	// Step is the instruction, as in "RUN pip install -r requirements.txt".
	Step string
	// Reason is what went wrong, in one sentence.
	Reason string
	// Output are the last lines that the step printed.
	Output []string

	cause error
}

// Error returns one sentence and the lines that matter below it.
func (e *BuildError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "build of %s failed", e.Function)
	switch {
	case e.Line > 0:
		fmt.Fprintf(&b, " at %s:%d", e.File, e.Line)
	case e.File != "":
		fmt.Fprintf(&b, " in %s", e.File)
	}
	if e.Step != "" {
		fmt.Fprintf(&b, " (%s)", e.Step)
	}
	fmt.Fprintf(&b, ": %s", e.Reason)
	for _, l := range e.Output {
		fmt.Fprintf(&b, "\n    %s", l)
	}
	return b.String()
}

// Unwrap returns the class and BuildKit's own error.
func (e *BuildError) Unwrap() []error { return []error{errdefs.ErrFailedPrecondition, e.cause} }

// sentences are BuildKit's errors that can be said better; the first one that matches counts.
var sentences = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`did not complete successfully: exit code: (\d+)`), "the command ended with exit code $1"},
	{regexp.MustCompile(`failed to calculate checksum of ref \S+ (".*"): not found`), "$1 is not in the folder, or .dockerignore leaves it out"},
	{regexp.MustCompile(`source (".*") denied by policy`), "ADD $1 is not allowed: fetch it in a RUN step, or put the file into the folder and COPY it"},
}

var (
	stepPrefix = regexp.MustCompile(`^\[[^\]]*\] `)
	noise      = regexp.MustCompile(`^(failed to solve: |failed to run Build function: |dockerfile parse error on line \d+: |rpc error: code = \S+ desc = |process ".*" )+`)
)

// newBuildError distils BuildKit's error: where, which command, and what it printed.
func (b *build) newBuildError(err error) *BuildError {
	e := &BuildError{Function: b.req.ID, File: b.req.dockerfile(), cause: err}
	if u := b.unresolved; u != nil { // what comes back from BuildKit has lost our own words
		e.Line, e.Reason = b.df.lines[u.name], u.err.Error()
		return e
	}
	step, reason, output := b.rec.failure()
	e.Step, e.Output = stepPrefix.ReplaceAllString(step, ""), output
	if reason == "" {
		reason = err.Error()
	}
	e.Reason = plainReason(reason)
	for _, src := range bkerrdefs.Sources(err) {
		if src.Info == nil || len(src.Ranges) == 0 || src.Ranges[0].Start == nil {
			continue
		}
		e.File, e.Line = src.Info.Filename, int(src.Ranges[0].Start.Line)
	}
	return e
}

func plainReason(s string) string {
	for _, known := range sentences {
		if m := known.pattern.FindStringSubmatchIndex(s); m != nil {
			return string(known.pattern.ExpandString(nil, known.text, s, m))
		}
	}
	return noise.ReplaceAllString(s, "")
}
