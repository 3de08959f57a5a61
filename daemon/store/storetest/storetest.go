// Package storetest holds the contract of the state store as a suite that every implementation must
// pass. The SQLite store is the only one now; a replicated one has to behave alike.
package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/internal/tmpdir"
)

// Store is the contract. Terms and errors are those of the methods of *store.Store.
type Store interface {
	View() *store.Snapshot
	BeginDeploy(ctx context.Context, d store.Deploy) error
	EndDeploy(ctx context.Context, id string) error
	RecordRelease(ctx context.Context, n store.NewRelease) (store.Recorded, error)
	SetImages(ctx context.Context, environment function.Environment, images []store.VersionImage) error
	Activate(ctx context.Context, env function.Environment, number int) error
	FailRelease(ctx context.Context, env function.Environment, number int) (store.Dropped, error)
	ForgetReleases(ctx context.Context, env function.Environment, keep int, inUse store.InUse) (store.Dropped, error)
	Promote(ctx context.Context, env function.Environment, number int, d function.Decision) error
	StartCanary(ctx context.Context, env function.Environment, c function.Canary, d function.Decision) error
	EndCanary(ctx context.Context, env function.Environment, number int, d function.Decision) error
	NoteDecision(ctx context.Context, env function.Environment, d function.Decision) error
	KeepRelease(ctx context.Context, env function.Environment, number int) error
	SetFunctionAlias(ctx context.Context, a function.FunctionAlias) error
	RemoveFunctionAlias(ctx context.Context, key function.Key, name string) error
	SetReleaseAlias(ctx context.Context, a function.ReleaseAlias) error
	RemoveReleaseAlias(ctx context.Context, env function.Environment, name string) error
	RemoveEnvironment(ctx context.Context, env function.Environment) (store.Dropped, error)
	Close() error
}

var _ Store = (*store.Store)(nil)

// Suite runs the contract. open opens the state in dir and fails the test when it cannot; the suite
// closes what it opened.
func Suite(t *testing.T, open func(t *testing.T, dir string) Store) {
	tests := map[string]func(*testing.T, *world){
		"EmptyAtFirst":                emptyAtFirst,
		"FirstRelease":                firstRelease,
		"SameIdentityNoVersion":       sameIdentityNoVersion,
		"BackAndForthReusesNewest":    backAndForth,
		"NextReleaseWritesNothing":    nextReleaseWritesNothing,
		"KeepOthersAndRemove":         keepOthersAndRemove,
		"ActivateSupersedes":          activateSupersedes,
		"IllegalTransitions":          illegalTransitions,
		"FailForgetsButNeverReuses":   failForgets,
		"SetImagesOnlyWhileRecorded":  setImages,
		"ForgetKeepsActive":           forgetKeepsActive,
		"RemoveKeepsCounters":         removeKeepsCounters,
		"DeploysOneByOne":             deploysOneByOne,
		"PortsBelongToOneEnvironment": portConflict,
		"InvalidReleases":             invalidReleases,
		"ByNameAcrossEnvironments":    byName,
		"CancelledContext":            cancelledContext,
		"CanaryIsPromoted":            canaryPromoted,
		"CanaryIsAborted":             canaryAborted,
		"CanaryTransitions":           canaryTransitions,
		"DecisionsAreBounded":         decisionsBounded,
		"KeptWithoutActivation":       keptRelease,
		"PreviousFollowsTheSwitches":  previousFollows,
		"InUseAreKept":                inUseAreKept,
		"NewestThatIsNotActiveIsKept": newestIsKept,
		"FunctionAliases":             functionAliases,
		"ReleaseAliases":              releaseAliases,
		"NamedReleasesAreKept":        namedAreKept,
		"RemoveForgetsTraffic":        removeForgetsTraffic,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := &world{t: t, dir: tmpdir.New(t), open: open}
			w.Store = open(t, w.dir)
			t.Cleanup(func() { w.Store.Close() })
			test(t, w)
			w.checkReopen()
		})
	}
}

