package judge

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/histogram"
	"lfx.dev/lfxd/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var (
	env   = function.Environment{Project: "shop", Name: "default"}
	rules = function.Judgement{After: 10 * time.Minute, MinRequests: 100, MaxErrorRate: 0.01, MaxP99Ratio: 1.5}
)

func TestVerdict(t *testing.T) {
	of := func(requests, errs int64, p99 time.Duration) function.Figures {
		f := function.Figures{Requests: requests, Errors: errs, Samples: requests, P99: p99}
		if requests > 0 {
			f.ErrorRate = float64(errs) / float64(requests)
		}
		return f
	}
	sampled := func(f function.Figures, n int64) function.Figures {
		f.Samples = n
		return f
	}
	good := of(1000, 0, 20*time.Millisecond)
	for name, tt := range map[string]struct {
		elapsed        time.Duration
		watched        time.Duration // since a restart; 0 for none
		extended       int
		canary, active function.Figures
		want           string // action and the begin of the reason
	}{
		"too early":            {elapsed: 9 * time.Minute, canary: good, active: good, want: ""},
		"fine":                 {elapsed: 10 * time.Minute, canary: good, active: good, want: "promoted: 0 % of its 1000 requests failed"},
		"as many errors":       {elapsed: time.Hour, canary: of(1000, 500, 1), active: of(1000, 500, 1), want: "promoted"},
		"fewer errors":         {elapsed: time.Hour, canary: of(1000, 1, 1), active: of(1000, 500, 1), want: "promoted"},
		"errors at the limit":  {elapsed: time.Hour, canary: of(1000, 10, 1), active: of(1000, 0, 1), want: "promoted"},
		"errors above":         {elapsed: time.Hour, canary: of(1000, 11, 1), active: of(1000, 0, 1), want: "aborted: 1.1 % of its 1000 requests failed, 0 % of the active release's 1000: more than 1 %"},
		"above, but early":     {elapsed: time.Minute, canary: of(1000, 11, 1), active: of(1000, 0, 1), want: ""},
		"clearly worse":        {elapsed: time.Second, canary: of(25, 5, 1), active: good, want: "aborted: clearly worse: 20 % of its 25 requests failed"},
		"few requests":         {elapsed: time.Second, canary: of(24, 24, 1), active: good, want: ""},
		"few errors":           {elapsed: time.Second, canary: of(30, 4, 1), active: good, want: ""},
		"both clearly bad":     {elapsed: time.Second, canary: of(100, 50, 1), active: of(100, 49, 1), want: ""},
		"slow":                 {elapsed: time.Hour, canary: of(1000, 0, 31*time.Millisecond), active: good, want: "aborted: its p99 is 31ms, the active release's 20ms"},
		"as slow as allowed":   {elapsed: time.Hour, canary: of(1000, 0, 30*time.Millisecond), active: good, want: "promoted"},
		"slow within noise":    {elapsed: time.Hour, canary: of(1000, 0, 1200*time.Microsecond), active: of(1000, 0, 300*time.Microsecond), want: "promoted"},
		"active idle":          {elapsed: time.Hour, canary: of(1000, 0, time.Second), active: of(3, 0, 1), want: "promoted: 0 % of its 1000 requests failed, 0 % of the active release's 3; the active"},
		"active idle, failing": {elapsed: time.Hour, canary: of(1000, 20, time.Second), active: of(0, 0, 0), want: "aborted"},
		"extended":             {elapsed: 10 * time.Minute, canary: of(99, 0, 1), active: good, want: "extended: it served 99 of the 100 requests that it is judged on: it gets 10m0s more"},
		"extended already":     {elapsed: 19 * time.Minute, extended: 1, canary: of(99, 0, 1), active: good, want: ""},
		"extended twice":       {elapsed: 20 * time.Minute, extended: 1, canary: of(99, 0, 1), active: good, want: "extended"},
		"enough at last":       {elapsed: 25 * time.Minute, extended: 2, canary: of(100, 0, 1), active: good, want: "promoted"},
		"never enough":         {elapsed: 30 * time.Minute, extended: 2, canary: of(99, 0, 1), active: good, want: "aborted: it served 99 of the 100 requests that it is judged on within 30m0s"},
		"down meanwhile":       {elapsed: 40 * time.Minute, watched: 2 * time.Second, canary: of(0, 0, 0), active: of(0, 0, 0), want: ""},
		"still few after it":   {elapsed: 40 * time.Minute, watched: 10 * time.Minute, canary: of(5, 0, 1), active: good, want: "extended: it served 5 of the 100 requests that it is judged on since lfxd was started: it gets 10m0s more"},
		"few all the time":     {elapsed: time.Hour, watched: 30 * time.Minute, extended: 2, canary: of(5, 0, 1), active: good, want: "aborted: it served 5 of the 100 requests that it is judged on within 30m0s since lfxd was started"},
		"failing after it":     {elapsed: 40 * time.Minute, watched: 2 * time.Second, canary: of(30, 30, 1), active: good, want: "aborted: clearly worse"},
		"all in the warm-up":   {elapsed: 10 * time.Minute, canary: sampled(of(1000, 0, 0), 0), active: good, want: "extended: it served 0 of the 20 requests after its warm-up that its p99 is judged on: it gets 10m0s more"},
		"slow, hardly sampled": {elapsed: 10 * time.Minute, canary: sampled(of(1000, 0, time.Second), 19), active: good, want: "extended"},
		"slow, sampled":        {elapsed: 10 * time.Minute, canary: sampled(of(1000, 0, time.Second), 20), active: good, want: "aborted: its p99"},
		"never sampled":        {elapsed: 30 * time.Minute, extended: 2, canary: sampled(of(1000, 0, 0), 3), active: good, want: "aborted: it served 3 of the 20 requests"},
		"active not sampled":   {elapsed: 10 * time.Minute, canary: of(1000, 0, time.Second), active: sampled(of(1000, 0, 0), 19), want: "promoted: 0 % of its 1000 requests failed, 0 % of the active release's 1000; the active"},
	} {
		at := Time{Running: tt.elapsed, Watched: tt.elapsed, Extended: tt.extended}
		if tt.watched != 0 {
			at.Watched, at.Restarted = tt.watched, true
		}
		action, reason := Verdict(rules, at, tt.canary, tt.active)
		got := action
		if reason != "" {
			got += ": " + reason
		}
		if !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

// FuzzVerdict: more errors or a longer p99 never help a canary.
func FuzzVerdict(f *testing.F) {
	f.Add(int64(1000), int64(5), int64(1000), int64(5), int64(20), int64(20), int64(600))
	f.Fuzz(func(t *testing.T, requests, errs, activeRequests, activeErrs, p99, activeP99, seconds int64) {
		bound := func(n, most int64) int64 { return min(max(n, 0), most) }
		canary := function.Figures{Requests: bound(requests, 1e9), P99: time.Duration(bound(p99, 1e6)) * time.Millisecond}
		active := function.Figures{Requests: bound(activeRequests, 1e9), P99: time.Duration(bound(activeP99, 1e6)) * time.Millisecond}
		fail := func(f *function.Figures, n int64) {
			if f.Errors = bound(n, f.Requests); f.Requests > 0 {
				f.ErrorRate = float64(f.Errors) / float64(f.Requests)
			}
		}
		canary.Samples, active.Samples = canary.Requests, active.Requests
		fail(&canary, errs)
		fail(&active, activeErrs)
		elapsed := time.Duration(bound(seconds, 1e6)) * time.Second
		at := Time{Running: elapsed, Watched: elapsed}
		action, reason := Verdict(rules, at, canary, active)
		if (action == "") != (reason == "") || strings.Contains(reason, "\n") {
			t.Fatalf("%q, %q", action, reason)
		}
		worse := canary
		fail(&worse, canary.Errors+1+canary.Requests/50)
		worse.P99 = worse.P99*2 + time.Second
		if again, _ := Verdict(rules, at, worse, active); again == function.CanaryPromoted && action != function.CanaryPromoted {
			t.Errorf("%+v beside %+v is %q, but %+v is %q", canary, active, action, worse, again)
		}
	})
}

// host is a Source and Actions: releases 1, active, and 2, the canary.
type host struct {
	mu        sync.Mutex
	auto      function.Judgement
	since     time.Time
	running   bool
	extended  int
	fail      error // of Promote and Abort
	counts    map[int]*Counters
	latency   map[int]*histogram.Histogram
	decisions []function.Decision
}

func newHost(auto function.Judgement) *host {
	return &host{
		auto: auto, since: time.Now(), running: true, counts: map[int]*Counters{1: {}, 2: {}}, latency: map[int]*histogram.Histogram{1: {}, 2: {}},
	}
}

func (h *host) serve(release, requests, errs int, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[release].Requests += int64(requests)
	h.counts[release].Errors += int64(errs)
	for range requests {
		h.latency[release].Record(took)
	}
}

func (h *host) Figures(e function.Environment, release int) Counters {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := *h.counts[release]
	c.Latency = h.latency[release].Snapshot()
	return c
}

func (h *host) Canaries() []Canary {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.running {
		return nil
	}
	return []Canary{{Environment: env, Active: 1, Extended: h.extended, Canary: function.Canary{Release: 2, Share: 1000, Since: h.since, Auto: &h.auto}}}
}

func (h *host) note(d function.Decision, ends bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ends && h.fail != nil {
		return h.fail
	}
	h.running = h.running && !ends
	h.decisions = append(h.decisions, d)
	return nil
}

func (h *host) Promote(_ context.Context, _ function.Environment, d function.Decision) error {
	return h.note(d, true)
}
func (h *host) Abort(_ context.Context, _ function.Environment, d function.Decision) error {
	return h.note(d, true)
}
func (h *host) Extend(_ context.Context, _ function.Environment, d function.Decision) error {
	h.extended++
	return h.note(d, false)
}

func (h *host) actions() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.decisions {
		out = append(out, d.Action)
	}
	return out
}

// run runs a judge over a host for some time, during which load is called every second.
func run(t *testing.T, h *host, long time.Duration, load func(second int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		New(Options{Source: h, Actions: h, Interval: 2 * time.Second, Log: slog.New(slog.DiscardHandler)}).Run(ctx)
	})
	for s := range int(long / time.Second) {
		load(s)
		time.Sleep(time.Second)
		synctest.Wait()
	}
	cancel()
	wg.Wait()
}

