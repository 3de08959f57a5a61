package manifest

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"lfx.dev/lfxd/daemon/function"
)

// object is a JSON object.
type jsonObject = map[string]any

func schemaRoot(t *testing.T) jsonObject {
	t.Helper()
	var root jsonObject
	if err := json.Unmarshal(Schema, &root); err != nil {
		t.Fatal(err)
	}
	return root
}

// at walks down a JSON object.
func at(t *testing.T, o jsonObject, path ...string) jsonObject {
	t.Helper()
	for _, key := range path {
		next, ok := o[key].(jsonObject)
		if !ok {
			t.Fatalf("no object %v in the schema", path)
		}
		o = next
	}
	return o
}

// schemaKeys are the objects of the schema with the keys of the decoder that read them.
func schemaKeys(t *testing.T) map[string]struct{ schema, decoder []string } {
	root := schemaRoot(t)
	pair := func(decoder []string, path ...string) struct{ schema, decoder []string } {
		var names []string
		for key := range at(t, root, append(path, "properties")...) {
			names = append(names, key)
		}
		slices.Sort(names)
		slices.Sort(decoder)
		return struct{ schema, decoder []string }{names, decoder}
	}
	return map[string]struct{ schema, decoder []string }{
		"project":     pair(keys(projectFields)),
		"function":    pair(keys(functionFields), "$defs", "function"),
		"build":       pair(keys(buildFields), "$defs", "build"),
		"canary":      pair(keys(canaryFields), "properties", "canary"),
		"concurrency": pair(keys(concurrencyFields), "$defs", "function", "properties", "concurrency"),
	}
}

func TestSchemaHasTheDecodersKeys(t *testing.T) {
	for what, k := range schemaKeys(t) {
		if diff := cmp.Diff(k.decoder, k.schema); diff != "" {
			t.Errorf("%s (-decoder +schema):\n%s", what, diff)
		}
	}
}

func TestSchemaExamplesLoad(t *testing.T) {
	root := schemaRoot(t)
	examples, _ := root["examples"].([]any)
	if len(examples) == 0 {
		t.Fatal("the schema has no examples")
	}
	for i, e := range examples {
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		loadExample(t, fmt.Sprintf("example %d", i), string(text))
		if problem := validate(root, root, e); problem != "" {
			t.Errorf("example %d against the schema: %s", i, problem)
		}
	}
}

