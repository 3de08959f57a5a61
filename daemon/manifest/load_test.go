package manifest

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/function"
)

// write writes files below a new folder called name and returns it; a name that ends in / is a folder.
func write(t testing.TB, name string, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range files {
		p := filepath.Join(dir, filepath.FromSlash(file))
		if strings.HasSuffix(file, "/") {
			if err := os.MkdirAll(p, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func vars(m map[string]string) Lookup {
	return func(name string) (string, bool) {
		v, ok := m[name]
		return v, ok
	}
}

func TestLoad(t *testing.T) {
	dir := write(t, "x", map[string]string{
		"cart/Dockerfile.prod": "FROM scratch\n",
		"worker/Dockerfile":    "FROM scratch\n",
		"common.env":           "SHARED=1\nTABLE=from file\nINHERITED\nMISSING\n",
		"lfx.yaml": `
project: shop
x-defaults: &defaults
  memory: 256MiB
  timeout: 1m30s
  env_file: [common.env]
functions:
  worker:
    <<: *defaults
    build: ./worker/
    memory: ${MEM}
    cpu: 500m
    port: "${PORT}"
    entrypoint: /usr/bin/worker --mode 'one shot'
    command: []
    default: ${YES}
  cart:
    <<: *defaults
    build: {context: cart, dockerfile: ./Dockerfile.prod, target: final, args: {REVISION: "${REV:-unknown}", DEBUG: true}}
    environment:
      TABLE: carts
      RATIO: 1.10
      HOME_DIR: ${HOME}/x
      GIVEN:
      ABSENT: ~
    concurrency: {min: 1, max: 20}
    tmp: 1GB
    workdir: /srv
  pulled: {image: alpine, cpu: 2, timeout: 30, command: [a, "b c"]}
canary: {after: 1h, min_requests: 20, max_p99_ratio: "${RATIO:-1.25}"}
`})
	got, err := Load(dir, Options{
		Environment: "staging",
		Lookup:      vars(map[string]string{"MEM": "1GiB", "PORT": "9001", "YES": "true", "HOME": "/root", "GIVEN": "g$x", "INHERITED": "i"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &Project{
		Environment: function.Environment{Project: "shop", Name: "staging"},
		Dir:         dir,
		File:        "lfx.yaml",
		Canary:      Canary{After: time.Hour, MinRequests: 20, MaxErrorRate: 0.01, MaxP99Ratio: 1.25},
		Specs: []function.Spec{{
			Name:  "cart",
			Build: &function.Build{Context: "cart", Dockerfile: "Dockerfile.prod", Target: "final", Args: map[string]string{"REVISION": "unknown", "DEBUG": "true"}},
			Config: function.Config{
				MemoryMB: 256, TmpMB: 1024, Timeout: 90 * time.Second, Workdir: "/srv", Concurrency: function.Concurrency{Min: 1, Max: 20},
				Environment: map[string]string{"SHARED": "1", "TABLE": "carts", "RATIO": "1.10", "HOME_DIR": "/root/x", "GIVEN": "g$x", "INHERITED": "i"},
			},
		}, {
			Name:   "pulled",
			Image:  "alpine",
			Config: function.Config{MemoryMB: 128, TmpMB: 512, CPU: 2, Timeout: 30 * time.Second, Command: []string{"a", "b c"}},
		}, {
			Name:  "worker",
			Build: &function.Build{Context: "worker"},
			Config: function.Config{
				MemoryMB: 1024, TmpMB: 512, CPU: 0.5, Timeout: 90 * time.Second, Command: []string{},
				Entrypoint:  []string{"/usr/bin/worker", "--mode", "one shot"},
				Environment: map[string]string{"SHARED": "1", "TABLE": "from file", "INHERITED": "i"},
			},
			Default: true, Port: 9001,
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Each case is a manifest and the errors it makes, line by line.
func TestLoadReportsEverythingAtOnce(t *testing.T) {
	for _, c := range []struct{ what, text, want string }{
		{"many", `project: Shop
functions:
  hello:
    biuld: ./hello
    memory: 12 potatoes
    timeout: 1000s
    memory: 5
  bad name:
    build: ./nope
    default: yes
  c:
    image: alpine
    memory: 3
    environment: {AWS_REGION: x, FOO: "${NOPE}", BAR: [1]}
  d:
  e:
    build: ../x
    image: alpine
  f: {build: hello, port: 70000, concurrency: {min: 3, max: 2}, workdir: /proc/1}
  g: {build: hello, dockerfile: x, handler: y}
`, `lfx.yaml:1: project: "Shop" holds 'S': only lower-case letters, digits and hyphens are allowed
lfx.yaml:4: functions.hello: unknown key "biuld": did you mean build?
lfx.yaml:5: functions.hello.memory: "12 potatoes" is not a size: write 256MiB, 1GiB or a number of MiB
lfx.yaml:6: functions.hello.timeout: 16m40s is out of range: 1s to 900s
lfx.yaml:7: functions.hello.memory: is written twice: the first is in line 5
lfx.yaml:8: functions.bad name: function name "bad name" holds ' ': only the letters a-z and A-Z, digits, hyphens and underscores are allowed
lfx.yaml:9: functions.bad name.build: folder "nope" does not exist
lfx.yaml:10: functions.bad name.default: "yes" is not a boolean: write true or false
lfx.yaml:13: functions.c.memory: 3 MiB is out of range: 128 MiB to 10240 MiB
lfx.yaml:14: functions.c.environment.AWS_REGION: is reserved: the platform sets it; choose another name
lfx.yaml:14: functions.c.environment.FOO: ${NOPE} is not set: set it, or give it a default with ${NOPE:-default}
lfx.yaml:14: functions.c.environment.BAR: must be a string, a number or a boolean, not a list
lfx.yaml:15: functions.d: has neither build nor image: write build: and the folder of its Dockerfile, or image: and a reference
lfx.yaml:17: functions.e.build.context: "../x" is outside the project folder
lfx.yaml:18: functions.e.image: stands beside build: keep one of the two
lfx.yaml:19: functions.f.port: 70000 is not a port: 1 to 65535
lfx.yaml:19: functions.f.concurrency.min: 3 is above max, 2
lfx.yaml:19: functions.f.workdir: "/proc/1" is below /proc, which is the kernel's: choose another folder
lfx.yaml:20: functions.g: unknown key "dockerfile": did you mean build.dockerfile?
lfx.yaml:20: functions.g: unknown key "handler": did you mean command?`},
		{"types", `project: [a]
functions:
  f:
    build: 3
    memory: {a: b}
    cpu: fast
    timeout:
    env_file: {}
    concurrency: 3
    command: [a, 1, true]
    default: 1
    port: high
    workdir: ""
`, `lfx.yaml:1: project: must be a name, not a list
lfx.yaml:4: functions.f.build: 3 is a number: quote it
lfx.yaml:5: functions.f.memory: must be a size, not a mapping
lfx.yaml:6: functions.f.cpu: "fast" is not a CPU share: write 0.5, 2 or 500m
lfx.yaml:7: functions.f.timeout: has no value: write a duration, or remove the key
lfx.yaml:8: functions.f.env_file: must be a file, not a mapping
lfx.yaml:9: functions.f.concurrency: must be a mapping, not a number
lfx.yaml:10: functions.f.command[1]: 1 is a number: quote it
lfx.yaml:10: functions.f.command[2]: true is a boolean: quote it
lfx.yaml:11: functions.f.default: "1" is not a boolean: write true or false
lfx.yaml:12: functions.f.port: "high" is not a whole number from 0
lfx.yaml:13: functions.f.workdir: is empty: write an absolute path, or remove the key`},
		{"shared", "functions:\n  a: {build: hello, port: 9001, default: true}\n  b: {build: hello, port: 9001, default: true}\n",
			`lfx.yaml:3: functions.b.port: 9001 is the port of a already: give each function a port of its own
lfx.yaml:3: functions.b.default: a is the default already: only one function can be`},
		{"canary", "canary: {after: 5s, min_requests: 0, max_error_rate: 2, max_p99_ratio: 0.5, more: 1}\nfunctions: {a: {build: hello}}\n",
			`lfx.yaml:1: canary.after: 5s is not between 10s and 168h
lfx.yaml:1: canary.min_requests: 0 is not between 1 and 1000000000
lfx.yaml:1: canary.max_error_rate: "2" is not a number between 0 and 1
lfx.yaml:1: canary.max_p99_ratio: "0.5" is not a number between 1 and 1000
lfx.yaml:1: canary: unknown key "more": the keys here are after, min_requests, max_error_rate, max_p99_ratio`},
		{"empty", "", "lfx.yaml:1: is empty: write functions: and at least one function"},
		{"comment", "# nothing\n", "lfx.yaml:1: is empty: write functions: and at least one function"},
		{"null", "---\n~\n", "lfx.yaml:2: is empty: write functions: and at least one function"},
		{"no functions", "project: shop\n", "lfx.yaml:1: has no functions: write functions: and at least one function"},
		{"misspelt", "lambdas: {}\n", `lfx.yaml:1: unknown key "lambdas": did you mean functions?`},
		{"empty functions", "functions: {}\n", "lfx.yaml:1: functions: is empty: a project needs at least one function"},
		{"null functions", "functions:\n", "lfx.yaml:1: functions: must be a mapping, not nothing"},
		{"list", "- a\n", "lfx.yaml:1: must be a mapping, not a list"},
		{"two documents", "functions: {a: {build: hello}}\n---\na: b\n", "lfx.yaml:2: holds a second document: keep one"},
		{"tab", "functions:\n\ta: b\n", "lfx.yaml:2: is not YAML: found character that cannot start any token; the line is indented with a tab: use spaces"},
		{"syntax", "functions:\n  a: b: c\n", "lfx.yaml:2: is not YAML: mapping values are not allowed in this context"},
		{"control", "functions:\n  a: \x01\n", "lfx.yaml:2: is not text: it must be UTF-8 without control characters"},
		{"latin", "functions:\n\n  a: \xff\n", "lfx.yaml:3: is not text: it must be UTF-8 without control characters"},
		{"tag", "functions:\n  a: {build: !secret hello}\n", `lfx.yaml:2: functions.a.build: the tag "!secret" means nothing here: remove it`},
		{"anchor", "functions:\n  a: {build: *x}\n", "lfx.yaml:1: is not YAML: unknown anchor 'x' referenced"},
		{"merge", "functions:\n  a: {<<: 3, build: hello}\n", "lfx.yaml:2: functions.a.<<: must name a mapping or a list of mappings, not a number"},
		{"merge of itself", "x-a: &a\n  <<: *a\nfunctions:\n  b:\n    <<: *a\n    build: hello\n", "lfx.yaml:2: functions.b.<<: is nested too deeply"},
		{"key", "functions:\n  [a]: 1\n", "lfx.yaml:2: functions: a key must be a single word, not a list"},
		{"context is a file", "functions: {a: {build: hello/Dockerfile}}\n", `lfx.yaml:1: functions.a.build: "hello/Dockerfile" is a file: write the folder that holds it`},
		{"dockerfile", "functions: {a: {build: {context: hello, dockerfile: nope}}}\n", `lfx.yaml:1: functions.a.build: there is no nope in folder "hello"`},
		{"dockerfile is a folder", "functions: {a: {build: {context: ., dockerfile: hello}}}\n", `lfx.yaml:1: functions.a.build: hello in folder "." is a folder, not a regular file`},
		{"absolute", "functions: {a: {build: /etc}}\n", `lfx.yaml:1: functions.a.build.context: "/etc" is absolute: write it relative to the project folder`},
		{"git", "functions: {a: {build: 'https://github.com/x/y.git'}}\n", `lfx.yaml:1: functions.a.build.context: "https://github.com/x/y.git" is not a folder: only folders of the project can be built`},
		{"no context", "functions: {a: {build: {target: x}}}\n", "lfx.yaml:1: functions.a.build: has no context: write the folder of the Dockerfile, for example ./hello"},
		{"env files", "functions:\n  a:\n    build: hello\n    env_file: [nope, bad.env, ../x]\n", `lfx.yaml:4: functions.a.env_file[0]: "nope" does not exist
lfx.yaml:4: functions.a.env_file[2]: "../x" cannot be opened inside the project folder: path escapes from parent
bad.env:2: functions.a.environment.AWS_REGION: is reserved: the platform sets it; choose another name
bad.env:3: this line is not NAME=value: a name has letters, digits and underscores, no digit first
bad.env:4: QUOTE: the quote is never closed`},
		{"words", "functions: {a: {build: hello, command: \"a 'b\", entrypoint: ' '}}\n", `lfx.yaml:1: functions.a.command: "a 'b" has a quote that is never closed
lfx.yaml:1: functions.a.entrypoint: is empty: write a list of strings, or remove the key`},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := write(t, "shop", map[string]string{
				"hello/Dockerfile": "FROM scratch\n",
				"bad.env":          "# fine\nAWS_REGION=x\nA B=c\nQUOTE='secret\n",
				"lfx.yaml":         c.text,
			})
			p, err := Load(dir, Options{})
			var errs Errors
			if p != nil || !errors.As(err, &errs) {
				t.Fatalf("got %v, %v, want Errors", p, err)
			}
			if diff := cmp.Diff(c.want, err.Error()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Error("not an invalid argument")
			}
		})
	}
}

func TestLoadFiles(t *testing.T) {
	const fine = "functions: {a: {image: alpine}}\n"
	for _, c := range []struct {
		what  string
		files map[string]string
		then  func(t *testing.T, dir string)
		want  string // of the error; empty for none
	}{
		{"lfx.yml", map[string]string{"lfx.yml": fine}, nil, ""},
		{"both", map[string]string{"lfx.yml": fine, "lfx.yaml": fine}, nil, "lfx.yml: stands beside lfx.yaml: remove one of the two"},
		{"folder", map[string]string{"lfx.yaml/": ""}, nil, "lfx.yaml: is a folder, not a regular file"},
		{"large", map[string]string{"lfx.yaml": strings.Repeat("#", 1<<20) + "\n"}, nil, "lfx.yaml: is larger than 1024 KiB"},
		{"link inside", map[string]string{"real.yaml": fine}, func(t *testing.T, dir string) { link(t, "real.yaml", filepath.Join(dir, "lfx.yaml")) }, ""},
		{"link outside", nil, func(t *testing.T, dir string) { link(t, "/etc/hostname", filepath.Join(dir, "lfx.yaml")) },
			"lfx.yaml: cannot be opened inside the project folder: path escapes from parent"},
		{"context behind a link", map[string]string{"lfx.yaml": "functions: {a: {build: out}}\n"}, func(t *testing.T, dir string) { link(t, "/etc", filepath.Join(dir, "out")) },
			`lfx.yaml:1: functions.a.build: folder "out" cannot be opened inside the project folder: path escapes from parent`},
		{"Dockerfile behind a link", map[string]string{"lfx.yaml": "functions: {a: {build: in}}\n", "Dockerfile": "", "in/x": ""}, func(t *testing.T, dir string) { link(t, "../Dockerfile", filepath.Join(dir, "in", "Dockerfile")) },
			`lfx.yaml:1: functions.a.build: Dockerfile in folder "in" cannot be opened inside the project folder: path escapes from parent`},
		{"env file behind a link", map[string]string{"lfx.yaml": "functions: {a: {image: alpine, env_file: e}}\n"}, func(t *testing.T, dir string) { link(t, "/etc/hostname", filepath.Join(dir, "e")) },
			`lfx.yaml:1: functions.a.env_file: "e" cannot be opened inside the project folder: path escapes from parent`},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := write(t, "shop", c.files)
			if c.then != nil {
				c.then(t, dir)
			}
			_, err := Load(dir, Options{})
			checkError(t, err, c.want)
		})
	}
}

func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Skipf("no symbolic links: %v", err)
	}
}

// checkError checks the text of an error; none is wanted when want is empty.
func checkError(t *testing.T, err error, want string) {
	t.Helper()
	got := ""
	if err != nil {
		got = err.Error()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLoadFolder(t *testing.T) {
	dir := write(t, "shop", map[string]string{"lfx.yaml": "functions: {a: {image: alpine}}\n"})
	_, err := Load(filepath.Join(dir, "nope"), Options{})
	checkError(t, err, "project folder "+filepath.Join(dir, "nope")+" does not exist")
	_, err = Load(filepath.Join(dir, "lfx.yaml"), Options{})
	checkError(t, err, filepath.Join(dir, "lfx.yaml")+" is not a folder: name the project folder that holds it")
	_, err = Load(dir, Options{Environment: "v3"})
	checkError(t, err, `environment name "v3" looks like a version: v and a number are the tag of one`)

	t.Chdir(dir)
	p, err := Load(".", Options{})
	if err != nil || p.Dir != dir || p.Project != "shop" || p.Name != function.DefaultEnvironment {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestDiscover(t *testing.T) {
	const d = "FROM scratch\n"
	for _, c := range []struct {
		what, dir string
		files     map[string]string
		project   string
		functions string // "name=context …"
		warnings  int
		err       string
	}{
		{"folders", "My_Shop.v2", map[string]string{"b/Dockerfile": d, "A_1/Dockerfile": d, ".git/Dockerfile": d, "c/x": "", "d/Dockerfile/": ""}, "my-shop-v2", "A_1=A_1 b=b", 0, ""},
		{"itself", "hello", map[string]string{"Dockerfile": d, "src/x": ""}, "hello", "hello=.", 0, ""},
		{"both", "hello", map[string]string{"Dockerfile": d, "a/Dockerfile": d}, "hello", "a=a", 1, ""},
		{"project name", "größe", map[string]string{"a/Dockerfile": d}, "", "", 0,
			`the folder's name "größe" makes no name for the project (project name "größe" holds 'ö': only lower-case letters, digits and hyphens are allowed): write an lfx.yaml with project: and a name`},
		{"function names", "shop", map[string]string{"a b/Dockerfile": d, "c.d/Dockerfile": d}, "", "", 0,
			`a b/Dockerfile: function name "a b" holds ' ': only the letters a-z and A-Z, digits, hyphens and underscores are allowed; rename the folder, or write an lfx.yaml that names the function
c.d/Dockerfile: function name "c.d" holds '.': only the letters a-z and A-Z, digits, hyphens and underscores are allowed; rename the folder, or write an lfx.yaml that names the function`},
	} {
		t.Run(c.what, func(t *testing.T) {
			p, err := Load(write(t, c.dir, c.files), Options{})
			checkError(t, err, c.err)
			if err != nil {
				return
			}
			var got []string
			for _, s := range p.Specs {
				got = append(got, s.Name+"="+s.Build.Context)
			}
			if p.Project != c.project || strings.Join(got, " ") != c.functions || len(p.Warnings) != c.warnings || p.File != "" {
				t.Errorf("got %+v", p)
			}
			if err := function.ValidateSpecs(p.Specs).Err(); err != nil {
				t.Error(err)
			}
		})
	}
	dir := write(t, "empty", map[string]string{"a/x": ""})
	_, err := Load(dir, Options{})
	checkError(t, err, "no functions in "+dir+": put a Dockerfile into a folder for each function, or write an lfx.yaml")
}

// Files that would be slow or large if they were expanded or parsed carelessly.
func TestLoadIsBounded(t *testing.T) {
	values := strings.Repeat("  - [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n", 9)
	var nested, wide, merged strings.Builder
	nested.WriteString("x-0: &a0 [x, x]\n")
	for i := range 60 {
		nested.WriteString(strings.ReplaceAll(strings.ReplaceAll("x-N: &aN [*aM, *aM, *aM]\n", "N", strconv.Itoa(i+1)), "M", strconv.Itoa(i)))
	}
	nested.WriteString("functions: {f: {image: alpine, command: *a60}}\n")
	wide.WriteString("x-e: &e\n")
	for i := range 5000 {
		wide.WriteString("  V" + strconv.Itoa(i) + ": " + strings.Repeat("x", 50) + "\n")
	}
	wide.WriteString("functions:\n")
	for i := range 5000 {
		wide.WriteString("  f" + strconv.Itoa(i) + ": {image: alpine, environment: *e}\n")
	}
	merged.WriteString("x-0: &m0 {A0: x}\n")
	for i := range 15 {
		merged.WriteString(strings.ReplaceAll(strings.ReplaceAll("x-N: &mN {<<: [*mM, *mM, *mM, *mM, *mM, *mM, *mM, *mM]}\n", "N", strconv.Itoa(i+1)), "M", strconv.Itoa(i)))
	}
	merged.WriteString("functions: {f: {image: alpine, environment: *m15}}\n")
	for what, text := range map[string]string{
		"aliases":   nested.String(),
		"fan out":   wide.String(),
		"merges":    merged.String(),
		"lists":     "x-a: &a [x]\nx-b:\n" + values,
		"flow":      strings.Repeat("[", 1<<19),
		"map flow":  strings.Repeat("{a: ", 1<<17),
		"block":     strings.Repeat("- ", 1<<19),
		"question":  strings.Repeat("? ", 1<<19),
		"comments":  strings.Repeat("#\n", 1<<18) + "functions: {f: {image: alpine}}\n",
		"anchors":   strings.Repeat("&a ", 1<<18),
		"many keys": "functions:\n" + strings.Repeat("  a: {}\n", 1<<16),
		"scalar":    "functions: {f: {image: '" + strings.Repeat("${A:-", 1<<17) + "'}}\n",
		"expanding": "functions: {f: {image: alpine, environment: {AB: '" + strings.Repeat("${BIG}", 1<<16) + "'}}}\n",
	} {
		t.Run(what, func(t *testing.T) {
			dir := write(t, "shop", map[string]string{"lfx.yaml": text})
			start := time.Now()
			_, err := Load(dir, Options{Lookup: vars(map[string]string{"BIG": strings.Repeat("x", 1<<16)})})
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
			var errs Errors
			if errors.As(err, &errs) && (len(errs) > maxErrors || len(err.Error()) > 100_000) {
				t.Errorf("%d errors in %d bytes", len(errs), len(err.Error()))
			}
			t.Logf("%v, %.200v", time.Since(start), err)
		})
	}
}
