package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"lfx.dev/lfxd/daemon/function"
	histograms "lfx.dev/lfxd/daemon/histogram"
	"lfx.dev/lfxd/daemon/invocation"
)

var shop = function.Environment{Project: "shop", Name: "default"}

func version(name string, n int) *function.Version {
	return &function.Version{Key: function.Key{Environment: shop, Function: name}, Number: n}
}

// scrape writes the figures and reads them with Prometheus' own parser, as "name{label=value,…}" → value;
// a histogram is its _count, its _sum and its buckets.
func scrape(t testing.TB, r *Registry, st State) map[string]float64 {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b, st); err != nil {
		t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := p.TextToMetricFamilies(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatalf("Prometheus cannot read this: %v\n%s", err, b.Bytes())
	}
	out := map[string]float64{}
	for name, f := range parsed {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			key := "{" + strings.Join(labels, ",") + "}"
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				out[name+key] = m.GetCounter().GetValue()
			case dto.MetricType_GAUGE:
				out[name+key] = m.GetGauge().GetValue()
			case dto.MetricType_HISTOGRAM:
				h := m.GetHistogram()
				out[name+"_count"+key], out[name+"_sum"+key] = float64(h.GetSampleCount()), h.GetSampleSum()
				for _, bucket := range h.GetBucket() {
					out[fmt.Sprintf("%s_bucket%s le=%g", name, key, bucket.GetUpperBound())] = float64(bucket.GetCumulativeCount())
				}
			default:
				t.Errorf("%s has the type %s", name, f.GetType())
			}
		}
	}
	return out
}

func wantSamples(t *testing.T, got map[string]float64, want map[string]float64) {
	t.Helper()
	for k, v := range want {
		if g, ok := got[k]; !ok || g != v {
			t.Errorf("%s = %v (there: %t), want %v", k, g, ok, v)
		}
	}
}

// wantNone fails when a sample's name with its labels contains any of the words.
func wantNone(t *testing.T, got map[string]float64, words ...string) {
	t.Helper()
	for k := range got {
		for _, w := range words {
			if strings.Contains(k, w) {
				t.Errorf("there is %s", k)
			}
		}
	}
}

// ran is a call that waited, ran and added so long.
func ran(v *function.Version, release int, result invocation.Result, wait, took, added time.Duration) invocation.Call {
	begin := time.Unix(1000, 0)
	c := invocation.Call{Version: v, Release: release, Result: result, Trace: invocation.Trace{
		Accepted: begin, Delivered: begin.Add(wait), Answered: begin.Add(wait + took), RequestBytes: 10, ResponseBytes: 100,
	}, Ended: begin.Add(took + added)}
	if wait > 0 {
		c.Trace.Queued, c.Trace.Granted = begin, begin.Add(wait)
	}
	return c
}

