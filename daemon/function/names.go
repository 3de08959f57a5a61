package function

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Lengths of names, in bytes; every legal character is one byte.
const (
	// MaxFunctionName is Lambda's limit.
	MaxFunctionName = 64
	// MaxProjectName bounds project and environment names, so that an image repository and a tag
	// stay below OCI's 255 and 128 characters whatever the function is called.
	MaxProjectName = 40
)

// functionPattern is the pattern AWS quotes for a bare function name.
const functionPattern = "[a-zA-Z0-9-_]+"

// NameKind says what a name was meant to name.
type NameKind string

// The kinds of names.
const (
	ProjectName     NameKind = "project"
	EnvironmentName NameKind = "environment"
	FunctionName    NameKind = "function"
)

// NameError says which rule a name breaks. It is an errdefs.ErrInvalidArgument.
type NameError struct {
	Kind NameKind
	Name string
	// Rule completes "the name …": "is empty", "has 70 characters: at most 64 are allowed".
	Rule string
}

// Error implements error.
func (e *NameError) Error() string {
	return fmt.Sprintf("%s name %s %s", e.Kind, quote(e.Name), e.Rule)
}

// Unwrap classes the error.
func (e *NameError) Unwrap() error { return errdefs.ErrInvalidArgument }

// AWS returns the sentence with which Lambda's control API refuses the name of a function.
func (e *NameError) AWS() string {
	var broken []string
	if !onlyFunctionChars(e.Name) {
		broken = append(broken, constraint(e.Name, "functionName", mustMatch(functionPattern)))
	}
	if len(e.Name) > MaxFunctionName {
		broken = append(broken, constraint(e.Name, "functionName", mustNotExceed(MaxFunctionName)))
	}
	return validationMessage(broken...)
}

// ValidateFunction reports whether Lambda would take the name of a function: 1 to 64 letters,
// digits, hyphens and underscores. The error is a *NameError.
//
// Nothing is refused on behalf of OCI: ImageRepository maps every such name. "function" is legal;
// it hides the environment's default function.
func ValidateFunction(name string) error {
	refuse := func(rule string) error { return &NameError{FunctionName, name, rule} }
	if name == "" {
		return refuse("is empty: write 1 to 64 letters, digits, hyphens or underscores")
	}
	if i := indexNot(name, functionChar); i >= 0 {
		return refuse(badChar(name, i) + ": only the letters a-z and A-Z, digits, hyphens and underscores are allowed")
	}
	if len(name) > MaxFunctionName {
		return refuse(fmt.Sprintf("has %d characters: at most %d are allowed", len(name), MaxFunctionName))
	}
	return nil
}

// ValidateProject reports whether a project may have this name: 1 to 40 lower-case letters, digits
// and hyphens, a letter or digit first and last. A project's name is part of image repositories and
// of host names. "localhost" is reserved, for it ends the host names. The error is a *NameError.
func ValidateProject(name string) error {
	if err := validateLabel(ProjectName, name); err != nil {
		return err
	}
	if name == "localhost" {
		return &NameError{ProjectName, name, "is reserved: it ends the host names under which functions answer"}
	}
	return nil
}

// ValidateEnvironment reports whether an environment may have this name: the rules of a project,
// and nothing that could be taken for a version (3, v3), a release (r3) or the tag "latest".
// The error is a *NameError.
func ValidateEnvironment(name string) error {
	if err := validateLabel(EnvironmentName, name); err != nil {
		return err
	}
	refuse := func(rule string) error { return &NameError{EnvironmentName, name, rule} }
	switch {
	case allDigits(name):
		return refuse("looks like a version: add a letter")
	case name[0] == 'v' && allDigits(name[1:]):
		return refuse("looks like a version: v and a number are the tag of one")
	case name[0] == 'r' && allDigits(name[1:]):
		return refuse("looks like a release: r and a number are the qualifier of one")
	case name == "latest":
		return refuse("is reserved: it would read like $LATEST")
	}
	return nil
}

// Validate checks the names of the project and of the environment. The error is a *NameError.
func (e Environment) Validate() error {
	if err := ValidateProject(e.Project); err != nil {
		return err
	}
	return ValidateEnvironment(e.Name)
}

// Validate checks the names of the project, the environment and the function. The error is a *NameError.
func (k Key) Validate() error {
	if err := k.Environment.Validate(); err != nil {
		return err
	}
	return ValidateFunction(k.Function)
}

// validateLabel checks [a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?.
func validateLabel(kind NameKind, name string) error {
	refuse := func(rule string) error { return &NameError{kind, name, rule} }
	if name == "" {
		return refuse("is empty: write 1 to 40 lower-case letters, digits or hyphens")
	}
	if i := indexNot(name, labelChar); i >= 0 {
		return refuse(badChar(name, i) + ": only lower-case letters, digits and hyphens are allowed")
	}
	if len(name) > MaxProjectName {
		return refuse(fmt.Sprintf("has %d characters: at most %d are allowed", len(name), MaxProjectName))
	}
	if name[0] == '-' || name[len(name)-1] == '-' {
		return refuse("starts or ends with a hyphen: a letter or a digit must come first and last")
	}
	return nil
}

// constraint is one member of a ValidationException's text.
func constraint(value, member, rule string) string {
	return fmt.Sprintf("Value '%s' at '%s' failed to satisfy constraint: %s", value, member, rule)
}

func mustMatch(pattern string) string {
	return "Member must satisfy regular expression pattern: " + pattern
}

func mustNotExceed(n int) string {
	return fmt.Sprintf("Member must have length less than or equal to %d", n)
}

// validationMessage joins constraints as AWS does; no constraint is the empty string.
func validationMessage(constraints ...string) string {
	switch len(constraints) {
	case 0:
		return ""
	case 1:
		return "1 validation error detected: " + constraints[0]
	}
	return fmt.Sprintf("%d validation errors detected: %s", len(constraints), strings.Join(constraints, "; "))
}

// badChar names the character at byte i of s.
func badChar(s string, i int) string {
	for _, r := range s[i:] {
		return "holds " + strconv.QuoteRune(r)
	}
	return "" // unreachable: i is inside s
}

// quote quotes s for a person and cuts it short.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

func indexNot(s string, ok func(byte) bool) int {
	for i := range len(s) {
		if !ok(s[i]) {
			return i
		}
	}
	return -1
}

func onlyFunctionChars(s string) bool { return s != "" && indexNot(s, functionChar) < 0 }

func functionChar(c byte) bool { return alnum(c) || 'A' <= c && c <= 'Z' || c == '-' || c == '_' }

func labelChar(c byte) bool { return alnum(c) || c == '-' }

// alnum reports whether c is what OCI calls alphanumeric: a lower-case letter or a digit.
func alnum(c byte) bool { return 'a' <= c && c <= 'z' || digit(c) }

func digit(c byte) bool { return '0' <= c && c <= '9' }

func allDigits(s string) bool { return s != "" && indexNot(s, digit) < 0 }
