package lfxd_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// document is one Markdown file, as far as these tests read it.
type document struct {
	path    string
	anchors map[string]bool
	code    []span // spans in backquotes and the lines of code blocks
	links   []span
	quotes  []span // lines that begin with ">": messages of the programs
	rows    []span // the first cell of table rows
}

type span struct {
	line  int
	text  string
	block bool // a line of a code block
}

var (
	inlineCode = regexp.MustCompile("`([^`]+)`")
	inlineLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading    = regexp.MustCompile(`^#{1,6} +(.*)$`)
)

func readDocument(t *testing.T, file string) *document {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := &document{path: file, anchors: map[string]bool{}}
	fenced := false
	for n, line := range strings.Split(string(text), "\n") {
		n++
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			fenced = !fenced
			continue
		case fenced, strings.HasPrefix(line, "    "):
			d.code = append(d.code, span{n, strings.TrimSpace(line), true})
			continue
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			d.anchors[anchor(m[1])] = true
		}
		rest, quote := strings.CutPrefix(line, "> ")
		if quote {
			d.quotes = append(d.quotes, span{n, strings.Trim(rest, "`"), false})
			continue
		}
		for _, m := range inlineCode.FindAllStringSubmatch(line, -1) {
			d.code = append(d.code, span{n, m[1], false})
		}
		for _, m := range inlineLink.FindAllStringSubmatch(inlineCode.ReplaceAllString(line, ""), -1) {
			d.links = append(d.links, span{n, m[1], false})
		}
		// A link's text may be code.
		for _, m := range inlineLink.FindAllStringSubmatch(line, -1) {
			d.links = append(d.links, span{n, m[1], false})
		}
		if cells := strings.Split(line, "|"); strings.HasPrefix(line, "| `") {
			d.rows = append(d.rows, span{n, strings.Trim(strings.TrimSpace(cells[1]), "`"), false})
		}
	}
	return d
}

// anchor is the name that a heading gets in HTML.
func anchor(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case r == ' ' || r == '-':
			b.WriteByte('-')
		case r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}

func documents(t *testing.T) []*document {
	t.Helper()
	var docs []*document
	for _, f := range files(t) {
		if strings.HasSuffix(f, ".md") {
			docs = append(docs, readDocument(t, f))
		}
	}
	return docs
}

