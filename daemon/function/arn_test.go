package function

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRef(t *testing.T) {
	const account, region = "123456789012", "us-east-1"
	arn := "arn:aws:lambda:" + region + ":" + account + ":function:"
	for _, c := range []struct {
		name, qualifier string
		want            Ref
	}{
		{"hello", "", Ref{Name: "hello"}},
		{"hello", "$LATEST", Ref{Name: "hello", Qualifier: "$LATEST", Kind: QualifierLatest}},
		{"hello:3", "", Ref{Name: "hello", Qualifier: "3", Kind: QualifierVersion, Number: 3}},
		{"hello:3", "3", Ref{Name: "hello", Qualifier: "3", Kind: QualifierVersion, Number: 3}},
		{"hello", "r8", Ref{Name: "hello", Qualifier: "r8", Kind: QualifierRelease, Number: 8}},
		{"hello:live", "", Ref{Name: "hello", Qualifier: "live", Kind: QualifierAlias}},
		{"hello", "$latest", Ref{Name: "hello", Qualifier: "$latest", Kind: QualifierAlias}},
		{"hello", "$LATEST.PUBLISHED", Ref{Name: "hello", Qualifier: "$LATEST.PUBLISHED", Kind: QualifierAlias}},
		{"function", "", Ref{Name: "function"}},
		{"function:hello", "", Ref{Name: "hello"}},
		{"function:1", "", Ref{Name: "1"}},
		{"function:$LATEST", "", Ref{Name: "function", Qualifier: "$LATEST", Kind: QualifierLatest}},
		{"function:function:2", "", Ref{Name: "function", Qualifier: "2", Kind: QualifierVersion, Number: 2}},
		{account, "", Ref{Name: account}},
		{account + ":hello", "", Ref{Account: account, Name: "hello"}},
		{account + ":function:hello", "", Ref{Account: account, Name: "hello"}},
		{account + ":function:hello:live", "", Ref{Account: account, Name: "hello", Qualifier: "live", Kind: QualifierAlias}},
		{account + ":$LATEST", "", Ref{Name: account, Qualifier: "$LATEST", Kind: QualifierLatest}},
		{region + ":" + account + ":function:hello", "", Ref{Region: region, Account: account, Name: "hello"}},
		{region + ":" + account + ":function:hello:1", "", Ref{Region: region, Account: account, Name: "hello", Qualifier: "1", Kind: QualifierVersion, Number: 1}},
		{region, "", Ref{Name: region}},
		{arn + "hello", "", Ref{Region: region, Account: account, Name: "hello"}},
		{arn + "hello", "3", Ref{Region: region, Account: account, Name: "hello", Qualifier: "3", Kind: QualifierVersion, Number: 3}},
		{arn + "hello:$LATEST", "", Ref{Region: region, Account: account, Name: "hello", Qualifier: "$LATEST", Kind: QualifierLatest}},
		{"arn:aws-us-gov:lambda:us-gov-west-1:" + account + ":function:hello", "", Ref{Region: "us-gov-west-1", Account: account, Name: "hello"}},
		{"arn:aws-iso-b:lambda:us-isob-east-1:" + account + ":function:hello", "", Ref{Region: "us-isob-east-1", Account: account, Name: "hello"}},
		{"arn:aws-eusc:lambda:eusc-de-east-1:" + account + ":function:hello", "", Ref{Region: "eusc-de-east-1", Account: account, Name: "hello"}},
		{"arn:aws", "", Ref{Name: "arn", Qualifier: "aws", Kind: QualifierAlias}},
		{"a.b", "", Ref{Name: "a.b"}},
		{strings.Repeat("a", 170), "", Ref{Name: strings.Repeat("a", 170)}},
	} {
		got, err := ParseRef(c.name, c.qualifier)
		if err != nil {
			t.Errorf("%q %q: %v", c.name, c.qualifier, err)
		} else if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q %q (-want +got):\n%s", c.name, c.qualifier, diff)
		}
	}
}

