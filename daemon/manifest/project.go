package manifest

import (
	"errors"
	"maps"
	"path"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"lfx.dev/lfxd/daemon/function"
)

// field is one key of a mapping and the method that reads its value.
type field[T any] struct {
	key string
	set func(d *decoder, v value, into *T)
}

// The keys of the manifest. The schema and docs/manifest.md are tested against these tables.
var (
	projectFields = []field[projectDecl]{
		{"project", (*decoder).project},
		{"functions", (*decoder).functions},
		{"canary", (*decoder).canary},
	}
	functionFields = []field[functionDecl]{
		{"build", (*decoder).build},
		{"image", (*decoder).image},
		{"memory", (*decoder).memory},
		{"cpu", (*decoder).cpu},
		{"tmp", (*decoder).tmp},
		{"timeout", (*decoder).timeout},
		{"environment", (*decoder).environment},
		{"env_file", (*decoder).envFile},
		{"concurrency", (*decoder).concurrency},
		{"command", (*decoder).command},
		{"entrypoint", (*decoder).entrypoint},
		{"workdir", (*decoder).workdir},
		{"default", (*decoder).isDefault},
		{"port", (*decoder).port},
	}
	buildFields = []field[function.Build]{
		{"context", (*decoder).buildContext},
		{"dockerfile", (*decoder).buildDockerfile},
		{"target", (*decoder).buildTarget},
		{"args", (*decoder).buildArgs},
	}
	concurrencyFields = []field[function.Concurrency]{
		{"min", (*decoder).concurrencyMin},
		{"max", (*decoder).concurrencyMax},
		{"per_instance", (*decoder).concurrencyPerInstance},
	}
)

// keys returns the keys of a table.
func keys[T any](fields []field[T]) []string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.key
	}
	return names
}

// object reads a mapping through a table; extra keys for which skip holds are left alone.
func object[T any](d *decoder, v value, fields []field[T], into *T, skip func(key string) bool) {
	for _, e := range d.entries(v) {
		if skip != nil && skip(e.key) {
			continue
		}
		i := slices.IndexFunc(fields, func(f field[T]) bool { return f.key == e.key })
		if i < 0 {
			d.add(e.pos, v.path, "unknown key %s: %s", quote(e.key), suggest(e.key, keys(fields)))
			continue
		}
		d.at[e.path] = e.pos
		fields[i].set(d, e.value, into)
	}
}

// projectDecl is the manifest as written.
type projectDecl struct {
	name      string
	functions []functionDecl
	canary    Canary
}

// functionDecl is one function as written; its environment is made of two parts.
type functionDecl struct {
	function.Spec
	// own is environment:, files is env_file:, in their order.
	own   map[string]string
	files []value
	path  string
}

// decodeProject reads the root of a manifest.
func (d *decoder) decodeProject(root *yaml.Node) projectDecl {
	v := value{node: root, pos: position{d.file, root.Line, root.Column}}
	p := projectDecl{canary: DefaultCanary()}
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		d.wrong(v, "is empty: write functions: and at least one function")
		return p
	}
	extension := func(key string) bool { return strings.HasPrefix(key, "x-") }
	object(d, v, projectFields, &p, extension)
	misspelt := slices.ContainsFunc(d.errs, func(e Error) bool { return e.Path == "" })
	if _, written := d.at["functions"]; !written && !misspelt {
		d.wrong(v, "has no functions: write functions: and at least one function")
	}
	return p
}

func (d *decoder) project(v value, p *projectDecl) {
	name, ok := d.text(v, "a name")
	if !ok {
		return
	}
	var refused *function.NameError
	if errors.As(function.ValidateProject(name), &refused) {
		d.wrong(v, "%s %s", quote(name), refused.Rule)
		return
	}
	p.name = name
}

func (d *decoder) functions(v value, p *projectDecl) {
	for _, e := range d.entries(v) {
		d.at[e.path] = e.pos
		f := functionDecl{path: e.path}
		f.Name, f.Config = e.key, function.DefaultConfig()
		if e.node.Kind == yaml.ScalarNode && e.node.ShortTag() == "!!null" {
			// The validation says what is missing.
			p.functions = append(p.functions, f)
			continue
		}
		object(d, e.value, functionFields, &f, nil)
		d.mergeEnvironment(&f)
		p.functions = append(p.functions, f)
	}
	slices.SortFunc(p.functions, func(a, b functionDecl) int { return strings.Compare(a.Name, b.Name) })
}