// Env is the environment most tests use.
var Env = function.Environment{Project: "shop", Name: function.DefaultEnvironment}

// Fn makes a function of a release whose identity is its image's digest.
func Fn(name, digest string) store.NewFunction {
	return store.NewFunction{
		Name:     name,
		Image:    function.Image{Name: "localhost/shop/" + name, Digest: digest, DiffIDs: []string{"sha256:1"}, Size: 7},
		Config:   function.Config{MemoryMB: 128, TmpMB: 512, Timeout: 3 * time.Second, Environment: map[string]string{"GREETING": "hi"}},
		Identity: "id-" + digest,
	}
}

type world struct {
	Store
	t    *testing.T
	dir  string
	open func(t *testing.T, dir string) Store
}

func (w *world) record(n store.NewRelease) store.Recorded {
	w.t.Helper()
	r, err := w.RecordRelease(w.t.Context(), n)
	if err != nil {
		w.t.Fatalf("RecordRelease: %v", err)
	}
	return r
}

// deploy records and activates a release of Env with these functions.
func (w *world) deploy(fns ...store.NewFunction) store.Recorded {
	w.t.Helper()
	r := w.record(store.NewRelease{Environment: Env, Functions: fns})
	w.activate(Env, r.Release.Number)
	return r
}

func (w *world) activate(env function.Environment, n int) {
	w.t.Helper()
	if err := w.Activate(w.t.Context(), env, n); err != nil {
		w.t.Fatalf("Activate(%s, %d): %v", env, n, err)
	}
}

// picture is everything a snapshot shows.
func picture(s *store.Snapshot) map[string]any {
	p := map[string]any{"node": s.Node(), "revision": s.Revision(), "ports": s.Ports(), "deploys": s.Deploys()}
	for _, e := range s.Environments() {
		p["account "+e.String()] = e.Account
		p["releases "+e.String()] = s.Releases(e.Environment)
		p["default "+e.String()] = s.Default(e.Environment)
		p["active "+e.String()] = s.ActiveRelease(e.Environment)
		p["canary "+e.String()] = s.Canary(e.Environment)
		p["previous "+e.String()] = s.Previous(e.Environment)
		p["decisions "+e.String()] = s.Decisions(e.Environment)
		p["aliases "+e.String()] = s.ReleaseAliases(e.Environment)
		for _, f := range s.Functions(e.Environment) {
			p["versions "+f.Key.String()] = f.Versions
			p["aliases "+f.Key.String()] = s.FunctionAliases(f.Key)
			p["name "+f.Key.Function] = s.ByName(f.Key.Function)
		}
	}
	return p
}

// checkReopen closes and opens the store: everything must be as it was.
func (w *world) checkReopen() {
	w.t.Helper()
	want := picture(w.View())
	if err := w.Store.Close(); err != nil {
		w.t.Fatalf("Close: %v", err)
	}
	w.Store = w.open(w.t, w.dir)
	if diff := cmp.Diff(want, picture(w.View())); diff != "" {
		w.t.Errorf("after closing and opening (-before +after):\n%s", diff)
	}
}

func emptyAtFirst(t *testing.T, w *world) {
	v := w.View()
	if v.Node() == "" {
		t.Error("no node id")
	}
	if len(v.Environments()) != 0 || v.ActiveRelease(Env) != nil || v.Function(function.Key{Environment: Env, Function: "a"}) != nil {
		t.Errorf("a new store is not empty: %v", picture(v))
	}
}