func TestCallsAreCounted(t *testing.T) {
	r := New()
	f1, f2, g := version("f", 1), version("f", 2), version("g", 1)
	r.Observe(ran(f1, 1, invocation.OK, 0, 3*time.Millisecond, time.Millisecond))
	r.Observe(ran(version("f", 1), 1, invocation.OK, 0, time.Millisecond, time.Millisecond)) // another pointer, the same version
	r.Observe(ran(f1, 2, invocation.Failed, time.Second, 4*time.Second, 2*time.Second))
	r.Observe(ran(f2, 2, invocation.TimedOut, 0, 2*time.Hour, 0))
	cold := ran(g, 2, invocation.OK, 2*time.Second, time.Millisecond, 3*time.Second)
	cold.Trace.Cold = true
	r.Observe(cold)
	r.Observe(invocation.Call{Version: g, Release: 2, Result: invocation.Throttled, Reason: "CallerRateLimitExceeded", Trace: invocation.Trace{Queued: time.Unix(0, 0)}, Ended: time.Unix(7, 0)})
	r.Observe(invocation.Call{Version: g, Release: 2, Result: invocation.Throttled, Reason: "CallerRateLimitExceeded"})
	r.Observe(invocation.Call{Function: function.Key{Function: "anything at all"}, Result: invocation.Refused, ErrorType: "ResourceNotFoundException"})
	got := scrape(t, r, State{})
	wantSamples(t, got, map[string]float64{
		"lfx_requests_total{project=shop,environment=default,function=f,version=1,release=1,outcome=ok}":        2,
		"lfx_requests_total{project=shop,environment=default,function=f,version=1,release=2,outcome=ok}":        0,
		"lfx_requests_total{project=shop,environment=default,function=f,version=1,release=2,outcome=error}":     1,
		"lfx_requests_total{project=shop,environment=default,function=f,version=2,release=2,outcome=timeout}":   1,
		"lfx_requests_total{project=shop,environment=default,function=g,version=1,release=2,outcome=throttled}": 2,
		"lfx_requests_unresolved_total{error=ResourceNotFoundException}":                                        1,
		"lfx_request_bytes_total{project=shop,environment=default,function=f}":                                  40,
		"lfx_response_bytes_total{project=shop,environment=default,function=f}":                                 400,

		"lfx_function_duration_seconds_count{project=shop,environment=default,function=f,version=1,release=1}":            2,
		"lfx_function_duration_seconds_sum{project=shop,environment=default,function=f,version=1,release=1}":              0.004,
		"lfx_function_duration_seconds_bucket{project=shop,environment=default,function=f,version=1,release=1} le=0.001":  1,
		"lfx_function_duration_seconds_bucket{project=shop,environment=default,function=f,version=1,release=1} le=0.0025": 1,
		"lfx_function_duration_seconds_bucket{project=shop,environment=default,function=f,version=1,release=1} le=0.005":  2,
		"lfx_function_duration_seconds_bucket{project=shop,environment=default,function=f,version=2,release=2} le=900":    0,
		"lfx_function_duration_seconds_bucket{project=shop,environment=default,function=f,version=2,release=2} le=+Inf":   1,
		"lfx_added_latency_seconds_count{project=shop,environment=default,function=f}":                                    4,
		"lfx_added_latency_seconds_sum{project=shop,environment=default,function=f}":                                      2.002,
		"lfx_queue_wait_seconds_count{project=shop,environment=default,function=f}":                                       1,
		"lfx_queue_wait_seconds_sum{project=shop,environment=default,function=g}":                                         9, // 2 s, and 7 s in vain
		"lfx_throttles_total{project=shop,environment=default,function=g,reason=CallerRateLimitExceeded}":                 2,
		"lfx_cold_starts_total{project=shop,environment=default,function=f}":                                              0,
		"lfx_cold_starts_total{project=shop,environment=default,function=g}":                                              1,
	})
	wantNone(t, got, "anything at all")
}