func TestParseRefRefuses(t *testing.T) {
	const nameMust = "' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: " + refPattern
	long := strings.Repeat("a", 171)
	for _, c := range []struct{ name, qualifier, wantType, wantMessage string }{
		{"a b", "", typeValidation, "1 validation error detected: Value 'a b" + nameMust},
		{"hello:", "", typeValidation, "1 validation error detected: Value 'hello:" + nameMust},
		{"hello:$latest", "", typeValidation, "1 validation error detected: Value 'hello:$latest" + nameMust},
		{"a:b:c", "", typeValidation, "1 validation error detected: Value 'a:b:c" + nameMust},
		{"", "", typeValidation, "1 validation error detected: Value '' at 'functionName' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{long, "", typeValidation, "1 validation error detected: Value '" + long + "' at 'functionName' failed to satisfy constraint: Member must have length less than or equal to 170"},
		{"a", "x y", typeValidation, "1 validation error detected: Value 'x y' at 'qualifier' failed to satisfy constraint: Member must satisfy regular expression pattern: (|[a-zA-Z0-9$_-]+)"},
		{"a", long, typeValidation, "1 validation error detected: Value '" + long + "' at 'qualifier' failed to satisfy constraint: Member must have length less than or equal to 128"},
		{"a/b", "x y", typeValidation, "2 validation errors detected: Value 'a/b" + nameMust + "; Value 'x y' at 'qualifier' failed to satisfy constraint: Member must satisfy regular expression pattern: (|[a-zA-Z0-9$_-]+)"},
		{"hello:1", "2", typeInvalidParameter, "The derived qualifier from the function name does not match the specified qualifier."},
	} {
		_, err := ParseRef(c.name, c.qualifier)
		var refused *AWSError
		if !errors.As(err, &refused) {
			t.Errorf("%q %q: got %v, want an AWSError", c.name, c.qualifier, err)
		} else if diff := cmp.Diff(&AWSError{c.wantType, c.wantMessage}, refused); diff != "" {
			t.Errorf("%q %q (-want +got):\n%s", c.name, c.qualifier, diff)
		}
	}
}

func TestParseQualifierNumbers(t *testing.T) {
	for q, want := range map[string]QualifierKind{
		"0": QualifierAlias, "007": QualifierAlias, "r0": QualifierAlias, "r": QualifierAlias, "r07": QualifierAlias,
		"R7": QualifierAlias, "99999999999999999999": QualifierAlias, "1": QualifierVersion, "r1": QualifierRelease,
	} {
		if got, _ := ParseQualifier(q); got != want {
			t.Errorf("%q: got %v, want %v", q, got, want)
		}
	}
}

func TestParseRefDoesNotAllocate(t *testing.T) {
	for _, name := range []string{"hello", "hello:3", "arn:aws:lambda:us-east-1:123456789012:function:hello:live"} {
		if n := testing.AllocsPerRun(100, func() {
			if _, err := ParseRef(name, ""); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestAWSSentences(t *testing.T) {
	r, err := ParseRef("arn:aws:lambda:us-west-2:123456789012:function:hello", "")
	if err != nil {
		t.Fatal(err)
	}
	want := "ResourceNotFoundException: Functions from 'us-west-2' are not reachable in this region ('us-east-1')"
	if got := r.CheckRegion("us-east-1"); got == nil || got.Error() != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if err := r.CheckRegion("us-west-2"); err != nil {
		t.Error(err)
	}
	want = "ResourceNotFoundException: Function not found: arn:aws:lambda:us-east-1:123456789012:function:nope:$LATEST"
	if got := NotFound("us-east-1", "123456789012", "nope", Latest); got.Error() != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestARN(t *testing.T) {
	for region, want := range map[string]string{
		"us-east-1": "arn:aws:lambda:us-east-1:1:function:f:q", "cn-north-1": "arn:aws-cn:lambda:cn-north-1:1:function:f:q",
		"us-gov-west-1": "arn:aws-us-gov:lambda:us-gov-west-1:1:function:f:q", "us-isob-east-1": "arn:aws-iso-b:lambda:us-isob-east-1:1:function:f:q",
	} {
		if got := ARN(region, "1", "f", "q"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// The ids are part of ARNs that clients keep: they must never change.
func TestAccountIsStable(t *testing.T) {
	seen := map[string]Environment{}
	for e, want := range map[Environment]string{
		{"hello", DefaultEnvironment}: "637405572936",
		{"hello", "staging"}:          "444851704671",
	} {
		if got := Account(e); got != want {
			t.Errorf("%v: got %s, want %s", e, got, want)
		}
	}
	for _, project := range []string{"a", "b", "a-b", "shop"} {
		for _, env := range []string{DefaultEnvironment, "staging", "pr-1", "b"} {
			e := Environment{project, env}
			id := Account(e)
			if !regexp.MustCompile(`^[1-9][0-9]{11}$`).MatchString(id) {
				t.Errorf("%v: %q is no account id", e, id)
			}
			if other, twice := seen[id]; twice {
				t.Errorf("%v and %v share %s", e, other, id)
			}
			seen[id] = e
		}
	}
}

// FuzzParseRef holds the parser against the pattern that AWS publishes.
func FuzzParseRef(f *testing.F) {
	for _, s := range []string{
		"hello", "hello:3", "function:hello", "function:$LATEST", "123456789012:function:hello:$LATEST.PUBLISHED",
		"us-gov-west-1:123456789012:function:hello", "arn:aws:lambda:us-east-1:123456789012:function:hello:live",
		"arn::lambda:hello", "arn:aws:lambda", "eusc-de-east-1:a", "us-iso-1:a", "us-isoz-x-1:a", "a..b", "::", "123456789012:function:",
	} {
		f.Add(s, "")
		f.Add(s, "live")
	}
	name := regexp.MustCompile(`\A(arn:(?:aws[a-zA-Z-]*)?:lambda:)?(?:((?:eusc-)?[a-z]{2}(?:-gov|-iso[a-z]?)?-[a-z]+-\d):)?(?:(\d{12}):)?(function:)?([a-zA-Z0-9-_\.]+)(?::(\$LATEST(?:\.PUBLISHED)?|[a-zA-Z0-9-_]+))?\z`)
	qual := regexp.MustCompile(`\A(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_$]+)\z`)
	f.Fuzz(func(t *testing.T, functionName, qualifier string) {
		got, err := ParseRef(functionName, qualifier)
		m := name.FindStringSubmatch(functionName)
		ok := m != nil && len(functionName) <= maxRef && (qualifier == "" || qual.MatchString(qualifier) && len(qualifier) <= maxQualifier)
		ok = ok && (qualifier == "" || m[6] == "" || m[6] == qualifier)
		if (err == nil) != ok {
			t.Fatalf("%q %q: got error %v, want ok %v", functionName, qualifier, err, ok)
		}
		if !ok {
			var refused *AWSError
			if !errors.As(err, &refused) || refused.Message == "" {
				t.Fatalf("%q %q: got %v, want an AWSError", functionName, qualifier, err)
			}
			return
		}
		want := Ref{Region: m[2], Account: m[3], Name: m[5], Qualifier: m[6]}
		if qualifier != "" {
			want.Qualifier = qualifier
		}
		want.Kind, want.Number = ParseQualifier(want.Qualifier)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q %q (-want +got):\n%s", functionName, qualifier, diff)
		}
	})
}

func BenchmarkParseRef(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRef("hello-python", ""); err != nil {
			b.Fatal(err)
		}
	}
}
