package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil/types"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// fakeDaemon answers daemon/api and Invoke on a Unix socket from a fixed record. What a deploy does
// is chosen by its environment's name, what an invocation does by the function's.
type fakeDaemon struct {
	socket   string
	sessions *session.Manager
	empty    atomic.Bool   // nothing is deployed
	polls    atomic.Int32  // of instances; what is idle is frozen from the second one on
	release  chan struct{} // closed when the test ends

	mu       sync.Mutex // guards what follows
	requests []string
}

// startFake runs a fake daemon on a socket in dir until stop.
func startFake(dir string) (f *fakeDaemon, stop func(), err error) {
	sessions, err := session.NewManager()
	if err != nil {
		return nil, nil, err
	}
	f = &fakeDaemon{
		socket: filepath.Join(dir, "lfxd.sock"), sessions: sessions, release: make(chan struct{}),
	}
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		return nil, nil, err
	}
	server := &http.Server{Handler: f.routes()}
	done := make(chan struct{})
	go func() { // ends with the server; stop waits for it
		defer close(done)
		_ = server.Serve(listener)
	}()
	return f, func() {
		close(f.release)
		server.Close()
		<-done
	}, nil
}

func (f *fakeDaemon) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathVersion, func(w http.ResponseWriter, r *http.Request) {
		answer(w, api.VersionInfo{Version: "v1.2.3", Go: "go1.26.8", Containerd: "v2.4.2", Buildkit: "v0.34.2", Runtime: "runc 1.5.2"})
	})
	mux.HandleFunc("GET "+api.PathFunctions, func(w http.ResponseWriter, r *http.Request) { answer(w, f.functions(r)) })
	mux.HandleFunc("GET "+api.PathFunctions+"/{name}", f.function)
	mux.HandleFunc("DELETE "+api.PathFunctions+"/{name}", f.remove)
	mux.HandleFunc("GET "+api.PathReleases, func(w http.ResponseWriter, r *http.Request) { answer(w, releases(f.empty.Load())) })
	mux.HandleFunc("GET "+api.PathInstances, func(w http.ResponseWriter, r *http.Request) {
		all := running(f.empty.Load())
		if f.polls.Add(1) > 1 && len(all) > 0 {
			all[0].State = "frozen"
		}
		answer(w, all)
	})
	f.releaseRoutes(mux)
	mux.HandleFunc("GET "+api.PathLogs, f.logs)
	mux.HandleFunc("GET "+api.PathDoctor, func(w http.ResponseWriter, r *http.Request) { answer(w, report(f.empty.Load())) })
	mux.HandleFunc("POST "+api.PathSession, func(w http.ResponseWriter, r *http.Request) {
		_ = f.sessions.HandleHTTPRequest(context.Background(), w, r)
	})
	mux.HandleFunc("POST "+api.PathDeploys, f.deploy)
	mux.HandleFunc("POST /2015-03-31/functions/{name}/invocations", f.invoke)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r.Method+" "+r.URL.RequestURI())
		f.mu.Unlock()
		mux.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func refuse(w http.ResponseWriter, status int, e api.Error) {
	w.WriteHeader(status)
	answer(w, e)
}

func key(project, env, name string) function.Key {
	return function.Key{Environment: function.Environment{Project: project, Name: env}, Function: name}
}

func before(d time.Duration) time.Time { return time.Now().Add(-d) }

func summary(k function.Key, version, release int) api.FunctionSummary {
	account := function.Account(k.Environment)
	return api.FunctionSummary{
		Key: k, Version: version, Release: release, Account: account, ARN: "arn:aws:lambda:us-east-1:" + account + ":function:" + k.Function,
		MemoryMB: 256, Timeout: "30s", Deployed: before(3*time.Minute + 10*time.Second),
	}
}

func (f *fakeDaemon) functions(r *http.Request) []api.FunctionSummary {
	if f.empty.Load() {
		return nil
	}
	python := summary(key("examples", "default", "hello-python"), 1, 3)
	python.Default, python.MemoryMB, python.Instances, python.InFlight = true, 1024, 2, 1
	golang := summary(key("examples", "default", "hello-go"), 2, 3)
	golang.Port = 9001
	all := []api.FunctionSummary{
		python, golang,
		summary(key("shop", "default", "checkout"), 1, 1),
		summary(key("shop", "staging", "checkout"), 4, 7),
	}
	return slices.DeleteFunc(all, func(s api.FunctionSummary) bool {
		project, env := r.URL.Query().Get("project"), r.URL.Query().Get("environment")
		return project != "" && s.Project != project || env != "" && s.Environment.Name != env
	})
}

func (f *fakeDaemon) function(w http.ResponseWriter, r *http.Request) {
	for _, s := range f.functions(r) {
		if s.Function == r.PathValue("name") {
			answer(w, detail(s))
			return
		}
	}
	refuse(w, http.StatusNotFound, api.Error{Code: api.CodeNotFound, Message: "no such function"})
}

