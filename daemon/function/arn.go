package function

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// The patterns AWS quotes when a client operation's FunctionName or Qualifier is refused. The name
// may hold a dot and the qualifier be $LATEST.PUBLISHED although no such function exists here: these
// are "not found", not "invalid".
const (
	refPattern       = `(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?`
	qualifierPattern = `(|[a-zA-Z0-9$_-]+)`

	// maxRef and maxQualifier are the lengths in AWS's refusals.
	maxRef       = 170
	maxQualifier = 128
)

// Latest is the qualifier of what the active release holds; no qualifier means the same.
const Latest = "$LATEST"

// AWSError is a refusal in Lambda's own words: the error type and the message of the envelope.
type AWSError struct {
	// Type is the modelled name, for example "InvalidParameterValueException".
	Type string
	// Message is the text that AWS sends.
	Message string
}

// Error implements error.
func (e *AWSError) Error() string { return e.Type + ": " + e.Message }

// Unwrap classes the error, so that callers that do not speak AWS can act on it.
func (e *AWSError) Unwrap() error {
	switch e.Type {
	case typeNotFound:
		return errdefs.ErrNotFound
	case typeAccessDenied:
		return errdefs.ErrPermissionDenied
	}
	return errdefs.ErrInvalidArgument
}

const (
	typeValidation       = "ValidationException"
	typeInvalidParameter = "InvalidParameterValueException"
	typeNotFound         = "ResourceNotFoundException"
	typeAccessDenied     = "AccessDeniedException"
)

// QualifierKind says what a qualifier can mean.
type QualifierKind uint8

// The kinds of qualifiers.
const (
	// QualifierNone is the absence of a qualifier; it means $LATEST.
	QualifierNone QualifierKind = iota
	// QualifierLatest is $LATEST, exactly so: AWS does not fold case.
	QualifierLatest
	// QualifierVersion is a version's number.
	QualifierVersion
	// QualifierRelease is r and a release's number, our addition.
	QualifierRelease
	// QualifierAlias is anything else: the name of an alias, or something that cannot exist
	// ($latest, 007, r0) and is therefore not found.
	QualifierAlias
)

// String returns a word for logs.
func (k QualifierKind) String() string {
	return [...]string{"none", "latest", "version", "release", "alias"}[k]
}

// Ref is what a client wrote to name a function. Members that were not written are empty.
//
// Name passed the pattern of client operations, which is wider than that of a function's name: use
// it to look a function up and to quote it, never as part of a path.
type Ref struct {
	Region    string
	Account   string
	Name      string
	Qualifier string
	// Kind classes Qualifier; Number is set for QualifierVersion and QualifierRelease.
	Kind   QualifierKind
	Number int
}

// ParseRef parses the FunctionName and the Qualifier (empty when absent) of a client operation:
// name, name:qualifier, function:name, account:function:name, region:account:function:name or an
// ARN, each with or without a qualifier. When a text can be read in two ways, it is read as AWS's
// pattern does: an optional part is taken wherever the rest still matches, so "function:1" is the
// function 1 and "function:$LATEST" the function "function".
//
// The error is an *AWSError. Nothing is allocated on success.
func ParseRef(functionName, qualifier string) (Ref, error) {
	r, ok := Ref{Name: functionName}, onlyFunctionChars(functionName)
	if !ok {
		r, ok = matchRef(functionName, partARN, Ref{})
	}
	if !ok || len(functionName) > maxRef || !validQualifier(qualifier) {
		return Ref{}, refuseRef(functionName, ok, qualifier)
	}
	if qualifier != "" {
		if r.Qualifier != "" && r.Qualifier != qualifier {
			return Ref{}, &AWSError{typeInvalidParameter, "The derived qualifier from the function name does not match the specified qualifier."}
		}
		r.Qualifier = qualifier
	}
	r.Kind, r.Number = ParseQualifier(r.Qualifier)
	return r, nil
}

// ParseQualifier classes a qualifier that passed ParseRef. The number is that of the version or
// release, else zero.
func ParseQualifier(q string) (QualifierKind, int) {
	switch q {
	case "":
		return QualifierNone, 0
	case Latest:
		return QualifierLatest, 0
	}
	if n, ok := parseNumber(q); ok {
		return QualifierVersion, n
	}
	if q[0] == 'r' {
		if n, ok := parseNumber(q[1:]); ok {
			return QualifierRelease, n
		}
	}
	return QualifierAlias, 0
}

// CheckRegion refuses a reference that names another region than ours, with AWS's words.
func (r Ref) CheckRegion(region string) error {
	if r.Region == "" || r.Region == region {
		return nil
	}
	return &AWSError{typeNotFound, fmt.Sprintf("Functions from '%s' are not reachable in this region ('%s')", r.Region, region)}
}

// NotFound says with AWS's words that there is no such function, version or alias. Invoke passes
// $LATEST when the client gave no qualifier; Get and Delete pass what the client wrote.
func NotFound(region, account, name, qualifier string) *AWSError {
	return &AWSError{typeNotFound, "Function not found: " + ARN(region, account, name, qualifier)}
}

// The optional parts of a reference in their order; partName is last and mandatory.
const (
	partARN = iota
	partRegion
	partAccount
	partFunction
	partName
)

// matchRef matches s from the given part on: refPattern without a regular expression. Each optional
// part is taken if the rest then matches, else left out, as the pattern's greedy ? does.
func matchRef(s string, part int, r Ref) (Ref, bool) {
	if part == partName {
		return matchName(s, r)
	}
	if rest, taken, ok := takePart(s, part, r); ok {
		if m, ok := matchRef(rest, part+1, taken); ok {
			return m, true
		}
	}
	return matchRef(s, part+1, r)
}

