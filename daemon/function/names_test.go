package function

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestValidateFunction(t *testing.T) {
	for name, rule := range map[string]string{
		"hello":                     "",
		"function":                  "",
		"1":                         "",
		"-_-":                       "",
		"$LATEST":                   "holds '$'",
		strings.Repeat("A", 64):     "",
		"":                          "is empty",
		strings.Repeat("A", 65):     "has 65 characters: at most 64",
		"a.b":                       "holds '.'",
		"a b":                       "holds ' '",
		"grüß":                      "holds 'ü'",
		"a\x00":                     `holds '\x00'`,
		"a/../b":                    "holds '/'",
		strings.Repeat("é", 10_000): "holds 'é'",
	} {
		checkName(t, ValidateFunction(name), name, rule)
	}
}

func TestValidateProjectAndEnvironment(t *testing.T) {
	both := map[string]string{
		"a":                     "",
		"pr-17":                 "",
		"a--b":                  "",
		strings.Repeat("a", 40): "",
		"":                      "is empty",
		strings.Repeat("a", 41): "has 41 characters",
		"-a":                    "starts or ends with a hyphen",
		"a-":                    "starts or ends with a hyphen",
		"Shop":                  "holds 'S'",
		"a_b":                   "holds '_'",
		"a.b":                   "holds '.'",
		"a/b":                   "holds '/'",
	}
	for name, rule := range both {
		checkName(t, ValidateProject(name), name, rule)
		checkName(t, ValidateEnvironment(name), name, rule)
	}
	for name, rule := range map[string]string{
		"12": "", "v3": "", "r3": "", "latest": "", "localhost": "is reserved",
	} {
		checkName(t, ValidateProject(name), name, rule)
	}
	for name, rule := range map[string]string{
		"12": "looks like a version", "v3": "looks like a version", "r007": "looks like a release",
		"latest": "is reserved", "localhost": "", "v": "", "r": "", "v3x": "", "rc1": "", "x-v3": "", DefaultEnvironment: "",
	} {
		checkName(t, ValidateEnvironment(name), name, rule)
	}
}

// checkName checks that err says rule, or that there is none when rule is empty.
func checkName(t *testing.T, err error, name, rule string) {
	t.Helper()
	var refused *NameError
	switch {
	case rule == "" && err != nil:
		t.Errorf("%q: got error %v, want none", name, err)
	case rule == "":
	case !errors.As(err, &refused) || !strings.Contains(refused.Rule, rule):
		t.Errorf("%q: got error %v, want one that says %q", name, err, rule)
	case !errdefs.IsInvalidArgument(err):
		t.Errorf("%q: error %v is not an invalid argument", name, err)
	case len(err.Error()) > 300:
		t.Errorf("%q: the error has %d bytes", name[:10], len(err.Error()))
	}
}

func TestNameErrorAWS(t *testing.T) {
	long := strings.Repeat("x", 65)
	for name, want := range map[string]string{
		long:       "1 validation error detected: Value '" + long + "' at 'functionName' failed to satisfy constraint: Member must have length less than or equal to 64",
		"a b":      "1 validation error detected: Value 'a b' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+",
		long + "!": "2 validation errors detected: Value '" + long + "!' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+; Value '" + long + "!' at 'functionName' failed to satisfy constraint: Member must have length less than or equal to 64",
	} {
		var refused *NameError
		if !errors.As(ValidateFunction(name), &refused) {
			t.Fatalf("%q was not refused", name)
		}
		if got := refused.AWS(); got != want {
			t.Errorf("%q:\n got %s\nwant %s", name, got, want)
		}
	}
}

func FuzzFunctionName(f *testing.F) {
	for _, s := range []string{"hello", "", "a.b", "-", "_", "A", strings.Repeat("a", 65), "\xff", "a\n"} {
		f.Add(s)
	}
	lambda := regexp.MustCompile(`\A[a-zA-Z0-9-_]{1,64}\z`)
	label := regexp.MustCompile(`\A[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?\z`)
	version := regexp.MustCompile(`\A([rv]?[0-9]+|latest)\z`)
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := ValidateFunction(s) == nil, lambda.MatchString(s); got != want {
			t.Errorf("function %q: got %v, want %v", s, got, want)
		}
		if got, want := ValidateProject(s) == nil, label.MatchString(s) && s != "localhost"; got != want {
			t.Errorf("project %q: got %v, want %v", s, got, want)
		}
		if got, want := ValidateEnvironment(s) == nil, label.MatchString(s) && !version.MatchString(s); got != want {
			t.Errorf("environment %q: got %v, want %v", s, got, want)
		}
	})
}