func (d *document) errorf(t *testing.T, s span, format string, args ...any) {
	t.Helper()
	t.Errorf("%s:%d: "+format, append([]any{d.path, s.line}, args...)...)
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestLinksResolve(t *testing.T) {
	docs := map[string]*document{}
	for _, d := range documents(t) {
		docs[d.path] = d
	}
	for _, d := range docs {
		for _, l := range d.links {
			if strings.Contains(l.text, "://") || strings.HasPrefix(l.text, "mailto:") {
				continue
			}
			file, fragment, _ := strings.Cut(l.text, "#")
			target := d.path
			if file != "" {
				target = path.Join(path.Dir(d.path), file)
			}
			if !exists(t, target) {
				d.errorf(t, l, "the link %s leads nowhere", l.text)
				continue
			}
			if to := docs[target]; fragment != "" && to != nil && !to.anchors[fragment] {
				d.errorf(t, l, "%s has no heading for #%s", target, fragment)
			}
		}
	}
}

// exists reports whether a path is a tracked file or a folder of some.
func exists(t *testing.T, name string) bool {
	name = strings.TrimSuffix(name, "/")
	return slices.ContainsFunc(files(t), func(f string) bool { return f == name || strings.HasPrefix(f, name+"/") })
}

// commandLine finds the commands of ours in a line of shell.
var commandLine = regexp.MustCompile(`(?:^|[;&|(] *|sudo |bin/)(make|lfxctl|lfxd)( [^|;&)#]*)?`)

// Every make target, command and flag that a document or a message names exists.
func TestCommandsExist(t *testing.T) {
	known := commandTable(t)
	for _, d := range documents(t) {
		for _, c := range d.code {
			for _, problem := range known.check(c.text) {
				d.errorf(t, c, "%s", problem)
			}
		}
	}
	for _, f := range files(t) {
		if strings.HasSuffix(f, ".go") {
			for _, text := range texts(t, f) {
				for _, m := range inlineCode.FindAllStringSubmatch(text, -1) {
					for _, problem := range known.check(m[1]) {
						t.Errorf("%s: %s", f, problem)
					}
				}
			}
		}
	}
}

// commands holds the words that may follow a command, and for each the flags ("" are those of all).
type commands map[string]map[string]map[string]bool

func commandTable(t *testing.T) commands {
	t.Helper()
	c := commands{"make": {}, "lfxctl": {"": {}, "help": {}}, "lfxd": {"": {"--version": true, "--help": true}, "help": {}}}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		c["make"][m[1]] = map[string]bool{}
	}
	flags := regexp.MustCompile("`(-[-a-zA-Z0-9]+)`")
	section := ""
	for line := range strings.Lines(read(t, "docs/lfxctl.md")) { // which a test in cmd/lfxctl holds against the code
		if rest, ok := strings.CutPrefix(line, "## lfxctl "); ok {
			section = strings.TrimSpace(rest)
			c["lfxctl"][section] = map[string]bool{}
		}
		if rest, ok := strings.CutPrefix(line, "Also `lfxctl "); ok {
			alias, _, _ := strings.Cut(rest, "`")
			c["lfxctl"][alias] = c["lfxctl"][section]
		}
		if strings.HasPrefix(line, "| `-") {
			for _, m := range flags.FindAllStringSubmatch(strings.Split(line, "|")[1], -1) {
				c["lfxctl"][section][m[1]] = true
			}
		}
	}
	main := ""
	for _, f := range files(t) {
		if path.Dir(f) == "cmd/lfxd" && !strings.HasSuffix(f, "_test.go") {
			main += read(t, f)
		}
	}
	for _, m := range regexp.MustCompile(`Use: "([a-z]+)"`).FindAllStringSubmatch(main, -1) {
		c["lfxd"][m[1]] = map[string]bool{}
	}
	for _, m := range regexp.MustCompile(`Flags\(\)\.\w+\(&[\w.]+, "([a-z-]+)"(?:, "([a-z])")?`).FindAllStringSubmatch(main, -1) {
		c["lfxd"][""]["--"+m[1]] = true
		if m[2] != "" {
			c["lfxd"][""]["-"+m[2]] = true
		}
	}
	return c
}

// check says what is wrong with the commands in a line of shell.
func (c commands) check(line string) (problems []string) {
	for _, m := range commandLine.FindAllStringSubmatch(line, -1) {
		name, words := m[1], strings.Fields(m[2])
		sub := ""
		if len(words) > 0 && regexp.MustCompile(`^[a-z][a-z0-9-]*$`).MatchString(words[0]) {
			sub = words[0]
		}
		if sub == "" && name == "make" {
			continue
		}
		flags, ok := c[name][sub]
		if !ok {
			problems = append(problems, "there is no `"+name+" "+sub+"`")
			continue
		}
		if name == "make" {
			continue
		}
		for _, w := range words {
			w, _, _ = strings.Cut(w, "=")
			if regexp.MustCompile(`^--?[a-zA-Z][a-zA-Z-]*$`).MatchString(w) && !flags[w] && !c[name][""][w] {
				problems = append(problems, "`"+strings.TrimSpace(name+" "+sub)+"` has no flag "+w)
			}
		}
	}
	return problems
}

var (
	repoPath  = regexp.MustCompile(`^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*/?$`)
	configKey = regexp.MustCompile(`^(engine|listen|network|functions|build|logs|releases)\.[a-z_]+$`)
)