// takePart takes one optional part and its colon off s.
func takePart(s string, part int, r Ref) (rest string, _ Ref, ok bool) {
	if part == partARN {
		rest, ok = takeARNPrefix(s)
		return rest, r, ok
	}
	head, rest, found := strings.Cut(s, ":")
	if !found {
		return "", r, false
	}
	switch part {
	case partRegion:
		r.Region, ok = head, isRegion(head)
	case partAccount:
		r.Account, ok = head, len(head) == 12 && allDigits(head)
	case partFunction:
		ok = head == "function"
	}
	return rest, r, ok
}

// takeARNPrefix takes arn:(aws[a-zA-Z-]*)?:lambda: off s.
func takeARNPrefix(s string) (string, bool) {
	rest, ok := strings.CutPrefix(s, "arn:")
	if !ok {
		return "", false
	}
	partition, rest, ok := strings.Cut(rest, ":")
	if !ok || partition != "" && (!strings.HasPrefix(partition, "aws") || indexNot(partition, partitionChar) >= 0) {
		return "", false
	}
	return strings.CutPrefix(rest, "lambda:")
}

func partitionChar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-'
}

// matchName matches the name and the optional qualifier, to the end.
func matchName(s string, r Ref) (Ref, bool) {
	name, qualifier, qualified := strings.Cut(s, ":")
	if name == "" || indexNot(name, func(c byte) bool { return functionChar(c) || c == '.' }) >= 0 {
		return Ref{}, false
	}
	if qualified && qualifier != Latest && qualifier != "$LATEST.PUBLISHED" && !onlyFunctionChars(qualifier) {
		return Ref{}, false
	}
	r.Name, r.Qualifier = name, qualifier
	return r, true
}

// isRegion matches (eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}.
func isRegion(s string) bool {
	s = strings.TrimPrefix(s, "eusc-")
	if len(s) < 6 || !lower(s[0]) || !lower(s[1]) || s[2] != '-' {
		return false
	}
	middle, last := s[3:len(s)-2], s[len(s)-2:]
	if last[0] != '-' || !digit(last[1]) {
		return false
	}
	if kind, rest, two := strings.Cut(middle, "-"); two {
		if kind != "gov" && kind != "iso" && (len(kind) != 4 || kind[:3] != "iso" || !lower(kind[3])) {
			return false
		}
		middle = rest
	}
	return middle != "" && indexNot(middle, lower) < 0
}

func lower(c byte) bool { return 'a' <= c && c <= 'z' }

func validQualifier(q string) bool {
	return q == "" || len(q) <= maxQualifier && qualifierSyntax(q)
}

func qualifierSyntax(q string) bool {
	return q == "$LATEST.PUBLISHED" || indexNot(q, func(c byte) bool { return functionChar(c) || c == '$' }) < 0
}

// refuseRef words the refusal. AWS stops at the first constraint that a member breaks.
func refuseRef(functionName string, matches bool, qualifier string) *AWSError {
	var broken []string
	switch {
	case functionName == "":
		broken = append(broken, constraint("", "functionName", "Member must have length greater than or equal to 1"))
	case !matches:
		broken = append(broken, constraint(functionName, "functionName", mustMatch(refPattern)))
	case len(functionName) > maxRef:
		broken = append(broken, constraint(functionName, "functionName", mustNotExceed(maxRef)))
	}
	switch {
	case !qualifierSyntax(qualifier):
		broken = append(broken, constraint(qualifier, "qualifier", mustMatch(qualifierPattern)))
	case len(qualifier) > maxQualifier:
		broken = append(broken, constraint(qualifier, "qualifier", mustNotExceed(maxQualifier)))
	}
	return &AWSError{typeValidation, validationMessage(broken...)}
}

// ARN returns the name of a function in AWS's form, with the qualifier unless it is empty.
func ARN(region, account, name, qualifier string) string {
	arn := "arn:" + partition(region) + ":lambda:" + region + ":" + account + ":function:" + name
	if qualifier == "" {
		return arn
	}
	return arn + ":" + qualifier
}

// partition returns the AWS partition that a region belongs to.
func partition(region string) string {
	for _, p := range [...]struct{ prefix, partition string }{
		{"cn-", "aws-cn"}, {"us-gov-", "aws-us-gov"}, {"us-iso-", "aws-iso"}, {"us-isob-", "aws-iso-b"},
		{"eu-isoe-", "aws-iso-e"}, {"us-isof-", "aws-iso-f"}, {"eusc-", "aws-eusc"},
	} {
		if strings.HasPrefix(region, p.prefix) {
			return p.partition
		}
	}
	return "aws"
}

// Account returns the synthetic account id under which AWS clients see an environment: twelve
// digits, the first not zero, from a hash of the project's and the environment's name. It is stable
// for good: it is part of ARNs that clients keep.
//
// Two environments can share an id: among a thousand the odds are about one in two million. The
// store then records another one for the later of the two: where there is a record, it counts.
func Account(e Environment) string {
	sum := sha256.Sum256([]byte("lfx account\x00" + e.Project + "\x00" + e.Name))
	const least, count = 100_000_000_000, 900_000_000_000
	return strconv.FormatUint(least+binary.BigEndian.Uint64(sum[:8])%count, 10)
}
