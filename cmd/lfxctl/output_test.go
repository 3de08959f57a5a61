package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

func TestAgo(t *testing.T) {
	a := &app{}
	now := a.now()
	tests := []struct {
		age  time.Duration
		want string
	}{
		{-time.Hour, "now"}, {0, "now"}, {5500 * time.Millisecond, "5s ago"}, {90 * time.Second, "1m ago"},
		{90 * time.Minute, "1h ago"}, {47*time.Hour + time.Minute, "47h ago"}, {49 * time.Hour, "2d ago"},
		{100 * 24 * time.Hour, now.Add(-100 * 24 * time.Hour).Local().Format(time.DateOnly)},
	}
	for _, tt := range tests {
		if got := a.ago(now.Add(-tt.age)); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.age, got, tt.want)
		}
	}
	if got := a.ago(time.Time{}); got != "-" {
		t.Errorf("zero: got %q, want -", got)
	}
}

func TestVisibleDisarmsTerminals(t *testing.T) {
	for in, want := range map[string]string{
		"plain\täöü €": "plain\täöü €", "\x1b[2J": `\x1b[2J`, "a\rb": `a\x0db`, "\u009b1m": `\x9b1m`, "\x7f": `\x7f`,
	} {
		if got := visible(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestTrafficWithoutAnActiveRelease: what was only deployed with --no-activate gets no requests, and no row.
func TestTrafficWithoutAnActiveRelease(t *testing.T) {
	kept := api.Traffic{Environment: function.Environment{Project: "shop", Name: "kept"}}
	active := api.Traffic{Environment: function.Environment{Project: "shop", Name: "default"}, Active: 7}
	for _, tt := range []struct {
		all    []api.Traffic
		rows   []string
		stderr string
	}{
		{[]api.Traffic{active, kept}, []string{"PROJECT ENV RELEASE STATE SHARE SINCE", "shop default 7 active 100% -"}, ""},
		{[]api.Traffic{kept}, nil, "no release is active: `lfxctl releases` shows what is kept, `lfxctl rollback N` activates one of them\n"},
	} {
		var out, errs strings.Builder
		a := &app{stdout: &out, stderr: &errs, lookup: func(string) (string, bool) { return "", false }}
		a.printTraffic(tt.all)
		var rows []string
		for line := range strings.Lines(out.String()) {
			rows = append(rows, strings.Join(strings.Fields(line), " "))
		}
		if !slices.Equal(rows, tt.rows) || errs.String() != tt.stderr {
			t.Errorf("%v: printed %q and %q", tt.all, rows, errs.String())
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"a", "a/b", "a/b/c", "a/b/c/d", "/", "a//b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		key, err := parseName(name, scope{})
		if err == nil && key.Function == "" {
			t.Errorf("%q: no function in %v", name, key)
		}
	})
}
