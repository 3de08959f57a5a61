package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// releaseRoutes are the fake daemon's answers about releases, traffic, aliases, environments and records. A body
// is written down behind its request, so that scripts can look for it.
func (f *fakeDaemon) releaseRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST "+api.PathRollbacks, f.rollback)
	mux.HandleFunc("GET "+api.PathTraffic, func(w http.ResponseWriter, r *http.Request) { answer(w, traffic(f.empty.Load())) })
	mux.HandleFunc("PUT "+api.PathTraffic, func(w http.ResponseWriter, r *http.Request) {
		var req api.TrafficRequest
		f.body(r, &req)
		if req.Release == 9 {
			refuse(w, http.StatusConflict, api.Error{Code: api.CodeConflict, Message: "release 4 of examples is the canary: promote or abort it first"})
			return
		}
		answer(w, api.Traffic{Environment: completed(req.Environment), Active: 3, Canary: &api.Canary{Release: req.Release, Percent: req.Percent, Since: time.Now()}})
	})
	for _, path := range []string{api.PathPromotions, api.PathAborts} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			var req api.ReleaseRequest
			f.body(r, &req)
			t := api.Traffic{Environment: completed(req.Environment), Active: 4}
			if path == api.PathAborts {
				t.Active, t.Decisions = 3, []api.Decision{{Time: time.Now(), Release: 4, Action: "aborted", By: "user"}}
			}
			answer(w, t)
		})
	}
	mux.HandleFunc("GET "+api.PathDiff, diff)
	mux.HandleFunc("GET "+api.PathAliases, func(w http.ResponseWriter, r *http.Request) { answer(w, f.aliases(r)) })
	mux.HandleFunc("PUT "+api.PathAliases, func(w http.ResponseWriter, r *http.Request) {
		var alias api.Alias
		f.body(r, &alias)
		alias.Environment = completed(alias.Environment)
		answer(w, alias)
	})
	mux.HandleFunc("DELETE "+api.PathAliases, func(w http.ResponseWriter, r *http.Request) {
		for _, alias := range f.aliases(r) {
			if alias.Name == r.URL.Query().Get("name") && alias.Function == r.URL.Query().Get("function") {
				answer(w, alias)
				return
			}
		}
		refuse(w, http.StatusNotFound, api.Error{Code: api.CodeNotFound, Message: "there is no such alias: `lfxctl alias ls` lists them"})
	})
	mux.HandleFunc("GET "+api.PathEnvironments, func(w http.ResponseWriter, r *http.Request) { answer(w, f.environments(r)) })
	mux.HandleFunc("DELETE "+api.PathEnvironments, func(w http.ResponseWriter, r *http.Request) { answer(w, f.environments(r)[0]) })
	mux.HandleFunc("GET "+api.PathRecords+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		if record := record(r.PathValue("id")); record != nil {
			answer(w, record)
			return
		}
		refuse(w, http.StatusNotFound, api.Error{Code: api.CodeNotFound, Message: "no such record"})
	})
	mux.HandleFunc("GET "+api.PathMetrics, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "# TYPE lfx_up gauge\nlfx_up 1\n")
	})
}

// body reads a request's body and writes it down.
func (f *fakeDaemon) body(r *http.Request, into any) {
	data, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(data, into)
	f.mu.Lock()
	f.requests = append(f.requests, string(data))
	f.mu.Unlock()
}

// completed is what the daemon makes of an environment without a project.
func completed(env function.Environment) function.Environment {
	if env.Project == "" {
		env.Project = "examples"
	}
	if env.Name == "" {
		env.Name = function.DefaultEnvironment
	}
	return env
}

func (f *fakeDaemon) rollback(w http.ResponseWriter, r *http.Request) {
	var req api.RollbackRequest
	f.body(r, &req)
	env := completed(req.Environment)
	if env.Name == "busy" && !req.Wait {
		refuse(w, http.StatusConflict, api.Error{Code: api.CodeConflict, Message: "a deploy of examples/busy runs: wait for it with --wait"})
		return
	}
	answer(w, api.DeployEvent{Step: "warming"})
	if env.Name == "cut" {
		return
	}
	if req.Release == 0 {
		req.Release = 2
	}
	answer(w, api.DeployEvent{Done: &api.DeployResult{
		Release: function.Release{Environment: env, Number: req.Release}, Previous: 3,
		Functions: []api.DeployFunction{{Name: "hello-go", Version: 1, Change: "updated"}, {Name: "hello-python", Version: 1, Change: "unchanged"}},
	}})
}

