package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/internal/tmpdir"
	"lfx.dev/lfxd/runtime/image"
)

var byUser = function.Decision{By: function.ByUser}

// twice has release 1 superseded by release 2, which changed both functions.
func twice(t testing.TB) *world {
	w := newWorld(t)
	w.must(w.request())
	w.change()
	w.must(w.request())
	return w
}

// canaried has release 2 as a canary of a tenth beside release 1.
func canaried(t testing.TB) *world {
	w := newWorld(t)
	w.must(w.request())
	w.change()
	req := w.request()
	req.Canary, req.Auto = 10, &api.Judgement{After: time.Minute, MinRequests: 10, MaxErrorRate: 0.1, MaxP99Ratio: 2}
	w.must(req)
	return w
}

func (w *world) states() (out []function.ReleaseState) {
	for _, r := range w.store.View().Releases(shop) {
		out = append(out, r.State)
	}
	return out
}

func (w *world) wantStates(when string, want ...function.ReleaseState) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.states()); diff != "" {
		w.t.Errorf("%s, states (-want +got):\n%s", when, diff)
	}
	w.consistent(when)
}

func (w *world) rollback(number int) (*api.DeployResult, error) {
	return w.Rollback(w.t.Context(), api.RollbackRequest{Environment: shop, Release: number}, func(api.DeployEvent) {})
}

// code is the code of an error of the API.
func code(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

func TestCanaryIsPromotedOrAborted(t *testing.T) {
	for _, promote := range []bool{true, false} {
		w := canaried(t)
		w.wantStates("canary", function.ReleaseActive, function.ReleaseCanary)
		c := w.store.View().Canary(shop)
		if c.Release != 2 || c.Share != 1000 || c.Auto == nil || c.Auto.MinRequests != 10 {
			t.Fatalf("canary %+v", c)
		}
		if err := w.SetTraffic(t.Context(), api.TrafficRequest{Environment: shop, Release: 2, Percent: 25.5}); err != nil {
			t.Fatal(err)
		}
		w.wantStates("another share", function.ReleaseActive, function.ReleaseCanary)
		if got := w.store.View().Canary(shop).Share; got != 2550 {
			t.Errorf("share %d", got)
		}
		req := api.ReleaseRequest{Environment: shop, Release: 2}
		if promote {
			if err := w.Promote(t.Context(), req, byUser); err != nil {
				t.Fatal(err)
			}
			w.wantStates("promoted", function.ReleaseSuperseded, function.ReleaseActive)
		} else {
			if err := w.Abort(t.Context(), req, byUser); err != nil {
				t.Fatal(err)
			}
			w.wantStates("aborted", function.ReleaseActive, function.ReleaseSuperseded)
		}
		for what, f := range map[string]func(context.Context, api.ReleaseRequest, function.Decision) error{"promote": w.Promote, "abort": w.Abort} {
			if err := f(t.Context(), req, byUser); code(err) != api.CodeNotFound {
				t.Errorf("%s without a canary: %v", what, err)
			}
		}
		w.change()
		if got := w.must(w.request()).Release.Number; got != 3 {
			t.Errorf("a deploy after it is release %d", got)
		}
		w.consistent("after a deploy")
	}
}

func TestCanaryDeployIsCanaryInTheResult(t *testing.T) {
	w := newWorld(t)
	req := w.request()
	req.Canary = 10
	if _, err := w.deploy(t.Context(), req); code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "without a canary first") {
		t.Errorf("a canary beside nothing: %v", err)
	}
	w.must(w.request())
	if res := w.must(req); !res.Unchanged {
		t.Errorf("an unchanged canary: %+v", res)
	}
	w.change()
	res := w.must(req)
	if res.Release.State != function.ReleaseCanary || res.Release.Number != 2 || res.Functions[0].Change != "updated" {
		t.Errorf("%+v", res)
	}
}