func firstRelease(t *testing.T, w *world) {
	r := w.record(store.NewRelease{
		Environment: Env, Functions: []store.NewFunction{Fn("b", "sha256:b1"), Fn("a", "sha256:a1")},
		Default: "a", Ports: map[string]int{"b": 9001}, Source: function.Source{Dir: "/src", Revision: "abc-dirty"},
	})
	if r.Release.Number != 1 || r.Release.State != function.ReleaseRecorded || r.Release.Created.IsZero() {
		t.Errorf("release = %+v, want number 1, recorded", r.Release)
	}
	if !cmp.Equal(r.Release.Versions, map[string]int{"a": 1, "b": 1}) || !cmp.Equal(r.New, []bool{true, true}) {
		t.Errorf("versions = %v new = %v", r.Release.Versions, r.New)
	}
	if r.Versions[0].Function != "b" || r.Versions[1].Function != "a" {
		t.Errorf("versions are not in the order of the request")
	}
	v := w.View()
	if v.ActiveRelease(Env) != nil || len(v.Ports()) != 0 || v.ByName("a") != nil {
		t.Error("a recorded release routes already")
	}
	w.activate(Env, 1)
	v = w.View()
	if got := v.ActiveRelease(Env); got == nil || got.Activated.IsZero() || got.Source.Revision != "abc-dirty" {
		t.Errorf("active release = %+v", got)
	}
	if v.Default(Env) != "a" || v.Ports()[9001].Function != "b" {
		t.Errorf("default = %q ports = %v", v.Default(Env), v.Ports())
	}
	e := v.Environment(Env.Project, Env.Name)
	if len(e.Account) != 12 || v.ByAccount(e.Account) != e {
		t.Errorf("account = %q", e.Account)
	}
	got := v.Version(function.Key{Environment: Env, Function: "a"}, 1)
	if diff := cmp.Diff(Fn("a", "sha256:a1").Config, got.Config); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func sameIdentityNoVersion(t *testing.T, w *world) {
	w.deploy(Fn("a", "sha256:a1"), Fn("b", "sha256:b1"))
	again := Fn("a", "sha256:a1")
	again.Image.Digest = "sha256:rebuilt" // annotations differ, identity does not
	r := w.deploy(again, Fn("b", "sha256:b2"))
	if !cmp.Equal(r.Release.Versions, map[string]int{"a": 1, "b": 2}) || !cmp.Equal(r.New, []bool{false, true}) {
		t.Errorf("versions = %v new = %v", r.Release.Versions, r.New)
	}
	if r.Versions[0].Image.Digest != "sha256:a1" {
		t.Errorf("a reused version changed its image to %s", r.Versions[0].Image.Digest)
	}
}

func backAndForth(t *testing.T, w *world) {
	w.deploy(Fn("a", "sha256:one"))
	w.deploy(Fn("a", "sha256:two"))
	r := w.deploy(Fn("a", "sha256:one"))
	if r.Release.Number != 3 || r.Release.Versions["a"] != 1 || r.New[0] {
		t.Errorf("going back made %+v", r.Release)
	}
}

func nextReleaseWritesNothing(t *testing.T, w *world) {
	w.deploy(Fn("a", "sha256:one"))
	before := picture(w.View())
	n := store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:two")}}
	preview, err := w.View().NextRelease(n)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, picture(w.View())); diff != "" {
		t.Errorf("the preview wrote:\n%s", diff)
	}
	r := w.record(n)
	if !r.Release.SameRouting(&preview.Release) || r.Release.Number != preview.Release.Number {
		t.Errorf("preview %+v, recorded %+v", preview.Release, r.Release)
	}
}

func keepOthersAndRemove(t *testing.T, w *world) {
	first := w.record(store.NewRelease{
		Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:a"), Fn("b", "sha256:b"), Fn("c", "sha256:c")},
		Default: "a", Ports: map[string]int{"a": 9001, "b": 9002},
	})
	w.activate(Env, first.Release.Number)
	r := w.record(store.NewRelease{
		Environment: Env, Functions: []store.NewFunction{Fn("c", "sha256:c2")},
		KeepOthers: true, Remove: []string{"b"},
	})
	if !cmp.Equal(r.Release.Versions, map[string]int{"a": 1, "c": 2}) || r.Release.Default != "a" ||
		!cmp.Equal(r.Release.Ports, map[string]int{"a": 9001}) {
		t.Errorf("release = %+v", r.Release)
	}
	r = w.record(store.NewRelease{Environment: Env, KeepOthers: true, Remove: []string{"a", "c"}})
	if !cmp.Equal(r.Release.Versions, map[string]int{"b": 1}) || r.Release.Default != "" {
		t.Errorf("release without its default = %+v", r.Release)
	}
}

