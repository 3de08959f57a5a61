package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// serveDeploy runs a stand-in that reads the request and hands the stream to deploy.
func serveDeploy(t *testing.T, deploy func(ctx context.Context, send func(api.DeployEvent))) *Client {
	t.Helper()
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		var req api.DeployRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Errorf("read the request: %v", err)
		}
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusOK)
		deploy(r.Context(), func(e api.DeployEvent) {
			_ = json.NewEncoder(w).Encode(e)
			w.(http.Flusher).Flush()
		})
	})
}

func TestDeployHandsOnTheEventsAndReturnsTheResult(t *testing.T) {
	want := &api.DeployResult{Release: function.Release{Number: 3}}
	c := serveDeploy(t, func(_ context.Context, send func(api.DeployEvent)) {
		send(api.DeployEvent{Step: "building"})
		send(api.DeployEvent{Build: json.RawMessage(`{"Vertexes":[]}`)})
		send(api.DeployEvent{Warning: "careful"})
		send(api.DeployEvent{Done: want})
	})
	var got []api.DeployEvent
	result, err := c.Deploy(t.Context(), api.DeployRequest{}, func(e api.DeployEvent) { got = append(got, e) })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, result); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	events := []api.DeployEvent{{Step: "building"}, {Build: json.RawMessage(`{"Vertexes":[]}`)}, {Warning: "careful"}}
	if diff := cmp.Diff(events, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestDeployFailures(t *testing.T) {
	failure := &api.Error{Code: api.CodeInvalid, Message: "hello-go: no Dockerfile"}
	c := serveDeploy(t, func(_ context.Context, send func(api.DeployEvent)) { send(api.DeployEvent{Error: failure}) })
	_, err := c.Deploy(t.Context(), api.DeployRequest{}, nil)
	if got, ok := errors.AsType[*api.Error](err); !ok || got.Message != failure.Message {
		t.Errorf("got %v, want %v", err, failure)
	}

	c = serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusConflict)
		io.WriteString(w, `{"code":"conflict","message":"another deploy runs"}`)
	})
	_, err = c.Deploy(t.Context(), api.DeployRequest{}, nil)
	if got, ok := errors.AsType[*api.Error](err); !ok || got.Code != api.CodeConflict {
		t.Errorf("got %v, want a conflict", err)
	}
}

func TestADeployStreamThatIsCutIsAnError(t *testing.T) {
	c := serveDeploy(t, func(_ context.Context, send func(api.DeployEvent)) { send(api.DeployEvent{Step: "building"}) })
	if _, err := c.Deploy(t.Context(), api.DeployRequest{}, nil); !errors.Is(err, ErrStreamCut) {
		t.Errorf("ended without a result: got %v, want %v", err, ErrStreamCut)
	}
	c = serveDeploy(t, func(_ context.Context, send func(api.DeployEvent)) {
		send(api.DeployEvent{Step: "building"})
		panic(http.ErrAbortHandler)
	})
	if _, err := c.Deploy(t.Context(), api.DeployRequest{}, nil); !errors.Is(err, ErrStreamCut) {
		t.Errorf("connection closed: got %v, want %v", err, ErrStreamCut)
	}
}

func TestACanceledDeployWaitsForTheDaemon(t *testing.T) {
	stopped := false
	c := serveDeploy(t, func(ctx context.Context, send func(api.DeployEvent)) {
		send(api.DeployEvent{Step: "building"})
		<-ctx.Done() // the closed half reaches the handler
		stopped = true
		send(api.DeployEvent{Error: &api.Error{Code: api.CodeInternal, Message: "canceled"}})
	})
	cause := errors.New("ctrl-c")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := c.Deploy(ctx, api.DeployRequest{}, func(api.DeployEvent) { cancel(cause) })
	canceled, ok := errors.AsType[*CanceledError](err)
	if !ok || !canceled.Confirmed || !errors.Is(err, cause) {
		t.Errorf("got %v, want a confirmed *CanceledError with its cause", err)
	}
	if !stopped {
		t.Error("Deploy returned before the daemon stopped")
	}
}

func TestADeployThatIsCanceledTooLateReturnsItsResult(t *testing.T) {
	c := serveDeploy(t, func(ctx context.Context, send func(api.DeployEvent)) {
		send(api.DeployEvent{Step: "activating"})
		<-ctx.Done()
		send(api.DeployEvent{Done: &api.DeployResult{Release: function.Release{Number: 3}}})
	})
	ctx, cancel := context.WithCancel(t.Context())
	result, err := c.Deploy(ctx, api.DeployRequest{}, func(api.DeployEvent) { cancel() })
	if err != nil || result.Release.Number != 3 {
		t.Errorf("got %v, %v, want release 3", result, err)
	}
}

func TestACanceledDeployDoesNotWaitForever(t *testing.T) {
	release := make(chan struct{})
	c := serveDeploy(t, func(ctx context.Context, send func(api.DeployEvent)) {
		send(api.DeployEvent{Step: "building"})
		<-release
	})
	t.Cleanup(func() { close(release) })
	c.cancelWait = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Deploy(ctx, api.DeployRequest{}, func(api.DeployEvent) { cancel() })
	if canceled, ok := errors.AsType[*CanceledError](err); !ok || canceled.Confirmed {
		t.Errorf("got %v, want an unconfirmed *CanceledError", err)
	}
}

// Whatever the daemon sends, reading it ends with exactly one of a result and an error.
func FuzzReadDeploy(f *testing.F) {
	f.Add([]byte(`{"step":"x"}` + "\n" + `{"done":{}}`))
	f.Add([]byte(`{"error":{"code":"x"}}`))
	f.Add([]byte("{}\n\n{"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		resp := &http.Response{Body: io.NopCloser(bytes.NewReader(stream))}
		result, err := readDeploy(resp, func(api.DeployEvent) {})
		if (result == nil) == (err == nil) {
			t.Errorf("got %v and %v", result, err)
		}
	})
}

// Whatever a failed call answers, there is a sentence.
func FuzzReadEnvelope(f *testing.F) {
	f.Add([]byte(`{"message":"x"}`))
	f.Add([]byte(`{"Message":1}`))
	f.Add([]byte(`<html>`))
	f.Fuzz(func(t *testing.T, body []byte) {
		resp := &http.Response{Status: "500 x", StatusCode: 500, Body: io.NopCloser(bytes.NewReader(body))}
		if readEnvelope(resp).Message == "" {
			t.Error("no message")
		}
	})
}
