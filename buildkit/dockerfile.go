package buildkit

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/go-csvvalue"
)

// CheckOptions is what a check depends on beside the file.
type CheckOptions struct {
	// Name is the file's name in messages; "Dockerfile" when empty.
	Name string
	// Target is the stage to build; the last one when empty.
	Target string
	// Args are the build arguments.
	Args map[string]string
	// Platform is what the image is for; the host's own when nil.
	Platform *ocispec.Platform
	// AllowRemote admits ADD from URLs and git repositories. They are fetched by buildkitd itself
	// and not by a build step, so no rule of the build network applies to them.
	AllowRemote bool
}

// Dockerfile is what a check learned.
type Dockerfile struct {
	// Syntax is the reference of the "# syntax=" line, empty when there is none.
	Syntax string
	// Base is the image that the built one stands on, as written and with arguments filled in;
	// empty when that is scratch.
	Base string
	// Bases are all images that the build needs, Base included, in order of appearance.
	Bases []string

	stages map[string]bool // names of stages, in lower case
	lines  map[string]int  // where each base is first named
}

// DockerfileError is one thing that is wrong with a Dockerfile. Its class is invalid argument.
type DockerfileError struct {
	File string
	// Line counts from 1; zero when the whole file is meant.
	Line    int
	Message string
}

// Error returns "file:line: message".
func (e *DockerfileError) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Message
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Message)
}

// Unwrap gives the error its class.
func (e *DockerfileError) Unwrap() error { return errdefs.ErrInvalidArgument }

// allowedSyntax are the frontends that the built-in one stands in for. Others would be images that
// run inside buildkitd's gateway; a digest pins one of those and the labs channel has features that
// need entitlements, so neither can be served honestly.
var allowedSyntax = regexp.MustCompile(`^(docker\.io/)?docker/dockerfile(:(latest|1(\.[0-9]+){0,2}))?$`)

