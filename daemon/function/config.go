package function

import (
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// Defaults of a function that says nothing else; those of Lambda.
const (
	DefaultMemoryMB = 128
	DefaultTmpMB    = 512
	DefaultTimeout  = 3 * time.Second
)

// Limits of a function's configuration.
const (
	MinMemoryMB = 128
	MaxMemoryMB = 10240
	// MinTmpMB is below AWS's 512: on a small host a function that needs no /tmp need not pay for one.
	MinTmpMB   = 64
	MaxTmpMB   = 10240
	MinTimeout = time.Second
	MaxTimeout = 15 * time.Minute
	MinCPU     = 0.01
	MaxCPU     = 64
	// MaxConcurrency bounds Concurrency.Min and Max; what a host can really hold is far less.
	MaxConcurrency = 10000
	// MaxPerInstance bounds Concurrency.PerInstance.
	MaxPerInstance = 64
	// MaxArgs and MaxWorkdir are Lambda's limits of ImageConfig: items, characters.
	MaxArgs    = 1500
	MaxWorkdir = 1000
)

// DefaultConfig returns the configuration of a function that says nothing: Lambda's 128 MB, a /tmp
// of 512 MB, 3 s, the CPU share of the memory and the daemon's maximum of instances.
func DefaultConfig() Config {
	return Config{MemoryMB: DefaultMemoryMB, TmpMB: DefaultTmpMB, Timeout: DefaultTimeout}
}

// FieldError is one thing that is wrong with a Spec.
type FieldError struct {
	// Field is the path in the manifest's words: "memory", "environment.DB_URL", "concurrency.min",
	// empty for the function as a whole; from ValidateSpecs below "functions.<name>".
	Field string
	// Msg is one clause with the remedy.
	Msg string
}

// Error implements error.
func (e FieldError) Error() string {
	if e.Field == "" {
		return e.Msg
	}
	return e.Field + ": " + e.Msg
}

// FieldErrors are all things that are wrong, in a stable order. As an error (Err) it is an
// errdefs.ErrInvalidArgument with one line each.
type FieldErrors []FieldError

// Error implements error.
func (e FieldErrors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap classes the errors.
func (e FieldErrors) Unwrap() error { return errdefs.ErrInvalidArgument }

// Err returns e as an error, nil when nothing is wrong.
func (e FieldErrors) Err() error {
	if len(e) == 0 {
		return nil
	}
	return e
}

func (e *FieldErrors) add(field, format string, args ...any) {
	*e = append(*e, FieldError{field, fmt.Sprintf(format, args...)})
}

// ValidateSpecs reports everything that is wrong with the functions of one deploy: each of them
// (ValidateSpec), and together: at least one function, no name and no port twice, at most one default.
func ValidateSpecs(specs []Spec) FieldErrors {
	var errs FieldErrors
	if len(specs) == 0 {
		errs.add("functions", "is empty: a project needs at least one function")
	}
	names, ports, def := map[string]bool{}, map[int]string{}, ""
	for _, s := range specs {
		at := "functions." + s.Name
		if names[s.Name] {
			errs.add(at, "there are two functions of this name")
		}
		names[s.Name] = true
		for _, e := range ValidateSpec(s) {
			errs = append(errs, FieldError{strings.TrimSuffix(at+"."+e.Field, "."), e.Msg})
		}
		if other, taken := ports[s.Port]; taken && s.Port != 0 {
			errs.add(at+".port", "%d is the port of %s already: give each function a port of its own", s.Port, other)
		} else {
			ports[s.Port] = s.Name
		}
		if s.Default && def != "" {
			errs.add(at+".default", "%s is the default already: only one function can be", def)
		} else if s.Default {
			def = s.Name
		}
	}
	return errs
}

// ValidateSpec reports everything that is wrong with one function.
func ValidateSpec(s Spec) FieldErrors {
	var errs FieldErrors
	if err := ValidateFunction(s.Name); err != nil {
		errs.add("", "%v", err)
	}
	switch {
	case s.Build == nil && s.Image == "":
		errs.add("", "has neither build nor image: write build: and the folder of its Dockerfile, or image: and a reference")
	case s.Build != nil && s.Image != "":
		errs.add("image", "stands beside build: keep one of the two")
	}
	if s.Build != nil {
		validateBuild(&errs, s.Build)
	}
	if s.Image != "" {
		if _, err := reference.ParseDockerRef(s.Image); err != nil {
			errs.add("image", "%s is not an image reference: %v", quote(s.Image), err)
		}
	}
	if s.Port < 0 || s.Port > math.MaxUint16 {
		errs.add("port", "%d is not a port: 1 to 65535", s.Port)
	}
	return append(errs, ValidateConfig(s.Config)...)
}

// ValidateConfig reports everything that is wrong with a configuration.
func ValidateConfig(c Config) FieldErrors {
	var errs FieldErrors
	validateSizes(&errs, c)
	validateEnvironment(&errs, c.Environment)
	validateArgs(&errs, "entrypoint", c.Entrypoint)
	if len(c.Entrypoint) > 0 && c.Entrypoint[0] == "" {
		errs.add("entrypoint", "starts with an empty string: the program must come first")
	}
	validateArgs(&errs, "command", c.Command)
	validateWorkdir(&errs, c.Workdir)
	validateConcurrency(&errs, c.Concurrency)
	return errs
}

func validateSizes(errs *FieldErrors, c Config) {
	if c.MemoryMB < MinMemoryMB || c.MemoryMB > MaxMemoryMB {
		errs.add("memory", "%d MiB is out of range: 128 MiB to 10240 MiB", c.MemoryMB)
	}
	if c.TmpMB < MinTmpMB || c.TmpMB > MaxTmpMB {
		errs.add("tmp", "%d MiB is out of range: 64 MiB to 10240 MiB", c.TmpMB)
	}
	// The negated comparison catches NaN too; zero stands for the memory's share.
	if c.CPU != 0 && !(c.CPU >= MinCPU && c.CPU <= MaxCPU) {
		errs.add("cpu", "%v is out of range: 0.01 to 64 cores", c.CPU)
	}
	switch {
	case c.Timeout < MinTimeout || c.Timeout > MaxTimeout:
		errs.add("timeout", "%v is out of range: 1s to 900s", c.Timeout)
	case c.Timeout%time.Millisecond != 0:
		errs.add("timeout", "%v is too fine: whole milliseconds", c.Timeout)
	}
}

func validateEnvironment(errs *FieldErrors, env map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(env)) {
		at := "environment." + name
		switch value := env[name]; {
		case name == maxConcurrencyEnv:
			errs.add(at, "is reserved: write concurrency.per_instance for invocations that one instance runs at once")
		case ReservedEnv(name):
			errs.add(at, "is reserved: the platform sets it; choose another name")
		case !envName(name):
			errs.add(at, "%s is not a name Lambda takes: a letter, then at least one more letter, digit or underscore", quote(name))
		case strings.IndexByte(value, 0) >= 0 || !utf8.ValidString(value):
			errs.add(at, "the value is not text: it must be UTF-8 without NUL")
		}
	}
	if n := len(measureEnvironment(env)); n > MaxEnvironment {
		errs.add("environment", "%s Measured as JSON: %d bytes", environmentTooLarge, n)
	}
}

func validateArgs(errs *FieldErrors, field string, args []string) {
	if len(args) > MaxArgs {
		errs.add(field, "has %d items: at most %d are allowed", len(args), MaxArgs)
	}
	for i, a := range args {
		if strings.IndexByte(a, 0) >= 0 || !utf8.ValidString(a) {
			errs.add(field, "item %d is not text: it must be UTF-8 without NUL", i+1)
		}
	}
}

func validateWorkdir(errs *FieldErrors, dir string) {
	if dir == "" {
		return
	}
	if n := utf8.RuneCountInString(dir); n > MaxWorkdir {
		errs.add("workdir", "has %d characters: at most %d are allowed", n, MaxWorkdir)
	}
	if strings.IndexByte(dir, 0) >= 0 || !utf8.ValidString(dir) {
		errs.add("workdir", "is not text: it must be UTF-8 without NUL")
	}
	if !path.IsAbs(dir) {
		errs.add("workdir", "%s is not absolute: start with /", quote(dir))
	}
	// A working directory below these can be a descriptor of the host (CVE-2024-21626).
	clean := path.Clean(dir) + "/"
	for _, kernel := range []string{"/proc/", "/sys/", "/dev/"} {
		if strings.HasPrefix(clean, kernel) {
			errs.add("workdir", "%s is below %s, which is the kernel's: choose another folder", quote(dir), strings.TrimSuffix(kernel, "/"))
		}
	}
}

func validateConcurrency(errs *FieldErrors, c Concurrency) {
	if c.Min < 0 || c.Min > MaxConcurrency {
		errs.add("concurrency.min", "%d is out of range: 0 to %d", c.Min, MaxConcurrency)
	}
	if c.Max < 0 || c.Max > MaxConcurrency {
		errs.add("concurrency.max", "%d is out of range: 1 to %d, or 0 for the daemon's default", c.Max, MaxConcurrency)
	}
	if (c.Max > 0 || c.Stopped) && c.Min > c.Max {
		errs.add("concurrency.min", "%d is above max, %d", c.Min, c.Max)
	}
	if c.PerInstance == 1 || c.PerInstance < 0 || c.PerInstance > MaxPerInstance {
		errs.add("concurrency.per_instance", "%d is out of range: 2 to %d, or none for one invocation at a time", c.PerInstance, MaxPerInstance)
	}
	if c.Stopped && c.Max != 0 {
		errs.add("concurrency.max", "%d stands beside stopped: a function that is stopped has no maximum", c.Max)
	}
}

func validateBuild(errs *FieldErrors, b *Build) {
	switch {
	case b.Context == "":
		errs.add("build", "has no context: write the folder of the Dockerfile, for example ./hello")
	default:
		validatePath(errs, "build.context", "project", b.Context)
	}
	if b.Dockerfile != "" {
		validatePath(errs, "build.dockerfile", "context", b.Dockerfile)
	}
	// Dockerfile's own rule for stage names, and numbers.
	if b.Target != "" && (!alnumFold(b.Target[0]) || len(b.Target) > 128 ||
		indexNot(b.Target, func(c byte) bool { return functionChar(c) || c == '.' }) >= 0) {
		errs.add("build.target", "%s is not the name of a build stage", quote(b.Target))
	}
	for _, name := range slices.Sorted(maps.Keys(b.Args)) {
		validateBuildArg(errs, name, b.Args[name])
	}
}

func validateBuildArg(errs *FieldErrors, name, value string) {
	at := "build.args." + name
	switch {
	case name == "" || digit(name[0]) || indexNot(name, func(c byte) bool { return functionChar(c) && c != '-' }) >= 0:
		errs.add(at, "%s is not the name of a build argument: letters, digits and underscores, no digit first", quote(name))
	case name == "BUILDKIT_SYNTAX":
		// It would choose another program to read the Dockerfile.
		errs.add(at, "is refused: it would replace the builder's Dockerfile frontend")
	case strings.IndexByte(value, 0) >= 0 || !utf8.ValidString(value):
		errs.add(at, "the value is not text: it must be UTF-8 without NUL")
	}
}

// validatePath checks a slash-separated path that must stay below its root. It is about the text
// only; links are the business of whoever opens it.
func validatePath(errs *FieldErrors, field, root, p string) {
	switch {
	case strings.IndexByte(p, 0) >= 0 || !utf8.ValidString(p):
		errs.add(field, "is not text: it must be UTF-8 without NUL")
	case strings.Contains(p, `\`):
		errs.add(field, "%s holds a backslash: separate folders with /", quote(p))
	case strings.Contains(p, "://") || strings.HasPrefix(p, "git@"):
		errs.add(field, "%s is not a folder: only folders of the project can be built", quote(p))
	case path.IsAbs(p) || len(p) > 1 && p[1] == ':':
		errs.add(field, "%s is absolute: write it relative to the %s folder", quote(p), root)
	case p == ".." || strings.HasPrefix(path.Clean(p), "../") || path.Clean(p) == "..":
		errs.add(field, "%s is outside the %s folder", quote(p), root)
	case p != path.Clean(p):
		errs.add(field, "%s has a shorter spelling: write %s", quote(p), path.Clean(p))
	}
}

func alnumFold(c byte) bool { return alnum(c) || 'A' <= c && c <= 'Z' }