func (d *decoder) build(v value, f *functionDecl) {
	f.Build = &function.Build{}
	if v.node.Kind != yaml.MappingNode {
		d.buildContext(v, f.Build)
		return
	}
	object(d, v, buildFields, f.Build, nil)
}

func (d *decoder) buildContext(v value, b *function.Build) {
	if s, ok := d.text(v, "a folder"); ok {
		b.Context = cleanPath(s)
	}
}

func (d *decoder) buildDockerfile(v value, b *function.Build) {
	if s, ok := d.text(v, "a file in the build context"); ok {
		b.Dockerfile = cleanPath(s)
	}
}

func (d *decoder) buildTarget(v value, b *function.Build) {
	b.Target, _ = d.text(v, "the name of a build stage")
}

func (d *decoder) buildArgs(v value, b *function.Build) {
	b.Args = d.variables(v)
}

// cleanPath makes a path canonical, so that two spellings of a folder are one build context. What
// is no relative path stays as it is, for the message.
func cleanPath(s string) string {
	if strings.ContainsAny(s, "\\:\x00") || path.IsAbs(s) {
		return s
	}
	return path.Clean(s)
}

func (d *decoder) image(v value, f *functionDecl) {
	s, ok := d.text(v, "an image reference")
	if !ok {
		s = unreadable
	}
	f.Image = s
}

// unreadable stands for a value that was there and could not be read, where absence is an error of
// its own. It never leaves the package, for there is an error already.
const unreadable = "unreadable"

func (d *decoder) memory(v value, f *functionDecl) {
	if n, ok := measure(d, v, "a size", parseSize); ok {
		f.Config.MemoryMB = n
	}
}

func (d *decoder) tmp(v value, f *functionDecl) {
	if n, ok := measure(d, v, "a size", parseSize); ok {
		f.Config.TmpMB = n
	}
}

func (d *decoder) cpu(v value, f *functionDecl) {
	if n, ok := measure(d, v, "a number of cores", parseCores); ok {
		f.Config.CPU = n
	}
}

func (d *decoder) timeout(v value, f *functionDecl) {
	if t, ok := measure(d, v, "a duration", parseDuration); ok {
		f.Config.Timeout = t
	}
}

func (d *decoder) environment(v value, f *functionDecl) {
	f.own = d.variables(v)
}

// variables reads a mapping of names to strings, numbers or booleans, whose text is taken as it is
// written. A name without a value is taken from lfxctl's environment, and left out when it is not
// set there.
func (d *decoder) variables(v value) map[string]string {
	vars := map[string]string{}
	for _, e := range d.entries(v) {
		d.at[e.path] = e.pos
		if e.node.Kind == yaml.ScalarNode && e.node.ShortTag() == "!!null" {
			if inherited, set := d.lookup(e.key); set {
				vars[e.key] = inherited
			}
			continue
		}
		if s, ok := d.scalar(e.value, "a string, a number or a boolean"); ok {
			vars[e.key] = s.text
		}
	}
	return vars
}

func (d *decoder) envFile(v value, f *functionDecl) {
	if v.node.Kind == yaml.SequenceNode {
		f.files = d.items(v)
		return
	}
	f.files = []value{v}
}

// mergeEnvironment puts the function's environment together: env files in their order, then environment.
func (d *decoder) mergeEnvironment(f *functionDecl) {
	if f.own == nil && f.files == nil {
		return
	}
	env := map[string]string{}
	for _, file := range f.files {
		d.readEnvFile(file, f.path+".environment", env)
	}
	maps.Copy(env, f.own)
	f.Config.Environment = env
}

// readEnvFile adds the variables of one env file to env. environment is the path under which they
// are checked later.
func (d *decoder) readEnvFile(v value, environment string, env map[string]string) {
	name, ok := d.text(v, "a file")
	if !ok {
		return
	}
	name = cleanPath(name)
	data, err := readFile(d.root, name, maxEnvFile)
	if err != nil {
		d.wrong(v, "%s %v", quote(name), err)
		return
	}
	entries, errs := parseEnvFile(string(data))
	for _, e := range errs {
		d.add(position{file: name, line: e.Line}, "", "%s", e.Msg)
	}
	for _, e := range entries {
		if e.inherit {
			var set bool
			if e.value, set = d.lookup(e.name); !set {
				continue
			}
		}
		if !d.spend(v, nodeWork+len(e.value)) {
			return
		}
		at := environment + "." + e.name
		if _, own := d.at[at]; !own || d.at[at].file != d.file {
			d.at[at] = position{file: name, line: e.line}
		}
		env[e.name] = e.value
	}
}