func TestJudge(t *testing.T) {
	fast, slow := 10*time.Millisecond, 40*time.Millisecond
	for name, tt := range map[string]struct {
		run  time.Duration
		load func(h *host, second int)
		want []string
		by   time.Duration // of the last decision, since the begin
	}{
		"promoted": {11 * time.Minute, func(h *host, _ int) { h.serve(1, 9, 0, fast); h.serve(2, 1, 0, fast) }, []string{"promoted"}, 10 * time.Minute},
		"slow":     {11 * time.Minute, func(h *host, _ int) { h.serve(1, 9, 0, fast); h.serve(2, 1, 0, slow) }, []string{"aborted"}, 10 * time.Minute},
		"failing":  {11 * time.Minute, func(h *host, s int) { h.serve(1, 9, 0, fast); h.serve(2, 1, s%2, fast) }, []string{"aborted"}, 30 * time.Second},
		"a little": {11 * time.Minute, func(h *host, s int) {
			h.serve(1, 9, 0, fast)
			h.serve(2, 1, 0, fast)
			if s%40 == 0 {
				h.serve(2, 1, 1, fast)
			}
		}, []string{"aborted"}, 10 * time.Minute},
		"cold at first": {11 * time.Minute, func(h *host, s int) {
			h.serve(1, 9, 0, fast)
			h.serve(2, 1, 0, fast)
			if s < 30 {
				h.serve(2, 1, 0, 2*time.Second)
			}
		}, []string{"promoted"}, 10 * time.Minute},
		"no requests": {31 * time.Minute, func(h *host, _ int) { h.serve(1, 9, 0, fast) }, []string{"extended", "extended", "aborted"}, 30 * time.Minute},
		"few requests": {31 * time.Minute, func(h *host, s int) {
			h.serve(1, 9, 0, fast)
			if s%10 == 0 {
				h.serve(2, 1, 0, fast)
			}
		}, []string{"extended", "promoted"}, 1000 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(rules)
				h.serve(2, 1000, 1000, time.Hour) // before it was the canary
				begin := time.Now()
				time.Sleep(time.Second)
				run(t, h, tt.run, func(s int) { tt.load(h, s) })
				if got := h.actions(); !slices.Equal(got, tt.want) {
					t.Fatalf("decisions %v, want %v", got, tt.want)
				}
				last := h.decisions[len(h.decisions)-1]
				if took := last.Time.Sub(begin); took < tt.by-5*time.Second || took > tt.by+5*time.Second {
					t.Errorf("decided after %v, want %v: %s", took, tt.by, last.Reason)
				}
				if last.By != function.ByJudge || last.Canary == nil || last.Active == nil || last.Active.Requests == 0 || last.Canary.Requests >= 1000+int64(tt.run/time.Second)*2 {
					t.Errorf("decision %+v, canary %+v, active %+v", last, last.Canary, last.Active)
				}
			})
		})
	}
}