func detail(s api.FunctionSummary) api.FunctionDetail {
	version := func(n int, age time.Duration) function.Version {
		return function.Version{
			Key: s.Key, Number: n, Created: before(age),
			Image: function.Image{
				Name: "lfx.local/examples/hello-go:v2", Digest: "sha256:" + strings.Repeat(fmt.Sprint(n), 64),
				BaseName: "public.ecr.aws/lambda/provided:al2023", Cmd: []string{"hello"}, Entrypoint: []string{"/main"},
			},
			Config: function.Config{MemoryMB: 256, TmpMB: 512, Timeout: 30 * time.Second, Environment: map[string]string{"TOKEN": "secret", "A": "1"}, Concurrency: function.Concurrency{Max: 10}},
		}
	}
	d := api.FunctionDetail{FunctionSummary: s, Active: version(s.Version, 3*time.Minute), Running: running(false)[:1]}
	for n := 1; n <= s.Version; n++ {
		d.Versions = append(d.Versions, version(n, time.Duration(s.Version-n+1)*3*time.Hour+time.Minute))
	}
	return d
}

func (f *fakeDaemon) remove(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	result := api.RemoveResult{Key: key(q.Get("project"), q.Get("environment"), r.PathValue("name")), Release: 4}
	if q.Get("project") == "shop" {
		result.Release = 0
	}
	answer(w, result)
}

func releases(empty bool) []api.ReleaseInfo {
	if empty {
		return nil
	}
	env := function.Environment{Project: "examples", Name: "default"}
	revision := "0123456789abcdef0123456789abcdef01234567"
	return []api.ReleaseInfo{
		{Release: function.Release{Environment: env, Number: 2, Versions: map[string]int{"hello-go": 1}, State: function.ReleaseSuperseded, Created: before(30*time.Hour + time.Minute)}, Status: api.StateDraining, Changed: []string{"hello-go"}, InFlight: 2, Requests: 900, Errors: 1},
		{Release: function.Release{Environment: env, Number: 3, Versions: map[string]int{"hello-python": 1, "hello-go": 2}, State: function.ReleaseActive, Created: before(3*time.Minute + 10*time.Second), Source: function.Source{Revision: revision + "-dirty"}}, Status: api.StateActive, Percent: 90, Changed: []string{"hello-go", "hello-python"}, Requests: 120},
		{Release: function.Release{Environment: env, Number: 4, Versions: map[string]int{"hello-python": 1, "hello-go": 3}, Created: before(2*time.Minute + 10*time.Second)}, Status: api.StateCanary, Percent: 10, Changed: []string{"a", "b", "c", "d", "hello-go"}, Requests: 12},
		{Release: function.Release{Environment: function.Environment{Project: "shop", Name: "staging"}, Number: 7, Versions: map[string]int{"checkout": 4}, State: function.ReleaseFailed, Created: before(50 * time.Hour)}, Status: api.StateFailed},
	}
}

func running(empty bool) []api.InstanceInfo {
	if empty {
		return nil
	}
	return []api.InstanceInfo{
		{Key: key("examples", "default", "hello-go"), ID: "i-2", Version: 2, Release: 3, MemoryBytes: 12_700_000, State: "idle", Address: "10.89.0.3", Started: before(2*time.Minute + 10*time.Second), Used: before(61 * time.Second)},
		{Key: key("examples", "default", "hello-python"), ID: "i-1", Version: 1, Release: 2, InFlight: 1, MemoryBytes: 4_400_000, State: "busy", Address: "10.89.0.2", Started: before(3*time.Minute + 10*time.Second)},
		{Key: key("shop", "staging", "checkout"), ID: "i-3", Version: 4, State: "starting", Started: before(70 * time.Minute)},
	}
}

func report(healthy bool) api.DoctorReport {
	checks := []api.DoctorCheck{
		{Name: "containerd", Status: "ok", Detail: "v2.4.2 answers"},
		{Name: "memory", Status: "warn", Detail: "swap is on", Remedy: "swapoff -a"},
	}
	if !healthy {
		checks = append(checks, api.DoctorCheck{Name: "buildkitd", Status: "fail", Detail: "buildkitd is not answering on /run/x", Remedy: "systemctl start lfx-buildkitd"})
	}
	return api.DoctorReport{Checks: checks}
}

func (f *fakeDaemon) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	for i, line := range []struct{ request, stream, message string }{
		{"r-1", "platform", "START RequestId: r-1 Version: 2"},
		{"r-1", "stdout", "hello\n"},
		{"r-2", "stderr", "oops"},
	} {
		answer(w, api.LogEntry{
			Time: at.Add(time.Duration(i) * time.Second), Key: key("examples", "default", "hello-go"), Version: 2, Release: 3,
			Instance: "i-2", RequestID: line.request, Stream: line.stream, Message: line.message,
		})
	}
	if q.Get("follow") != "" {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
}

