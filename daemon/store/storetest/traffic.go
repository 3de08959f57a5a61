package storetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
)

var judgement = &function.Judgement{After: time.Minute, MinRequests: 5, MaxErrorRate: 0.1, MaxP99Ratio: 2}

// withCanary activates release 1 and makes release 2 the canary with a tenth of the requests.
func (w *world) withCanary() {
	w.t.Helper()
	w.deploy(Fn("a", "sha256:one"), Fn("b", "sha256:b"))
	w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:two"), Fn("b", "sha256:b"), Fn("c", "sha256:c")}})
	w.must(w.StartCanary(w.t.Context(), Env, function.Canary{Release: 2, Share: 1000, Auto: judgement}, function.Decision{By: function.ByUser}))
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// states is the states of the releases in their order.
func (w *world) states() (out []function.ReleaseState) {
	for _, r := range w.View().Releases(Env) {
		out = append(out, r.State)
	}
	return out
}

func (w *world) actions() (out []string) {
	for _, d := range w.View().Decisions(Env) {
		if d.Time.IsZero() || d.Release == 0 {
			w.t.Errorf("a decision without time or release: %+v", d)
		}
		out = append(out, d.Action+" by "+d.By)
	}
	return out
}

func (w *world) want(what string, got, want any) {
	w.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func canaryPromoted(t *testing.T, w *world) {
	w.withCanary()
	c := w.View().Canary(Env)
	if c == nil || c.Release != 2 || c.Share != 1000 || c.Since.IsZero() || *c.Auto != *judgement {
		t.Fatalf("canary %+v", c)
	}
	w.want("states", w.states(), []function.ReleaseState{function.ReleaseActive, function.ReleaseCanary})
	if n := w.View().ByName("c"); len(n) != 1 {
		t.Errorf("a function of the canary alone is found %d times", len(n))
	}
	w.must(w.StartCanary(t.Context(), Env, function.Canary{Release: 2, Share: 2550}, function.Decision{By: function.ByUser}))
	if again := w.View().Canary(Env); again.Share != 2550 || !again.Since.Equal(c.Since) || again.Auto == nil {
		t.Errorf("with another share it is %+v, it was %+v", again, c)
	}
	figures := &function.Figures{Requests: 9, Errors: 3, ErrorRate: 1. / 3, P50: time.Second, P99: time.Minute}
	w.must(w.Promote(t.Context(), Env, 2, function.Decision{By: function.ByJudge, Reason: "fine", Canary: figures, Active: figures}))
	w.want("states", w.states(), []function.ReleaseState{function.ReleaseSuperseded, function.ReleaseActive})
	w.want("decisions", w.actions(), []string{"started by user", "share by user", "promoted by judge"})
	if d := w.View().Decisions(Env)[2]; *d.Canary != *figures || d.Reason != "fine" {
		t.Errorf("the figures are lost: %+v", d)
	}
	if v := w.View(); v.Canary(Env) != nil || v.Previous(Env) != 1 || v.ActiveRelease(Env).Activated.IsZero() {
		t.Errorf("canary %+v, previous %d", v.Canary(Env), v.Previous(Env))
	}
}

func canaryAborted(t *testing.T, w *world) {
	w.withCanary()
	w.must(w.EndCanary(t.Context(), Env, 2, function.Decision{By: function.ByJudge, Reason: "slow"}))
	w.want("states", w.states(), []function.ReleaseState{function.ReleaseActive, function.ReleaseSuperseded})
	w.want("decisions", w.actions(), []string{"started by user", "aborted by judge"})
	if w.View().Canary(Env) != nil || len(w.View().ByName("c")) != 0 {
		t.Error("the canary still gets requests")
	}
	w.must(w.StartCanary(t.Context(), Env, function.Canary{Release: 2, Share: 1}, function.Decision{By: function.ByUser}))
	if c := w.View().Canary(Env); c.Share != 1 || c.Auto != nil {
		t.Errorf("started again it is %+v", c)
	}
}

func canaryTransitions(t *testing.T, w *world) {
	ctx, by := t.Context(), function.Decision{By: function.ByUser}
	w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:zero")}})
	if err := w.StartCanary(ctx, Env, function.Canary{Release: 1, Share: 10}, by); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a canary beside nothing: %v", err)
	}
	w.activate(Env, 1)
	w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:one")}})
	w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:two")}})
	for what, tt := range map[string]struct {
		c   function.Canary
		was func(error) bool
	}{
		"no share":  {function.Canary{Release: 2}, errdefs.IsInvalidArgument},
		"the whole": {function.Canary{Release: 2, Share: function.FullShare}, errdefs.IsInvalidArgument},
		"active":    {function.Canary{Release: 1, Share: 10}, errdefs.IsFailedPrecondition},
		"unknown":   {function.Canary{Release: 9, Share: 10}, errdefs.IsNotFound},
	} {
		if err := w.StartCanary(ctx, Env, tt.c, by); !tt.was(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.must(w.StartCanary(ctx, Env, function.Canary{Release: 2, Share: 10}, by))
	for what, err := range map[string]error{
		"a second canary":     w.StartCanary(ctx, Env, function.Canary{Release: 3, Share: 10}, by),
		"activate beside one": w.Activate(ctx, Env, 3),
	} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := w.FailRelease(ctx, Env, 2); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("failing a canary: %v", err)
	}
	for what, err := range map[string]error{
		"promote another": w.Promote(ctx, Env, 3, by), "abort another": w.EndCanary(ctx, Env, 3, by), "abort the active": w.EndCanary(ctx, Env, 1, by),
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.want("states", w.states(), []function.ReleaseState{function.ReleaseActive, function.ReleaseCanary, function.ReleaseRecorded})
}

func decisionsBounded(t *testing.T, w *world) {
	w.withCanary()
	for i := range store.MaxDecisions + 7 {
		w.must(w.NoteDecision(t.Context(), Env, function.Decision{Release: 2, Action: function.CanaryExtended, By: function.ByJudge, Reason: fmt.Sprint(i)}))
	}
	d := w.View().Decisions(Env)
	if len(d) != store.MaxDecisions || d[len(d)-1].Reason != fmt.Sprint(store.MaxDecisions+6) || d[0].Reason != "7" {
		t.Errorf("%d decisions, the first %+v, the last %+v", len(d), d[0], d[len(d)-1])
	}
	if c := w.View().Canary(Env); c == nil || c.Share != 1000 {
		t.Errorf("a note changed the canary: %+v", c)
	}
}

func keptRelease(t *testing.T, w *world) {
	w.deploy(Fn("a", "sha256:one"))
	w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:two")}})
	for range 2 {
		w.must(w.KeepRelease(t.Context(), Env, 2))
	}
	r := w.View().Release(Env, 2)
	if r.State != function.ReleaseSuperseded || !r.Activated.IsZero() || w.View().ActiveRelease(Env).Number != 1 || w.View().Previous(Env) != 0 {
		t.Errorf("release %+v, previous %d", r, w.View().Previous(Env))
	}
	if err := w.KeepRelease(t.Context(), Env, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the active one: %v", err)
	}
	w.activate(Env, 2)
}

func previousFollows(t *testing.T, w *world) {
	for i, want := range []int{0, 1, 2, 3} {
		w.deploy(Fn("a", fmt.Sprintf("sha256:%d", i)))
		w.want("previous", w.View().Previous(Env), want)
	}
	w.activate(Env, 2)
	w.want("previous after going back to 2", w.View().Previous(Env), 4)
	w.activate(Env, 2)
	w.want("previous after the active one again", w.View().Previous(Env), 4)
	if _, err := w.ForgetReleases(t.Context(), Env, 1, nil); err != nil {
		t.Fatal(err)
	}
	w.want("previous after it was forgotten", w.View().Previous(Env), 0)
}

func functionAliases(t *testing.T, w *world) {
	ctx, key := t.Context(), function.Key{Environment: Env, Function: "a"}
	w.deploy(Fn("a", "sha256:one"))
	w.deploy(Fn("a", "sha256:two"))
	w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:three")}})
	prod := function.FunctionAlias{Key: key, Name: "prod", Version: 1}
	split := function.FunctionAlias{Key: key, Name: "split", Version: 2, Extra: 1, Weight: 0.1}
	for _, a := range []function.FunctionAlias{split, prod, prod} {
		w.must(w.SetFunctionAlias(ctx, a))
	}
	w.want("aliases", w.View().FunctionAliases(key), []*function.FunctionAlias{&prod, &split})
	for what, a := range map[string]function.FunctionAlias{
		"not deployed yet": {Key: key, Name: "x", Version: 3}, "unknown version": {Key: key, Name: "x", Version: 9},
		"unknown extra": {Key: key, Name: "x", Version: 1, Extra: 9, Weight: 0.5}, "unknown function": {Key: function.Key{Environment: Env, Function: "z"}, Name: "x", Version: 1},
	} {
		if err := w.SetFunctionAlias(ctx, a); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := w.SetFunctionAlias(ctx, function.FunctionAlias{Key: key, Name: "7", Version: 1}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a number as a name: %v", err)
	}
	for _, own := range []string{function.AliasLive, function.AliasPrevious} {
		err := w.SetFunctionAlias(ctx, function.FunctionAlias{Key: key, Name: own, Version: 1})
		if want := "alias " + own + " is kept by lfxd itself: choose another name"; !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("lfxd's own %s: %v", own, err)
		}
	}
	w.must(w.RemoveFunctionAlias(ctx, key, "split"))
	if err := w.RemoveFunctionAlias(ctx, key, "split"); !errdefs.IsNotFound(err) {
		t.Errorf("removing it twice: %v", err)
	}
	if _, err := w.ForgetReleases(ctx, Env, 1, nil); err != nil {
		t.Fatal(err)
	}
	if v := w.View(); v.Version(key, 1) == nil || v.FunctionAlias(key, "prod") == nil || v.Release(Env, 1) != nil {
		t.Error("the version that an alias names was forgotten, or its release kept")
	}
	w.deploy(Fn("b", "sha256:b"))
	if _, err := w.FailRelease(ctx, Env, 3); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ForgetReleases(ctx, Env, 1, nil); err != nil {
		t.Fatal(err)
	}
	if v := w.View(); v.FunctionAlias(key, "prod") != nil || v.Function(key) != nil {
		t.Error("an alias outlives its function")
	}
}

func releaseAliases(t *testing.T, w *world) {
	ctx := t.Context()
	w.deploy(Fn("a", "sha256:one"))
	w.deploy(Fn("a", "sha256:two"))
	w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:three")}})
	stable := function.ReleaseAlias{Environment: Env, Name: "stable", Release: 1}
	for range 2 {
		w.must(w.SetReleaseAlias(ctx, stable))
	}
	v := w.View()
	w.want("aliases", v.ReleaseAliases(Env), []function.ReleaseAlias{stable})
	w.want("points", []int{v.ReleaseAlias(Env, "stable"), v.ReleaseAlias(Env, "live"), v.ReleaseAlias(Env, "previous"), v.ReleaseAlias(Env, "x")}, []int{1, 2, 1, 0})
	for what, tt := range map[string]struct {
		a   function.ReleaseAlias
		was func(error) bool
	}{
		"not deployed yet": {function.ReleaseAlias{Environment: Env, Name: "x", Release: 3}, errdefs.IsNotFound},
		"unknown":          {function.ReleaseAlias{Environment: Env, Name: "x", Release: 9}, errdefs.IsNotFound},
		"lfxd's own":       {function.ReleaseAlias{Environment: Env, Name: "live", Release: 1}, errdefs.IsInvalidArgument},
		"a release's name": {function.ReleaseAlias{Environment: Env, Name: "r1", Release: 1}, errdefs.IsInvalidArgument},
	} {
		if err := w.SetReleaseAlias(ctx, tt.a); !tt.was(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	stable.Release = 2
	w.must(w.SetReleaseAlias(ctx, stable))
	w.must(w.RemoveReleaseAlias(ctx, Env, "stable"))
	if err := w.RemoveReleaseAlias(ctx, Env, "stable"); !errdefs.IsNotFound(err) {
		t.Errorf("removing it twice: %v", err)
	}
}

func namedAreKept(t *testing.T, w *world) {
	for i := range 8 {
		w.deploy(Fn("a", fmt.Sprintf("sha256:%d", i)))
	}
	w.must(w.SetReleaseAlias(t.Context(), function.ReleaseAlias{Environment: Env, Name: "first", Release: 1}))
	w.must(w.StartCanary(t.Context(), Env, function.Canary{Release: 3, Share: 5}, function.Decision{By: function.ByUser}))
	if _, err := w.ForgetReleases(t.Context(), Env, 2, nil); err != nil {
		t.Fatal(err)
	}
	var left []int
	for _, r := range w.View().Releases(Env) {
		left = append(left, r.Number)
	}
	w.want("left", left, []int{1, 3, 7, 8})
}

// left are the numbers of the releases.
func (w *world) left() (numbers []int) {
	for _, r := range w.View().Releases(Env) {
		numbers = append(numbers, r.Number)
	}
	return numbers
}

func inUseAreKept(t *testing.T, w *world) {
	for i := range 5 {
		w.deploy(Fn("a", fmt.Sprintf("sha256:%d", i)))
	}
	used := map[int]bool{2: true, 4: true, 5: true}
	inUse := func(r *function.Release) bool { return used[r.Number] }
	for _, tt := range []struct {
		keep int
		want []int
	}{{2, []int{2, 4, 5}}, {1, []int{2, 4, 5}}} {
		if _, err := w.ForgetReleases(t.Context(), Env, tt.keep, inUse); err != nil {
			t.Fatal(err)
		}
		w.want(fmt.Sprintf("left with keep %d", tt.keep), w.left(), tt.want)
	}
	if w.View().Version(function.Key{Environment: Env, Function: "a"}, 2) == nil {
		t.Error("a version of a release in use was forgotten")
	}
	w.want("surplus in use", w.View().Surplus(Env, 1, inUse), 0)
	clear(used)
	w.want("surplus", w.View().Surplus(Env, 1, inUse), 2)
	if _, err := w.ForgetReleases(t.Context(), Env, 1, inUse); err != nil {
		t.Fatal(err)
	}
	w.want("left when none is in use", w.left(), []int{5})
}

func newestIsKept(t *testing.T, w *world) {
	ctx := t.Context()
	for i := range 3 {
		w.deploy(Fn("a", fmt.Sprintf("sha256:%d", i)))
	}
	for i, want := range [][]int{{3, 4}, {3, 5}} { // the next one takes its place
		w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", fmt.Sprintf("sha256:next%d", i))}})
		w.must(w.KeepRelease(ctx, Env, 4+i))
		if _, err := w.ForgetReleases(ctx, Env, 1, nil); err != nil {
			t.Fatal(err)
		}
		w.want("left", w.left(), want)
	}
	w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:bad")}})
	if _, err := w.FailRelease(ctx, Env, 6); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ForgetReleases(ctx, Env, 1, nil); err != nil {
		t.Fatal(err)
	}
	w.want("left beside one that failed", w.left(), []int{3, 5, 6})
	w.activate(Env, 5)
	w.activate(Env, 3)
	if _, err := w.ForgetReleases(ctx, Env, 1, nil); err != nil {
		t.Fatal(err)
	}
	w.want("left when it was active", w.left(), []int{3, 6})
}

func removeForgetsTraffic(t *testing.T, w *world) {
	ctx := t.Context()
	w.withCanary()
	w.must(w.SetReleaseAlias(ctx, function.ReleaseAlias{Environment: Env, Name: "stable", Release: 1}))
	key := function.Key{Environment: Env, Function: "a"}
	w.must(w.SetFunctionAlias(ctx, function.FunctionAlias{Key: key, Name: "prod", Version: 1}))
	if _, err := w.RemoveEnvironment(ctx, Env); err != nil {
		t.Fatal(err)
	}
	v := w.View()
	if v.Canary(Env) != nil || v.Decisions(Env) != nil || v.ReleaseAliases(Env) != nil || v.FunctionAliases(key) != nil || v.Previous(Env) != 0 {
		t.Errorf("left: %v", picture(v))
	}
	if r := w.deploy(Fn("a", "sha256:one")); r.Release.Number != 3 || r.Release.Versions["a"] != 3 {
		t.Errorf("numbers were used again: %+v", r.Release)
	}
}
