package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

const (
	// maxWork bounds what the aliases of a file may expand to: the bytes of all scalars that are
	// looked at, and nodeWork for every node.
	maxWork  = 16 << 20
	nodeWork = 64
	// maxMerges bounds <<: of a mapping that itself has <<:.
	maxMerges = 16
)

// position is a place in a file.
type position struct {
	file      string
	line, col int
}

// value is a node together with where it stands and what it is called.
type value struct {
	node *yaml.Node
	pos  position
	path string
}

// child names a member of v.
func (v value) child(key string) string {
	if v.path == "" {
		return key
	}
	return v.path + "." + key
}

// decoder reads nodes and collects what is wrong with them. The YAML is parsed once, to nodes;
// aliases are followed as they are met and never expanded as a whole.
type decoder struct {
	file   string
	root   *os.Root
	lookup Lookup
	errs   Errors
	// at says where each path was written, for what is found wrong later.
	at   map[string]position
	work int
}

func (d *decoder) add(pos position, path, format string, args ...any) {
	if len(d.errs) < maxErrors {
		d.errs = append(d.errs, Error{pos.file, pos.line, pos.col, path, fmt.Sprintf(format, args...)})
	}
}

func (d *decoder) wrong(v value, format string, args ...any) {
	d.add(v.pos, v.path, format, args...)
}

// spend charges n units of work and reports whether there were enough.
func (d *decoder) spend(v value, n int) bool {
	if d.work < 0 {
		return false // reported
	}
	if d.work -= n; d.work < 0 {
		d.wrong(v, "the aliases of this file expand to too much")
		return false
	}
	return true
}

// follow returns the node that an alias stands for. The parser lets no alias stand for an alias.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// entry is one key of a mapping with its value.
type entry struct {
	key string
	value
}

// entries returns the keys of a mapping in their order, merge keys (<<) resolved: what is written
// beats what is merged, and an earlier merge beats a later one.
func (d *decoder) entries(v value) []entry {
	seen := map[string]bool{}
	return d.collect(v, seen, 0)
}

func (d *decoder) collect(v value, seen map[string]bool, depth int) []entry {
	n := v.node
	if n.Kind != yaml.MappingNode {
		d.wrong(v, "must be a mapping, not %s", describe(n))
		return nil
	}
	if !d.plainTag(v, n, "!!map") {
		return nil
	}
	var entries []entry
	var merges []value
	here := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := follow(n.Content[i]), n.Content[i+1]
		if !d.spend(v, nodeWork+len(key.Value)) {
			return nil
		}
		pos := position{d.file, n.Content[i].Line, n.Content[i].Column}
		if key.Kind != yaml.ScalarNode {
			d.add(pos, v.path, "a key must be a single word, not %s", describe(key))
			continue
		}
		if key.ShortTag() == "!!merge" {
			merges = append(merges, value{val, pos, v.child("<<")})
			continue
		}
		e := d.entry(v, pos, key.Value, val)
		if first, twice := here[e.key]; twice {
			d.add(pos, e.path, "is written twice: the first is in line %d", first)
			continue
		}
		here[e.key] = pos.line
		if !seen[e.key] {
			seen[e.key] = true
			entries = append(entries, e)
		}
	}
	for _, m := range merges {
		entries = append(entries, d.merge(m, v.path, seen, depth)...)
	}
	return entries
}

// entry makes the entry for a key at pos. A scalar stands where it is written, anything longer and
// anything that came through an alias where its key is.
func (d *decoder) entry(parent value, pos position, key string, val *yaml.Node) entry {
	if val.Kind == yaml.ScalarNode && val.Line >= pos.line {
		pos = position{d.file, val.Line, val.Column}
	}
	return entry{key, value{follow(val), pos, parent.child(key)}}
}

// merge returns the entries that a << brings in: of a mapping, or of each of a list of mappings.
// They count as keys of the mapping at path.
func (d *decoder) merge(m value, path string, seen map[string]bool, depth int) []entry {
	if depth == maxMerges {
		d.wrong(m, "is nested too deeply")
		return nil
	}
	n := follow(m.node)
	if n.Kind != yaml.SequenceNode {
		return d.collectMerged(m, n, path, seen, depth)
	}
	var entries []entry
	for _, item := range n.Content {
		entries = append(entries, d.collectMerged(m, follow(item), path, seen, depth)...)
	}
	return entries
}

func (d *decoder) collectMerged(m value, n *yaml.Node, path string, seen map[string]bool, depth int) []entry {
	if n.Kind != yaml.MappingNode {
		d.wrong(m, "must name a mapping or a list of mappings, not %s", describe(n))
		return nil
	}
	return d.collect(value{n, m.pos, path}, seen, depth+1)
}

// items returns the items of a list.
func (d *decoder) items(v value) []value {
	if !d.plainTag(v, v.node, "!!seq") {
		return nil
	}
	items := make([]value, 0, len(v.node.Content))
	for i, n := range v.node.Content {
		item := value{follow(n), position{d.file, n.Line, n.Column}, fmt.Sprintf("%s[%d]", v.path, i)}
		if !d.spend(item, nodeWork) {
			return nil
		}
		items = append(items, item)
	}
	return items
}