func TestInstancesAreCounted(t *testing.T) {
	r := New()
	f := version("f", 1)
	r.Started(f, 40*time.Millisecond, map[string]time.Duration{"network": 10 * time.Millisecond, "init": 30 * time.Millisecond})
	r.Started(version("f", 2), 60*time.Millisecond, map[string]time.Duration{"network": 20 * time.Millisecond})
	r.StartFailed(f)
	for _, reason := range []string{"idle", "room", "idle"} {
		r.Ended(f, reason)
	}
	var took histograms.Histogram
	took.Record(3 * time.Millisecond)
	took.Record(time.Hour)
	got := scrape(t, r, State{
		Version: "1.2.3", MemoryUsed: 5 << 20, MemoryBudget: 10 << 20, MemoryReserved: 7 << 20, MemoryReservable: 20 << 20,
		Pools: []Pool{
			{Key: f.Key, Version: 2, States: map[string]int{"busy": 1, "idle": 0}, Queued: 3},
			{Key: f.Key, Version: 1, States: map[string]int{"frozen": 4}},
		},
		Active: map[function.Environment]int{shop: 7, {Project: "shop", Name: "staging"}: 0},
		Releases: []Release{
			{Environment: shop, Number: 8, Status: "canary", Percent: 12.5, InFlight: 2, Roots: 2, RootErrors: 1, Latency: took.Snapshot()},
			{Environment: shop, Number: 7, Status: "active", Percent: 87.5, InFlight: 9},
		},
	})
	const fn = "project=shop,environment=default,function=f"
	wantSamples(t, got, map[string]float64{
		"lfx_instance_starts_total{" + fn + ",result=ok}":                                          2,
		"lfx_instance_starts_total{" + fn + ",result=failed}":                                      1,
		"lfx_instance_start_seconds_count{" + fn + "}":                                             2,
		"lfx_instance_start_seconds_sum{" + fn + "}":                                               0.1,
		"lfx_instance_start_phase_seconds_sum{" + fn + ",phase=network}":                           0.03,
		"lfx_instance_start_phase_seconds_count{" + fn + ",phase=init}":                            1,
		"lfx_instance_ends_total{" + fn + ",reason=idle}":                                          2,
		"lfx_instance_ends_total{" + fn + ",reason=room}":                                          1,
		"lfx_instances{" + fn + ",version=1,state=frozen}":                                         4,
		"lfx_instances{" + fn + ",version=2,state=busy}":                                           1,
		"lfx_queue_length{" + fn + ",version=2}":                                                   3,
		"lfx_memory_used_bytes{}":                                                                  5 << 20,
		"lfx_memory_budget_bytes{}":                                                                10 << 20,
		"lfx_memory_reserved_bytes{}":                                                              7 << 20,
		"lfx_memory_reservable_bytes{}":                                                            20 << 20,
		"lfx_release_active{project=shop,environment=default}":                                     7,
		"lfx_release_active{project=shop,environment=staging}":                                     0,
		"lfx_release_root_requests_total{project=shop,environment=default,release=8}":              2,
		"lfx_release_root_errors_total{project=shop,environment=default,release=8}":                1,
		"lfx_release_root_requests_total{project=shop,environment=default,release=7}":              0,
		"lfx_release_latency_seconds_count{project=shop,environment=default,release=8}":            2,
		"lfx_release_latency_seconds_bucket{project=shop,environment=default,release=8} le=0.0025": 0,
		"lfx_release_latency_seconds_bucket{project=shop,environment=default,release=8} le=0.005":  1,
		"lfx_release_latency_seconds_bucket{project=shop,environment=default,release=8} le=900":    1,
		"lfx_release_traffic_percent{project=shop,environment=default,release=8,status=canary}":    12.5,
		"lfx_release_requests_in_flight{project=shop,environment=default,release=7}":               9,
		"lfx_build_info{version=1.2.3,go=" + runtime.Version() + "}":                               1,
	})
}

func TestDeploysAndBuildsAreCounted(t *testing.T) {
	r := New()
	r.Deployed(DeployReleased, 2*time.Second)
	r.Deployed(DeployCancelled, time.Second)
	r.Built(BuildFailed, 700*time.Millisecond)
	wantSamples(t, scrape(t, r, State{}), map[string]float64{
		"lfx_deploys_total{result=released}":  1,
		"lfx_deploys_total{result=cancelled}": 1,
		"lfx_deploys_total{result=failed}":    0,
		"lfx_deploy_seconds_count{}":          2,
		"lfx_deploy_seconds_sum{}":            3,
		"lfx_builds_total{result=failed}":     1,
		"lfx_build_seconds_bucket{} le=0.5":   0,
		"lfx_build_seconds_bucket{} le=1":     1,
	})
}

func TestProcessIsDescribed(t *testing.T) {
	got := scrape(t, New(), State{})
	for _, name := range []string{"go_goroutines{}", "go_memstats_heap_alloc_bytes{}", "process_resident_memory_bytes{}", "process_open_fds{}", "process_cpu_seconds_total{}"} {
		if got[name] <= 0 {
			t.Errorf("%s = %v", name, got[name])
		}
	}
	if at := got["process_start_time_seconds{}"]; at > float64(time.Now().Unix()+1) || at < float64(time.Now().Add(-time.Hour).Unix()) {
		t.Errorf("started at %v", at)
	}
}