// loadExample loads a manifest after making the folders and files that it names.
func loadExample(t *testing.T, what, text string) {
	t.Helper()
	dir := write(t, "example", map[string]string{"lfx.yaml": text})
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	node, syntax := parseYAML("lfx.yaml", []byte(text))
	if syntax != nil {
		t.Fatalf("%s: %v", what, syntax)
	}
	none := func(string) (string, bool) { return "", false }
	d := &decoder{file: "lfx.yaml", root: root, lookup: none, at: map[string]position{}, work: maxWork}
	files := map[string]string{}
	for _, f := range d.decodeProject(node).functions {
		for _, file := range f.files {
			files[file.node.Value] = "FROM_FILE=1\n"
		}
		if f.Build != nil {
			dockerfile := f.Build.Dockerfile
			if dockerfile == "" {
				dockerfile = defaultDockerfile
			}
			files[f.Build.Context+"/"+dockerfile] = "FROM scratch\n"
		}
	}
	for name, text := range files {
		if i := strings.LastIndex(name, "/"); i >= 0 {
			if err := root.MkdirAll(name[:i], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := root.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(dir, Options{Lookup: none}); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// The decoder and the schema must agree on single functions: editors should show what a deploy would say.
func TestSchemaAgreesWithTheDecoder(t *testing.T) {
	root := schemaRoot(t)
	for text, fine := range map[string]bool{
		"build: hello": true,
		"build: {context: hello, dockerfile: Dockerfile}":     true,
		"build: {dockerfile: Dockerfile}":                     false,
		"build: {context: hello, x: 1}":                       false,
		"build: [hello]":                                      false,
		"build: ''":                                           false,
		"memory: 256MiB":                                      false, // neither build nor image
		"{image: alpine, build: hello}":                       false,
		"{image: 3}":                                          false,
		"{image: alpine, memory: 256MiB}":                     true,
		"{image: alpine, memory: 512}":                        true,
		"{image: alpine, memory: '512'}":                      true,
		"{image: alpine, memory: 1.5GiB}":                     true,
		"{image: alpine, memory: 12 potatoes}":                false,
		"{image: alpine, memory: true}":                       false,
		"{image: alpine, memory: '${MEM:-256MiB}'}":           true,
		"{image: alpine, memory: ~}":                          false,
		"{image: alpine, tmp: 64MiB}":                         true,
		"{image: alpine, tmp: lots}":                          false,
		"{image: alpine, cpu: 0.5}":                           true,
		"{image: alpine, cpu: 500m}":                          true,
		"{image: alpine, cpu: 65}":                            false,
		"{image: alpine, cpu: 0}":                             false,
		"{image: alpine, cpu: much}":                          false,
		"{image: alpine, timeout: 30}":                        true,
		"{image: alpine, timeout: 30s}":                       true,
		"{image: alpine, timeout: 1m30s}":                     true,
		"{image: alpine, timeout: 1.5s}":                      true,
		"{image: alpine, timeout: 0}":                         false,
		"{image: alpine, timeout: 901}":                       false,
		"{image: alpine, timeout: soon}":                      false,
		"{image: alpine, environment: {AB: 1, CD: x, EF: ~}}": true,
		"{image: alpine, environment: [AB=1]}":                false,
		"{image: alpine, environment: {AB: [1]}}":             false,
		"{image: alpine, env_file: []}":                       true,
		"{image: alpine, env_file: {}}":                       false,
		"{image: alpine, concurrency: {min: 1, max: 2}}":      true,
		"{image: alpine, concurrency: {max: 0}}":              true,
		"{image: alpine, concurrency: {per_instance: 64}}":    true,
		"{image: alpine, concurrency: {per_instance: 1}}":     true,
		"{image: alpine, concurrency: {per_instance: 0}}":     false,
		"{image: alpine, concurrency: {per_instance: 65}}":    false,
		"{image: alpine, concurrency: {max: -1}}":             false,
		"{image: alpine, concurrency: {min: -1}}":             false,
		"{image: alpine, concurrency: {maximum: 1}}":          false,
		"{image: alpine, concurrency: {min: 1.5}}":            false,
		"{image: alpine, command: [a, b]}":                    true,
		"{image: alpine, command: []}":                        true,
		"{image: alpine, command: a b}":                       true,
		"{image: alpine, command: [1]}":                       false,
		"{image: alpine, command: 1}":                         false,
		"{image: alpine, entrypoint: {}}":                     false,
		"{image: alpine, workdir: /srv}":                      true,
		"{image: alpine, workdir: srv}":                       false,
		"{image: alpine, default: true}":                      true,
		"{image: alpine, default: '${D:-true}'}":              true,
		"{image: alpine, default: yes}":                       false,
		"{image: alpine, port: 9001}":                         true,
		"{image: alpine, port: '9001'}":                       false,
		"{image: alpine, port: '${P:-9001}'}":                 true,
		"{image: alpine, port: 0}":                            false,
		"{image: alpine, port: 70000}":                        false,
		"{image: alpine, nonsense: 1}":                        false,
	} {
		var f any
		if err := yaml.Unmarshal([]byte(text), &f); err != nil {
			t.Fatal(err)
		}
		doc := jsonObject{"functions": jsonObject{"hello": f}}
		if problem := validate(root, root, doc); (problem == "") != fine {
			t.Errorf("%s: the schema says %q, want fine %v", text, problem, fine)
		}
		indented := "functions:\n  hello:\n    " + text + "\n"
		dir := write(t, "shop", map[string]string{"lfx.yaml": indented, "hello/Dockerfile": "FROM scratch\n"})
		if _, err := Load(dir, Options{}); (err == nil) != fine {
			t.Errorf("%s: the decoder says %v, want fine %v", text, err, fine)
		}
	}
}

func TestSchemaKnowsTheLimits(t *testing.T) {
	root := schemaRoot(t)
	words := at(t, root, "$defs", "words")["anyOf"].([]any)[1].(jsonObject)
	if words["maxItems"] != float64(function.MaxArgs) {
		t.Errorf("words: %v items, want %d", words["maxItems"], function.MaxArgs)
	}
	for key, texts := range map[string][]string{
		"memory":  {fmt.Sprint(function.MinMemoryMB), fmt.Sprint(function.MaxMemoryMB), fmt.Sprint(function.DefaultMemoryMB)},
		"tmp":     {fmt.Sprint(function.MinTmpMB), fmt.Sprint(function.MaxTmpMB), fmt.Sprint(function.DefaultTmpMB)},
		"cpu":     {fmt.Sprint(function.MinCPU), fmt.Sprint(function.MaxCPU)},
		"timeout": {fmt.Sprint(function.MinTimeout), fmt.Sprintf("%ds", int(function.MaxTimeout.Seconds())), fmt.Sprint(function.DefaultTimeout)},
		"workdir": {fmt.Sprint(function.MaxWorkdir)},
	} {
		description := at(t, root, "$defs", "function", "properties", key)["description"].(string)
		for _, text := range texts {
			if !strings.Contains(description, text) {
				t.Errorf("%s: %q does not mention %s", key, description, text)
			}
		}
	}
}

const docs = "../../docs/manifest.md"

func TestDocs(t *testing.T) {
	data, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for what, k := range schemaKeys(t) {
		for _, key := range k.schema {
			if !strings.Contains(text, "\n| `"+key+"` |") {
				t.Errorf("%s does not document %s of %s", docs, key, what)
			}
		}
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(blocks) == 0 {
		t.Fatal("no examples")
	}
	root := schemaRoot(t)
	for i, b := range blocks {
		loadExample(t, fmt.Sprintf("%s, example %d", docs, i+1), b[1])
		var doc any
		if err := yaml.Unmarshal([]byte(b[1]), &doc); err != nil {
			t.Fatal(err)
		}
		if problem := validate(root, root, doc); problem != "" {
			t.Errorf("%s, example %d against the schema: %s", docs, i+1, problem)
		}
	}
}

// validate checks a value against the part of JSON schema that ours uses and returns the first
// problem. It panics on a keyword that it does not know.
func validate(root, s jsonObject, v any) string {
	for keyword, arg := range s {
		if problem := validateKeyword(root, s, keyword, arg, v); problem != "" {
			return problem
		}
	}
	return ""
}

func validateKeyword(root, s jsonObject, keyword string, arg, v any) string {
	text, isText := v.(string)
	number, isNumber := toNumber(v)
	list, isList := v.([]any)
	members, isObject := v.(jsonObject)
	broken := false
	switch keyword {
	case "$schema", "$id", "$defs", "title", "description", "examples", "patternProperties":
	case "type":
		types, several := arg.([]any)
		if !several {
			types = []any{arg}
		}
		broken = !slices.ContainsFunc(types, func(t any) bool { return hasType(v, t.(string)) })
	case "$ref":
		def := strings.TrimPrefix(arg.(string), "#/$defs/")
		return validate(root, root["$defs"].(jsonObject)[def].(jsonObject), v)
	case "anyOf", "oneOf":
		matches := 0
		for _, sub := range arg.([]any) {
			if validate(root, sub.(jsonObject), v) == "" {
				matches++
			}
		}
		broken = matches == 0 || keyword == "oneOf" && matches != 1
	case "not":
		broken = validate(root, arg.(jsonObject), v) == ""
	case "const":
		broken = v != arg
	case "pattern":
		broken = isText && !regexp.MustCompile(arg.(string)).MatchString(text)
	case "minLength":
		broken = isText && float64(len(text)) < arg.(float64)
	case "minimum":
		broken = isNumber && number < arg.(float64)
	case "maximum":
		broken = isNumber && number > arg.(float64)
	case "maxItems":
		broken = isList && float64(len(list)) > arg.(float64)
	case "minProperties":
		broken = isObject && float64(len(members)) < arg.(float64)
	case "items":
		for _, item := range list {
			if problem := validate(root, arg.(jsonObject), item); problem != "" {
				return problem
			}
		}
	case "required":
		for _, key := range arg.([]any) {
			_, ok := members[key.(string)]
			broken = broken || isObject && !ok
		}
	case "properties":
		for key, sub := range arg.(jsonObject) {
			if member, ok := members[key]; ok {
				if problem := validate(root, sub.(jsonObject), member); problem != "" {
					return key + ": " + problem
				}
			}
		}
	case "additionalProperties":
		for key, member := range members {
			if problem := validateOther(root, s, arg, key, member); problem != "" {
				return key + ": " + problem
			}
		}
	default:
		panic("teach the test about " + keyword)
	}
	if broken {
		return fmt.Sprintf("%v breaks %s %v", v, keyword, arg)
	}
	return ""
}

// validateOther checks a member that is no property: against its pattern, or what is left.
func validateOther(root, s jsonObject, additional any, key string, member any) string {
	if props, ok := s["properties"].(jsonObject); ok && props[key] != nil {
		return ""
	}
	patterns, _ := s["patternProperties"].(jsonObject)
	for pattern, sub := range patterns {
		if regexp.MustCompile(pattern).MatchString(key) {
			return validate(root, sub.(jsonObject), member)
		}
	}
	if sub, ok := additional.(jsonObject); ok {
		return validate(root, sub, member)
	}
	return "is not allowed"
}

func toNumber(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}

func hasType(v any, want string) bool {
	n, isNumber := toNumber(v)
	ok := map[string]bool{"number": isNumber, "integer": isNumber && n == math.Trunc(n), "null": v == nil}[want]
	switch v.(type) {
	case string:
		return want == "string"
	case bool:
		return want == "boolean"
	case []any:
		return want == "array"
	case jsonObject:
		return want == "object"
	}
	return ok
}