func traffic(empty bool) []api.Traffic {
	if empty {
		return nil
	}
	good := &api.Figures{Requests: 120, Errors: 1, ErrorRate: 1.0 / 120, P99: 45 * time.Millisecond}
	bad := &api.Figures{Requests: 140, Errors: 14, ErrorRate: 0.1, P99: 1500 * time.Millisecond}
	return []api.Traffic{
		{Environment: function.Environment{Project: "shop", Name: "staging"}, Active: 7},
		{
			Environment: function.Environment{Project: "examples", Name: "default"}, Active: 3,
			Canary: &api.Canary{Release: 4, Percent: 10, Since: before(2*time.Minute + time.Second), Auto: &api.Judgement{After: 10 * time.Minute, MinRequests: 100, MaxErrorRate: 0.01, MaxP99Ratio: 1.5}},
			Decisions: []api.Decision{
				{Time: before(2*time.Hour + time.Minute), Release: 2, Action: "aborted", By: "judge", Reason: "its error rate is 9.17 points above the active release's", Canary: bad, Active: good},
				{Time: before(2*time.Minute + time.Second), Release: 4, Action: "started", By: "user"},
			},
		},
	}
}

func diff(w http.ResponseWriter, r *http.Request) {
	d := api.ReleaseDiff{Environment: function.Environment{Project: "examples", Name: "default"}, From: 3, To: 7}
	if r.URL.Query().Get("from") == "6" {
		d.From = 6
		d.Functions = []api.FunctionDiff{
			{Name: "hello-go", Change: "changed", From: 1, To: 2, Image: true, Settings: []api.SettingDiff{{Name: "memory", From: "128MiB", To: "256MiB"}, {Name: "environment.TOKEN"}, {Name: "port", To: "9001"}}},
			{Name: "new", Change: "added", To: 1},
			{Name: "old", Change: "removed", From: 3},
		}
	}
	answer(w, d)
}

func (f *fakeDaemon) aliases(r *http.Request) []api.Alias {
	if f.empty.Load() {
		return nil
	}
	env := function.Environment{Project: "examples", Name: "default"}
	return slices.DeleteFunc([]api.Alias{
		{Environment: env, Name: "stable", Release: 2},
		{Environment: env, Name: "live", Release: 3, Fixed: true},
		{Environment: env, Name: "previous", Release: 2, Fixed: true},
		{Environment: env, Function: "hello-go", Name: "prod", Version: 1, Weights: map[int]float64{2: 0.1}},
		{Environment: env, Function: "hello-python", Name: "prod", Version: 1},
	}, func(a api.Alias) bool {
		fn := r.URL.Query().Get("function")
		return fn != "" && a.Function != fn
	})
}

func (f *fakeDaemon) environments(r *http.Request) []api.EnvironmentInfo {
	if f.empty.Load() {
		return nil
	}
	info := func(project, name string, functions, instances int) api.EnvironmentInfo {
		env := function.Environment{Project: project, Name: name}
		return api.EnvironmentInfo{Environment: env, Account: function.Account(env), Active: 3, Functions: functions, Instances: instances, Deployed: before(3*time.Minute + time.Second)}
	}
	return slices.DeleteFunc([]api.EnvironmentInfo{
		info("shop", "staging", 1, 1), info("examples", "default", 2, 2), info("shop", "default", 1, 0),
	}, func(e api.EnvironmentInfo) bool {
		project, env := r.URL.Query().Get("project"), r.URL.Query().Get("environment")
		return project != "" && e.Project != project || env != "" && e.Environment.Name != env
	})
}

// record is one of r-1, a cold call, r-2, a call from it that failed, and r-3, which was refused.
func record(id string) *api.Record {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := api.Record{
		RequestID: id, Key: key("examples", "default", "hello-go"), Version: 2, Release: 3, Instance: "i-2", Accepted: at,
		Queue: 301 * time.Millisecond, Function: 11250 * time.Microsecond, Total: 313 * time.Millisecond,
		Outcome: "ok", Status: 200, RequestBytes: 12, ResponseBytes: 34,
	}
	switch id {
	case "r-1":
		r.Cold, r.Qualifier = true, "prod"
		r.Phases = map[string]int64{"init": 200_000, "create": 29_000, "network": 12_400, "thaw": 300, "start": 10_000, "files": 4_100}
	case "r-2":
		r.Parent, r.Queue, r.Total = "r-1", 0, 12*time.Millisecond
		r.Outcome, r.ErrorType, r.Detail = "error", "KeyError", "no such\x1b[2J key"
	case "r-3":
		r = api.Record{RequestID: id, Accepted: at, Outcome: "refused", Status: 404, ErrorType: "ResourceNotFoundException", Detail: fmt.Sprint("Function not found: ", strings.ToUpper("x"))}
	default:
		return nil
	}
	return &r
}
