//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/api"
)

// figures reads /metrics over the control socket, as "name{labels}" → value.
func figures(t *testing.T) map[string]float64 {
	t.Helper()
	a := do(t, overSocket("lfxd.sock"), "GET", "http://lfxd"+api.PathMetrics, "")
	if a.status != http.StatusOK || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
		t.Fatalf("%s: status %d, type %q: %s", api.PathMetrics, a.status, a.header.Get("Content-Type"), a.body)
	}
	out := map[string]float64{}
	for line := range strings.Lines(a.body) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out[line[:i]] = v
	}
	return out
}

// awaitFigures polls until all are as wanted; what happens after an answer takes a moment.
func awaitFigures(t *testing.T, want map[string]float64) {
	t.Helper()
	if err := poll(30*time.Second, func() error {
		got := figures(t)
		for k, v := range want {
			if g, ok := got[k]; !ok || g != v {
				return fmt.Errorf("%s = %v (there: %t), want %v", k, g, ok, v)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// recordOf reads the record of an answer.
func recordOf(t *testing.T, id string) api.Record {
	t.Helper()
	a := do(t, overSocket("lfxd.sock"), "GET", "http://lfxd"+api.PathRecords+"/"+id, "")
	var rec api.Record
	if err := json.Unmarshal([]byte(a.body), &rec); err != nil || a.status != http.StatusOK {
		t.Fatalf("the record of %s: status %d: %s", id, a.status, a.body)
	}
	if rec.RequestID != id {
		t.Errorf("the record of %s is that of %s", id, rec.RequestID)
	}
	return rec
}

// asJSON shows a record whole; as a Go value it would be the name of its function.
func asJSON(rec api.Record) string {
	b, _ := json.Marshal(rec) //nolint:errchkjson // a record always marshals
	return string(b)
}

const metricsCaller = `
import json, os, urllib.request
def handler(event, context):
    url = os.environ["AWS_ENDPOINT_URL_LAMBDA"] + "/2015-03-31/functions/f/invocations"
    with urllib.request.urlopen(urllib.request.Request(url, data=b'{"how":"nested"}', method="POST")) as r:
        return r.headers["X-Amzn-RequestId"]
`

func TestFiguresAndRecordsAreExact(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("figures", "f timeout: 2s; concurrency: {max: 1}", "caller timeout: 20s; concurrency: {max: 1}", "full timeout: 15s; concurrency: {max: 1}")},
		python("f", errorCode), python("caller", metricsCaller),
		python("full", "import time\ndef handler(event, context): time.sleep(event.get('sleep', 0))\n"),
	))
	p.deploy()
	begun := time.Now()
	f := `project="figures",environment="default",function="f"`
	for _, c := range []struct {
		body, outcome, errorType string
		status                   int
		cold                     bool
	}{
		{`{}`, "ok", "", 200, true},
		{`{"how":"raise"}`, "error", "ValueError", 200, false},
		{`{"how":"sleep"}`, "timeout", "Sandbox.Timedout", 200, false},
		{`{}`, "ok", "", 200, true},
		{`{"how":"exit3"}`, "crash", "Runtime.ExitError", 200, false},
		{`{}`, "ok", "", 200, true},
		{`{`, "refused", "InvalidRequestContentException", 400, false},
	} {
		a := post(t, invokeURL("f"), c.body)
		rec := recordOf(t, a.header.Get("X-Amzn-RequestId"))
		if rec.Outcome != c.outcome || rec.Status != c.status || rec.Cold != c.cold || rec.Release != 1 || rec.Version != 1 || !strings.Contains(rec.ErrorType, c.errorType) {
			t.Errorf("%s: %s, want %+v", c.body, asJSON(rec), c)
		}
		checkTimes(t, rec, begun)
	}
	a := post(t, invokeURL("caller"), "{}")
	var nested string
	if err := json.Unmarshal([]byte(a.body), &nested); err != nil {
		t.Fatalf("the caller says %s", a.body)
	}
	outer, inner := recordOf(t, a.header.Get("X-Amzn-RequestId")), recordOf(t, nested)
	if inner.Parent != outer.RequestID || inner.Key.Function != "f" || outer.Parent != "" || outer.Function < inner.Total {
		t.Errorf("nested: %s\nits caller: %s", asJSON(inner), asJSON(outer))
	}
	if a := post(t, invokeURL("nobody-has-this-name"), "{}"); recordOf(t, a.header.Get("X-Amzn-RequestId")).Outcome != "refused" {
		t.Error("a call of a function that does not exist is not refused")
	}
	fillTheQueue(t)
	version := func(fn string) string {
		return fmt.Sprintf(`project="figures",environment="default",function=%q,version="1",release="1"`, fn)
	}
	awaitFigures(t, map[string]float64{
		`lfx_requests_total{` + version("f") + `,outcome="ok"}`:                                                                                   4,
		`lfx_requests_total{` + version("f") + `,outcome="error"}`:                                                                                1,
		`lfx_requests_total{` + version("f") + `,outcome="timeout"}`:                                                                              1,
		`lfx_requests_total{` + version("f") + `,outcome="crash"}`:                                                                                1,
		`lfx_requests_total{` + version("f") + `,outcome="refused"}`:                                                                              1,
		`lfx_requests_total{` + version("caller") + `,outcome="ok"}`:                                                                              1,
		`lfx_requests_total{` + version("full") + `,outcome="ok"}`:                                                                                51,
		`lfx_requests_total{` + version("full") + `,outcome="throttled"}`:                                                                         3,
		`lfx_throttles_total{project="figures",environment="default",function="full",reason="ReservedFunctionConcurrentInvocationLimitExceeded"}`: 3,
		`lfx_function_duration_seconds_count{` + version("f") + `}`:                                                                               7,
		`lfx_added_latency_seconds_count{` + f + `}`:                                                                                              7,
		`lfx_cold_starts_total{` + f + `}`:                                                                                                        3,
		`lfx_instance_starts_total{` + f + `,result="ok"}`:                                                                                        3,
		`lfx_instance_starts_total{` + f + `,result="failed"}`:                                                                                    0,
		`lfx_instance_start_phase_seconds_count{` + f + `,phase="init"}`:                                                                          3,
		`lfx_instance_ends_total{` + f + `,reason="failed"}`:                                                                                      2,
		`lfx_cold_starts_total{project="figures",environment="default",function="full"}`:                                                          1,
		`lfx_instances{project="figures",environment="default",function="f",version="1",state="busy"}`:                                            0,
		`lfx_release_active{project="figures",environment="default"}`:                                                                             1,
		`lfx_release_traffic_percent{project="figures",environment="default",release="1",status="active"}`:                                        100,
		`lfx_release_requests_in_flight{project="figures",environment="default",release="1"}`:                                                     0,
	})
}

// checkTimes holds the times of a record against one another.
func checkTimes(t *testing.T, rec api.Record, begun time.Time) {
	t.Helper()
	if rec.Accepted.Before(begun.Add(-time.Second)) || rec.Accepted.After(time.Now()) || rec.Total <= 0 || rec.Queue+rec.Function > rec.Total+10*time.Millisecond {
		t.Errorf("times of %s", asJSON(rec))
	}
	if ran := rec.Outcome != "refused"; ran != (rec.Function > 0) || ran != (rec.Instance != "") || rec.Cold != (rec.Phases["init"] > 0) || rec.Cold && rec.Queue == 0 {
		t.Errorf("the record is not whole: %s", asJSON(rec))
	}
	if rec.Outcome == "timeout" && rec.Function != time.Duration(slow(2))*time.Second {
		t.Errorf("the function that ran out of time took %s", rec.Function)
	}
}

// fillTheQueue has one call run and as many wait as may (queue_limit), then makes three too many.
func fillTheQueue(t *testing.T) {
	t.Helper()
	var wg sync.WaitGroup
	call := func(body string) {
		wg.Go(func() {
			if a, err := try(http.DefaultClient, "POST", invokeURL("full"), body); err != nil || a.status != http.StatusOK {
				t.Errorf("a call that waits: %d %s %v", a.status, a.body, err)
			}
		})
	}
	const fn = `{project="figures",environment="default",function="full",version="1"`
	call(`{"sleep":8}`)
	awaitFigures(t, map[string]float64{"lfx_instances" + fn + `,state="busy"}`: 1, "lfx_queue_length" + fn + "}": 0})
	for range 50 {
		call(`{}`)
	}
	awaitFigures(t, map[string]float64{"lfx_queue_length" + fn + "}": 50})
	for range 3 {
		a := post(t, invokeURL("full"), "{}")
		rec := recordOf(t, a.header.Get("X-Amzn-RequestId"))
		if a.status != http.StatusTooManyRequests || rec.Outcome != "throttled" || rec.Instance != "" || rec.Detail == "" || rec.Cold {
			t.Errorf("status %d, record %s", a.status, asJSON(rec))
		}
	}
	wg.Wait()
}

// TestFiguresNeedTheControlSocket: who may only invoke learns nothing about others.
func TestFiguresNeedTheControlSocket(t *testing.T) {
	for _, path := range []string{api.PathMetrics, api.PathRecords + "/00000000-0000-4000-8000-000000000000"} {
		if a := do(t, http.DefaultClient, "GET", "http://localhost:9000"+path, ""); a.status != http.StatusForbidden {
			t.Errorf("GET %s over TCP: %d %s", path, a.status, a.body)
		}
		if a := do(t, overSocket("invoke.sock"), "GET", "http://lfxd"+path, ""); a.status != http.StatusForbidden {
			t.Errorf("GET %s on the invoke socket: %d %s", path, a.status, a.body)
		}
	}
	if a := do(t, overSocket("lfxd.sock"), "GET", "http://lfxd"+api.PathRecords+"/00000000-0000-4000-8000-000000000000", ""); a.status != http.StatusNotFound {
		t.Errorf("a record that does not exist: %d %s", a.status, a.body)
	}
}
