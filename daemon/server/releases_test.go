package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// fakeReleases answers with little more than what it was asked, and writes down each call; fail makes all of
// them fail that can.
type fakeReleases struct {
	projects []string // one environment each
	active   int
	lists    bool // lists have one element
	fail     error
	calls    []string
}

func (b *fakeReleases) call(format string, args ...any) {
	b.calls = append(b.calls, fmt.Sprintf(format, args...))
}

// one is a list as b has them.
func one[T any](b *fakeReleases) []T {
	if !b.lists {
		return nil
	}
	return make([]T, 1)
}

func (b *fakeReleases) Releases(f function.Environment) []api.ReleaseInfo {
	b.call("releases %v", f)
	return one[api.ReleaseInfo](b)
}

func (b *fakeReleases) Rollback(_ context.Context, req api.RollbackRequest, event func(api.DeployEvent)) (*api.DeployResult, error) {
	b.call("rollback %v %d %t", req.Environment, req.Release, req.Wait)
	event(api.DeployEvent{Step: "warming"})
	return &api.DeployResult{Previous: 7}, b.fail
}

func (b *fakeReleases) Traffic(f function.Environment) []api.Traffic {
	b.call("traffic %v", f)
	if b.active == 0 {
		return one[api.Traffic](b)
	}
	return []api.Traffic{{Environment: f, Active: b.active}}
}

func (b *fakeReleases) SetTraffic(_ context.Context, req api.TrafficRequest) (*api.Traffic, error) {
	b.call("set traffic %v %d %v", req.Environment, req.Release, req.Percent)
	return &api.Traffic{Environment: req.Environment, Active: 1}, b.fail
}

func (b *fakeReleases) Promote(_ context.Context, req api.ReleaseRequest) (*api.Traffic, error) {
	b.call("promote %v %d", req.Environment, req.Release)
	return &api.Traffic{Active: 2}, b.fail
}

func (b *fakeReleases) Abort(_ context.Context, req api.ReleaseRequest) (*api.Traffic, error) {
	b.call("abort %v %d", req.Environment, req.Release)
	return &api.Traffic{Active: 1}, b.fail
}

func (b *fakeReleases) Diff(env function.Environment, from, to int) (*api.ReleaseDiff, error) {
	b.call("diff %v %d %d", env, from, to)
	return &api.ReleaseDiff{From: from, To: to}, b.fail
}

func (b *fakeReleases) Aliases(f function.Environment, fn string) ([]api.Alias, error) {
	b.call("aliases %v %q", f, fn)
	return one[api.Alias](b), b.fail
}

func (b *fakeReleases) SetAlias(_ context.Context, a api.Alias) (*api.Alias, error) {
	b.call("set alias %v %q %q %d %v", a.Environment, a.Function, a.Name, a.Version, a.Weights)
	return &a, b.fail
}

func (b *fakeReleases) DeleteAlias(_ context.Context, env function.Environment, fn, name string) (*api.Alias, error) {
	b.call("delete alias %v %q %q", env, fn, name)
	return &api.Alias{Name: name}, b.fail
}

func (b *fakeReleases) Environments(f function.Environment) []api.EnvironmentInfo {
	b.call("environments %v", f)
	var out []api.EnvironmentInfo
	for _, p := range b.projects {
		out = append(out, api.EnvironmentInfo{Environment: function.Environment{Project: p, Name: "default"}})
	}
	return out
}

func (b *fakeReleases) RemoveEnvironment(_ context.Context, env function.Environment) (*api.EnvironmentInfo, error) {
	b.call("remove environment %v", env)
	return &api.EnvironmentInfo{Environment: env}, b.fail
}

func (b *fakeReleases) Record(id string) (*api.Record, error) {
	b.call("record %s", id)
	return &api.Record{RequestID: id}, b.fail
}

func (b *fakeReleases) Metrics(w io.Writer) error {
	b.call("metrics")
	_, err := io.WriteString(w, "lfx_up 1\n")
	if b.fail != nil {
		return b.fail
	}
	return err
}