func (d *decoder) concurrency(v value, f *functionDecl) {
	object(d, v, concurrencyFields, &f.Config.Concurrency, nil)
}

func (d *decoder) concurrencyMin(v value, c *function.Concurrency) {
	c.Min, _ = d.integer(v)
}

func (d *decoder) concurrencyMax(v value, c *function.Concurrency) {
	n, ok := d.integer(v)
	c.Max, c.Stopped = n, ok && n == 0
}

// concurrencyPerInstance keeps 1, the default, as zero: it changes no version.
func (d *decoder) concurrencyPerInstance(v value, c *function.Concurrency) {
	switch n, ok := d.integer(v); {
	case !ok || n == 1:
	case n < 1 || n > function.MaxPerInstance:
		d.wrong(v, "%d is out of range: 1 to %d", n, function.MaxPerInstance)
	default:
		c.PerInstance = n
	}
}

func (d *decoder) command(v value, f *functionDecl) {
	f.Config.Command = d.words(v)
}

func (d *decoder) entrypoint(v value, f *functionDecl) {
	f.Config.Entrypoint = d.words(v)
}

// words reads a list of strings, or a string that is split as a shell does.
func (d *decoder) words(v value) []string {
	if v.node.Kind != yaml.SequenceNode {
		s, ok := d.text(v, "a list of strings, or a string")
		if !ok {
			return nil
		}
		words, err := splitWords(s)
		switch {
		case err != nil:
			d.wrong(v, "%s %v", quote(s), err)
		case len(words) == 0:
			d.wrong(v, "is empty: write a list of strings, or remove the key")
		}
		return words
	}
	words := []string{}
	for _, item := range d.items(v) {
		s, ok := d.scalar(item, "a string")
		switch {
		case !ok:
		case s.tag == "!!str" || s.tag == "!!merge":
			words = append(words, s.text)
		default:
			d.wrong(item, "%s is %s: quote it", s.text, describe(item.node))
		}
	}
	return words
}

func (d *decoder) workdir(v value, f *functionDecl) {
	f.Config.Workdir, _ = d.text(v, "an absolute path")
}

func (d *decoder) isDefault(v value, f *functionDecl) {
	f.Default, _ = d.boolean(v)
}

func (d *decoder) port(v value, f *functionDecl) {
	n, ok := d.integer(v)
	if ok && n == 0 {
		d.wrong(v, "0 is not a port: 1 to 65535, or remove the key")
		return
	}
	f.Port = n
}

// check validates the functions together and places what is wrong at the line that says it. What
// could not be read has an error already and gets no second one.
func (d *decoder) check(p projectDecl) []function.Spec {
	specs := make([]function.Spec, len(p.functions))
	for i, f := range p.functions {
		specs[i] = f.Spec
	}
	known := d.unread(p)
	if _, written := d.at["functions"]; !written {
		return nil // said already
	}
	for _, e := range function.ValidateSpecs(specs) {
		if known[e.Field] {
			continue
		}
		d.add(d.placeOf(e.Field), e.Field, "%s", e.Msg)
	}
	return specs
}

// unread returns the paths that have an error, and the members of a function that hold one.
func (d *decoder) unread(p projectDecl) map[string]bool {
	whole := map[string]bool{"": true, "functions": true}
	for _, f := range p.functions {
		whole[f.path] = true
	}
	known := map[string]bool{}
	for _, e := range d.errs {
		known[e.Path] = true
		if above := parent(e.Path); !whole[above] {
			known[above] = true
		}
	}
	return known
}

// placeOf returns where a path, or the closest path around it, was written.
func (d *decoder) placeOf(at string) position {
	for ; at != ""; at = parent(at) {
		if pos, ok := d.at[at]; ok {
			return pos
		}
	}
	return position{d.file, 1, 1}
}

// parent cuts the last member off a dotted path.
func parent(at string) string {
	i := strings.LastIndexAny(at, ".[")
	if i < 0 {
		return ""
	}
	return at[:i]
}