// TestRestartDoesNotCostACanaryItsTime: lfxd was down for longer than the canary's time; it is judged on what it serves
// from then on, after three times its time at the latest.
func TestRestartDoesNotCostACanaryItsTime(t *testing.T) {
	for name, tt := range map[string]struct {
		every int // seconds from one request of the canary to the next
		want  []string
		by    time.Duration
	}{"healthy": {1, []string{"promoted"}, 100 * time.Second}, "idle": {3600, []string{"extended", "extended", "aborted"}, 30 * time.Minute}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(rules)
				time.Sleep(5 * time.Hour)
				begin := time.Now()
				run(t, h, 31*time.Minute, func(s int) {
					h.serve(1, 9, 0, time.Millisecond)
					if s%tt.every == 0 {
						h.serve(2, 1, 0, time.Millisecond)
					}
				})
				if got := h.actions(); !slices.Equal(got, tt.want) {
					t.Fatalf("decisions %v, want %v", got, tt.want)
				}
				last := h.decisions[len(h.decisions)-1]
				if took := last.Time.Sub(begin); took < tt.by-5*time.Second || took > tt.by+5*time.Second {
					t.Errorf("decided %v after the restart, want %v: %s", took, tt.by, last.Reason)
				}
				if last.Action == function.CanaryAborted && !strings.HasSuffix(last.Reason, "since lfxd was started") {
					t.Errorf("reason %q", last.Reason)
				}
			})
		})
	}
}