// Every family that is written is declared, once, in order, and nothing is written twice.
func TestFormat(t *testing.T) {
	r := New()
	for i := range 3 {
		r.Observe(ran(version("f", i+1), i+1, invocation.OK, time.Second, time.Second, time.Second))
		r.Started(version("f", i+1), time.Second, map[string]time.Duration{"init": 1})
		r.Ended(version("f", i+1), "idle")
	}
	r.Observe(invocation.Call{Version: version("f", 1), Release: 1, Result: invocation.Throttled, Reason: "X"})
	r.Observe(invocation.Call{ErrorType: "X"})
	var b bytes.Buffer
	st := State{
		Pools:    []Pool{{Key: version("f", 1).Key, Version: 1, States: map[string]int{"idle": 1}}},
		Active:   map[function.Environment]int{shop: 1},
		Releases: []Release{{Environment: shop, Number: 1, Status: "active"}},
	}
	if err := r.Write(&b, st); err != nil {
		t.Fatal(err)
	}
	samples, seen := map[string]int{}, map[string]bool{}
	var types []string
	for line := range strings.Lines(b.String()) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			types = append(types, strings.Fields(name)[0])
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		series, _, _ := strings.Cut(line, " ")
		if seen[series] {
			t.Errorf("%s is written twice", series)
		}
		seen[series] = true
		name, _, _ := strings.Cut(series, "{")
		if last := types[len(types)-1]; !strings.HasPrefix(name, last) {
			t.Errorf("%s comes under %s", name, last)
		}
		samples[types[len(types)-1]]++
	}
	var want []string
	for _, f := range families {
		want = append(want, f.name)
		if samples[f.name] == 0 {
			t.Errorf("%s has no sample although there is something of everything", f.name)
		}
	}
	if !slices.Equal(types, want) {
		t.Errorf("families\n %v\nwant\n %v", types, want)
	}
}

func TestLabelsAreEscaped(t *testing.T) {
	nasty := function.Key{Environment: function.Environment{Project: `a"b\c`, Name: "new\nline"}, Function: "ünï}{=,"}
	got := scrape(t, New(), State{Pools: []Pool{{Key: nasty, Version: 1, Queued: 5}}})
	wantSamples(t, got, map[string]float64{
		"lfx_queue_length{project=" + nasty.Project + ",environment=" + nasty.Name + ",function=" + nasty.Function + ",version=1}": 5,
	})
}

func TestWhatIsGoneDisappears(t *testing.T) {
	r := New()
	f1, f2, g := version("f", 1), version("f", 2), version("g", 1)
	for _, v := range []*function.Version{f1, f2, g} {
		for rel := range 3 {
			r.Observe(ran(v, rel+1, invocation.OK, 0, 1, 1))
		}
		r.Started(v, 1, map[string]time.Duration{"init": 1})
	}
	prune := func() {
		r.Prune(func(k function.Key, n int) bool { return k.Function == "f" && n == 2 }, func(_ function.Environment, n int) bool { return n >= 2 })
	}
	prune()
	got := scrape(t, r, State{})
	wantNone(t, got, "version=1", "release=1", "function=g")
	wantSamples(t, got, map[string]float64{
		"lfx_requests_total{project=shop,environment=default,function=f,version=2,release=2,outcome=ok}": 1,
		"lfx_requests_total{project=shop,environment=default,function=f,version=2,release=3,outcome=ok}": 1,
		"lfx_instance_starts_total{project=shop,environment=default,function=f,result=ok}":               2, // of the function
	})
	// A late one brings a series back, for a while.
	r.Observe(ran(g, 1, invocation.OK, 0, 1, 1))
	wantSamples(t, scrape(t, r, State{}), map[string]float64{
		"lfx_requests_total{project=shop,environment=default,function=g,version=1,release=1,outcome=ok}": 1,
	})
	prune()
	wantNone(t, scrape(t, r, State{}), "function=g")
	n := 0
	r.versions.Range(func(any, any) bool { n++; return true })
	if n != 1 || len(r.byNumber) != 1 || len(r.functions) != 1 {
		t.Errorf("%d pointers, %d versions and %d functions are kept, want 1 each", n, len(r.byNumber), len(r.functions))
	}
}