func activateSupersedes(t *testing.T, w *world) {
	w.deploy(Fn("a", "sha256:one"))
	w.deploy(Fn("a", "sha256:two"))
	old := w.View()
	w.activate(Env, 1) // rollback
	v := w.View()
	if v.ActiveRelease(Env).Number != 1 || v.Release(Env, 2).State != function.ReleaseSuperseded {
		t.Errorf("after the rollback: %+v", v.Releases(Env))
	}
	if old.ActiveRelease(Env).Number != 2 {
		t.Error("an old snapshot changed")
	}
	revision := v.Revision()
	w.activate(Env, 1)
	if w.View().Revision() != revision {
		t.Error("activating the active release wrote")
	}
}

func illegalTransitions(t *testing.T, w *world) {
	ctx := t.Context()
	w.deploy(Fn("a", "sha256:one"))
	if _, err := w.FailRelease(ctx, Env, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("failing the active release: %v", err)
	}
	r := w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:two")}})
	if _, err := w.FailRelease(ctx, Env, r.Release.Number); err != nil {
		t.Fatal(err)
	}
	if err := w.Activate(ctx, Env, r.Release.Number); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("activating a failed release: %v", err)
	}
	if err := w.Activate(ctx, Env, 99); !errdefs.IsNotFound(err) {
		t.Errorf("activating an unknown release: %v", err)
	}
	if _, err := w.FailRelease(ctx, Env, 99); !errdefs.IsNotFound(err) {
		t.Errorf("failing an unknown release: %v", err)
	}
	w.deploy(Fn("a", "sha256:three"))
	if _, err := w.FailRelease(ctx, Env, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("failing a superseded release: %v", err)
	}
}

func failForgets(t *testing.T, w *world) {
	w.deploy(Fn("a", "sha256:one"), Fn("b", "sha256:b"))
	r := w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:two"), Fn("b", "sha256:b")}})
	dropped, err := w.FailRelease(t.Context(), Env, r.Release.Number)
	if err != nil {
		t.Fatal(err)
	}
	if len(dropped.Versions) != 1 || dropped.Versions[0].String() != "shop/a:2" {
		t.Errorf("dropped = %v", dropped.Versions)
	}
	if again, err := w.FailRelease(t.Context(), Env, r.Release.Number); err != nil || again.Versions != nil {
		t.Errorf("failing it twice: %v %v", again, err)
	}
	next := w.deploy(Fn("a", "sha256:two"), Fn("b", "sha256:b"))
	if next.Release.Number != 3 || next.Release.Versions["a"] != 3 || next.Release.Versions["b"] != 1 {
		t.Errorf("numbers were used again: %+v", next.Release)
	}
}