// Every path, Go name and configuration key in backquotes exists. A path begins with a folder of the
// repository; what is built lies in build/ and is not looked for; a capital after a dot begins a Go name.
func TestNamesExist(t *testing.T) {
	top := map[string]bool{}
	for _, f := range files(t) {
		if dir, _, ok := strings.Cut(f, "/"); ok {
			top[dir] = true
		}
	}
	config := read(t, "docs/configuration.md") // which a test in daemon/config holds against the code
	for _, d := range documents(t) {
		for _, c := range d.code {
			if c.block {
				continue
			}
			if configKey.MatchString(c.text) && !strings.Contains(config, "`"+c.text+"`") && !regexp.MustCompile(`\.(go|sh|md)$`).MatchString(c.text) {
				d.errorf(t, c, "there is no configuration key %s", c.text)
			}
			first, _, _ := strings.Cut(c.text, "/")
			if !repoPath.MatchString(c.text) || !top[first] || !strings.Contains(c.text, "/") {
				continue
			}
			name, symbol := splitSymbol(strings.TrimSuffix(c.text, "/..."))
			switch {
			case exists(t, path.Join(path.Dir(d.path), c.text)): // relative to the document
			case !exists(t, name):
				d.errorf(t, c, "there is no %s in the repository", name)
			case symbol != "" && !declares(t, name, symbol):
				d.errorf(t, c, "package %s declares no %s", name, symbol)
			}
		}
	}
}

// splitSymbol splits "daemon/pool.Manager.Bind" into the package and its name.
func splitSymbol(s string) (dir, symbol string) {
	if m := regexp.MustCompile(`^(.*?)\.([A-Z][\w.]*)$`).FindStringSubmatch(s); m != nil && !strings.HasSuffix(s, ".md") {
		return m[1], m[2]
	}
	return s, ""
}

// declares reports whether the package in dir declares name, or the method Type.Name.
func declares(t *testing.T, dir, name string) bool {
	recv, method, isMethod := strings.Cut(name, ".")
	pattern := `(?m)^(type|func|var|const) ` + name + `\b|^\t` + name + `\b.*(=|//|$)`
	if isMethod {
		pattern = `(?m)^func \(\w+ \*?` + recv + `\) ` + method + `\(|^\t` + method + `\(`
	}
	re := regexp.MustCompile(pattern)
	return slices.ContainsFunc(files(t), func(f string) bool {
		return path.Dir(f) == dir && strings.HasSuffix(f, ".go") && re.MatchString(read(t, f))
	})
}

// No text may refer to a document that is not here. The patterns are written so that they do not
// match themselves.
func TestNoForeignReferences(t *testing.T) {
	never := regexp.MustCompile(`lambda[-]contract|(?:design|performance|style|security)[.]md §|the contract [§]|\bdesign [D]\d|(?:^|[\s"'(=:` + "`" + `])/work[/]|\bT[-]\d\d\b`)
	markdown := regexp.MustCompile(`[A-Za-z0-9_./:-]*[A-Za-z0-9_-][.]md\b`)
	bases := map[string]bool{}
	for _, f := range files(t) {
		bases[path.Base(f)] = true
	}
	for _, f := range files(t) {
		text, err := os.ReadFile(f)
		if err != nil || bytes.IndexByte(text, 0) >= 0 || strings.HasSuffix(f, ".sum") || path.Base(f) == "package-lock.json" {
			continue
		}
		for n, line := range strings.Split(string(text), "\n") {
			if m := never.FindString(line); m != "" {
				t.Errorf("%s:%d: %q refers to something that is not in the repository: name AWS's documentation, the specification or the issue that is meant", f, n+1, strings.TrimSpace(m))
			}
			for _, m := range markdown.FindAllString(line, -1) {
				if !strings.Contains(m, "://") && !bases[path.Base(m)] {
					t.Errorf("%s:%d: there is no %s in the repository", f, n+1, m)
				}
			}
		}
	}
}

const troubleshooting = "docs/troubleshooting.md"