// scalar is a scalar's text with its variables replaced, and its YAML tag.
type scalar struct {
	text string
	tag  string
	// replaced is set when the text held a variable; its type is then whatever is wanted.
	replaced bool
}

// scalar reads a scalar that is not null; want completes "must be …".
func (d *decoder) scalar(v value, want string) (scalar, bool) {
	n := v.node
	if n.Kind != yaml.ScalarNode {
		d.wrong(v, "must be %s, not %s", want, describe(n))
		return scalar{}, false
	}
	tag := n.ShortTag()
	if tag == "!!null" {
		d.wrong(v, "has no value: write %s, or remove the key", want)
		return scalar{}, false
	}
	if !d.plainTag(v, n, "!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!merge") || !d.spend(v, len(n.Value)) {
		return scalar{}, false
	}
	text, problems := interpolate(n.Value, d.lookup)
	for _, p := range problems {
		d.wrong(v, "%s", p)
	}
	if len(problems) > 0 || !d.spend(v, len(text)) {
		return scalar{}, false
	}
	return scalar{text, tag, text != n.Value}, true
}

// text reads a string. A number or a boolean is refused, for YAML may mean another text than the
// one that was written.
func (d *decoder) text(v value, want string) (string, bool) {
	s, ok := d.scalar(v, want)
	if !ok {
		return "", false
	}
	switch s.tag {
	case "!!int", "!!float":
		d.wrong(v, "%s is a number: quote it", s.text)
		return "", false
	case "!!bool":
		d.wrong(v, "%s is a boolean: quote it", s.text)
		return "", false
	}
	if s.text == "" {
		d.wrong(v, "is empty: write %s, or remove the key", want)
		return "", false
	}
	return s.text, true
}

// boolean reads true or false.
func (d *decoder) boolean(v value) (is, ok bool) {
	s, ok := d.scalar(v, "true or false")
	if !ok {
		return false, false
	}
	if s.tag == "!!bool" || s.replaced {
		if b, err := strconv.ParseBool(strings.ToLower(s.text)); err == nil && len(s.text) > 1 {
			return b, true
		}
	}
	d.wrong(v, "%s is not a boolean: write true or false", quote(s.text))
	return false, false
}

// integer reads a decimal number that is not negative.
func (d *decoder) integer(v value) (int, bool) {
	s, ok := d.scalar(v, "a number")
	if !ok {
		return 0, false
	}
	if s.tag == "!!int" || s.replaced {
		if n, err := strconv.ParseUint(s.text, 10, 31); err == nil {
			return int(n), true
		}
	}
	d.wrong(v, "%s is not a whole number from 0", quote(s.text))
	return 0, false
}

// measure reads a scalar through parse, which says itself what is wrong with it.
func measure[T any](d *decoder, v value, want string, parse func(string) (T, error)) (zero T, _ bool) {
	s, ok := d.scalar(v, want)
	if !ok {
		return zero, false
	}
	t, err := parse(s.text)
	if err != nil {
		d.wrong(v, "%v", err)
		return zero, false
	}
	return t, true
}

// plainTag refuses tags other than those that YAML itself gives.
func (d *decoder) plainTag(v value, n *yaml.Node, allowed ...string) bool {
	tag := n.ShortTag()
	for _, a := range allowed {
		if tag == a {
			return true
		}
	}
	d.wrong(v, "the tag %s means nothing here: remove it", quote(tag))
	return false
}

// describe names the kind of a node.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "a boolean"
	}
	return "text"
}

// parseYAML returns the root node of the one document in data.
func parseYAML(file string, data []byte) (*yaml.Node, *Error) {
	if line, ok := textLine(data); !ok {
		return nil, &Error{File: file, Line: line, Msg: "is not text: it must be UTF-8 without control characters"}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, &Error{File: file, Line: 1, Msg: "is empty: write functions: and at least one function"}
	case err != nil:
		return nil, syntaxError(file, data, err)
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		return nil, &Error{File: file, Line: more.Line, Column: more.Column, Msg: "holds a second document: keep one"}
	case !errors.Is(err, io.EOF):
		return nil, syntaxError(file, data, err)
	}
	return doc.Content[0], nil
}

// textLine returns the number of the first line that is not text.
func textLine(data []byte) (line int, ok bool) {
	line = 1
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && size == 1, r < ' ' && r != '\n' && r != '\r' && r != '\t', r >= 0x7f && r < 0xa0 && r != 0x85:
			return line, false
		case r == '\n':
			line++
		}
		data = data[size:]
	}
	return line, true
}

// yamlMessage is how the parser words its errors.
var yamlMessage = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntaxError gives a parser's error our form.
func syntaxError(file string, data []byte, err error) *Error {
	e := &Error{File: file, Line: 1, Msg: "is not YAML: " + err.Error()}
	m := yamlMessage.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
	if m == nil {
		return e
	}
	e.Msg = "is not YAML: " + m[2]
	if n, err := strconv.Atoi(m[1]); err == nil {
		e.Line = n
	}
	lines := bytes.Split(data, []byte("\n"))
	e.Line = min(e.Line, len(lines))
	if bytes.HasPrefix(bytes.TrimLeft(lines[e.Line-1], " "), []byte("\t")) {
		e.Msg += "; the line is indented with a tab: use spaces"
	}
	return e
}