func setImages(t *testing.T, w *world) {
	ctx := t.Context()
	r := w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:one"), Fn("b", "sha256:b")}})
	key, image := r.Versions[0].Key, r.Versions[0].Image
	image.Digest = "sha256:annotated"
	set := func(images ...store.VersionImage) error { return w.SetImages(ctx, Env, images) }
	if err := set(); err != nil {
		t.Errorf("no image: %v", err)
	}
	if err := set(store.VersionImage{Function: "a", Number: 1, Image: image}, store.VersionImage{Function: "b", Number: 1, Image: image}); err != nil {
		t.Fatal(err)
	}
	if got := w.View().Version(function.Key{Environment: Env, Function: "b"}, 1).Image.Digest; got != "sha256:annotated" {
		t.Errorf("digest of b = %s", got)
	}
	if got := w.View().Version(key, 1).Image.Digest; got != "sha256:annotated" {
		t.Errorf("digest = %s", got)
	}
	if r.Versions[0].Image.Digest != "sha256:one" {
		t.Error("the version that was handed out changed")
	}
	other := image
	other.Digest = "sha256:other"
	if err := set(store.VersionImage{Function: "a", Number: 1, Image: other}, store.VersionImage{Function: "b", Number: 2, Image: other}); !errdefs.IsNotFound(err) {
		t.Errorf("unknown version: %v", err)
	}
	if got := w.View().Version(key, 1).Image.Digest; got != "sha256:annotated" {
		t.Errorf("after a refusal the digest = %s", got)
	}
	w.activate(Env, 1)
	if err := set(store.VersionImage{Function: "a", Number: 1, Image: image}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an active version was changed: %v", err)
	}
}

