package function

import (
	"strings"
	"testing"

	"github.com/distribution/reference"
)

const testHost = "lfx.localhost:9000"

func TestImageRepository(t *testing.T) {
	for name, want := range map[string]string{
		"hello-python":          "hello-python",
		"a_b__c--d---e":         "a_b__c--d---e",
		"1":                     "1",
		"myFunc":                "my.func",
		"MyFunc":                "x.0.my.func",
		"xMyFunc":               "x.my.func",
		"a-":                    "a.1",
		"-a":                    "x.0.1a",
		"_":                     "x.0.2",
		"a___b":                 "a.2.2.2b",
		"a-_b":                  "a.1.2b",
		"hello-World":           "hello.1.world",
		"Ab-c":                  "x.0.ab-c",
		strings.Repeat("-", 64): "x.0" + strings.Repeat(".1", 64),
		strings.Repeat("A", 64): "x.0" + strings.Repeat(".a", 64),
	} {
		k := Key{Environment{"shop", "staging"}, name}
		got := ImageRepository(testHost, k)
		if want = testHost + "/shop/" + want; got != want {
			t.Errorf("%q: got %s, want %s", name, got, want)
		}
		checkRepository(t, got, k)
	}
}

// checkRepository checks that OCI takes the repository of a key and that it leads back to it.
func checkRepository(t *testing.T, repository string, k Key) {
	t.Helper()
	ref, err := reference.ParseNamed(repository)
	if err != nil || ref.String() != repository {
		t.Errorf("%q: %s is not a repository: %v", k.Function, repository, err)
	}
	host, project, name, err := ParseImageRepository(repository)
	if err != nil || host != testHost || project != k.Project || name != k.Function {
		t.Errorf("%q: %s reads back as %q %q %q, %v", k.Function, repository, host, project, name, err)
	}
}

func TestParseImageRepositoryRefusesOtherSpellings(t *testing.T) {
	for _, function := range []string{
		"", ".", "a.", "a.0", "a.3b", "x.0", "x.0.", "x.0hello", "x.0.1", "my.Func", "hello.1world",
		"hello.2world", "a..b", "x.0.x.0.a", strings.Repeat("a", 65),
	} {
		if _, _, name, err := ParseImageRepository(testHost + "/shop/" + function); err == nil && escapeFunction(name) != function {
			t.Errorf("%q reads as %q, which is written otherwise", function, name)
		}
	}
	for _, repository := range []string{"", "shop/a", "/shop/a", "h/shop/a/b", "h/Shop/a", "h//a", "h/shop/a:tag"} {
		if _, _, _, err := ParseImageRepository(repository); err == nil {
			t.Errorf("%q was taken", repository)
		}
	}
}

func FuzzImageRepository(f *testing.F) {
	for _, s := range []string{"hello", "Hello", "x.0.hello", "a--b", "-", "a_-b", "A-B_c", "my.func", "a.1"} {
		f.Add(s, "x"+s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, s := range []string{a, b} {
			// As the name of a function: valid and back again.
			if ValidateFunction(s) == nil {
				k := Key{Environment{"shop", DefaultEnvironment}, s}
				checkRepository(t, ImageRepository(testHost, k), k)
			}
			// As a repository: whatever is taken is what ImageRepository writes.
			if _, project, name, err := ParseImageRepository(testHost + "/shop/" + s); err == nil {
				if got := escapeFunction(name); got != s || project != "shop" {
					t.Errorf("%q reads as %q, which is written %q", s, name, got)
				}
			}
		}
		if a != b && ValidateFunction(a) == nil && ValidateFunction(b) == nil && escapeFunction(a) == escapeFunction(b) {
			t.Errorf("%q and %q are both written %q", a, b, escapeFunction(a))
		}
	})
}

// Every name of up to four characters of a small alphabet with everything that is special.
func TestImageRepositoryIsInjective(t *testing.T) {
	seen := map[string]string{}
	var walk func(name string)
	walk = func(name string) {
		if name != "" {
			out := escapeFunction(name)
			if other, twice := seen[out]; twice {
				t.Fatalf("%q and %q are both written %q", name, other, out)
			}
			seen[out] = name
			checkRepository(t, ImageRepository(testHost, Key{Environment{"p", "e"}, name}), Key{Environment{"p", "e"}, name})
		}
		if len(name) < 4 {
			for _, c := range "aAxX01-_" {
				walk(name + string(c))
			}
		}
	}
	walk("")
}

func TestTags(t *testing.T) {
	for _, c := range []struct {
		env  string
		kind TagKind
		n    int
		want string
	}{
		{DefaultEnvironment, TagVersion, 3, "v3"},
		{DefaultEnvironment, TagRelease, 7, "r7"},
		{"staging", TagVersion, 3, "staging-v3"},
		{"staging", TagRelease, 7, "staging-r7"},
		{"a-v1", TagVersion, 2, "a-v1-v2"},
		{"v", TagRelease, 2, "v-r2"},
	} {
		got := VersionTag(c.env, c.n)
		if c.kind == TagRelease {
			got = ReleaseTag(c.env, c.n)
		}
		if got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
		if env, kind, n, err := ParseTag(got); err != nil || env != c.env || kind != c.kind || n != c.n {
			t.Errorf("%s reads as %q %c %d, %v", got, env, kind, n, err)
		}
	}
	for _, tag := range []string{"", "v", "v0", "v03", "3", "default-v3", "v3-r3", "-v3", "a-", "a-3", "A-v3", "a-v3x", "latest", "v99999999999999999999", "a--v"} {
		if env, kind, n, err := ParseTag(tag); err == nil {
			t.Errorf("%q reads as %q %c %d", tag, env, kind, n)
		}
	}
}

func FuzzTags(f *testing.F) {
	f.Add("staging", 3, "v3")
	f.Add("default", 1, "default-v1")
	f.Add("a-v1", 12, "a-v1-r12")
	f.Fuzz(func(t *testing.T, env string, n int, text string) {
		if ValidateEnvironment(env) == nil && n > 0 {
			seen := map[string]bool{VersionTag(DefaultEnvironment, n): true}
			for kind, tag := range map[TagKind]string{TagVersion: VersionTag(env, n), TagRelease: ReleaseTag(env, n)} {
				if env != DefaultEnvironment && seen[tag] {
					t.Errorf("tag %s means two things", tag)
				}
				e, k, m, err := ParseTag(tag)
				if err != nil || e != env || k != kind || m != n {
					t.Errorf("%s reads as %q %c %d, %v", tag, e, k, m, err)
				}
				if _, err := reference.ParseNamed("h.example/p/f:" + tag); err != nil {
					t.Errorf("OCI refuses tag %s: %v", tag, err)
				}
			}
		}
		if e, kind, m, err := ParseTag(text); err == nil && tag(e, kind, m) != text {
			t.Errorf("%q reads as %q %c %d, which is written %q", text, e, kind, m, tag(e, kind, m))
		}
	})
}
