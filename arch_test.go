package lfxd_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "lfx.dev/lfxd"

var update = flag.Bool("update", false, "write the generated parts of ARCHITECTURE.md")

// arrows says which packages of this module a package may import, and why. It is the whole truth: an
// import that is not here fails, and so does a row that nobody needs any more. A name that ends in
// /... stands for everything below, and such a row may have more than is needed.
// A row whose package ends in /... is for all of these. ARCHITECTURE.md shows the table:
// go test . -run TestArrows -update.
var arrows = []struct{ from, to, why string }{
	{"cmd/lfxd", "daemon daemon/config daemon/store internal/procs", "flags over configuration, then one Daemon; store for the error that means exit status 75"},
	{"cmd/lfxctl", "daemon/client daemon/api daemon/function daemon/manifest buildkit/source buildkit/progress",
		"reaches the daemon through its client only; reads the manifest, offers the sources and draws the build, all of which builds on every platform"},
	{"cmd/lfx-init", "runtime/lfxinit", "only calls Main"},
	{"daemon/...", "daemon/internal/failpoint", "a leaf: points at which tests kill, delay or fail the daemon; empty without its build tag"},
	{"daemon", "daemon/... buildkit cni/... internal/procs runtime/...", "the one place that knows every part and joins them"},
	{"daemon/api", "daemon/function", "the wire form of versions and releases is the domain's own"},
	{"daemon/client", "daemon/api daemon/function", "speaks the wire types"},
	{"daemon/deploy", "daemon/api daemon/function daemon/store buildkit internal/procs runtime/image", "the use case of a deploy joins record, builder and images; releases reach it as an interface"},
	{"daemon/gateway", "daemon/api daemon/function daemon/invocation", "Invoke knows names and the outcome of an invocation, not who runs it; api for the name of a header"},
	{"daemon/invocation", "daemon/function", "the leaf between gateway and pool: what travels for one invocation"},
	{"daemon/judge", "daemon/function daemon/histogram", "decides about canaries by figures; who counts and who acts it reaches as interfaces"},
	{"daemon/logs", "daemon/api daemon/function internal/nbio internal/procs", "an entry is the same on disk and on the wire"},
	{"daemon/manifest", "daemon/function", "a manifest becomes function specs"},
	{"daemon/metrics", "daemon/function daemon/histogram daemon/invocation", "counts calls by what the gateway tells of them, and writes the judge's histograms"},
	{"daemon/pool", "daemon/function daemon/histogram daemon/invocation daemon/pool/policy", "decides which instance serves, policy how long one is kept, and counts; makes none itself (pool.Starter)"},
	{"daemon/records", "daemon/api daemon/function daemon/invocation", "remembers calls, and answers in the wire form"},
	{"daemon/server", "daemon/api daemon/function daemon/gateway daemon/invocation internal/http1 internal/nbio", "one route table for both APIs, so it holds the gateway; the codec of Invoke"},
	{"daemon/store", "daemon/function", "records the domain"},
	{"daemon/store/storetest", "daemon/store daemon/function internal/tmpdir", "the contract that every store passes, in folders that need no disk"},
	{"daemon/worker", "daemon/function daemon/invocation daemon/logs daemon/pool runtime/instance runtime/rapi",
		"implements pool.Starter: joins an instance, the Runtime API that it polls and the function's log"},
	{"cni", "cni/dns cni/firewall", "order is the security property: tables, bridges, forwarder, probe"},
	{"integration/sim", "daemon/pool/policy integration/sim/trace", "no black box: it drives the pool's own policy through a synthetic day"},
	{"integration/...", "daemon/api daemon/client daemon/function", "black boxes: they meet lfxd as its clients do"},
	{"runtime/cgroup", "internal/nbio", "reads a watermark for every invocation"},
	{"runtime/instance", "runtime/cgroup runtime/lfxinit", "an instance has a cgroup, and lfx-init as PID 1"},
	{"runtime/rapi", "internal/http1 internal/nbio", "its codec shares the parsing of heads and the writes that do not wait with that of Invoke"},
}

