//go:build integration && faults

package integration

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/function"
)

// versioned is a project of two functions; only the first one changes with n, and one of it is warm.
func versioned(n int) map[string]string {
	return with(
		map[string]string{"lfx.yaml": manifest("steps", "first concurrency: {min: 1}; timeout: 5s", "second timeout: 5s")},
		python("first", fmt.Sprintf("def handler(event, context): return 'v%d'\n", n)),
		python("second", "def handler(event, context): return 'second'\n"),
	)
}

// TestDaemonKilledAtEveryStepOfADeploy: after the restart the deploy is there whole or not at all, a retry
// works, and nothing else is left.
func TestDaemonKilledAtEveryStepOfADeploy(t *testing.T) {
	f := newFaultDaemon(t, faultConfig{name: "lfxk"})
	empty := f.observe(t)
	dir := f.project(versioned(1))
	f.mustDeploy(dir)
	f.hits()
	change := func(n int) { write(t, filepath.Join(dir, "first/app.py"), versioned(n)["first/app.py"]) }
	change(2)
	f.mustDeploy(dir)
	steps := f.hits()
	if len(steps) < 15 {
		t.Fatalf("a deploy passes only %d points: %v", len(steps), steps)
	}
	n := 2
	for _, step := range sample(steps, 5) {
		t.Run(step, func(t *testing.T) {
			before := n
			n++
			change(n)
			f.points(step + " kill\n")
			_, stderr, code := f.deploy(dir)
			if code == 0 {
				t.Errorf("the deploy was acknowledged although the daemon died at %s", step)
			}
			if !strings.Contains(stderr, "whole or not at all") {
				t.Errorf("lfxctl says %.2000q", stderr)
			}
			f.awaitDeath()
			f.points("")
			f.restart()
			a, err := f.invoke("first", "")
			if err != nil || a.body != fmt.Sprintf(`"v%d"`, before) && a.body != fmt.Sprintf(`"v%d"`, n) {
				t.Fatalf("after the restart: %d %s, %v", a.status, a.body, err)
			}
			if want := a.body == fmt.Sprintf(`"v%d"`, n); want != committed(steps, step) {
				t.Errorf("killed at %s, the new version answers: %v", step, want)
			}
			f.answers("second", "", `"second"`)
			f.consistent(t)
			res := f.mustDeploy(dir)
			if res.Unchanged != committed(steps, step) {
				t.Errorf("the retry changed something: %v, killed at %s", !res.Unchanged, step)
			}
			f.answers("first", "", fmt.Sprintf(`"v%d"`, n))
			f.consistent(t)
		})
	}
	t.Run("removal", func(t *testing.T) { f.killedInRemoval(t, empty) })
}

// committed says whether the step comes after the transaction that activates.
func committed(steps []string, step string) bool {
	return slices.Index(steps, step) >= slices.Index(steps, "deploy.activated")
}

// consistent compares what the daemon has recorded with what is in containerd and on disk: nothing more, nothing
// less, once leftovers are removed.
func (f *faultDaemon) consistent(t *testing.T) {
	t.Helper()
	err := poll(60*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		releases, err := f.client.Releases(ctx, function.Environment{})
		if err != nil {
			return err
		}
		names := map[string]bool{}
		for _, r := range releases {
			if r.State == function.ReleaseRecorded {
				return fmt.Errorf("release %d is still %s", r.Number, r.State)
			}
			for name, v := range r.Versions {
				if r.State != function.ReleaseFailed {
					names[fmt.Sprintf("localhost/%s/%s:v%d", r.Project, name, v)] = true
					names[fmt.Sprintf("localhost/%s/%s:r%d", r.Project, name, r.Number)] = true
				}
			}
		}
		want := append(slices.Collect(maps.Keys(names)), "localhost/lfx-base/python:3.11")
		slices.Sort(want)
		w, err := f.look()
		if err != nil {
			return err
		}
		if diff := cmp.Diff(want, w.Images); diff != "" {
			return fmt.Errorf("images by name (-record +containerd):\n%s", diff)
		}
		return f.settled(w)
	})
	if err != nil {
		t.Error(err)
	}
}

// settled says whether everything in the world belongs to an instance that the daemon has.
func (f *faultDaemon) settled(w world) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	running, err := f.client.Instances(ctx)
	if err != nil {
		return err
	}
	n := len(running)
	counts := map[string]int{
		"containers": len(w.Containers), "tasks": len(w.Tasks), "snapshots": len(w.Snapshots),
		"veths": len(w.Links), "addresses": len(w.Addresses), "instances": len(w.Instances), "runc states": len(w.RuncStates),
	}
	for what, got := range counts {
		if got != n {
			return fmt.Errorf("%d %s for %d instances: %+v", got, what, n, w)
		}
	}
	leases, err := f.list("leases", "ls")
	if err != nil {
		return err
	}
	for _, l := range leases {
		if strings.Contains(l, "dev.lfx.") {
			return fmt.Errorf("a lease is left: %s", l)
		}
	}
	if left := files(filepath.Join(f.state, "contexts")); slices.ContainsFunc(left, func(n string) bool { return strings.HasPrefix(n, ".new") }) {
		return fmt.Errorf("unfinished contexts are left: %v", left)
	}
	return nil
}

// killedInRemoval is the same for the removal of a function, and of the last one.
func (f *faultDaemon) killedInRemoval(t *testing.T, empty world) {
	dir := f.project(versioned(1))
	for _, name := range []string{"second", "first"} {
		f.mustDeploy(dir)
		f.hits()
		f.remove(t, "second")
		if name == "first" {
			f.hits()
			f.remove(t, "first")
		}
		for _, step := range sample(f.hits(), 2) {
			t.Run(name+"/"+step, func(t *testing.T) {
				f.mustDeploy(dir)
				if name == "first" {
					f.remove(t, "second")
				}
				f.points(step + " kill\n")
				if _, _, code := f.lfxctl("rm", "--yes", name); code == 0 {
					t.Errorf("the removal was acknowledged although the daemon died at %s", step)
				}
				f.awaitDeath()
				f.points("")
				f.restart()
				f.consistent(t)
				if _, stderr, code := f.lfxctl("rm", "--yes", name); code != 0 && !strings.Contains(stderr, name) {
					t.Errorf("the removal again: exit %d, %s", code, stderr)
				}
				if a, err := f.invoke(name, ""); err != nil || a.status != 404 {
					t.Errorf("after the removal %s answers %d %s, %v", name, a.status, a.body, err)
				}
			})
		}
	}
	f.removeAll(empty)
}

func (f *faultDaemon) remove(t *testing.T, name string) {
	t.Helper()
	if _, stderr, code := f.lfxctl("rm", "--yes", name); code != 0 {
		t.Fatalf("lfxctl rm %s: exit %d, %s", name, code, stderr)
	}
}
