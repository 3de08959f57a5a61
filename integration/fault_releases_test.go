//go:build integration && faults

package integration

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"lfx.dev/lfxd/daemon/api"
)

// standing is who gets the requests of the project: the active release, and a canary's with its share.
type standing struct {
	Active, Canary int
	Percent        float64
}

func (f *faultDaemon) standing(t *testing.T) standing {
	t.Helper()
	stdout, stderr, code := f.lfxctl("traffic", "--project", "steps", "-o", "json")
	var all []api.Traffic
	if err := json.Unmarshal([]byte(stdout), &all); code != 0 || err != nil || len(all) != 1 {
		t.Fatalf("lfxctl traffic: exit %d, %v\n%s%s", code, err, stdout, stderr)
	}
	s := standing{Active: all[0].Active}
	if c := all[0].Canary; c != nil {
		s.Canary, s.Percent = c.Release, c.Percent
	}
	return s
}

// mustRun runs lfxctl on the project, without a fault.
func (f *faultDaemon) mustRun(t *testing.T, args ...string) {
	t.Helper()
	if _, stderr, code := f.lfxctl(append(args, "--project", "steps")...); code != 0 {
		t.Fatalf("lfxctl %v: exit %d\n%s", args, code, stderr)
	}
}

// TestDaemonKilledAtEveryStepOfASwitch: rollbacks, canaries, shares, promotions and abortions are there whole or not at
// all after the restart, and can be done again.
func TestDaemonKilledAtEveryStepOfASwitch(t *testing.T) {
	f := newFaultDaemon(t, faultConfig{name: "lfxs"})
	empty := f.observe(t)
	dir, n := f.project(versioned(1)), 1
	change := func() {
		n++
		write(t, filepath.Join(dir, "first/app.py"), versioned(n)["first/app.py"])
	}
	f.mustDeploy(dir)
	change()
	f.mustDeploy(dir)
	other := func(s standing) string { return strconv.Itoa(3 - s.Active) } // releases 1 and 2
	for _, c := range []struct {
		name      string
		prepare   func(t *testing.T)
		act       func(now standing) []string
		committed string // the point after the transaction
		after     func(before standing) standing
	}{
		{"rollback", nil, func(now standing) []string { return []string{"rollback", other(now)} }, "rollback.activated",
			func(b standing) standing { return standing{Active: 3 - b.Active} }},
		{"share of a kept release", nil, func(now standing) []string { return []string{"traffic", "set", other(now) + "=20%"} }, "traffic.recorded-share",
			func(b standing) standing { return standing{b.Active, 3 - b.Active, 20} }},
		{"other share", func(t *testing.T) { f.mustRun(t, "traffic", "set", other(f.standing(t))+"=20%") },
			func(now standing) []string { return []string{"traffic", "set", other(now) + "=60%"} }, "traffic.recorded-share",
			func(b standing) standing { return standing{b.Active, b.Canary, 60} }},
		{"promotion", func(t *testing.T) { f.mustRun(t, "traffic", "set", other(f.standing(t))+"=20%") },
			func(standing) []string { return []string{"promote"} }, "promote.recorded",
			func(b standing) standing { return standing{Active: b.Canary} }},
		{"abortion", func(t *testing.T) { f.mustRun(t, "traffic", "set", other(f.standing(t))+"=20%") },
			func(standing) []string { return []string{"abort"} }, "abort.recorded",
			func(b standing) standing { return standing{Active: b.Active} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			prepare := func(t *testing.T) standing {
				if f.standing(t).Canary != 0 {
					f.mustRun(t, "abort")
				}
				if c.prepare != nil {
					c.prepare(t)
				}
				return f.standing(t)
			}
			before := prepare(t)
			f.hits()
			f.mustRun(t, c.act(before)...)
			steps := f.hits()
			if got := f.standing(t); got != c.after(before) {
				t.Fatalf("without a fault: %+v, want %+v", got, c.after(before))
			}
			if !slices.Contains(steps, c.committed) {
				t.Fatalf("it passes %q only", steps)
			}
			for _, step := range sample(steps, 2) {
				t.Run(step, func(t *testing.T) {
					f := f.in(t)
					before := prepare(t)
					f.points(step + " kill\n")
					if _, _, code := f.lfxctl(append(c.act(before), "--project", "steps")...); code == 0 {
						t.Errorf("it was acknowledged although the daemon died at %s", step)
					}
					f.awaitDeath()
					f.points("")
					f.restart()
					want := before
					if slices.Index(steps, step) >= slices.Index(steps, c.committed) {
						want = c.after(before)
					}
					if got := f.standing(t); got != want {
						t.Errorf("killed at %s: %+v, want %+v; before it was %+v", step, got, want, before)
					}
					if want.Canary == 0 {
						f.answers("first", "", fmt.Sprintf(`"v%d"`, want.Active))
					}
					f.answers("second", "", `"second"`)
					f.consistent(t)
					if want == before {
						f.mustRun(t, c.act(before)...)
						if got := f.standing(t); got != c.after(before) {
							t.Errorf("the retry: %+v, want %+v", got, c.after(before))
						}
					}
				})
			}
		})
	}
	t.Run("canary of a deploy", func(t *testing.T) { f.in(t).killedInCanaryDeploy(t, dir, change) })
	f.removeAll(empty)
}

// killedInCanaryDeploy is the same for a deploy that gets a share, and for one that gets nothing.
func (f *faultDaemon) killedInCanaryDeploy(t *testing.T, dir string, change func()) {
	if f.standing(t).Canary != 0 {
		f.mustRun(t, "abort")
	}
	change()
	f.hits()
	f.mustDeploy(dir, "--canary", "20%")
	steps := f.hits()
	committed := slices.Index(steps, "deploy.recorded-share")
	if committed < 0 {
		t.Fatalf("it passes %q only", steps)
	}
	for _, step := range sample(steps[max(0, committed-2):], 3) { // those before are any deploy's
		t.Run(step, func(t *testing.T) {
			f := f.in(t)
			if f.standing(t).Canary != 0 {
				f.mustRun(t, "abort")
			}
			before := f.standing(t)
			change()
			f.points(step + " kill\n")
			if _, _, code := f.deploy(dir, "--canary", "20%"); code == 0 {
				t.Errorf("it was acknowledged although the daemon died at %s", step)
			}
			f.awaitDeath()
			f.points("")
			f.restart()
			got := f.standing(t)
			if there := got.Canary != 0 && got.Percent == 20; got.Active != before.Active || there != (slices.Index(steps, step) >= committed) {
				t.Errorf("killed at %s: %+v; before it was %+v", step, got, before)
			}
			f.answers("second", "", `"second"`)
			f.consistent(t)
		})
	}
}