// buildArgName is what may stand left of = in a build argument.
var buildArgName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_.-]*$`)

// CheckDockerfile refuses what must not be built and says which images the build needs. It reports
// everything that is wrong at once: the error joins DockerfileErrors.
//
// Refused are: frontends other than docker/dockerfile:1, BUILDKIT_ arguments, RUN with --security,
// --network=host or --device, ssh and secret mounts, and ADD from elsewhere (see AllowRemote).
// Instructions that a base image adds through ONBUILD cannot be seen here; a build grants no
// entitlement, offers no secret and denies remote sources, so they fail there.
func CheckDockerfile(contents []byte, opts CheckOptions) (*Dockerfile, error) {
	c := &checker{name: opts.Name, opts: opts}
	if c.name == "" {
		c.name = defaultDockerfile
	}
	if len(contents) > maxDockerfile {
		return nil, c.fail(0, "the file is larger than %d KiB", maxDockerfile>>10)
	}
	c.args()
	syntax := c.syntax(contents)
	tree, err := parser.Parse(bytes.NewReader(contents))
	if err != nil {
		return nil, errors.Join(append(c.found, c.located(err))...)
	}
	for _, node := range tree.AST.Children {
		c.instruction(node, node.StartLine)
	}
	stages, meta, err := instructions.Parse(tree.AST, nil)
	if err != nil {
		return nil, errors.Join(append(c.found, c.located(err))...)
	}
	df := &Dockerfile{Syntax: syntax, stages: map[string]bool{}, lines: map[string]int{}}
	c.bases(df, stages, meta, tree.EscapeToken)
	if len(c.found) > 0 {
		return nil, errors.Join(c.found...)
	}
	return df, nil
}

type checker struct {
	name  string
	opts  CheckOptions
	found []error
}

func (c *checker) fail(line int, format string, args ...any) error {
	return &DockerfileError{File: c.name, Line: line, Message: fmt.Sprintf(format, args...)}
}

func (c *checker) report(line int, format string, args ...any) {
	c.found = append(c.found, c.fail(line, format, args...))
}

// located turns a parser's error into one with our file and line.
func (c *checker) located(err error) error {
	line := 0
	var el *parser.LocationError
	if errors.As(err, &el) {
		for _, ranges := range el.Locations {
			for _, r := range ranges {
				if line == 0 {
					line = r.Start.Line
				}
			}
		}
	}
	text := err.Error()
	text = regexp.MustCompile(`^dockerfile parse error (on line \d+|line \d+): `).ReplaceAllString(text, "")
	return c.fail(line, "%s", text)
}

func (c *checker) args() {
	for name := range c.opts.Args {
		switch {
		case !buildArgName.MatchString(name):
			c.report(0, "%q is no name for a build argument: use letters, digits and _", name)
		case strings.HasPrefix(strings.ToUpper(name), "BUILDKIT_"):
			c.report(0, "the build argument %s is not allowed: names that begin with BUILDKIT_ steer the builder itself", name)
		}
	}
}

func (c *checker) syntax(contents []byte) string {
	ref, _, where, ok := parser.DetectSyntax(contents)
	if !ok {
		return ""
	}
	line := 1
	if len(where) > 0 {
		line = where[0].Start.Line
	}
	if !allowedSyntax.MatchString(ref) {
		c.report(line, "the frontend %q is not allowed: remove the line or write # syntax=docker/dockerfile:1", ref)
	}
	return ref
}

// instruction checks one instruction of the syntax tree. ONBUILD holds another one.
func (c *checker) instruction(node *parser.Node, line int) {
	switch strings.ToLower(node.Value) {
	case command.Run:
		c.runFlags(node.Flags, line)
	case command.Add:
		c.addSources(node, line)
	case command.Onbuild:
		if node.Next != nil {
			for _, inner := range node.Next.Children {
				c.instruction(inner, line)
			}
		}
	}
}

func (c *checker) runFlags(flags []string, line int) {
	for _, f := range flags {
		name, value, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		switch {
		case name == "security" && value != instructions.SecuritySandbox:
			c.report(line, "RUN --security=%s is not allowed: build steps run without privileges", value)
		case name == "network" && value != instructions.NetworkDefault && value != instructions.NetworkNone:
			c.report(line, "RUN --network=%s is not allowed: leave it out, or use none", value)
		case name == "device":
			c.report(line, "RUN --device is not allowed: build steps get no devices")
		case name == "mount":
			c.mount(value, line)
		}
	}
}

// mount looks at the raw flag, because BuildKit fills in arguments later.
func (c *checker) mount(value string, line int) {
	fields, err := csvvalue.Fields(value, nil)
	if err != nil {
		c.report(line, "RUN --mount=%s cannot be read: %v", value, err)
		return
	}
	for _, f := range fields {
		key, v, _ := strings.Cut(f, "=")
		if !strings.EqualFold(key, "type") {
			continue
		}
		switch instructions.MountType(strings.ToLower(v)) {
		case instructions.MountTypeBind, instructions.MountTypeCache, instructions.MountTypeTmpfs:
		case instructions.MountTypeSecret, instructions.MountTypeSSH:
			c.report(line, "RUN --mount=type=%s is not allowed: a build gets no secrets and no ssh agent; fetch what needs them before the build", v)
		default:
			c.report(line, "RUN --mount=type=%s is not allowed: write bind, cache or tmpfs literally", v)
		}
	}
}

func (c *checker) addSources(node *parser.Node, line int) {
	if c.opts.AllowRemote {
		return
	}
	for arg := node.Next; arg != nil && arg.Next != nil; arg = arg.Next { // the last one is the destination
		if remoteSource(arg.Value) {
			c.report(line, "ADD %s is not allowed: fetch it in a RUN step, or put the file into the folder and COPY it", arg.Value)
		}
	}
}

// remoteSource reports whether ADD would fetch the source from elsewhere. A source that only an
// argument makes remote is not seen here; the build's source policy denies it.
func remoteSource(src string) bool {
	if strings.HasPrefix(src, "http://") || strings.HasPrefix(src, "https://") {
		return true
	}
	ref, isGit, _ := dfgitutil.ParseGitRef(src)
	return isGit && (ref == nil || !ref.IndistinguishableFromLocal)
}
