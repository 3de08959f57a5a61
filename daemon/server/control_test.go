package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

func TestAPIError(t *testing.T) {
	own := &api.Error{Code: api.CodeForbidden, Message: "no"}
	fields := function.FieldErrors{{Field: "memory", Msg: "is odd"}, {Field: "timeout", Msg: "is long"}}
	for name, tt := range map[string]struct {
		err    error
		code   string
		status int
	}{
		"own":                 {fmt.Errorf("x: %w", own), api.CodeForbidden, 403},
		"fields":              {fmt.Errorf("x: %w", fields), api.CodeInvalid, 400},
		"invalid argument":    {errdefs.ErrInvalidArgument, api.CodeInvalid, 400},
		"out of range":        {errdefs.ErrOutOfRange, api.CodeInvalid, 400},
		"not found":           {errdefs.ErrNotFound, api.CodeNotFound, 404},
		"already exists":      {errdefs.ErrAlreadyExists, api.CodeConflict, 409},
		"conflict":            {errdefs.ErrConflict, api.CodeConflict, 409},
		"failed precondition": {errdefs.ErrFailedPrecondition, api.CodeConflict, 409},
		"aborted":             {errdefs.ErrAborted, api.CodeConflict, 409},
		"permission denied":   {errdefs.ErrPermissionDenied, api.CodeForbidden, 403},
		"unauthenticated":     {errdefs.ErrUnauthenticated, api.CodeForbidden, 403},
		"unavailable":         {errdefs.ErrUnavailable, api.CodeUnavailable, 503},
		"resource exhausted":  {errdefs.ErrResourceExhausted, api.CodeUnavailable, 503},
		"deadline":            {context.DeadlineExceeded, api.CodeUnavailable, 503},
		"canceled":            {context.Canceled, api.CodeInternal, 500},
		"not implemented":     {errdefs.ErrNotImplemented, api.CodeInternal, 500},
		"internal":            {errdefs.ErrInternal, api.CodeInternal, 500},
		"data loss":           {errdefs.ErrDataLoss, api.CodeInternal, 500},
		"unknown":             {errdefs.ErrUnknown, api.CodeInternal, 500},
		"no class":            {errTest, api.CodeInternal, 500},
		"AWS not found":       {function.NotFound("r", "a", "f", ""), api.CodeNotFound, 404},
	} {
		t.Run(name, func(t *testing.T) {
			got := APIError(tt.err)
			if got.Code != tt.code || statuses[got.Code] != tt.status || got.Message == "" {
				t.Errorf("got %+v (%d), want %s (%d)", got, statuses[got.Code], tt.code, tt.status)
			}
		})
	}
	if diff := cmp.Diff([]string{"memory: is odd", "timeout: is long"}, APIError(fields).Details); diff != "" {
		t.Errorf("details (-want +got):\n%s", diff)
	}
}

func TestFilterAndName(t *testing.T) {
	w := start(t, KindControl, nil)
	w.do("GET", api.PathFunctions+"?project=shop&environment=staging", "")
	if want := (function.Environment{Project: "shop", Name: "staging"}); w.backend.filter != want {
		t.Errorf("filter %+v", w.backend.filter)
	}
	w.backend.function = func(name string, f function.Environment) (*api.FunctionDetail, error) {
		return nil, fmt.Errorf("%s in %s: %w", name, f, errdefs.ErrNotFound)
	}
	got := w.do("GET", api.PathFunctions+"/hello?project=shop&environment=default", "")
	if got.status != http.StatusNotFound || got.body != `{"code":"not_found","message":"hello in shop: not found"}`+"\n" {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestDeployBodyIsReadStrictly(t *testing.T) {
	w := start(t, KindControl, nil)
	w.backend.deploy = func(context.Context, api.DeployRequest, func(api.DeployEvent)) (*api.DeployResult, error) {
		return &api.DeployResult{}, nil
	}
	for name, tt := range map[string]struct {
		body string
		want int
	}{
		"good":           {`{"project":"shop","environment":"default"}`, 200},
		"trailing space": {"{}\n ", 200},
		"empty":          {"", 400},
		"unknown member": {`{"projekt":"x"}`, 400},
		"wrong type":     {`{"functions":1}`, 400},
		"two values":     {`{} {}`, 400},
		"rest":           {`{}]`, 400},
		"not JSON":       {`project: shop`, 400},
		"too large":      {`{"project":"` + strings.Repeat("x", maxControlBody) + `"}`, 400},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.do("POST", api.PathDeploys, tt.body)
			if got.status != tt.want {
				t.Errorf("got %d %s", got.status, got.body)
			}
			var e api.Error
			if tt.want == 400 && (json.Unmarshal([]byte(got.body), &e) != nil || e.Code != api.CodeInvalid || e.Message == "") {
				t.Errorf("body %q", got.body)
			}
		})
	}
}