func (f *fakeDaemon) invoke(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h := w.Header()
	name := r.PathValue("name")
	h.Set("X-Amzn-RequestId", map[bool]string{true: "r-1", false: "r-9"}[strings.HasSuffix(name, "cold")])
	switch {
	case strings.HasSuffix(name, "nope"):
		h.Set("X-Amzn-ErrorType", "ResourceNotFoundException")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"Type":"User","Message":"Function not found: arn:aws:lambda:us-east-1:1:function:nope:$LATEST"}`)
		return
	case strings.HasSuffix(name, "fails"):
		h.Set("X-Amz-Function-Error", "Unhandled")
	}
	h.Set("X-Amz-Executed-Version", "2")
	h.Set("X-Lfx-Release", "3")
	if r.Header.Get("X-Amz-Log-Type") == "Tail" {
		h.Set("X-Amz-Log-Result", "U1RBUlQKRU5ECg==") // START, END
	}
	switch {
	case strings.HasSuffix(name, "fails"):
		io.WriteString(w, `{"errorMessage":"no such key","errorType":"KeyError"}`)
	case strings.HasSuffix(name, "text"):
		io.WriteString(w, "not json")
	default:
		fmt.Fprintf(w, `{"function":%q,"qualifier":%q,"event":%s}`, name, r.URL.Query().Get("Qualifier"), body)
	}
}

func (f *fakeDaemon) deploy(w http.ResponseWriter, r *http.Request) {
	var req api.DeployRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest, api.Error{Code: api.CodeInvalid, Message: err.Error()})
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	if req.Environment.Name == "busy" && !req.Wait {
		refuse(w, http.StatusConflict, api.Error{Code: api.CodeConflict, Message: "another deploy of examples/busy runs since 3s: wait for it, or deploy with --wait"})
		return
	}
	send := func(e api.DeployEvent) {
		answer(w, e)
		w.(http.Flusher).Flush()
	}
	if req.Auto != nil {
		send(api.DeployEvent{Step: fmt.Sprintf("judged: %+v", *req.Auto)})
	}
	send(api.DeployEvent{Step: fmt.Sprintf("mirroring: %s", strings.Join(f.mirror(r.Context(), req), ", "))})
	switch req.Environment.Name {
	case "cut":
		return
	case "broken":
		send(api.DeployEvent{Build: status()})
		send(api.DeployEvent{Error: &api.Error{Code: api.CodeInternal, Message: "hello-go: the build failed at Dockerfile:3", Details: []string{"RUN make", "make: not found"}}})
	case "slow":
		<-r.Context().Done()
		send(api.DeployEvent{Error: &api.Error{Code: api.CodeInternal, Message: "the build was canceled"}})
	case "stuck":
		<-f.release
	default:
		send(api.DeployEvent{Step: "building " + fmt.Sprint(len(req.Functions)) + " functions"})
		send(api.DeployEvent{Build: status()})
		send(api.DeployEvent{Warning: "hello-go: the base image is a stand-in"})
		send(api.DeployEvent{Done: deployed(req)})
	}
}

// mirror copies what the session offers, as the daemon does, and returns the files.
func (f *fakeDaemon) mirror(ctx context.Context, req api.DeployRequest) []string {
	if req.SessionID == "" {
		return []string{"no session"}
	}
	caller, err := f.sessions.Get(ctx, req.SessionID, false)
	if err != nil {
		return []string{err.Error()}
	}
	seen := map[string]bool{}
	for _, spec := range req.Functions {
		if spec.Build == nil {
			continue
		}
		dest, err := os.MkdirTemp("", "lfxmirror")
		if err != nil {
			return []string{err.Error()}
		}
		defer os.RemoveAll(dest)
		err = filesync.FSSync(ctx, caller, filesync.FSSendRequestOpt{
			Name: api.SourceDirName(spec.Build.Context), DestDir: dest,
			Filter: func(path string, _ *types.Stat) bool { seen[spec.Build.Context+"/"+path] = true; return true },
		})
		if err != nil {
			return []string{err.Error()}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// status is a build of one step.
func status() json.RawMessage {
	const step = `{"Vertexes":[{"Digest":"sha256:%[1]s","Name":"hello-go: [2/2] COPY main /main","Started":"2026-01-01T00:00:00Z"%s}]}`
	return json.RawMessage(fmt.Sprintf(step, strings.Repeat("a", 64), `,"Completed":"2026-01-01T00:00:01.5Z"`))
}

func deployed(req api.DeployRequest) *api.DeployResult {
	result := &api.DeployResult{
		Release:   function.Release{Environment: req.Environment, Number: 3, Source: req.Source},
		Plan:      req.Plan,
		Unchanged: req.Environment.Name == "same",
		Endpoints: []string{"http://localhost:9000/2015-03-31/functions/hello-python/invocations", "http://localhost:9001/2015-03-31/functions/function/invocations", "http://localhost:9000/2015-03-31/functions/function/invocations"},
	}
	for i, spec := range req.Functions {
		change := "unchanged"
		if i == 0 && !result.Unchanged {
			change = "updated"
		}
		result.Functions = append(result.Functions, api.DeployFunction{Name: spec.Name, Version: i + 1, Change: change, Digest: "sha256:x", Port: spec.Port})
	}
	if req.Environment.Name == "default" || req.Canary != 0 {
		result.Previous = 2
	}
	if req.Environment.Name == "shrunk" {
		result.Functions = append(result.Functions, api.DeployFunction{Name: "old", Change: "removed"})
	}
	return result
}
