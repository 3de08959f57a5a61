package buildkit

import (
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const scratch = "scratch"

// bases follows the stages that the target needs and collects the images they come from.
func (c *checker) bases(df *Dockerfile, stages []instructions.Stage, meta []instructions.ArgCommand, escape rune) {
	if len(stages) == 0 {
		c.report(0, "there is no FROM instruction")
		return
	}
	lex := shell.NewLex(escape)
	env := c.globals(lex, meta)
	for i := range stages {
		if err := c.expandFrom(&stages[i], lex, env); err != nil {
			return
		}
		if name := stages[i].Name; name != "" {
			df.stages[strings.ToLower(name)] = true
		}
	}
	last := len(stages) - 1
	if c.opts.Target != "" {
		if last = stageOf(stages, len(stages), c.opts.Target); last < 0 {
			c.report(0, "there is no stage %q: name one with FROM … AS %s, or change target", c.opts.Target, c.opts.Target)
			return
		}
	}
	w := &walker{stages: stages, seen: map[int]bool{}}
	w.visit(last)
	slices.Sort(w.used)
	for _, i := range w.used {
		for _, ref := range w.refs[i] {
			if _, known := df.lines[ref.name]; !known {
				df.Bases = append(df.Bases, ref.name)
				df.lines[ref.name] = ref.line
			}
		}
	}
	df.Base = w.root(last)
}

// globals returns the arguments that FROM may use: the platform's and those before the first FROM.
func (c *checker) globals(lex *shell.Lex, meta []instructions.ArgCommand) args {
	p := platforms.DefaultSpec()
	env := args{}
	env.platform("BUILD", p)
	if c.opts.Platform != nil {
		p = *c.opts.Platform
	}
	env.platform("TARGET", p)
	for _, cmd := range meta {
		for _, a := range cmd.Args {
			value, given := c.opts.Args[a.Key]
			if !given && a.Value != nil {
				expanded, _, err := lex.ProcessWord(*a.Value, env)
				if err != nil {
					c.report(lineOf(cmd.Location()), "ARG %s: %v", a.Key, err)
				}
				value = expanded
			}
			if given || a.Value != nil {
				env[a.Key] = value
			}
		}
	}
	for k := range env { // an argument replaces a platform's value even where ARG does not name it
		if v, ok := c.opts.Args[k]; ok {
			env[k] = v
		}
	}
	return env
}

// expandFrom fills arguments into FROM and checks that an image reference came out.
func (c *checker) expandFrom(st *instructions.Stage, lex *shell.Lex, env args) error {
	line := lineOf(st.Location)
	expanded, unset, err := lex.ProcessWord(st.BaseName, env)
	if err != nil {
		c.report(line, "FROM %s: %v", st.BaseName, err)
		return err
	}
	if _, err := reference.ParseNormalizedNamed(expanded); err != nil {
		hint := ""
		for name := range unset {
			hint = "; " + name + " has no value: declare it with ARG before the first FROM, or set it in build.args"
		}
		c.report(line, "FROM %s names no image (%q): %v%s", st.BaseName, expanded, err, hint)
		return err
	}
	st.BaseName = expanded
	return nil
}

// stageOf finds a stage before index end by name, or by number as COPY --from takes it; -1 when
// there is none. The last of several stages of one name counts, as for BuildKit.
func stageOf(stages []instructions.Stage, end int, name string) int {
	for i := end - 1; i >= 0; i-- {
		if stages[i].Name != "" && strings.EqualFold(stages[i].Name, name) {
			return i
		}
	}
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && n < end {
		return n
	}
	return -1
}

// walker visits the stages that one stage needs.
type walker struct {
	stages []instructions.Stage
	seen   map[int]bool
	used   []int
	refs   map[int][]mention // images a stage names, by stage
}

// mention is an image and where it is named.
type mention struct {
	name string
	line int
}

func (w *walker) visit(i int) {
	if w.seen[i] {
		return
	}
	w.seen[i] = true
	w.used = append(w.used, i)
	st := &w.stages[i]
	w.from(i, st.BaseName, lineOf(st.Location), false)
	for _, cmd := range st.Commands {
		switch cmd := cmd.(type) {
		case *instructions.CopyCommand:
			if cmd.From != "" {
				w.from(i, cmd.From, lineOf(cmd.Location()), true)
			}
		case *instructions.RunCommand:
			for _, m := range instructions.GetMounts(cmd) {
				if m.From != "" {
					w.from(i, m.From, lineOf(cmd.Location()), true)
				}
			}
		}
	}
}

// from notes what stage i takes from a name: another stage, scratch, or an image. Only COPY and
// mounts know stages by number.
func (w *walker) from(i int, name string, line int, numbers bool) {
	if n := stageOf(w.stages, i, name); n >= 0 && (numbers || strings.EqualFold(w.stages[n].Name, name)) {
		w.visit(n)
		return
	}
	if name == scratch || strings.Contains(name, "$") {
		return
	}
	if _, err := reference.ParseNormalizedNamed(name); err != nil {
		return // BuildKit says where
	}
	if w.refs == nil {
		w.refs = map[int][]mention{}
	}
	w.refs[i] = append(w.refs[i], mention{name, line})
}

// root returns the image at the bottom of a stage, empty for scratch.
func (w *walker) root(i int) string {
	for {
		name := w.stages[i].BaseName
		n := -1
		for j := i - 1; j >= 0; j-- {
			if strings.EqualFold(w.stages[j].Name, name) {
				n = j
				break
			}
		}
		switch {
		case n >= 0:
			i = n
		case name == scratch:
			return ""
		default:
			return name
		}
	}
}

// args is an environment for shell words.
type args map[string]string

// Get implements shell.EnvGetter.
func (a args) Get(name string) (string, bool) { v, ok := a[name]; return v, ok }

// Keys implements shell.EnvGetter.
func (a args) Keys() []string {
	var keys []string
	for k := range a {
		keys = append(keys, k)
	}
	return keys
}

func (a args) platform(prefix string, p ocispec.Platform) {
	a[prefix+"PLATFORM"] = platforms.Format(p)
	a[prefix+"OS"], a[prefix+"ARCH"], a[prefix+"VARIANT"], a[prefix+"OSVERSION"] = p.OS, p.Architecture, p.Variant, p.OSVersion
}

func lineOf(ranges []parser.Range) int {
	if len(ranges) == 0 {
		return 0
	}
	return ranges[0].Start.Line
}

// contextKey is how BuildKit looks up a named context for an image: familiar, and without the
// default tag.
func contextKey(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(reference.FamiliarString(named), ":latest"), nil
}