// walls are what a package must not reach, not even through others. Packages of this module begin with
// a dot there, as on go's command line: one of them is called runtime, and so is one of Go's.
var walls = []struct{ from, never, why string }{
	{"runtime/...", "./daemon/... ./cmd/... ./buildkit/... ./cni/...", "mechanism knows no policy, and areas do not know each other: the one who uses declares an interface and daemon joins them"},
	{"buildkit/...", "./daemon/... ./cmd/... ./runtime/... ./cni/...", "as above"},
	{"cni/...", "./daemon/... ./cmd/... ./runtime/... ./buildkit/...", "as above"},
	{"daemon/gateway", "github.com/containerd/containerd/... modernc.org/sqlite/... github.com/moby/...", "the warm path neither calls containerd nor waits for a disk"},
	{"daemon/metrics", "github.com/containerd/containerd/... modernc.org/sqlite/... github.com/moby/...", "as above"},
	{"daemon/records", "github.com/containerd/containerd/... modernc.org/sqlite/... github.com/moby/...", "as above; records have nothing on disk"},
	{"daemon/pool", "github.com/containerd/containerd/... modernc.org/sqlite/... github.com/moby/...", "as above; a Starter makes instances"},
	{"runtime/rapi", "github.com/containerd/containerd/... modernc.org/sqlite/... github.com/moby/...", "as above"},
	{"cmd/lfxctl", "./daemon/store ./daemon/engine ./daemon/worker ./cni/... ./runtime/... modernc.org/sqlite/... github.com/containerd/containerd/v2/client github.com/vishvananda/... github.com/google/nftables/...",
		"lfxctl runs on macOS and Windows and is small"},
	{"cmd/lfx-init", "fmt net", "lfx-init is mapped by every instance: it stays small and starts fast"},
}

// pkg is what `go list` says of a package.
type pkg struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

// packages lists every package that the module's own need, by import path; loaded once.
var packages = sync.OnceValues(func() (map[string]*pkg, error) {
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,Standard", "./...").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", stderrOf(err))
	}
	all := map[string]*pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			return nil, err
		}
		all[p.ImportPath] = &p
	}
	return all, nil
})

func stderrOf(err error) error {
	if e, ok := err.(*exec.ExitError); ok {
		return fmt.Errorf("%w: %s", err, e.Stderr)
	}
	return err
}

func load(t *testing.T) map[string]*pkg {
	t.Helper()
	all, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// own returns the name of a package of this module without the module's: "daemon/pool".
func own(importPath string) (string, bool) {
	name, ok := strings.CutPrefix(importPath, module+"/")
	return name, ok
}

// matches reports whether name is pattern, or below it when that ends in /... .
func matches(pattern, name string) bool {
	dir, below := strings.CutSuffix(pattern, "/...")
	return name == dir || below && strings.HasPrefix(name, dir+"/")
}

func TestArrows(t *testing.T) {
	type row struct{ from, to string }
	var rows []row
	for _, a := range arrows {
		for _, to := range strings.Fields(a.to) {
			rows = append(rows, row{a.from, to})
		}
	}
	all := load(t)
	used := map[row]bool{}
	for _, p := range all {
		from, ok := own(p.ImportPath)
		if !ok {
			continue
		}
		for _, i := range p.Imports {
			to, ok := own(i)
			if !ok {
				continue
			}
			n := slices.IndexFunc(rows, func(r row) bool { return matches(r.from, from) && matches(r.to, to) })
			if n < 0 {
				t.Errorf("%s imports %s, which no arrow in arch_test.go allows: turn it round with an interface, or add the arrow with its reason", from, to)
				continue
			}
			used[rows[n]] = true
		}
	}
	for _, r := range rows {
		if !used[r] && !strings.Contains(r.from+r.to, "/...") {
			t.Errorf("arch_test.go allows %s to import %s, which it does not: remove the arrow", r.from, r.to)
		}
	}
}

func TestWalls(t *testing.T) {
	all := load(t)
	for _, w := range walls {
		for _, p := range all {
			from, ok := own(p.ImportPath)
			if !ok || !matches(w.from, from) {
				continue
			}
			if chain := reach(all, p.ImportPath, strings.Fields(w.never)); chain != nil {
				t.Errorf("%s reaches what it must not (%s):\n    %s", from, w.why, strings.Join(chain, "\n    → "))
			}
		}
	}
}

// reach returns the shortest chain of imports from a package to one that matches a pattern, or nil.
func reach(all map[string]*pkg, from string, never []string) []string {
	came := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		name, ours := own(at)
		if ours {
			name = "./" + name
		} else {
			name = at
		}
		if at != from && slices.ContainsFunc(never, func(n string) bool { return matches(n, name) }) {
			var chain []string
			for ; at != ""; at = came[at] {
				chain = append([]string{at}, chain...)
			}
			return chain
		}
		if all[at] == nil {
			continue
		}
		for _, next := range all[at].Imports {
			if _, seen := came[next]; !seen {
				came[next] = at
				queue = append(queue, next)
			}
		}
	}
	return nil
}