// TestConcurrentCalls counts exactly while figures are read and series are made and removed.
func TestConcurrentCalls(t *testing.T) {
	r := New()
	const workers, calls = 8, 500
	shared := version("shared", 1)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			own := version(fmt.Sprintf("own%d", w), 1)
			for i := range calls {
				r.Observe(ran(shared, i%5, invocation.Result(i%4), 0, time.Duration(i)*time.Millisecond, time.Millisecond))
				r.Observe(ran(own, 1, invocation.OK, 0, time.Millisecond, time.Millisecond))
				r.Observe(invocation.Call{ErrorType: "ResourceNotFoundException"})
				r.Started(own, time.Millisecond, map[string]time.Duration{"init": 1})
				r.Ended(own, "idle")
				if i%100 == 0 {
					r.Prune(func(k function.Key, _ int) bool { return k.Function != "other" }, func(function.Environment, int) bool { return true })
					if err := r.Write(io.Discard, State{}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	got := scrape(t, r, State{})
	total := 0.0
	for k, v := range got {
		if strings.HasPrefix(k, "lfx_requests_total{project=shop,environment=default,function=shared") {
			total += v
		}
	}
	if total != workers*calls {
		t.Errorf("%v calls of the shared function, want %d", total, workers*calls)
	}
	for w := range workers {
		fn := fmt.Sprintf("project=shop,environment=default,function=own%d", w)
		wantSamples(t, got, map[string]float64{
			"lfx_requests_total{" + fn + ",version=1,release=1,outcome=ok}": calls,
			"lfx_instance_starts_total{" + fn + ",result=ok}":               calls,
			"lfx_instance_ends_total{" + fn + ",reason=idle}":               calls,
		})
	}
	wantSamples(t, got, map[string]float64{"lfx_requests_unresolved_total{error=ResourceNotFoundException}": workers * calls})
}

// failing fails after so many writes.
type failing struct{ left int }

func (f *failing) Write(b []byte) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errors.New("the client is gone")
	}
	return len(b), nil
}

func TestReaderThatLeaves(t *testing.T) {
	r := New()
	for i := range 200 {
		r.Observe(ran(version("f", i), 1, invocation.OK, 0, 1, 1))
	}
	for _, after := range []int{0, 1} {
		if err := r.Write(&failing{after}, State{}); err == nil || err.Error() != "the client is gone" {
			t.Errorf("after %d writes: %v", after, err)
		}
	}
}

func TestObservingAllocatesNothing(t *testing.T) {
	r, c := New(), ran(version("f", 1), 3, invocation.OK, time.Millisecond, time.Millisecond, time.Millisecond)
	r.Observe(c)
	if n := testing.AllocsPerRun(100, func() { r.Observe(c) }); n != 0 {
		t.Errorf("%v allocations for one call", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	r := New()
	for i := range 1000 {
		r.Observe(ran(version(fmt.Sprint(i), 1), 1, invocation.OK, 0, 1, 1))
	}
	c := ran(version("f", 1), 3, invocation.OK, 0, 3*time.Millisecond, 200*time.Microsecond)
	b.ReportAllocs()
	for b.Loop() {
		r.Observe(c)
	}
}

func BenchmarkWrite(b *testing.B) {
	r := New()
	for i := range 1000 {
		r.Observe(ran(version(fmt.Sprint(i), 1), 1, invocation.OK, 0, 1, 1))
	}
	for b.Loop() {
		if err := r.Write(io.Discard, State{}); err != nil {
			b.Fatal(err)
		}
	}
}
