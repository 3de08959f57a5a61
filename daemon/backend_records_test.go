package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	bkclient "github.com/moby/buildkit/client"

	"lfx.dev/lfxd/buildkit"
	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/config"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/metrics"
	"lfx.dev/lfxd/daemon/worker"
)

// backend is the control API's view of the world.
func (w *world) backend() *backend {
	return &backend{opts: Options{Version: "1.2.3"}, cfg: config.Default(), store: w.store, pools: w.pools, metrics: w.metrics, records: w.records, starter: worker.NewStarter(worker.Options{})}
}

func (w *world) figures() string {
	w.t.Helper()
	var b bytes.Buffer
	if err := w.backend().Metrics(&b); err != nil {
		w.t.Fatal(err)
	}
	return b.String()
}

// wantFigures looks for whole lines.
func (w *world) wantFigures(lines ...string) {
	w.t.Helper()
	got := "\n" + w.figures()
	for _, l := range lines {
		if !strings.Contains(got, "\n"+l+"\n") {
			name, _, _ := strings.Cut(l, "{")
			var near []string
			for have := range strings.Lines(got) {
				if strings.HasPrefix(have, name) {
					near = append(near, have)
				}
			}
			w.t.Errorf("there is no %s, but\n%s", l, strings.Join(near, ""))
		}
	}
}

func TestCallsHaveFiguresAndRecords(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	w.release(withPorts(shop, "1", map[string]int{"a": port}, "a"))
	for range 3 {
		if status, body := w.post(port, "function"); status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
	}
	resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d%sa%s", port, gateway.InvokePrefix, gateway.InvokeSuffix), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	id := resp.Header.Get("X-Amzn-Requestid")
	rec, err := w.backend().Record(id)
	if err != nil {
		t.Fatal(err)
	}
	if rec.RequestID != id || rec.Key.Function != "a" || rec.Release != 1 || rec.Outcome != "ok" || rec.Status != http.StatusOK || rec.RequestBytes != 2 {
		t.Errorf("record %+v", rec)
	}
	if status, body := w.post(port, "nobody"); status != http.StatusNotFound {
		t.Fatalf("%d %s", status, body)
	}
	const fn = `project="shop",environment="default",function="a"`
	w.wantFigures(
		`lfx_requests_total{`+fn+`,version="1",release="1",outcome="ok"} 4`,
		`lfx_requests_unresolved_total{error="ResourceNotFoundException"} 1`,
		`lfx_memory_budget_bytes 1073741824`,
		`lfx_release_active{project="shop",environment="default"} 1`,
		`lfx_release_traffic_percent{project="shop",environment="default",release="1",status="active"} 100`,
		`lfx_release_root_requests_total{project="shop",environment="default",release="1"} 4`,
		`lfx_release_root_errors_total{project="shop",environment="default",release="1"} 0`,
		`lfx_release_latency_seconds_count{project="shop",environment="default",release="1"} 4`,
		`lfx_instances{`+fn+`,version="1",state="spare"} 0`,
		`lfx_build_info{version="1.2.3",go="`+runtime.Version()+`"} 1`,
	)
}

func TestFiguresOfForgottenVersionsDisappear(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	w.release(withPorts(shop, "1", map[string]int{"a": port}, "a"))
	w.post(port, "function")
	w.release(withPorts(shop, "2", map[string]int{"a": port}, "a"))
	w.post(port, "function")
	const fn = `project="shop",environment="default",function="a"`
	w.wantFigures(`lfx_requests_total{`+fn+`,version="1",release="1",outcome="ok"} 1`, `lfx_requests_total{`+fn+`,version="2",release="2",outcome="ok"} 1`)
	if _, err := w.store.ForgetReleases(t.Context(), shop, 1, nil); err != nil {
		t.Fatal(err)
	}
	w.wantFigures(`lfx_requests_total{` + fn + `,version="2",release="2",outcome="ok"} 1`)
	if got := w.figures(); strings.Contains(got, `version="1"`) {
		t.Errorf("version 1 is still there:\n%s", got)
	}
}

func TestRecordThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	b := w.backend()
	for _, tt := range []struct {
		max  int
		want string
	}{{20_000, "not among the newest 20000"}, {0, "keeps no records"}} {
		b.cfg.Records.Max = tt.max
		_, err := b.Record(uuid.NewString())
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeNotFound || !strings.Contains(e.Message, tt.want) {
			t.Errorf("records.max %d: %v", tt.max, err)
		}
	}
}

func TestResultsOfDeploys(t *testing.T) {
	live, ended := t.Context(), ended()
	for _, tt := range []struct {
		ctx  context.Context
		res  *api.DeployResult
		err  error
		want metrics.DeployResult
	}{
		{live, &api.DeployResult{}, nil, metrics.DeployReleased},
		{ended, &api.DeployResult{}, nil, metrics.DeployReleased},
		{live, &api.DeployResult{Unchanged: true}, nil, metrics.DeployUnchanged},
		{live, &api.DeployResult{Plan: true, Unchanged: true}, nil, metrics.DeployPlanned},
		{live, nil, errors.New("x"), metrics.DeployFailed},
		{ended, nil, errors.New("x"), metrics.DeployCancelled},
	} {
		if got := deployResult(tt.ctx, tt.res, tt.err); got != tt.want {
			t.Errorf("deployResult(%v, %+v, %v) = %d, want %d", tt.ctx.Err(), tt.res, tt.err, got, tt.want)
		}
	}
}

func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// builder is a deploy.Builder that answers err.
type builder struct{ err error }

func (b builder) Build(context.Context, buildkit.Request, func(*bkclient.SolveStatus)) (buildkit.Result, error) {
	return buildkit.Result{}, b.err
}

func TestBuildsAreCounted(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		ctx context.Context
		err error
	}{{t.Context(), nil}, {ended(), nil}, {t.Context(), errors.New("x")}, {ended(), errors.New("x")}} {
		if _, err := (countedBuilder{builder{tt.err}, w.metrics}).Build(tt.ctx, buildkit.Request{}, nil); !errors.Is(err, tt.err) {
			t.Errorf("err = %v, want %v", err, tt.err)
		}
	}
	w.wantFigures(`lfx_builds_total{result="ok"} 2`, `lfx_builds_total{result="failed"} 1`, `lfx_builds_total{result="cancelled"} 1`, `lfx_build_seconds_count 4`)
}

// TestVersionWithTwoPoolsHasOneFigure: where instances run several invocations at once, each release has a pool of its own.
func TestVersionWithTwoPoolsHasOneFigure(t *testing.T) {
	w := newWorld(t)
	v := &function.Version{Key: function.Key{Environment: shop, Function: "f"}, Number: 1, Config: function.DefaultConfig()}
	v.Config.TmpMB = 64 // both fit
	v.Config.Concurrency = function.Concurrency{Min: 1, PerInstance: 2}
	for n := range 2 {
		r, err := w.pools.Prepare(function.Release{Environment: shop, Number: n + 1, Versions: map[string]int{"f": 1}}, map[string]*function.Version{"f": v})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Abort()
		if err := r.Warm(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	seen, there := map[string]bool{}, 0
	for line := range strings.Lines(w.figures()) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if strings.HasPrefix(line, "#") || value == "" {
			continue
		}
		if seen[series] {
			t.Errorf("%s} is there twice", series)
		}
		seen[series] = true
		if n, err := strconv.Atoi(value); err == nil && strings.Contains(series, `function="f"`) && strings.Contains(series, `state="`) {
			there += n // idle, or busy for another moment
		}
	}
	if there != 2 {
		t.Errorf("there are %d instances, want 2:\n%s", there, w.figures())
	}
}