// calls of the backend that complete a project, before the one that matters.
func last(calls []string) string {
	if len(calls) == 0 {
		return ""
	}
	return calls[len(calls)-1]
}

func TestReleaseRoutesReachTheBackend(t *testing.T) {
	for name, tt := range map[string]struct {
		method, path, body string
		status             int
		call, answer       string // the answer begins with it
	}{
		"releases": {"GET", api.PathReleases + "?project=p&environment=e", "", 200, "releases p/e", "[]\n"},
		"rollback": {"POST", api.PathRollbacks, `{"project":"p","environment":"e","release":3,"wait":true}`, 200,
			"rollback p/e 3 true", `{"step":"warming"}` + "\n" + `{"done":{`},
		"rollback of what is left out": {"POST", api.PathRollbacks, `{}`, 200, "rollback shop 0 false", `{"step":"warming"}`},
		"traffic":                      {"GET", api.PathTraffic, "", 200, "traffic /", "[]\n"},
		"set traffic": {"PUT", api.PathTraffic, `{"project":"p","environment":"e","release":8,"percent":2.5}`, 200,
			"set traffic p/e 8 2.5", `{"project":"p","environment":"e","active":1}`},
		"promote":                {"POST", api.PathPromotions, `{"release":8}`, 200, "promote shop 8", `{"project":"","environment":"","active":2}`},
		"abort":                  {"POST", api.PathAborts, `{"project":"p"}`, 200, "abort p 0", `{"project":"","environment":"","active":1}`},
		"diff":                   {"GET", api.PathDiff + "?from=6&to=7", "", 200, "diff shop 6 7", `{"project":"","environment":"","from":6,"to":7`},
		"diff without to":        {"GET", api.PathDiff + "?from=6", "", 400, "", `{"code":"invalid","message":"to: \"\" is not the number of a release"}`},
		"diff of nothing":        {"GET", api.PathDiff + "?from=0&to=7", "", 400, "", `{"code":"invalid","message":"from: \"0\" is not`},
		"diff, none active":      {"GET", api.PathDiff + "?to=7", "", 404, "traffic shop", `{"code":"not_found","message":"shop has no active release`},
		"aliases":                {"GET", api.PathAliases + "?function=f", "", 200, `aliases / "f"`, "[]\n"},
		"set alias":              {"PUT", api.PathAliases, `{"function":"f","name":"prod","version":3,"weights":{"4":0.1}}`, 200, `set alias shop "f" "prod" 3 map[4:0.1]`, `{"project":"shop","environment":"default","function":"f","name":"prod"`},
		"delete alias":           {"DELETE", api.PathAliases + "?function=f&name=prod&project=p&environment=e", "", 200, `delete alias p/e "f" "prod"`, `{"project":""`},
		"delete a nameless one":  {"DELETE", api.PathAliases + "?function=f", "", 400, "environments /", `{"code":"invalid","message":"name: say which`},
		"environments":           {"GET", api.PathEnvironments + "?project=p", "", 200, "environments p/", `[{"project":"shop","environment":"default"`},
		"remove environment":     {"DELETE", api.PathEnvironments + "?project=p&environment=e", "", 200, "remove environment p/e", `{"project":"p","environment":"e"`},
		"remove without name":    {"DELETE", api.PathEnvironments + "?project=p", "", 400, "", `{"code":"invalid","message":"project and environment: both`},
		"remove without project": {"DELETE", api.PathEnvironments + "?environment=e", "", 400, "", `{"code":"invalid"`},
		"record":                 {"GET", api.PathRecords + "/r-1", "", 200, "record r-1", `{"request_id":"r-1"`},
		"metrics":                {"GET", api.PathMetrics, "", 200, "metrics", "lfx_up 1\n"},
		"an unknown member":      {"PUT", api.PathTraffic, `{"percentage":1}`, 400, "", `{"code":"invalid"`},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, KindControl, nil)
			got := w.do(tt.method, tt.path, tt.body)
			if got.status != tt.status || !strings.HasPrefix(got.body, tt.answer) {
				t.Errorf("got %d %s, want %d %s…", got.status, got.body, tt.status, tt.answer)
			}
			if call := last(w.backend.calls); tt.call != "" && call != tt.call {
				t.Errorf("the backend got %q, want %q", w.backend.calls, tt.call)
			} else if tt.status == 400 && strings.Contains(call, "remove") {
				t.Errorf("the backend got %q", w.backend.calls)
			}
		})
	}
}

