package server

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

var update = flag.Bool("update", false, "write docs/openapi.yaml anew")

const openapiFile = "../../docs/openapi.yaml"

// operation describes one row of the route table for docs/openapi.yaml. What in, out and query claim is
// checked against the handlers by the tests below.
type operation struct {
	id, summary string
	sub         string // what the last segment of the path is
	query       []string
	in          any // body of the request, JSON
	out         any // body of the answer, JSON
	stream      any // one line of the answer, newline-delimited JSON
	text        string
	status      string // 200 when empty
}

var scopeQuery = []string{"project", "environment"}

// operations are the rows of the route table by method and path.
var operations = map[string]operation{
	"GET " + api.PathVersion:         {id: "getVersion", summary: "What the daemon and its engine are", out: api.VersionInfo{}},
	"POST " + api.PathSession:        {id: "openSession", summary: "Upgrade the connection (h2c) to a BuildKit session that offers the folders of a deploy", status: "101"},
	"POST " + api.PathDeploys:        {id: "deploy", summary: "Build and release a project; the last line of the answer has done or error", in: api.DeployRequest{}, stream: api.DeployEvent{}},
	"GET " + api.PathFunctions:       {id: "listFunctions", summary: "The functions of the active releases", query: scopeQuery, out: []api.FunctionSummary{}},
	"GET " + api.PathFunctions + "/": {id: "getFunction", summary: "One function with its versions and instances", sub: "name", query: scopeQuery, out: api.FunctionDetail{}},
	"DELETE " + api.PathFunctions + "/": {id: "removeFunction", summary: "Make and activate a release without the function", sub: "name", query: scopeQuery,
		out: api.RemoveResult{}},
	"GET " + api.PathReleases:   {id: "listReleases", summary: "The releases that are kept", query: scopeQuery, out: []api.ReleaseInfo{}},
	"POST " + api.PathRollbacks: {id: "rollback", summary: "Make an earlier release active again; the last line of the answer has done or error", in: api.RollbackRequest{}, stream: api.DeployEvent{}},
	"GET " + api.PathTraffic:    {id: "listTraffic", summary: "Which release gets which share of the requests, and the decisions about canaries", query: scopeQuery, out: []api.Traffic{}},
	"PUT " + api.PathTraffic:    {id: "setTraffic", summary: "Give a release a share of the requests", in: api.TrafficRequest{}, out: api.Traffic{}},
	"POST " + api.PathPromotions: {id: "promote", summary: "Make the canary the active release",
		in: api.ReleaseRequest{}, out: api.Traffic{}},
	"POST " + api.PathAborts: {id: "abort", summary: "Take all requests away from the canary", in: api.ReleaseRequest{}, out: api.Traffic{}},
	"GET " + api.PathDiff: {id: "diffReleases", summary: "What differs between two releases; without from, between the active one and to",
		query: append([]string{"from", "to"}, scopeQuery...), out: api.ReleaseDiff{}},
	"GET " + api.PathAliases:    {id: "listAliases", summary: "The aliases of a function, or all", query: append([]string{"function"}, scopeQuery...), out: []api.Alias{}},
	"PUT " + api.PathAliases:    {id: "setAlias", summary: "Make an alias, or point it elsewhere", in: api.Alias{}, out: api.Alias{}},
	"DELETE " + api.PathAliases: {id: "deleteAlias", summary: "Remove an alias of a function, or without function of the environment", query: append([]string{"function", "name"}, scopeQuery...), out: api.Alias{}},
	"GET " + api.PathEnvironments: {id: "listEnvironments", summary: "The environments", query: scopeQuery,
		out: []api.EnvironmentInfo{}},
	"DELETE " + api.PathEnvironments: {id: "removeEnvironment", summary: "Remove an environment, named in full, with all that belongs to it", query: scopeQuery, out: api.EnvironmentInfo{}},
	"GET " + api.PathInstances:       {id: "listInstances", summary: "The instances on the host", out: []api.InstanceInfo{}},
	"GET " + api.PathLogs: {id: "readLogs", summary: "What functions and the platform wrote, oldest first; with follow=1 without an end",
		query: append([]string{"function", "follow", "since", "limit", "request_id"}, scopeQuery...), stream: api.LogEntry{}},
	"GET " + api.PathRecords + "/": {id: "getRecord", summary: "The story of one invocation", sub: "request-id", out: api.Record{}},
	"GET " + api.PathMetrics:       {id: "getMetrics", summary: "The daemon's figures in the text format of Prometheus", text: "text/plain"},
	"GET " + api.PathDoctor:        {id: "doctor", summary: "Check the daemon, its engine and the host", out: api.DoctorReport{}},
	"GET " + api.PathPprof + "/":   {id: "getProfile", summary: "A profile of lfxd itself, as Go's net/http/pprof names and encodes it", sub: "profile", query: []string{"seconds"}, text: "application/octet-stream"},
}

