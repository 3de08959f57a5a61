package main

import (
	"bytes"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/pool/policy"
	"lfx.dev/lfxd/integration/sim/trace"
)

var update = flag.Bool("update", false, "write testdata")

// TestShortRun holds the figures of a short run: they change when the policy or the generator does, and then
// show by how much.
func TestShortRun(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the last bits of logarithms differ between architectures")
	}
	var out bytes.Buffer
	if err := run([]string{"-functions", "10,200", "-hours", "6"}, &out); err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile(`(?m)^  \(simulated in .*\n`).ReplaceAllString(out.String(), "")
	const golden = "testdata/short.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("other figures than before (-want +got); go test ./integration/sim -update when that is meant:\n%s", diff)
	}
}

// timer is a trace of one function that is called each period, for a second.
func timer(period time.Duration) *fleet {
	return &fleet{
		trace: &trace.Trace{Functions: []trace.Function{{
			Trigger: trace.Timer, Kind: trace.Periodic, Synced: true, Rate: 1 / period.Seconds(), Mean: 1, MemoryMB: 100,
			Start: 300 * time.Millisecond, Spare: 100 * time.Millisecond,
		}}},
		index: []int32{0}, weight: []float64{1},
	}
}

func TestTimer(t *testing.T) {
	fl := timer(15 * time.Minute)
	const calls = 96
	until := 24*time.Hour + 7*time.Minute
	for _, c := range []struct {
		name      string
		k         keeper
		starts    float64
		low, high float64 // idle MiB·s
	}{
		{"none", keeper{}, calls, 0, calls * 100 * 0.31},
		{"shorter than the period", keeper{fixed: 10 * time.Minute}, calls, calls*100*600 - 20_000, calls*100*601 + 1},
		{"longer than the period", keeper{fixed: 20 * time.Minute}, 1, calls*100*880 - 60_000, calls * 100 * 900},
		{"always", keeper{fixed: policy.Forever}, 1, calls*100*880 - 60_000, calls * 100 * 900},
		{"ours", keeper{policy: policy.New(policy.Defaults())}, 5, calls * 100 * 10, calls * 100 * 300},
	} {
		r := fl.run(setup{keeper: c.k, until: until})
		if r.Calls != calls {
			t.Errorf("%s: %v calls, want %v", c.name, r.Calls, calls)
		}
		if r.Starts > c.starts || (c.k.policy == nil && r.Starts != c.starts) {
			t.Errorf("%s: %v cold starts, want %v", c.name, r.Starts, c.starts)
		}
		if r.Idle < c.low || r.Idle > c.high {
			t.Errorf("%s: %.0f MiB·s idle, want %.0f to %.0f", c.name, r.Idle, c.low, c.high)
		}
		if math.Abs(r.Busy/100-calls) > 15 {
			t.Errorf("%s: busy for %.1f s, want about %d", c.name, r.Busy/100, calls)
		}
		if c.k.policy != nil && (r.Ahead < calls-20 || r.Ahead > calls) {
			t.Errorf("%s: %v starts ahead of need", c.name, r.Ahead)
		}
	}
}

// TestSpares: the calls that start cold find a spare, and wait for less.
func TestSpares(t *testing.T) {
	fl := timer(5 * time.Hour) // beyond the range: never warm
	without := fl.run(setup{keeper: keeper{policy: policy.New(policy.Defaults())}, until: 48 * time.Hour})
	with := fl.run(setup{keeper: keeper{policy: policy.New(policy.Defaults()), spares: true}, until: 48 * time.Hour})
	if with.Starts != without.Starts || with.Spared != with.Starts || without.Spared != 0 {
		t.Errorf("%v of %v starts from spares, without them %v of %v", with.Spared, with.Starts, without.Spared, without.Starts)
	}
	if got, want := with.Wait.sum/with.Starts, 0.1; math.Abs(got-want) > 1e-6 {
		t.Errorf("a start from a spare takes %v s, want %v", got, want)
	}
	if got, want := without.Wait.sum/without.Starts, 0.3; math.Abs(got-want) > 1e-6 {
		t.Errorf("a start takes %v s, want %v", got, want)
	}
	if with.Spares < spareMB*47*3600 || with.Spares > spareMB*48*3600 {
		t.Errorf("spares held %v MiB·s", with.Spares)
	}
}

// TestAnyNumberOfCores gives the same figures.
func TestAnyNumberOfCores(t *testing.T) {
	tr := trace.New(5, 150)
	fl := &fleet{trace: tr}
	fl.index, fl.weight = tr.SampleHot(4)
	s := setup{keeper: keeper{policy: policy.New(policy.Defaults())}, until: 3 * time.Hour}
	many := fl.run(s)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if one := fl.run(s); *one != *many {
		t.Errorf("one core: %v starts, %v MiB·s; several: %v, %v", one.Starts, one.Idle, many.Starts, many.Idle)
	}
}