func TestDiffWithOneNumberIsAgainstTheActiveRelease(t *testing.T) {
	w := start(t, KindControl, nil)
	w.backend.active = 5
	if got := w.do("GET", api.PathDiff+"?to=7&project=p", ""); got.status != 200 || last(w.backend.calls) != "diff p 5 7" {
		t.Errorf("got %d %s after %q", got.status, got.body, w.backend.calls)
	}
}

func TestAProjectMustBeNamedUnlessThereIsOne(t *testing.T) {
	for name, tt := range map[string]struct {
		projects []string
		status   int
		want     api.Error
	}{
		"none": {nil, 404, api.Error{Code: api.CodeNotFound, Message: "no project is deployed: `lfxctl deploy` deploys one"}},
		"two": {[]string{"shop", "blog", "shop"}, 409, api.Error{
			Code: api.CodeConflict, Message: "this host has several projects: say which one, with --project in lfxctl", Details: []string{"blog", "shop"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, KindControl, nil)
			w.backend.projects = tt.projects
			for _, rt := range w.server.routes {
				switch rt.path {
				case api.PathRollbacks, api.PathPromotions, api.PathAborts, api.PathDiff, api.PathTraffic, api.PathAliases:
				default:
					continue
				}
				if rt.method == "GET" && rt.path != api.PathDiff {
					continue // lists all projects
				}
				got := w.do(rt.method, rt.path+"?to=1&name=a", "{}")
				var e api.Error
				if err := json.Unmarshal([]byte(got.body), &e); err != nil || got.status != tt.status {
					t.Fatalf("%s %s: %d %s", rt.method, rt.path, got.status, got.body)
				}
				if diff := cmp.Diff(tt.want, e); diff != "" {
					t.Errorf("%s %s (-want +got):\n%s", rt.method, rt.path, diff)
				}
			}
		})
	}
}

func TestReleaseErrorsAreAnswered(t *testing.T) {
	w := start(t, KindControl, nil)
	w.backend.fail = &api.Error{Code: api.CodeConflict, Message: "a canary runs"}
	for _, rt := range w.server.routes {
		if rt.path == api.PathRollbacks { // a stream
			got := w.do("POST", rt.path, "{}")
			if want := `{"step":"warming"}` + "\n" + `{"error":{"code":"conflict","message":"a canary runs"}}` + "\n"; got.status != 200 || got.body != want {
				t.Errorf("rollback: %d %s", got.status, got.body)
			}
			continue
		}
		path := rt.path + "?project=p&environment=e&name=a&from=1&to=2"
		switch rt.path {
		case api.PathTraffic, api.PathAliases, api.PathEnvironments:
			if rt.method == "GET" && rt.path != api.PathAliases {
				continue // cannot fail
			}
		case api.PathPromotions, api.PathAborts, api.PathDiff, api.PathMetrics:
		case api.PathRecords:
			path = rt.path + "/r-1"
		default:
			continue
		}
		if got := w.do(rt.method, path, "{}"); got.status != http.StatusConflict || !strings.Contains(got.body, "a canary runs") {
			t.Errorf("%s %s: %d %s", rt.method, path, got.status, got.body)
		}
	}
}

func TestMetricsArePrometheusText(t *testing.T) {
	w := start(t, KindControl, nil)
	got := w.do("GET", api.PathMetrics, "")
	if ct := got.header.Get("Content-Type"); ct != "text/plain; version=0.0.4; charset=utf-8" || got.body != "lfx_up 1\n" {
		t.Errorf("got %s %q", ct, got.body)
	}
}