// TestNothingElseBesideACanary: deploys, rollbacks, removals and other canaries are refused with a sentence that says
// what to do; plans are not.
func TestNothingElseBesideACanary(t *testing.T) {
	w := canaried(t)
	w.change()
	before := w.state()
	for what, f := range map[string]func() error{
		"deploy":   func() error { _, err := w.deploy(t.Context(), w.request()); return err },
		"rollback": func() error { _, err := w.rollback(1); return err },
		"remove": func() error {
			_, err := w.Remove(t.Context(), function.Key{Environment: shop, Function: "a"})
			return err
		},
		"other traffic": func() error {
			return w.SetTraffic(t.Context(), api.TrafficRequest{Environment: shop, Release: 1, Percent: 5})
		},
	} {
		err := f()
		if code(err) != api.CodeConflict || !strings.Contains(err.Error(), "lfxctl promote or lfxctl abort") || !strings.Contains(err.Error(), "release 2 of shop is a canary with 10 %") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, f := range map[string]func(context.Context, api.ReleaseRequest, function.Decision) error{"promote": w.Promote, "abort": w.Abort} {
		if err := f(t.Context(), api.ReleaseRequest{Environment: shop, Release: 1}, byUser); code(err) != api.CodeConflict {
			t.Errorf("%s another number: %v", what, err)
		}
	}
	req := w.request()
	req.Plan = true
	w.must(req)
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("it changed (-before +after):\n%s", diff)
	}
	w.consistent("after the refusals")
}