// parameters are the query parameters.
var parameters = map[string]struct{ kind, description string }{
	"project":     {"string", "The project. Lists: all when left out; else the only project of the host."},
	"environment": {"string", "The environment. Lists: all when left out; else the one called default."},
	"from":        {"integer", "The number of a release."},
	"to":          {"integer", "The number of a release."},
	"function":    {"string", "The name of a function."},
	"name":        {"string", "The name of an alias."},
	"follow":      {"string", "1 goes on with lines to come."},
	"since":       {"string", "Leaves out older lines: a time as in RFC 3339."},
	"limit":       {"integer", "How many of the latest lines to begin with."},
	"request_id":  {"string", "Only the lines of this invocation."},
	"seconds":     {"integer", "How long a CPU profile or a trace takes."},
}

// key is the route's place in operations.
func (rt *route) key() string {
	if rt.sub {
		return rt.method + " " + rt.path + "/"
	}
	return rt.method + " " + rt.path
}

// TestOpenAPI holds docs/openapi.yaml against the route table and the wire types; -update writes it.
func TestOpenAPI(t *testing.T) {
	routes := New(Options{Backend: &fakeBackend{}}).routes
	for i := range routes {
		if _, ok := operations[routes[i].key()]; !ok {
			t.Errorf("%s has no operation", routes[i].key())
		}
	}
	if len(routes) != len(operations) {
		t.Errorf("%d routes, %d operations", len(routes), len(operations))
	}
	want := document(t, routes)
	if *update {
		if err := os.WriteFile(openapiFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(openapiFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("docs/openapi.yaml differs from the routes and types: run go test ./daemon/server -run TestOpenAPI -update (-want +got):\n%s", diff)
	}
}

// TestOperationsAreTheHandlers: each handler takes the body that its operation says, whole and nothing else,
// and answers with what the operation says.
func TestOperationsAreTheHandlers(t *testing.T) {
	w := start(t, KindControl, nil)
	w.backend.lists = true
	w.backend.function = func(string, function.Environment) (*api.FunctionDetail, error) { return &api.FunctionDetail{}, nil }
	w.backend.remove = func(string, function.Environment) (*api.RemoveResult, error) { return &api.RemoveResult{}, nil }
	w.backend.logs = func(_ context.Context, _ LogQuery, entry func(api.LogEntry) error) error {
		return entry(api.LogEntry{})
	}
	w.backend.deploy = func(context.Context, api.DeployRequest, func(api.DeployEvent)) (*api.DeployResult, error) {
		return &api.DeployResult{}, nil
	}
	for i := range w.server.routes {
		rt := &w.server.routes[i]
		op := operations[rt.key()]
		path := rt.path
		if rt.sub {
			path += "/x"
		}
		path += "?project=shop&environment=default&function=f&name=a&from=1&to=2"
		body := ""
		if op.in != nil {
			body = full(t, op.in)
			if got := w.do(rt.method, path, `{"no_such_member":1}`); got.status != http.StatusBadRequest {
				t.Errorf("%s takes a body that it does not know: %d", rt.key(), got.status)
			}
		}
		got := w.do(rt.method, path, body)
		answer := op.out
		if op.stream != nil {
			answer = op.stream
		}
		if answer == nil {
			if strings.Contains(got.header.Get("Content-Type"), "json") && got.status == http.StatusOK {
				t.Errorf("%s answers JSON", rt.key())
			}
			continue
		}
		if op.text == "" && got.status != http.StatusOK {
			t.Errorf("%s: %d %s", rt.key(), got.status, got.body)
			continue
		}
		d := json.NewDecoder(strings.NewReader(got.body))
		d.DisallowUnknownFields()
		if err := d.Decode(reflect.New(reflect.TypeOf(answer)).Interface()); err != nil {
			t.Errorf("%s answers %s, which is no %T: %v", rt.key(), got.body, answer, err)
		}
	}
}

// full is a body with every member of the type.
func full(t *testing.T, v any) string {
	t.Helper()
	filled := reflect.New(reflect.TypeOf(v)).Elem()
	fill(filled)
	b, err := json.Marshal(filled.Interface())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("x")
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Float64:
		v.SetFloat(0.5)
	case reflect.Bool:
		v.SetBool(true)
	}
}

// TestQueryParametersAreRead: the handlers read the query parameters that the operations have, and no others.
func TestQueryParametersAreRead(t *testing.T) {
	want := map[string]bool{}
	for _, op := range operations {
		for _, q := range op.query {
			want[q] = true
		}
	}
	got := map[string]bool{"seconds": true} // net/http/pprof's
	reads := regexp.MustCompile(`(?:\b[qv]|Query\(\))\.Get\("([a-z_]+)"\)|releaseNumber\(r, "([a-z_]+)"\)`)
	for _, file := range []string{"control.go", "releases.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range reads.FindAllStringSubmatch(string(source), -1) {
			got[m[1]+m[2]] = true
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("query parameters (-operations +handlers):\n%s", diff)
	}
	for q := range want {
		if parameters[q].kind == "" {
			t.Errorf("the parameter %s has no description", q)
		}
	}
}

// node is a mapping of the document; yaml writes its keys sorted.
type node = map[string]any

// document is docs/openapi.yaml.
func document(t *testing.T, routes []route) []byte {
	t.Helper()
	s := schemas{t: t, docs: typeDocs(t), types: map[string]reflect.Type{}, out: node{}}
	s.of(reflect.TypeOf(api.Error{}))
	paths := node{}
	for i := range routes {
		rt := &routes[i]
		op := operations[rt.key()]
		name := rt.path
		if rt.sub {
			name += "/{" + op.sub + "}"
		}
		if paths[name] == nil {
			paths[name] = node{}
		}
		paths[name].(node)[strings.ToLower(rt.method)] = s.operation(op)
	}
	top := struct {
		OpenAPI string `yaml:"openapi"`
		Info    node   `yaml:"info"`
		Servers []node `yaml:"servers"`
		Paths   node   `yaml:"paths"`
		Parts   node   `yaml:"components"`
	}{
		"3.1.0",
		node{"title": "lfxd's control API", "version": path.Base(api.Prefix), "license": node{"name": "Apache-2.0", "identifier": "Apache-2.0"},
			"description": "What lfxctl speaks. All of it needs control rights, which only the control socket gives; to call functions is AWS Lambda's own API and not described here. " +
				"Bodies of requests are read strictly: a member that is not known is an error. Durations are nanoseconds unless a member's name says otherwise."},
		[]node{{"url": "http://lfx", "description": "The Unix socket /run/lfxd/lfxd.sock; the host name is ignored."}},
		paths,
		node{"schemas": s.out},
	}
	var b bytes.Buffer
	b.WriteString("# Written by `go test ./daemon/server -run TestOpenAPI -update` from the route table and the types in daemon/api: change those.\n")
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(top); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (s *schemas) operation(op operation) node {
	out := node{"operationId": op.id, "summary": op.summary}
	var params []node
	if op.sub != "" {
		params = append(params, node{"name": op.sub, "in": "path", "required": true, "schema": node{"type": "string"}})
	}
	for _, q := range op.query {
		params = append(params, node{"name": q, "in": "query", "description": parameters[q].description, "schema": node{"type": parameters[q].kind}})
	}
	if params != nil {
		out["parameters"] = params
	}
	if op.in != nil {
		out["requestBody"] = node{"required": true, "content": node{"application/json": node{"schema": s.of(reflect.TypeOf(op.in))}}}
	}
	answer := node{"description": "OK"}
	switch {
	case op.stream != nil:
		answer = node{"description": "One JSON value a line", "content": node{"application/x-ndjson": node{"schema": s.of(reflect.TypeOf(op.stream))}}}
	case op.out != nil:
		answer["content"] = node{"application/json": node{"schema": s.of(reflect.TypeOf(op.out))}}
	case op.text != "":
		answer["content"] = node{op.text: node{}}
	}
	status := op.status
	if status == "" {
		status = "200"
	}
	out["responses"] = node{
		status:    answer,
		"default": node{"description": "What went wrong", "content": node{"application/json": node{"schema": s.of(reflect.TypeOf(api.Error{}))}}},
	}
	return out
}

// schemas collects the schemas of Go types.
type schemas struct {
	t     *testing.T
	docs  map[string]string
	types map[string]reflect.Type
	out   node
}

// of is the schema of a type, or the reference to it.
func (s *schemas) of(t reflect.Type) node {
	switch t {
	case reflect.TypeFor[time.Time]():
		return node{"type": "string", "format": "date-time"}
	case reflect.TypeFor[time.Duration]():
		return node{"type": "integer", "format": "int64"}
	case reflect.TypeFor[json.RawMessage]():
		return node{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.Slice:
		return node{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return node{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.String:
		return node{"type": "string"}
	case reflect.Bool:
		return node{"type": "boolean"}
	case reflect.Float64:
		return node{"type": "number"}
	case reflect.Int, reflect.Int64:
		return node{"type": "integer"}
	case reflect.Struct:
		return s.component(t)
	}
	s.t.Fatalf("no schema for %s", t)
	return nil
}

func (s *schemas) component(t reflect.Type) node {
	ref := node{"$ref": "#/components/schemas/" + t.Name()}
	if known, ok := s.types[t.Name()]; ok {
		if known != t {
			s.t.Fatalf("%s and %s have the same name", known, t)
		}
		return ref
	}
	s.types[t.Name()] = t
	properties, required := node{}, []string{}
	s.members(t, properties, &required)
	slices.Sort(required)
	schema := node{"type": "object", "properties": properties}
	if len(required) > 0 {
		schema["required"] = required
	}
	if doc := s.docs[t.String()]; doc != "" {
		schema["description"] = doc
	}
	s.out[t.Name()] = schema
	return ref
}

// members adds the members of a struct; those of embedded structs come after its own, which hide them.
func (s *schemas) members(t reflect.Type, properties node, required *[]string) {
	for _, embedded := range []bool{false, true} {
		for i := range t.NumField() {
			f := t.Field(i)
			tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous != embedded:
				continue
			case embedded:
				s.members(f.Type, properties, required)
				continue
			case tag == "":
				s.t.Fatalf("%s.%s has no JSON name", t, f.Name)
			case properties[tag] != nil:
				continue
			}
			schema := s.of(f.Type)
			if doc := s.docs[t.String()+"."+f.Name]; doc != "" {
				schema = maps.Clone(schema)
				schema["description"] = doc
			}
			properties[tag] = schema
			if !strings.Contains(options, "omit") {
				*required = append(*required, tag)
			}
		}
	}
}

// typeDocs are the comments of the wire types and their members, by "api.Alias" and "api.Alias.Name".
func typeDocs(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	for _, dir := range []string{"../api", "../function"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("no Go files in %s: %v", dir, err)
		}
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				decl, ok := n.(*ast.GenDecl)
				if !ok || decl.Tok != token.TYPE {
					return true
				}
				for _, spec := range decl.Specs {
					documentType(docs, filepath.Base(dir), decl, spec.(*ast.TypeSpec))
				}
				return false
			})
		}
	}
	return docs
}

func documentType(docs map[string]string, pkg string, decl *ast.GenDecl, spec *ast.TypeSpec) {
	name := pkg + "." + spec.Name.Name
	sentence := func(groups ...*ast.CommentGroup) string {
		for _, g := range groups {
			if g != nil {
				return strings.Join(strings.Fields(g.Text()), " ")
			}
		}
		return ""
	}
	docs[name] = sentence(spec.Doc, decl.Doc)
	if s, ok := spec.Type.(*ast.StructType); ok {
		for _, f := range s.Fields.List {
			for _, id := range f.Names {
				docs[name+"."+id.Name] = sentence(f.Doc, f.Comment)
			}
		}
	}
}
