package main

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/api"
)

func TestParsePercent(t *testing.T) {
	for in, want := range map[string]percent{
		"10%": 10, "10": 10, " 2.5 % ": 2.5, "0.01%": 0.01, "99.99": 99.99, "33.33%": 33.33, "007%": 7,
		"0": 0, "100%": 0, "-1": 0, "": 0, "%": 0, "10%%": 0, "0.001": 0, "12.345%": 0, "NaN": 0, "inf": 0, "1e1": 0, "0x10": 0, "1_0": 0, "ten": 0,
	} {
		got, err := parsePercent(in)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %v, %v, want %v", in, got, err, want)
		}
	}
}

// Whatever is taken is a share with at most two decimals, and reads back from its text.
func FuzzParsePercent(f *testing.F) {
	for _, s := range []string{"10%", "2.5", "0.01%", "1e-3", "NaN", "99.999999%", "0x1p-2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePercent(s)
		if err != nil {
			if p != 0 {
				t.Errorf("%q: %v beside an error", s, p)
			}
			return
		}
		if p <= 0 || p >= 100 || math.Abs(float64(p)*100-math.Round(float64(p)*100)) > 1e-9 {
			t.Errorf("%q: got %v", s, float64(p))
		}
		if again, err := parsePercent(p.String()); err != nil || again != p {
			t.Errorf("%q: %s reads back as %v, %v", s, p.String(), again, err)
		}
	})
}

// Whatever is taken as an alias has a name and one kind of target, with a share only beside another version.
func FuzzParseAlias(f *testing.F) {
	for _, s := range []string{"prod=3", "prod=3,4:10%", "stable=r6", "a=", "=3", "a=3,3:1%", "a=$LATEST", "a=r0", "a=99999999999999999999", "a==3", "a=,"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, ofFunction bool) {
		alias, err := parseAlias(s, ofFunction)
		if _, isUsage := errors.AsType[*usageError](err); err != nil && !isUsage {
			t.Fatalf("%q: %v is no usage error", s, err)
		}
		if err != nil {
			return
		}
		if alias.Name == "" || strings.Contains(alias.Name, "=") || (alias.Version > 0) != ofFunction || (alias.Release > 0) == ofFunction || len(alias.Weights) > 1 {
			t.Errorf("%q: got %+v", s, aliasTarget(&alias))
		}
		for version, weight := range alias.Weights {
			if version <= 0 || version == alias.Version || weight <= 0 || weight >= 1 || !ofFunction {
				t.Errorf("%q: version %d has weight %v", s, version, weight)
			}
		}
	})
}

// A share and a release are read as they are printed.
func FuzzParseShare(f *testing.F) {
	f.Add("8=25%")
	f.Add("r8=0.5")
	f.Add("=")
	f.Add("8=25%=")
	f.Add("+8=1")
	f.Fuzz(func(t *testing.T, s string) {
		n, p, err := parseShare(s)
		if (err == nil) != (n > 0 && p > 0) {
			t.Errorf("%q: got %d, %v, %v", s, n, p, err)
		}
	})
}

func TestShortDuration(t *testing.T) {
	for in, want := range map[time.Duration]string{
		0: "0s", 250: "250ns", 1234 * time.Microsecond: "1.23ms", 45 * time.Millisecond: "45ms", 999_999 * time.Microsecond: "1s",
		1500 * time.Millisecond: "1.5s", 10 * time.Minute: "10m", time.Hour: "1h", 90 * time.Minute: "1h30m", 61500 * time.Millisecond: "1m1.5s", 20 * time.Second: "20s", 100 * time.Minute: "1h40m",
	} {
		if got := shortDuration(in); got != want {
			t.Errorf("%d ns: got %s, want %s", in, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	a := &app{}
	for age, want := range map[time.Duration]string{0: "0s", 3 * time.Second: "3s", 90 * time.Minute: "1h", 100 * 24 * time.Hour: "100d"} {
		if got := a.age(a.now().Add(-age)); got != want {
			t.Errorf("%v: got %s, want %s", age, got, want)
		}
	}
	if got := a.age(time.Time{}); got != "-" {
		t.Errorf("zero: got %s, want -", got)
	}
}

func TestPhasesAreInTheirOrder(t *testing.T) {
	us := map[string]int64{"zeal": 1, "init": 2000, "awe": 3, "create": 4, "files": 5, "ahead": 6}
	want := "files 5µs, create 4µs, init 2ms, ahead 6µs, awe 3µs, zeal 1µs"
	if got := phases(us); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDeploySummary(t *testing.T) {
	result := func(edit func(*api.DeployResult)) *api.DeployResult {
		r := &api.DeployResult{Functions: []api.DeployFunction{{Change: "updated"}, {Change: "unchanged"}}, Previous: 6}
		r.Release.Number = 7
		edit(r)
		return r
	}
	none := func(*api.DeployResult) {}
	for _, tt := range []struct {
		result *api.DeployResult
		plan   deployPlan
		want   string
	}{
		{result(none), deployPlan{}, "release 7 active (1 of 2 functions changed), release 6 draining"},
		{result(func(r *api.DeployResult) { r.Previous = 0 }), deployPlan{}, "release 7 active (1 of 2 functions changed)"},
		{result(func(r *api.DeployResult) { r.Unchanged, r.Previous = true, 7 }), deployPlan{canary: 10}, "nothing changed: release 7 stays active"},
		{result(func(r *api.DeployResult) { r.Plan = true }), deployPlan{canary: 10}, "plan: a deploy would make release 7 (1 of 2 functions changed); nothing was done"},
		{result(none), deployPlan{noActivate: true}, "release 7 recorded (1 of 2 functions changed), not active: qualifier r7 reaches it"},
		{result(none), deployPlan{canary: 0.5, auto: true}, "release 7 gets 0.5% of the requests (1 of 2 functions changed), release 6 the rest; lfxd promotes or aborts it"},
	} {
		if diff := cmp.Diff(tt.want, deploySummary(tt.result, tt.plan)); diff != "" {
			t.Errorf("summary (-want +got):\n%s", diff)
		}
	}
}

func TestOverwriteClearsWhatIsOldAndFits(t *testing.T) {
	for _, tt := range []struct {
		picture string
		rows    int
		want    string
	}{
		{"a\nb\n", 0, "a\x1b[K\nb\x1b[K\n"},
		{"a\nb\n", 3, "a\x1b[K\nb\x1b[K\n"},
		{"a\nb\nc\n", 3, "a\x1b[K\n… 2 more\x1b[K\n"}, // the cursor stands on the last row
		{"a\nb\n", 1, "a\x1b[K\nb\x1b[K\n"},
		{"", 5, ""},
	} {
		if got, want := string(overwrite([]byte(tt.picture), tt.rows)), "\x1b[?7l\x1b[H"+tt.want+"\x1b[J\x1b[?7h"; got != want {
			t.Errorf("%q on %d rows: got %q, want %q", tt.picture, tt.rows, got, want)
		}
	}
}

func TestEnvironmentNamesAreBareWhereUnique(t *testing.T) {
	var all []api.EnvironmentInfo
	for _, name := range []string{"shop/default", "shop/staging", "blog/default"} {
		e := api.EnvironmentInfo{}
		e.Project, e.Environment.Name, _ = strings.Cut(name, "/")
		all = append(all, e)
	}
	got := environmentNames(all)
	slices.Sort(got)
	if diff := cmp.Diff([]string{"blog/default", "shop/default", "shop/staging", "staging"}, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}