func TestInvalidTraffic(t *testing.T) {
	w := twice(t)
	for what, change := range map[string]func(*api.DeployRequest){
		"share 100":     func(r *api.DeployRequest) { r.Canary = 100 },
		"share -1":      func(r *api.DeployRequest) { r.Canary = -1 },
		"too fine":      func(r *api.DeployRequest) { r.Canary = 0.123 },
		"both":          func(r *api.DeployRequest) { r.Canary, r.NoActivate = 5, true },
		"auto alone":    func(r *api.DeployRequest) { r.Auto = &api.Judgement{After: 1, MinRequests: 1, MaxP99Ratio: 1} },
		"bad judgement": func(r *api.DeployRequest) { r.Canary, r.Auto = 5, &api.Judgement{} },
	} {
		req := w.request()
		change(&req)
		if _, err := w.deploy(t.Context(), req); code(err) != api.CodeInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, tt := range map[string]struct {
		release int
		percent float64
		want    string
	}{"active": {2, 5, api.CodeInvalid}, "unknown": {9, 5, api.CodeNotFound}} {
		if err := w.SetTraffic(t.Context(), api.TrafficRequest{Environment: shop, Release: tt.release, Percent: tt.percent}); code(err) != tt.want {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := w.SetTraffic(t.Context(), api.TrafficRequest{Environment: shop, Release: 1}); err == nil {
		t.Error("a share of nothing")
	}
	w.wantStates("after all", function.ReleaseSuperseded, function.ReleaseActive)
}

func TestTrafficStartsAKeptRelease(t *testing.T) {
	w := twice(t)
	if err := w.SetTraffic(t.Context(), api.TrafficRequest{Environment: shop, Release: 1, Percent: 0.01}); err != nil {
		t.Fatal(err)
	}
	w.wantStates("started", function.ReleaseCanary, function.ReleaseActive)
	// After a restart that could not bring the canary back, its share can still be set, and it promoted.
	w.releases.canary = map[function.Environment]*fakeCandidate{}
	if err := w.SetTraffic(t.Context(), api.TrafficRequest{Environment: shop, Release: 1, Percent: 50}); err != nil {
		t.Fatal(err)
	}
	w.wantStates("set again", function.ReleaseCanary, function.ReleaseActive)
	w.releases.canary = map[function.Environment]*fakeCandidate{}
	if err := w.Promote(t.Context(), api.ReleaseRequest{Environment: shop}, byUser); err != nil {
		t.Fatal(err)
	}
	w.wantStates("promoted", function.ReleaseActive, function.ReleaseSuperseded)
	if err := w.SetTraffic(t.Context(), api.TrafficRequest{Environment: shop, Release: 2, Percent: 50}); err != nil {
		t.Fatal(err)
	}
	w.releases.canary = map[function.Environment]*fakeCandidate{}
	if err := w.Abort(t.Context(), api.ReleaseRequest{Environment: shop}, byUser); err != nil {
		t.Fatal(err)
	}
	w.wantStates("aborted", function.ReleaseActive, function.ReleaseSuperseded)
}

func TestNoActivate(t *testing.T) {
	w := newWorld(t)
	req := w.request()
	req.NoActivate = true
	if res := w.must(req); res.Release.Number != 1 || res.Release.State != function.ReleaseSuperseded || !res.Release.Activated.IsZero() {
		t.Errorf("%+v", res.Release)
	}
	w.wantStates("the first, not activated", function.ReleaseSuperseded)
	if slices.Contains(w.seam.calls, "warm") || slices.Contains(w.seam.calls, "prepare") {
		t.Errorf("it was warmed: %v", w.seam.calls)
	}
	if err := w.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantStates("after a restart", function.ReleaseSuperseded)
	if _, err := w.rollback(0); code(err) != api.CodeNotFound {
		t.Errorf("back to nothing: %v", err)
	}
	if _, err := w.rollback(1); err != nil {
		t.Fatal(err)
	}
	w.wantStates("activated", function.ReleaseActive)
	w.change()
	w.must(req)
	w.wantStates("the second", function.ReleaseActive, function.ReleaseSuperseded)
}

func TestRollback(t *testing.T) {
	w := twice(t)
	calls := len(w.seam.calls)
	var steps []string
	res, err := w.Rollback(t.Context(), api.RollbackRequest{Environment: shop}, func(e api.DeployEvent) { steps = append(steps, e.Step) })
	if err != nil {
		t.Fatal(err)
	}
	if res.Release.Number != 1 || res.Release.State != function.ReleaseActive || res.Previous != 2 || len(res.Functions) != 2 || res.Functions[0].Change != "updated" || res.Functions[0].Version != 1 || res.Functions[0].Digest == "" || len(steps) == 0 {
		t.Errorf("%+v, steps %q", res, steps)
	}
	for _, c := range w.seam.calls[calls:] {
		if c == "build" || c == "pull" || c == "session" {
			t.Errorf("a rollback builds: %v", w.seam.calls[calls:])
		}
	}
	w.wantStates("back", function.ReleaseActive, function.ReleaseSuperseded)
	if _, err := w.rollback(0); err != nil { // forth again
		t.Fatal(err)
	}
	w.wantStates("forth", function.ReleaseSuperseded, function.ReleaseActive)
	if _, err := w.rollback(2); code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "is the active one") {
		t.Errorf("to the active one: %v", err)
	}
	if _, err := w.rollback(7); code(err) != api.CodeNotFound {
		t.Errorf("to an unknown one: %v", err)
	}
	failing := w.request()
	w.change()
	w.seam.at, w.seam.hit = len(w.seam.calls)+1, func() error { return errInjected }
	w.deploy(t.Context(), failing) //nolint:errcheck // its session fails; no release is made
	w.consistent("at the end")
}

// TestRollbackHealsImages: a version's name that containerd lost comes back from a release's name of the same image;
// without one the rollback says so and nothing changes.
func TestRollbackHealsImages(t *testing.T) {
	w := twice(t)
	key := function.Key{Environment: shop, Function: "a"}
	v := w.store.View().Version(key, 1)
	w.images.Remove(t.Context(), v.Image.Name)
	w.images.Remove(t.Context(), releaseName(host, w.store.View().Release(shop, 1), "b"))
	var warnings []string
	_, err := w.Rollback(t.Context(), api.RollbackRequest{Environment: shop}, func(e api.DeployEvent) {
		if e.Warning != "" {
			warnings = append(warnings, e.Warning)
		}
	})
	if err != nil || len(warnings) != 1 {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	w.wantStates("healed", function.ReleaseActive, function.ReleaseSuperseded)

	two := w.store.View().Version(key, 2)
	w.images.Remove(t.Context(), two.Image.Name)
	w.images.put(releaseName(host, w.store.View().Release(shop, 2), "a"), info("x", "another"))
	if _, err := w.rollback(2); code(err) != api.CodeConflict || !strings.Contains(err.Error(), "the image of shop/a:2 is gone from containerd: deploy its source again") {
		t.Errorf("a lost image: %v", err)
	}
	if got := w.state(); got.Active[shop] != 1 || got.Open != 0 {
		t.Errorf("it changed: %+v", got)
	}
}

// TestFailedSwitchChangesNothing: whatever call out of a rollback or of a new canary fails, everything is as it was.
func TestFailedSwitchChangesNothing(t *testing.T) {
	for what, op := range map[string]func(*world) error{
		"rollback": func(w *world) error { _, err := w.rollback(0); return err },
		"traffic": func(w *world) error {
			return w.SetTraffic(w.t.Context(), api.TrafficRequest{Environment: shop, Release: 1, Percent: 5})
		},
	} {
		clean := twice(t)
		first := len(clean.seam.calls)
		if err := op(clean); err != nil {
			t.Fatal(err)
		}
		w := twice(t)
		before := w.state()
		for i, name := range clean.seam.calls[first:] {
			if name == "activate" || name == "share" {
				continue // cannot fail
			}
			w.seam.at, w.seam.hit = len(w.seam.calls)+i+1, func() error { return errInjected }
			if err := op(w); !errors.Is(err, errInjected) {
				t.Errorf("%s, call %d (%s): err = %v", what, i+1, name, err)
			}
			if diff := cmp.Diff(before, w.state()); diff != "" {
				t.Errorf("%s, call %d (%s) changed (-before +after):\n%s", what, i+1, name, diff)
			}
			w.consistent(what + " " + name)
		}
	}
}

func TestRemoveEnvironment(t *testing.T) {
	w := canaried(t)
	other := w.request()
	other.Environment.Name, other.Functions[1].Port = "staging", 0
	w.must(other)
	w.store.SetReleaseAlias(t.Context(), function.ReleaseAlias{Environment: shop, Name: "stable", Release: 1}) //nolint:errcheck // seen below
	waited := false
	w.releases.draining = func(context.Context) error {
		waited = true
		if len(w.images.list()) == 0 || !slices.ContainsFunc(w.images.list(), func(n string) bool { return strings.HasPrefix(n, host+"/shop/a:v") }) {
			t.Error("images went before the last request")
		}
		return errInjected // it takes too long
	}
	building, goOn := make(chan struct{}), make(chan struct{})
	req := w.request()
	req.Plan = true
	w.seam.at, w.seam.hit = len(w.seam.calls)+1, func() error { close(building); <-goOn; return nil }
	planned := make(chan error, 1)
	go func() { _, err := w.deploy(context.Background(), req); planned <- err }() // ends before the test
	<-building
	if err := w.RemoveEnvironment(t.Context(), shop); code(err) != api.CodeConflict {
		t.Errorf("while a deploy runs: %v", err)
	}
	close(goOn)
	if err := <-planned; err != nil {
		t.Fatal(err)
	}
	if err := w.RemoveEnvironment(t.Context(), shop); err != nil || !waited {
		t.Fatalf("%v, waited %v", err, waited)
	}
	if len(w.store.View().Releases(shop)) != 0 || w.store.View().ReleaseAliases(shop) != nil {
		t.Error("releases or aliases are left")
	}
	staging := w.store.View().Environments()
	if len(staging) != 1 || staging[0].Name != "staging" {
		t.Errorf("environments %v", staging)
	}
	w.consistent("after the removal")
	if err := w.RemoveEnvironment(t.Context(), shop); code(err) != api.CodeNotFound {
		t.Errorf("once more: %v", err)
	}
	if res := w.must(w.request()); res.Release.Number != 3 || res.Release.Versions["a"] != 3 {
		t.Errorf("numbers are used twice: %+v", res.Release)
	}
}

func TestForgottenReleasesAreToldToTheReleaser(t *testing.T) {
	w := twice(t)
	w.change()
	w.must(w.request())
	if got := w.releases.forgot[shop]; !slices.Equal(got, []int{2, 3}) {
		t.Errorf("kept are %v, want the last two", got)
	}
}

// TestReleasesInUseKeepTheirImages: a release that drains when the next one takes over, or that a request asked for by
// its number, is forgotten only when nothing is bound to it any more.
func TestReleasesInUseKeepTheirImages(t *testing.T) {
	w := newWorld(t)
	w.opts.Keep = 1
	w.must(w.request())
	w.releases.inUse = map[int]bool{1: true, 2: true}
	for range 2 {
		w.change()
		w.must(w.request())
	}
	w.wantStates("while requests are bound", function.ReleaseSuperseded, function.ReleaseSuperseded, function.ReleaseActive)
	for n := range 3 {
		if _, err := w.images.get(releaseName(host, w.store.View().Release(shop, n+1), "a")); err != nil {
			t.Errorf("release %d: %v", n+1, err)
		}
	}
	delete(w.releases.inUse, 1)
	w.ForgetUnused(t.Context())
	w.wantStates("when the first has drained", function.ReleaseSuperseded, function.ReleaseActive)
	w.releases.inUse = nil
	before := len(w.seam.calls)
	w.ForgetUnused(t.Context())
	w.wantStates("when all have drained", function.ReleaseActive)
	if len(w.seam.calls) == before {
		t.Error("no image was removed")
	}
	before = len(w.seam.calls)
	w.ForgetUnused(t.Context())
	if calls := w.seam.calls[before:]; len(calls) != 0 {
		t.Errorf("once more does %v", calls)
	}
}

// TestReleaseAskedForWhileItIsForgotten keeps its images until the next start.
func TestReleaseAskedForWhileItIsForgotten(t *testing.T) {
	w := newWorld(t)
	w.opts.Keep = 1
	w.must(w.request())
	first := *w.store.View().Release(shop, 1)
	w.change()
	w.releases.late = map[int]bool{1: true}
	w.must(w.request())
	if diff := cmp.Diff([]function.ReleaseState{function.ReleaseActive}, w.states()); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	if _, err := w.images.get(releaseName(host, &first, "a")); err != nil {
		t.Error(err)
	}
	if err := w.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.consistent("after the next start")
}

// TestDeployWithoutActivationIsKept however few releases are.
func TestDeployWithoutActivationIsKept(t *testing.T) {
	for _, keep := range []int{1, 2} {
		w := twice(t)
		w.opts.Keep = keep
		w.change()
		req := w.request()
		req.NoActivate = true
		res := w.must(req)
		w.ForgetUnused(t.Context())
		w.consistent("after the deploy")
		if r := w.store.View().Release(shop, res.Release.Number); r == nil || r.State != function.ReleaseSuperseded {
			t.Fatalf("keep %d: the release is %+v", keep, r)
		}
		if _, err := w.rollback(res.Release.Number); err != nil {
			t.Errorf("keep %d: it cannot be activated: %v", keep, err)
		}
	}
}

// moment is what a crash leaves: the state directory and containerd's images.
type moment struct {
	call   string
	dir    string
	images map[string]image.Info
}

// moments runs op and takes what a crash would leave at each call out of the deployer, and at the end.
func (w *world) moments(op func(*world) error) (out []moment) {
	w.t.Helper()
	take := func(call string) {
		dir := tmpdir.New(w.t)
		if err := os.CopyFS(dir, os.DirFS(w.dir)); err != nil {
			w.t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, "state"), 0o700); err != nil {
			w.t.Fatal(err)
		}
		w.images.mu.Lock()
		defer w.images.mu.Unlock()
		out = append(out, moment{call, dir, maps.Clone(w.images.names)})
	}
	w.seam.every = take
	if err := op(w); err != nil {
		w.t.Fatal(err)
	}
	w.seam.every = nil
	take("end")
	return out
}

// restart is what the daemon does after a crash: it undoes what is unfinished and routes as recorded.
func restart(t *testing.T, m moment) *world {
	t.Helper()
	w := openWorld(t, m.dir, maps.Clone(m.images))
	w.changes = 10 // what it changes is new
	if err := w.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	view := w.store.View()
	for _, e := range view.Environments() {
		if r := view.ActiveRelease(e.Environment); r != nil {
			w.releases.active[e.Environment] = r.Number
		}
		if c := view.Canary(e.Environment); c != nil {
			w.releases.canary[e.Environment] = &fakeCandidate{r: w.releases, rel: *view.Release(e.Environment, c.Release), share: c.Share}
		}
	}
	return w
}

// TestCrashAnywhere: whenever the daemon dies during something that changes who gets the requests, the next
// start finds it done or not begun, routes as recorded, has lost no image and keeps none too many; and the
// operation can then be done, or is refused because it is done.
func TestCrashAnywhere(t *testing.T) {
	type outcome struct {
		Active, Canary, Share int
		Auto                  bool
	}
	look := func(w *world) (o outcome) {
		view := w.store.View()
		if r := view.ActiveRelease(shop); r != nil {
			o.Active = r.Number
		}
		if c := view.Canary(shop); c != nil {
			o.Canary, o.Share, o.Auto = c.Release, c.Share, c.Auto != nil
		}
		return o
	}
	for what, tt := range map[string]struct {
		begin func(testing.TB) *world
		op    func(*world) error
	}{
		"deploy": {twice, func(w *world) error { w.change(); _, err := w.deploy(w.t.Context(), w.request()); return err }},
		"canary": {twice, func(w *world) error {
			w.change()
			req := w.request()
			req.Canary, req.Auto = 33.33, &api.Judgement{After: time.Minute, MinRequests: 10, MaxErrorRate: 0.1, MaxP99Ratio: 2}
			_, err := w.deploy(w.t.Context(), req)
			return err
		}},
		"no-activate": {twice, func(w *world) error {
			w.change()
			req := w.request()
			req.NoActivate = true
			_, err := w.deploy(w.t.Context(), req)
			return err
		}},
		"rollback": {twice, func(w *world) error { _, err := w.rollback(1); return err }},
		"traffic": {twice, func(w *world) error {
			return w.SetTraffic(w.t.Context(), api.TrafficRequest{Environment: shop, Release: 1, Percent: 5})
		}},
		"share": {canaried, func(w *world) error {
			return w.SetTraffic(w.t.Context(), api.TrafficRequest{Environment: shop, Release: 2, Percent: 5})
		}},
		"promote": {canaried, func(w *world) error { return w.Promote(w.t.Context(), api.ReleaseRequest{Environment: shop}, byUser) }},
		"abort":   {canaried, func(w *world) error { return w.Abort(w.t.Context(), api.ReleaseRequest{Environment: shop}, byUser) }},
		"remove":  {canaried, func(w *world) error { return w.RemoveEnvironment(w.t.Context(), shop) }},
	} {
		t.Run(what, func(t *testing.T) {
			w := tt.begin(t)
			before := look(w)
			moments := w.moments(tt.op)
			after := look(w)
			w.consistent("without a crash")
			if len(moments) < 2 {
				t.Fatalf("only %d moments", len(moments))
			}
			done := false
			for _, m := range moments {
				w := restart(t, m)
				got := look(w)
				if got != before && got != after {
					t.Errorf("a crash at %s leaves %+v; it was %+v and becomes %+v", m.call, got, before, after)
				}
				if done = done || got == after; done && got != after {
					t.Errorf("a crash at %s leaves what was before", m.call)
				}
				w.consistent("after a crash at " + m.call)
				if got == before && before != after {
					if err := tt.op(w); err != nil {
						t.Errorf("again, after a crash at %s: %v", m.call, err)
					}
					w.consistent("again, after a crash at " + m.call)
				}
			}
			if !done {
				t.Error("it is never done")
			}
		})
	}
}