// The messages that docs/troubleshooting.md explains are those of the programs; … stands for what differs.
func TestMessagesAreTheProgramsOwn(t *testing.T) {
	var said []string
	for _, f := range files(t) {
		switch {
		case strings.HasSuffix(f, "_test.go"):
		case strings.HasSuffix(f, ".go"):
			said = append(said, literals(t, f)...)
		case strings.HasSuffix(f, ".sh"):
			said = append(said, read(t, f))
		}
	}
	all := strings.Join(said, "\n")
	d := readDocument(t, troubleshooting)
	for _, q := range d.quotes {
		for part := range strings.SplitSeq(q.text, "…") {
			if !strings.Contains(all, strings.TrimSpace(part)) {
				d.errorf(t, q, "no program says %q", strings.TrimSpace(part))
			}
		}
	}
}

// Every check of `lfxctl doctor` is explained.
func TestDoctorIsExplained(t *testing.T) {
	explained := map[string]bool{}
	for _, r := range readDocument(t, troubleshooting).rows {
		explained[r.text] = true
	}
	for name := range doctorChecks(t) {
		if !explained[name] {
			t.Errorf("%s has no row for the check %q of `lfxctl doctor`", troubleshooting, name)
		}
	}
}

// doctorChecks are the names with which checks are reported, as far as they are literals.
func doctorChecks(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, f := range files(t) {
		if !strings.HasPrefix(f, "daemon/doctor") || strings.HasSuffix(f, "_test.go") {
			continue
		}
		ast.Inspect(parse(t, f), func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 4 {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && (sel.Sel.Name == "add" || sel.Sel.Name == "check") {
				if name := fold(call.Args[0]); strings.Trim(name, "…") != "" {
					names[name] = true
				}
			}
			return true
		})
	}
	if len(names) == 0 {
		t.Error("daemon/doctor*.go reports no check that this test can see")
	}
	return names
}

func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// literals returns the strings of a Go file; what is added to a literal becomes "…".
func literals(t *testing.T, file string) (out []string) {
	t.Helper()
	ast.Inspect(parse(t, file), func(n ast.Node) bool {
		switch e := n.(type) {
		case *ast.BasicLit, *ast.BinaryExpr:
			if s := fold(e.(ast.Expr)); strings.Trim(s, "…") != "" {
				out = append(out, s)
			}
		}
		return true
	})
	return out
}

// fold evaluates literals that are added up; anything else is "…".
func fold(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return s
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			return fold(e.X) + fold(e.Y)
		}
	}
	return "…"
}

// texts returns the strings and comments of a Go file.
func texts(t *testing.T, file string) []string {
	t.Helper()
	out := literals(t, file)
	for _, c := range parse(t, file).Comments {
		out = append(out, c.Text())
	}
	return out
}

// A configuration key that nobody reads is a promise that is not kept.
func TestConfigurationIsRead(t *testing.T) {
	const definition, validation = "daemon/config/config.go", "daemon/config/validate.go"
	read := map[string]bool{}
	for _, f := range files(t) {
		if !strings.HasSuffix(f, ".go") || strings.HasSuffix(f, "_test.go") || f == validation {
			continue
		}
		ast.Inspect(parse(t, f), func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				read[sel.Sel.Name] = true
			}
			return true
		})
	}
	ast.Inspect(parse(t, definition), func(n ast.Node) bool {
		field, ok := n.(*ast.Field)
		if ok && field.Tag != nil && strings.Contains(field.Tag.Value, "toml:") && !read[field.Names[0].Name] {
			t.Errorf("%s: nobody reads %s %s", definition, field.Names[0].Name, field.Tag.Value)
		}
		return true
	})
}

// The table of contents of docs/ is the README: a document that nobody links to is not found.
func TestDocumentsAreLinked(t *testing.T) {
	linked := map[string]bool{}
	for _, d := range documents(t) {
		for _, l := range d.links {
			file, _, _ := strings.Cut(l.text, "#")
			linked[path.Join(path.Dir(d.path), file)] = true
		}
	}
	want := map[string]bool{"ARCHITECTURE.md": true, "CHANGELOG.md": true, "LICENSE": true}
	for _, f := range files(t) {
		if strings.HasPrefix(f, "docs/") {
			want[f] = true
		}
	}
	for _, f := range slices.Sorted(maps.Keys(want)) {
		if !linked[f] {
			t.Errorf("no document links to %s", f)
		}
	}
}