// lfxctl must be buildable elsewhere. Compiling it for every system takes too long for each test run;
// a package that has no file for a system is found without that.
func TestLfxctlIsPortable(t *testing.T) {
	for _, goos := range []string{"darwin", "windows"} {
		cmd := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}", "./cmd/lfxctl")
		cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=arm64", "CGO_ENABLED=0")
		if _, err := cmd.Output(); err != nil {
			t.Errorf("lfxctl for %s: %v", goos, stderrOf(err))
		}
	}
}

// The arrows are shown in ARCHITECTURE.md.
func TestArrowsAreDocumented(t *testing.T) {
	const file, begin, end = "ARCHITECTURE.md", "<!-- arrows: generated by go test . -run TestArrows -update -->\n", "<!-- end of arrows -->"
	var b strings.Builder
	b.WriteString("\n| package | imports | why |\n|---|---|---|\n")
	for _, a := range arrows {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", a.from, quoteAll(a.to), a.why)
	}
	b.WriteString("\n| package | never reaches | why |\n|---|---|---|\n")
	for _, w := range walls {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", w.from, quoteAll(w.never), w.why)
	}
	b.WriteString("\n")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the arrows: %q … %q", file, begin, end)
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+b.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(b.String(), got); diff != "" {
		t.Errorf("%s differs from arch_test.go: run go test . -run TestArrows -update (-want +got):\n%s", file, diff)
	}
}

func quoteAll(words string) string {
	return "`" + strings.Join(strings.Fields(words), "`, `") + "`"
}

// tracked lists the files of the repository that exist, by their slash-separated path.
var tracked = sync.OnceValues(func() ([]string, error) {
	// go test reuses a result until a file that the test looked at changes; what git looks at, it does not see.
	os.Stat(".git/index") //nolint:errcheck // only to be noticed
	out, err := exec.Command("git", "ls-files", "-z").Output()
	if err != nil {
		return nil, stderrOf(err)
	}
	return slices.DeleteFunc(strings.Split(strings.TrimRight(string(out), "\x00"), "\x00"), func(f string) bool {
		_, err := os.Lstat(f)
		return err != nil
	}), nil
})

func files(t *testing.T) []string {
	t.Helper()
	list, err := tracked()
	if err != nil {
		t.Skipf("needs git and a checkout: %v", err)
	}
	return list
}

// Every package, also of the modules in contrib and those that are only tests, says what it is.
func TestPackageComments(t *testing.T) {
	begins := regexp.MustCompile(`^(Package|Command) \S`)
	said, seen := map[string]bool{}, map[string]bool{}
	for _, f := range files(t) {
		if !strings.HasSuffix(f, ".go") {
			continue
		}
		ast, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir := path.Dir(f)
		seen[dir] = true
		if begins.MatchString(ast.Doc.Text()) {
			said[dir] = true
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(seen)) {
		if !said[dir] {
			t.Errorf("%s has no package comment that begins with Package or Command and its name", dir)
		}
	}
}
