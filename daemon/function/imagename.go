package function

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Images of a function are called
//
//	<registry host>/<project>/<function>:v3            version 3, default environment
//	<registry host>/<project>/<function>:staging-r7    release 7, environment staging
//
// A path component of OCI is [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*. A function name that has this form
// is used as it is. Any other is escaped; the escaped form always holds a dot, which no function
// name may, so the two kinds never meet:
//
//	.a to .z   the upper-case letter
//	.1, .2     a hyphen, an underscore that OCI would refuse where it stands
//	x.0        nothing, at the very start, when an escape would otherwise come first
//
// so myFunc is my.func, MyFunc is x.0.my.func, a_ is a.2 and hello-World is hello.1.world. At most
// two bytes per character and three more, that is 131, so a repository stays below OCI's 255.

// escapedStart stands for nothing before a name whose first character is escaped.
const escapedStart = "x.0"

// ImageRepository returns the repository of the function's images: "<host>/<project>/<function>"
// with the function's name mapped injectively to an OCI path component. The environment is part of
// the tags, not of the repository. The key must be valid (Key.Validate).
func ImageRepository(registryHost string, k Key) string {
	return registryHost + "/" + k.Project + "/" + escapeFunction(k.Function)
}

// ParseImageRepository is the inverse of ImageRepository. It takes only what ImageRepository
// returns for a valid key; anything else is an errdefs.ErrInvalidArgument.
func ParseImageRepository(repository string) (registryHost, project, function string, err error) {
	refuse := func(why string) (string, string, string, error) {
		return "", "", "", fmt.Errorf("image repository %s: %s: %w", quote(repository), why, errdefs.ErrInvalidArgument)
	}
	parts := strings.Split(repository, "/")
	if len(parts) != 3 || parts[0] == "" {
		return refuse("not of the form host/project/function")
	}
	if err := ValidateProject(parts[1]); err != nil {
		return refuse(err.Error())
	}
	function, ok := unescapeFunction(parts[2])
	if !ok {
		return refuse(quote(parts[2]) + " names no function")
	}
	return parts[0], parts[1], function, nil
}

// escapeFunction maps a function's name to an OCI path component.
func escapeFunction(name string) string {
	if isComponent(name) {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); {
		c := name[i]
		switch {
		case alnum(c):
			b.WriteByte(c)
			i++
		case 'A' <= c && c <= 'Z':
			b.WriteByte('.')
			b.WriteByte(c - 'A' + 'a')
			i++
		default:
			end := separatorEnd(name, i)
			writeSeparators(&b, name, i, end)
			i = end
		}
	}
	if out := b.String(); out == "" || out[0] != '.' {
		return out
	}
	return escapedStart + b.String()
}

// separatorEnd returns the end of the run of hyphens and underscores that starts at i.
func separatorEnd(name string, i int) int {
	for i < len(name) && (name[i] == '-' || name[i] == '_') {
		i++
	}
	return i
}

// writeSeparators writes name[start:end], a run of hyphens and underscores: as it is where OCI
// allows it, that is between two characters that are written as such or end an escape.
func writeSeparators(b *strings.Builder, name string, start, end int) {
	run := name[start:end]
	if b.Len() > 0 && end < len(name) && alnum(name[end]) && isSeparator(run) {
		b.WriteString(run)
		return
	}
	for _, c := range []byte(run) {
		b.WriteByte('.')
		if c == '-' {
			b.WriteByte('1')
		} else {
			b.WriteByte('2')
		}
	}
}

// unescapeFunction undoes escapeFunction. Only the one spelling that escapeFunction chooses is taken.
func unescapeFunction(component string) (string, bool) {
	rest := component
	if strings.HasPrefix(rest, escapedStart+".") {
		rest = rest[len(escapedStart):]
	}
	var b strings.Builder
	for i := 0; i < len(rest); i++ {
		c := rest[i]
		if c != '.' {
			b.WriteByte(c)
			continue
		}
		if i++; i == len(rest) {
			return "", false
		}
		switch e := rest[i]; {
		case 'a' <= e && e <= 'z':
			b.WriteByte(e - 'a' + 'A')
		case e == '1':
			b.WriteByte('-')
		case e == '2':
			b.WriteByte('_')
		default:
			return "", false
		}
	}
	name := b.String()
	if ValidateFunction(name) != nil || escapeFunction(name) != component {
		return "", false
	}
	return name, true
}

// isComponent reports whether a function's name is an OCI path component.
func isComponent(name string) bool {
	for i := 0; i < len(name); {
		if alnum(name[i]) {
			i++
			continue
		}
		end := separatorEnd(name, i)
		if i == 0 || end == len(name) || !isSeparator(name[i:end]) || !alnum(name[end]) {
			return false
		}
		i = end
	}
	return name != ""
}

// isSeparator reports whether OCI allows the run between two alphanumerics: _, __ or hyphens.
func isSeparator(run string) bool {
	return run == "_" || run == "__" || run != "" && strings.Trim(run, "-") == ""
}

// TagKind says what a tag points at.
type TagKind byte

// The kinds of tags; the value is the letter before the number.
const (
	TagVersion TagKind = 'v'
	TagRelease TagKind = 'r'
)

// VersionTag returns the tag of a version: "v3", or "staging-v3" outside the default environment.
func VersionTag(environment string, version int) string {
	return tag(environment, TagVersion, version)
}

// ReleaseTag returns the tag of a release: "r7", or "staging-r7" outside the default environment.
func ReleaseTag(environment string, release int) string {
	return tag(environment, TagRelease, release)
}

func tag(environment string, kind TagKind, n int) string {
	t := string(rune(kind)) + strconv.Itoa(n)
	if environment == DefaultEnvironment {
		return t
	}
	return environment + "-" + t
}

// ParseTag is the inverse of VersionTag and ReleaseTag. It takes only what they return for a valid
// environment and a number from 1; anything else is an errdefs.ErrInvalidArgument.
func ParseTag(t string) (environment string, kind TagKind, n int, err error) {
	environment, last := DefaultEnvironment, t
	if i := strings.LastIndexByte(t, '-'); i >= 0 {
		environment, last = t[:i], t[i+1:]
	}
	if last != "" && (last[0] == byte(TagVersion) || last[0] == byte(TagRelease)) {
		kind = TagKind(last[0])
		n, _ = parseNumber(last[1:])
	}
	if n == 0 || ValidateEnvironment(environment) != nil || tag(environment, kind, n) != t {
		return "", 0, 0, fmt.Errorf("image tag %s is not of the form [environment-]v3 or [environment-]r3: %w", quote(t), errdefs.ErrInvalidArgument)
	}
	return environment, kind, n, nil
}

// parseNumber reads a version's or a release's number: from 1, decimal, without leading zeros.
func parseNumber(s string) (int, bool) {
	if !allDigits(s) || s[0] == '0' {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, false
	}
	return n, true
}