func TestDeployStreamsEventsAndEndsWithOne(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want []string
	}{
		"done":   {nil, []string{`{"step":"one"}`, `{"step":"two"}`, `{"done":{"release":`}},
		"failed": {fmt.Errorf("x: %w", errdefs.ErrUnavailable), []string{`{"step":"one"}`, `{"step":"two"}`, `{"error":{"code":"unavailable","message":"x: unavailable"}}`}},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, KindControl, nil)
			w.backend.deploy = func(_ context.Context, _ api.DeployRequest, event func(api.DeployEvent)) (*api.DeployResult, error) {
				event(api.DeployEvent{Step: "one"})
				event(api.DeployEvent{Step: "two"})
				return &api.DeployResult{}, tt.err
			}
			got := w.do("POST", api.PathDeploys, "{}")
			lines := strings.Split(strings.TrimSpace(got.body), "\n")
			if got.status != 200 || got.header.Get("Content-Type") != "application/x-ndjson" || len(lines) != len(tt.want) {
				t.Fatalf("got %d %s", got.status, got.body)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("line %d = %s, want %s…", i, lines[i], want)
				}
			}
		})
	}
}

// TestEachEventIsSentAtOnce: the client reads a line before the next one is made.
func TestEachEventIsSentAtOnce(t *testing.T) {
	w := start(t, KindControl, nil)
	next := make(chan struct{})
	w.backend.deploy = func(_ context.Context, _ api.DeployRequest, event func(api.DeployEvent)) (*api.DeployResult, error) {
		for i := range 3 {
			event(api.DeployEvent{Step: fmt.Sprint(i)})
			<-next
		}
		return &api.DeployResult{}, nil
	}
	resp, err := w.client.Post("http://"+w.addr+api.PathDeploys, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	for i := range 3 {
		if !sc.Scan() || sc.Text() != fmt.Sprintf(`{"step":"%d"}`, i) {
			t.Fatalf("line %d: %q, %v", i, sc.Text(), sc.Err())
		}
		next <- struct{}{}
	}
}

func TestClientThatLeavesCancelsItsDeploy(t *testing.T) {
	w := start(t, KindControl, nil)
	ended := make(chan error, 1)
	begun := make(chan struct{})
	w.backend.deploy = func(ctx context.Context, _ api.DeployRequest, event func(api.DeployEvent)) (*api.DeployResult, error) {
		event(api.DeployEvent{Step: "one"})
		close(begun)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+w.addr+api.PathDeploys, strings.NewReader("{}"))
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	cancel()
	resp.Body.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the deploy goes on")
	}
}

func TestLogQuery(t *testing.T) {
	w := start(t, KindControl, nil)
	var seen LogQuery
	w.backend.logs = func(_ context.Context, q LogQuery, entry func(api.LogEntry) error) error {
		seen = q
		return errors.Join(entry(api.LogEntry{Message: "a"}), entry(api.LogEntry{Message: "b"}))
	}
	got := w.do("GET", api.PathLogs+"?function=f&project=p&environment=e&follow=1&since=2026-01-02T03:04:05.6Z&limit=7&request_id=r", "")
	want := LogQuery{Name: "f", Filter: function.Environment{Project: "p", Name: "e"}, Follow: true, Since: time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC), Limit: 7, RequestID: "r"}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("query (-want +got):\n%s", diff)
	}
	if got.status != 200 || strings.Count(got.body, "\n") != 2 {
		t.Errorf("got %d %s", got.status, got.body)
	}
	for _, bad := range []string{"since=yesterday", "limit=x", "limit=-1"} {
		if got := w.do("GET", api.PathLogs+"?"+bad, ""); got.status != 400 {
			t.Errorf("%s: %d %s", bad, got.status, got.body)
		}
	}
}

func TestLogErrors(t *testing.T) {
	w := start(t, KindControl, nil)
	after := 0
	w.backend.logs = func(_ context.Context, _ LogQuery, entry func(api.LogEntry) error) error {
		for range after {
			if err := entry(api.LogEntry{Message: "a"}); err != nil {
				return err
			}
		}
		return errdefs.ErrNotFound
	}
	if got := w.do("GET", api.PathLogs, ""); got.status != 404 {
		t.Errorf("an error before the first line: %d %s", got.status, got.body)
	}
	after = 2
	if got := w.do("GET", api.PathLogs, ""); got.status != 200 || got.err == nil {
		t.Errorf("an error after it must cut the answer: %d, %v", got.status, got.err)
	}
	w.backend.logs = func(context.Context, LogQuery, func(api.LogEntry) error) error { return nil }
	if got := w.do("GET", api.PathLogs, ""); got.status != 200 || got.body != "" || got.header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("no line at all: %d %q", got.status, got.body)
	}
}