// TestWarmUpIsNoMeasure: requests that the canary served only in the warm-up say nothing about its p99.
func TestWarmUpIsNoMeasure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(rules)
		run(t, h, 15*time.Minute, func(s int) {
			h.serve(1, 9, 0, 10*time.Millisecond)
			if s < 50 {
				h.serve(2, 4, 0, 10*time.Millisecond)
			}
		})
		if got := h.actions(); !slices.Equal(got, []string{"extended"}) {
			t.Fatalf("decisions %v", got)
		}
		if c := h.decisions[0].Canary; c.Requests < 100 || c.Samples != 0 {
			t.Errorf("figures %+v", c)
		}
	})
}

// TestDecisionIsMadeAgain when it could not be carried out, and a canary that is started again is judged anew.
func TestDecisionIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(rules)
		h.fail = errors.New("busy")
		run(t, h, 12*time.Minute, func(s int) {
			h.serve(1, 9, 0, time.Millisecond)
			h.serve(2, 1, 1, time.Millisecond)
			if s == 60 {
				h.mu.Lock()
				h.fail = nil
				h.mu.Unlock()
			}
			if s == 70 {
				if got := h.actions(); !slices.Equal(got, []string{"aborted"}) {
					t.Errorf("after the fault: %v", got)
				}
				h.mu.Lock()
				h.running, h.since = true, time.Now()
				h.mu.Unlock()
			}
		})
		if got := h.actions(); !slices.Equal(got, []string{"aborted", "aborted"}) {
			t.Fatalf("decisions %v", got)
		}
		if first, second := h.decisions[0].Canary.Requests, h.decisions[1].Canary.Requests; second >= first {
			t.Errorf("the second time it is judged on %d requests, the first time on %d", second, first)
		}
	})
}

func TestWatchesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(rules)
		j := New(Options{Source: h, Actions: h, Log: slog.New(slog.DiscardHandler)})
		for i := range 10 {
			h.since = h.since.Add(time.Duration(i))
			j.Look(t.Context(), time.Now())
		}
		if n := len(j.watched); n != 1 {
			t.Errorf("%d watches for one canary: %v", n, slices.Collect(maps.Keys(j.watched)))
		}
		h.running = false
		j.Look(t.Context(), time.Now())
		if n := len(j.watched); n != 0 {
			t.Errorf("%d watches for no canary", n)
		}
	})
}
