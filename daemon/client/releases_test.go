package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

func TestReleaseCallsUsePathsQueriesAndBodies(t *testing.T) {
	var got []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
		if len(body) > 0 && r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: content type %q", r.URL.Path, r.Header.Get("Content-Type"))
		}
		list := r.Method == http.MethodGet && (r.URL.Path == api.PathTraffic || r.URL.Path == api.PathAliases || r.URL.Path == api.PathEnvironments)
		io.WriteString(w, map[bool]string{true: "[]", false: "{}"}[list])
	})
	ctx := t.Context()
	env := function.Environment{Project: "shop", Name: "staging"}
	for _, call := range []func() error{
		func() error { _, err := c.Traffic(ctx, env); return err },
		func() error {
			_, err := c.SetTraffic(ctx, api.TrafficRequest{Environment: env, Release: 8, Percent: 2.5})
			return err
		},
		func() error { _, err := c.Promote(ctx, api.ReleaseRequest{Environment: env}); return err },
		func() error { _, err := c.Abort(ctx, api.ReleaseRequest{Environment: env, Release: 8}); return err },
		func() error { _, err := c.Diff(ctx, env, 6, 7); return err },
		func() error { _, err := c.Diff(ctx, function.Environment{}, 0, 7); return err },
		func() error { _, err := c.Aliases(ctx, env, ""); return err },
		func() error { _, err := c.Aliases(ctx, function.Environment{}, "f"); return err },
		func() error {
			_, err := c.SetAlias(ctx, api.Alias{Environment: env, Function: "f", Name: "prod", Version: 3, Weights: map[int]float64{4: 0.1}})
			return err
		},
		func() error { _, err := c.DeleteAlias(ctx, env, "", "stable"); return err },
		func() error { _, err := c.DeleteAlias(ctx, env, "f", "prod"); return err },
		func() error { _, err := c.Environments(ctx, function.Environment{}); return err },
		func() error { _, err := c.RemoveEnvironment(ctx, env); return err },
		func() error { _, err := c.Record(ctx, "a/b"); return err },
		func() error { return c.Metrics(ctx, io.Discard) },
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		`GET /lfx/v1/traffic?environment=staging&project=shop`,
		`PUT /lfx/v1/traffic {"project":"shop","environment":"staging","release":8,"percent":2.5}`,
		`POST /lfx/v1/promotions {"project":"shop","environment":"staging"}`,
		`POST /lfx/v1/aborts {"project":"shop","environment":"staging","release":8}`,
		`GET /lfx/v1/diff?environment=staging&from=6&project=shop&to=7`,
		`GET /lfx/v1/diff?to=7`,
		`GET /lfx/v1/aliases?environment=staging&project=shop`,
		`GET /lfx/v1/aliases?function=f`,
		`PUT /lfx/v1/aliases {"project":"shop","environment":"staging","function":"f","name":"prod","version":3,"weights":{"4":0.1}}`,
		`DELETE /lfx/v1/aliases?environment=staging&name=stable&project=shop`,
		`DELETE /lfx/v1/aliases?environment=staging&function=f&name=prod&project=shop`,
		`GET /lfx/v1/environments`,
		`DELETE /lfx/v1/environments?environment=staging&project=shop`,
		`GET /lfx/v1/records/a%2Fb`,
		`GET /metrics`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestFailedReleaseCallsReturnTheErrorAlone(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusConflict)
		io.WriteString(w, `{"code":"conflict","message":"no"}`)
	})
	ctx, env := t.Context(), function.Environment{}
	for name, call := range map[string]func() (any, error){
		"SetTraffic":        func() (any, error) { v, err := c.SetTraffic(ctx, api.TrafficRequest{}); return v == nil, err },
		"Promote":           func() (any, error) { v, err := c.Promote(ctx, api.ReleaseRequest{}); return v == nil, err },
		"Abort":             func() (any, error) { v, err := c.Abort(ctx, api.ReleaseRequest{}); return v == nil, err },
		"Diff":              func() (any, error) { v, err := c.Diff(ctx, env, 1, 2); return v == nil, err },
		"SetAlias":          func() (any, error) { v, err := c.SetAlias(ctx, api.Alias{}); return v == nil, err },
		"DeleteAlias":       func() (any, error) { v, err := c.DeleteAlias(ctx, env, "f", "a"); return v == nil, err },
		"RemoveEnvironment": func() (any, error) { v, err := c.RemoveEnvironment(ctx, env); return v == nil, err },
		"Record":            func() (any, error) { v, err := c.Record(ctx, "r"); return v == nil, err },
		"Metrics": func() (any, error) {
			var out bytes.Buffer
			err := c.Metrics(ctx, &out)
			return out.Len() == 0, err
		},
	} {
		none, err := call()
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeConflict || none != true {
			t.Errorf("%s: got a result: %v, error %v", name, none != true, err)
		}
	}
}

func TestMetricsAreCopied(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "lfx_up 1\n") })
	var out bytes.Buffer
	if err := c.Metrics(t.Context(), &out); err != nil || out.String() != "lfx_up 1\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestRollback(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var req api.RollbackRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || r.URL.Path != api.PathRollbacks || req.Release != 3 || !req.Wait {
			t.Errorf("%s: %+v, %v", r.URL.Path, req.Release, err)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		enc := json.NewEncoder(w)
		_ = enc.Encode(api.DeployEvent{Step: "warming"})
		_ = enc.Encode(api.DeployEvent{Done: &api.DeployResult{Previous: 7}})
	})
	var steps []string
	got, err := c.Rollback(t.Context(), api.RollbackRequest{Release: 3, Wait: true}, func(e api.DeployEvent) { steps = append(steps, e.Step) })
	if err != nil || got.Previous != 7 || len(steps) != 1 || steps[0] != "warming" {
		t.Errorf("got %+v, %v after %q", got, err, steps)
	}
}

func TestARollbackThatDoesNotEnd(t *testing.T) {
	c := serveDeploy(t, func(_ context.Context, send func(api.DeployEvent)) { send(api.DeployEvent{Step: "warming"}) })
	// The stand-in reads any request leniently.
	if _, err := c.Rollback(t.Context(), api.RollbackRequest{}, nil); !errors.Is(err, ErrRollbackCut) {
		t.Errorf("cut: got %v", err)
	}
	c = serveDeploy(t, func(ctx context.Context, send func(api.DeployEvent)) {
		send(api.DeployEvent{Step: "warming"})
		<-ctx.Done()
		send(api.DeployEvent{Error: &api.Error{Code: api.CodeInternal, Message: "canceled"}})
	})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Rollback(ctx, api.RollbackRequest{}, func(api.DeployEvent) { cancel() })
	if err == nil || err.Error() != "the rollback was canceled; the running release is untouched" {
		t.Errorf("canceled: got %v", err)
	}
}