func forgetKeepsActive(t *testing.T, w *world) {
	for i := range 6 {
		w.deploy(Fn("a", fmt.Sprintf("sha256:%d", i)), Fn("b", "sha256:same"))
	}
	w.activate(Env, 2)
	recorded := w.record(store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:next")}})
	dropped, err := w.ForgetReleases(t.Context(), Env, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	var left []int
	for _, r := range w.View().Releases(Env) {
		left = append(left, r.Number)
	}
	if want := []int{2, 5, 6, recorded.Release.Number}; !cmp.Equal(left, want) {
		t.Errorf("left = %v, want %v", left, want)
	}
	if len(dropped.Releases) != 3 || len(dropped.Versions) != 3 {
		t.Errorf("dropped %d releases and %v", len(dropped.Releases), dropped.Versions)
	}
	if w.View().Version(function.Key{Environment: Env, Function: "b"}, 1) == nil {
		t.Error("a version in use was forgotten")
	}
}

func removeKeepsCounters(t *testing.T, w *world) {
	w.deploy(Fn("a", "sha256:one"))
	account := w.View().Environment(Env.Project, Env.Name).Account
	dropped, err := w.RemoveEnvironment(t.Context(), Env)
	if err != nil || len(dropped.Versions) != 1 || len(dropped.Releases) != 1 {
		t.Errorf("dropped = %+v, %v", dropped, err)
	}
	v := w.View()
	if v.Environment(Env.Project, Env.Name) != nil || v.ByAccount(account) != nil || v.ByName("a") != nil || len(v.Functions(Env)) != 0 {
		t.Errorf("still there: %v", picture(v))
	}
	if _, err := w.RemoveEnvironment(t.Context(), Env); err != nil {
		t.Errorf("removing it twice: %v", err)
	}
	r := w.deploy(Fn("a", "sha256:one"))
	if r.Release.Number != 2 || r.Release.Versions["a"] != 2 {
		t.Errorf("numbers were used again: %+v", r.Release)
	}
	if got := w.View().Environment(Env.Project, Env.Name).Account; got != account {
		t.Errorf("account = %s, was %s", got, account)
	}
}

func deploysOneByOne(t *testing.T, w *world) {
	ctx := t.Context()
	d := store.Deploy{ID: "d1", Environment: Env, Started: time.Unix(5, 0).UTC(), Images: []string{"tmp/a"}}
	if err := w.BeginDeploy(ctx, d); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]store.Deploy{d}, w.View().Deploys()); diff != "" {
		t.Errorf("deploys:\n%s", diff)
	}
	if err := w.BeginDeploy(ctx, store.Deploy{ID: "d2", Environment: Env}); !errdefs.IsConflict(err) {
		t.Errorf("a second deploy of the environment: %v", err)
	}
	other := function.Environment{Project: "shop", Name: "staging"}
	if err := w.BeginDeploy(ctx, store.Deploy{ID: "d3", Environment: other}); err != nil {
		t.Errorf("a deploy of another environment: %v", err)
	}
	for range 2 {
		if err := w.EndDeploy(ctx, "d1"); err != nil {
			t.Errorf("EndDeploy: %v", err)
		}
	}
	if got := w.View().Deploys(); len(got) != 1 || got[0].ID != "d3" {
		t.Errorf("deploys = %v", got)
	}
	if err := w.BeginDeploy(ctx, store.Deploy{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an empty deploy: %v", err)
	}
}

func portConflict(t *testing.T, w *world) {
	ctx := t.Context()
	other := function.Environment{Project: "shop", Name: "staging"}
	mine := store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:a")}, Ports: map[string]int{"a": 9001}}
	theirs := mine
	theirs.Environment = other
	w.record(theirs)
	w.record(mine)
	w.activate(Env, 1)
	if err := w.Activate(ctx, other, 1); !errdefs.IsConflict(err) {
		t.Errorf("activating onto a taken port: %v", err)
	}
	if _, err := w.RecordRelease(ctx, theirs); !errdefs.IsConflict(err) {
		t.Errorf("recording onto a taken port: %v", err)
	}
	if _, err := w.RecordRelease(ctx, mine); err != nil {
		t.Errorf("keeping one's own port: %v", err)
	}
}

func invalidReleases(t *testing.T, w *world) {
	a := []store.NewFunction{Fn("a", "sha256:a")}
	for name, n := range map[string]store.NewRelease{
		"no environment":  {Functions: a},
		"no function":     {Environment: Env},
		"twice":           {Environment: Env, Functions: []store.NewFunction{Fn("a", "1"), Fn("a", "2")}},
		"no identity":     {Environment: Env, Functions: []store.NewFunction{{Name: "a"}}},
		"no name":         {Environment: Env, Functions: []store.NewFunction{{Identity: "x"}}},
		"strange default": {Environment: Env, Functions: a, Default: "b"},
		"strange port":    {Environment: Env, Functions: a, Ports: map[string]int{"b": 9001}},
		"port range":      {Environment: Env, Functions: a, Ports: map[string]int{"a": 70000}},
		"same port":       {Environment: Env, Functions: append(a, Fn("b", "1")), Ports: map[string]int{"a": 1, "b": 1}},
		"both":            {Environment: Env, Functions: a, KeepOthers: true, Remove: []string{"a"}},
	} {
		before := w.View().Revision()
		if _, err := w.RecordRelease(t.Context(), n); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
		if w.View().Revision() != before {
			t.Errorf("%s: something was written", name)
		}
	}
}

func byName(t *testing.T, w *world) {
	for _, name := range []string{"staging", "default", "pr-1"} {
		env := function.Environment{Project: "shop", Name: name}
		w.record(store.NewRelease{Environment: env, Functions: []store.NewFunction{Fn("a", "sha256:a")}})
		w.activate(env, 1)
	}
	var got []string
	for _, k := range w.View().ByName("a") {
		got = append(got, k.String())
	}
	if want := []string{"shop/a", "shop/pr-1/a", "shop/staging/a"}; !cmp.Equal(got, want) {
		t.Errorf("ByName = %v, want %v", got, want)
	}
	v := w.View()
	key := function.Key{Environment: Env, Function: "a"}
	if n := testing.AllocsPerRun(100, func() {
		_ = v.ByName("a")
		_ = v.ActiveRelease(key.Environment)
		_ = v.Version(key, 1)
		_ = v.Default(key.Environment)
	}); n != 0 {
		t.Errorf("lookups allocate %v times", n)
	}
}

func cancelledContext(t *testing.T, w *world) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("client is gone"))
	_, err := w.RecordRelease(ctx, store.NewRelease{Environment: Env, Functions: []store.NewFunction{Fn("a", "sha256:a")}})
	if err == nil || err.Error() != "client is gone" {
		t.Errorf("err = %v, want the cause", err)
	}
	if len(w.View().Environments()) != 0 {
		t.Error("something was written")
	}
}