// TestBudget: memory is never exceeded, every call is answered or waits, and enough of it changes nothing.
func TestBudget(t *testing.T) {
	tr := trace.New(5, 150)
	fl := &fleet{trace: tr}
	fl.index, fl.weight = tr.SampleHot(1)
	for _, k := range []keeper{{fixed: 10 * time.Minute}, {policy: policy.New(policy.Defaults())}, {}} {
		const until = 3 * time.Hour
		free := fl.run(setup{keeper: k, until: until})
		wide := fl.run(setup{keeper: k, until: until, budget: 1e9})
		if wide.Starts != free.Starts || wide.Evicted != 0 || math.Abs(wide.Idle/free.Idle-1) > 1e-9 {
			t.Errorf("%+v: with all room %v starts, %v evicted, %v MiB·s; without a budget %v, %v", k, wide.Starts, wide.Evicted, wide.Idle, free.Starts, free.Idle)
		}
		budget := 0.6 * wide.Peak
		tight := fl.run(setup{keeper: k, until: until, budget: budget})
		if tight.Peak > budget {
			t.Errorf("%+v: %v MiB of %v were used", k, tight.Peak, budget)
		}
		if tight.Peak < budget/2 {
			t.Errorf("%+v: only %v MiB of %v were used", k, tight.Peak, budget)
		}
		unanswered := tight.Calls - tight.Added.all
		if unanswered < 0 || unanswered > tight.Calls/100 {
			t.Errorf("%+v: %v of %v calls without an answer", k, unanswered, tight.Calls)
		}
		if k.fixed > 0 && tight.Evicted == 0 {
			t.Errorf("%+v: nothing was evicted", k)
		}
		if mean := (tight.Idle + tight.Busy) / until.Seconds(); mean > budget {
			t.Errorf("%+v: %v MiB on average of %v", k, mean, budget)
		}
	}
}

// TestPolicyPays: what the policy is for, on traces that it was not tuned on.
func TestPolicyPays(t *testing.T) {
	for _, seed := range []uint64{11, 12} {
		c := compare(trace.New(seed, 100), 12*time.Hour)
		fixed, same := c.row(rowFixed), c.row(rowSame)
		if math.Abs(same.held()/fixed.held()-1) > 0.05 {
			t.Errorf("seed %d: %.0f MiB·s are not the same as %.0f", seed, same.held(), fixed.held())
		}
		if ratio := same.Starts / fixed.Starts; ratio > 0.75 {
			t.Errorf("seed %d: %.2f of the cold starts of a fixed window at the same memory, want at most 0.75", seed, ratio)
		}
		if tight, ours := c.tight[0], c.tight[1]; ours.Starts > tight.Starts {
			t.Errorf("seed %d: %v cold starts with little memory, a fixed window has %v", seed, ours.Starts, tight.Starts)
		}
	}
}

func TestQuantile(t *testing.T) {
	var h hist
	if h.quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 100_000 {
		h.add(time.Duration(r.Float64()*float64(time.Second)), 2)
	}
	for _, q := range []float64{0.1, 0.5, 0.99} {
		if got := h.quantile(q).Seconds() / q; got < 0.97 || got > 1.06 {
			t.Errorf("quantile %v of an even spread over a second is %v", q, h.quantile(q))
		}
	}
	if h.all != 200_000 || math.Abs(h.sum/100_000-1) > 0.01 {
		t.Errorf("%v counted, %v s in all", h.all, h.sum)
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{{"-functions", "0"}, {"-functions", "ten"}, {"-hours", "0"}, {"-hours", "NaN"}, {"more"}} {
		if err := run(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "trace")
	if err := run([]string{"-write", dir, "-functions", "5", "-hours", "30"}, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.csv"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range names {
		got = append(got, filepath.Base(n))
		if b, err := os.ReadFile(n); err != nil || strings.Count(string(b), "\n") < 2 {
			t.Errorf("%s: %d bytes, %v", n, len(b), err)
		}
	}
	want := []string{
		"app_memory_percentiles.anon.d01.csv", "app_memory_percentiles.anon.d02.csv",
		"function_durations_percentiles.anon.d01.csv", "function_durations_percentiles.anon.d02.csv",
		"invocations.csv",
		"invocations_per_function_md.anon.d01.csv", "invocations_per_function_md.anon.d02.csv",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if err := run([]string{"-write", "/dev/null/x", "-functions", "1"}, &bytes.Buffer{}); err == nil {
		t.Error("a folder that cannot be made is accepted")
	}
}
