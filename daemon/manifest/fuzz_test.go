package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// FuzzLoad reads arbitrary manifests: no panic, bounded time, every error with a line of the file,
// and whatever is taken is valid.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		"", "functions: {}", "project: a\nfunctions:\n  hello:\n    build: hello\n    env_file: e\n",
		"functions:\n  a: &a {image: alpine, memory: 1GiB, cpu: 500m, environment: {AB: ~, CD: '${X:-y}'}}\n  b: {<<: *a, port: 9}\n",
		"functions: {a: {build: {context: ., dockerfile: hello/Dockerfile, args: {A: 1}}, command: a 'b', timeout: 1m}}",
		"x-a: &x [*x]\n", "? a\n: b\n", "a: |\n  b\n--- !!map\n", "&a *a : b", "functions: {a: {<<: [{image: x}, {image: y}]}}",
		"%YAML 1.1\n---\nfunctions: !!map {}\n", "\ufefffunctions: {}\n", "functions:\r\n  a:\r    image: x", "{functions: {a: {image: x, default: ${A}}}}",
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	for name, text := range map[string]string{"hello/Dockerfile": "FROM scratch\n", "e": "FROM_FILE=1\n", "hello/e": "'\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { root.Close() })
	lookup := vars(map[string]string{"A": "true", "X": "1"})
	f.Fuzz(func(t *testing.T, data []byte) {
		start := time.Now()
		p, errs := parse(root, "lfx.yaml", data, lookup)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
		lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + 2 +
			strings.Count(string(data), "\u0085") + strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029")
		for _, e := range errs {
			if e.Line < 1 || e.File == "lfx.yaml" && e.Line > lines || e.Msg == "" || strings.Contains(e.Msg, "\n") {
				t.Errorf("bad error %+v of %d lines", e, lines)
			}
		}
		if len(errs) > 0 {
			return
		}
		var specs []function.Spec
		for _, f := range p.functions {
			specs = append(specs, f.Spec)
		}
		if err := function.ValidateSpecs(specs).Err(); err != nil {
			t.Errorf("taken, but not valid: %v", err)
		}
	})
}

// FuzzInterpolate: no panic, bounded output, and text without dollars stays as it is.
func FuzzInterpolate(f *testing.F) {
	for _, s := range []string{"", "$", "$$", "${A}", "${A:-${B:-c}}", "${A:?m}", "${", "$A", "${A:-", "}", "${A:-$$}"} {
		f.Add(s, "value")
	}
	f.Fuzz(func(t *testing.T, s, value string) {
		set := func(string) (string, bool) { return value, true }
		got, problems := interpolate(s, set)
		if !strings.Contains(s, "$") && (got != s || problems != nil) {
			t.Errorf("%q became %q, %q", s, got, problems)
		}
		if len(got) > maxText+len(s)+len(value) || len(problems) > maxErrors+1 {
			t.Errorf("%q: %d bytes, %d problems", s, len(got), len(problems))
		}
		// Doubled dollars always mean the text itself.
		if escaped, problems := interpolate(strings.ReplaceAll(s, "$", "$$"), set); escaped != s || problems != nil {
			t.Errorf("%q escaped became %q, %q", s, escaped, problems)
		}
	})
}

// FuzzEnvFile: no panic, lines inside the file, names that are names.
func FuzzEnvFile(f *testing.F) {
	for _, s := range []string{"", "A=1\n", "export A='x\ny' # c\n", `A="\n\"x"`, "A", "=", "'", "\ufeffA=1\r\nB", "A=\"", "export\tA=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		entries, errs := parseEnvFile(s)
		lines := strings.Count(s, "\n") + 1
		for _, e := range entries {
			if e.name == "" || leadingName(e.name) != e.name || e.line < 1 || e.line > lines || e.inherit && e.value != "" {
				t.Errorf("bad entry %+v of %d lines", e, lines)
			}
		}
		for _, e := range errs {
			if e.Line < 1 || e.Line > lines || e.Msg == "" {
				t.Errorf("bad error %+v of %d lines", e, lines)
			}
		}
	})
}
