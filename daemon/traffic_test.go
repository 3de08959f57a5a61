package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/config"
	"lfx.dev/lfxd/daemon/deploy"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/judge"
	"lfx.dev/lfxd/daemon/metrics"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/daemon/worker"
	"lfx.dev/lfxd/internal/tmpdir"
	"lfx.dev/lfxd/runtime/image"
)

// heldImages has every image, under names that hold its digest, but for those that are lost.
type heldImages struct {
	deploy.Images
	mu   sync.Mutex
	lost map[string]bool
}

func (h *heldImages) Inspect(_ context.Context, ref string) (image.Info, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, d, ok := strings.Cut(ref, "@")
	if !ok || h.lost[ref] {
		return image.Info{}, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
	}
	return image.Info{Name: ref, Digest: digest.Digest(d)}, nil
}

func (h *heldImages) Tag(context.Context, string, string, map[string]string) error { return nil }
func (h *heldImages) Unpack(context.Context, string) error                         { return nil }
func (h *heldImages) Remove(context.Context, string) error                         { return nil }

// held is a function whose image heldImages has.
func held(name, digest string) store.NewFunction {
	f := fn(name, digest)
	f.Image.Name += "@" + f.Image.Digest
	return f
}

// traffic is the world with what the control API needs.
type traffic struct {
	*world
	api    *backend
	images *heldImages
}

func newTraffic(t testing.TB) *traffic {
	w := newWorld(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	t.Cleanup(func() { cancel(nil) })
	w2 := &traffic{world: w, images: &heldImages{lost: map[string]bool{}}}
	log := slog.New(slog.DiscardHandler)
	d := &Daemon{cfg: &config.Config{}, log: log, ctx: ctx, store: w.store, pools: w.pools, releaser: w.releaser, metrics: w.metrics, starter: worker.NewStarter(worker.Options{})}
	d.deployer = deploy.New(deploy.Options{Store: w.store, Images: w2.images, Releases: w.releaser, Dir: tmpdir.New(t), RegistryHost: "localhost", Keep: 10, WarmTimeout: time.Minute, Log: log})
	w2.api = (*backend)(d)
	return w2
}

func (w *traffic) must(_ any, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// shopWithCanary has release 1 and 2 superseded, 3 active and 4 as a canary of 20 %:
//
//	r1: a 1, gone 1    r2: a 2, same 1    r3: a 3, same 1    r4: a 4, same 1, new 1
func shopWithCanary(t testing.TB) *traffic {
	w := newTraffic(t)
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", "1"), held("gone", "1")}})
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", "2"), held("same", "1")}})
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", "3"), held("same", "1")}})
	r := w.record(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", "4"), held("same", "1"), held("new", "1")}})
	w.must(nil, w.store.KeepRelease(t.Context(), shop, r.Number))
	w.must(w.api.SetTraffic(t.Context(), api.TrafficRequest{Environment: shop, Release: r.Number, Percent: 20}))
	return w
}

func TestResolveQualifiers(t *testing.T) {
	w := shopWithCanary(t)
	ctx := t.Context()
	for _, a := range []api.Alias{
		{Environment: shop, Function: "a", Name: "prod", Version: 2}, {Environment: shop, Function: "same", Name: "old", Version: 1},
		{Environment: shop, Name: "first", Release: 1}, {Environment: shop, Name: "next", Release: 4}, {Environment: shop, Name: "prod", Release: 1},
	} {
		w.must(w.api.SetAlias(ctx, a))
	}
	missing := "ResourceNotFoundException: Function not found: arn:aws:lambda:eu-west-1:" + function.Account(shop) + ":function:"
	for target, want := range map[string]string{
		"a:r1": "shop/a:1 r1", "a:r2": "shop/a:2 r2", "a:r3": "shop/a:3 r3", "a:r4": "shop/a:4 r4", "new:r4": "shop/new:1 r4", "new:r3": missing + "new:r3",
		"a:live": "shop/a:3 r3", "a:previous": "shop/a:2 r2", "a:first": "shop/a:1 r1", "a:next": "shop/a:4 r4", "new:next": "shop/new:1 r4", "same:first": missing + "same:first",
		"a:nobody": missing + "a:nobody", "new": "shop/new:1 r4", "gone": missing[:len(missing)-len(function.Account(shop)+":function:")] + function.Account(function.Environment{}) + ":function:gone:$LATEST",
		"same:prod": missing + "same:prod", // the environment's: release 1 has no function same
	} {
		ref, err := function.ParseRef(target, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := w.resolved(gateway.Target{Ref: ref}); got != want {
			t.Errorf("%s: got %s, want %s", target, got, want)
		}
	}
	seen := map[string]bool{}
	for _, target := range []string{"a:prod", "same:old", "a:1", "a:$LATEST"} {
		for range 100 { // drawn between the active release and the canary
			ref, _ := function.ParseRef(target, "")
			seen[target+" "+w.resolved(gateway.Target{Ref: ref})] = true
		}
	}
	for _, want := range []string{
		"a:prod shop/a:2 r3", "a:prod shop/a:2 r4", "same:old shop/same:1 r3", "same:old shop/same:1 r4",
		"a:1 shop/a:1 r3", "a:1 shop/a:1 r4", "a:$LATEST shop/a:3 r3", "a:$LATEST shop/a:4 r4",
	} {
		if !seen[want] {
			t.Errorf("never %s: %v", want, seen)
		}
		delete(seen, want)
	}
	if len(seen) != 0 {
		t.Errorf("also %v", seen)
	}
	for _, r := range w.pools.Live(shop) {
		if n := r.InFlight(); n != 0 {
			t.Errorf("%d requests are bound to release %d still", n, r.ReleaseNumber())
		}
	}
}

// TestFunctionsThatNoActiveReleaseHas are called by what their qualifier names: by their name alone, with the account,
// and before anything is active.
func TestFunctionsThatNoActiveReleaseHas(t *testing.T) {
	w := shopWithCanary(t)
	ctx := t.Context()
	w.must(w.api.Abort(ctx, api.ReleaseRequest{Environment: shop}))
	for _, a := range []api.Alias{
		{Environment: shop, Function: "gone", Name: "prod", Version: 1}, {Environment: shop, Name: "first", Release: 1}, {Environment: shop, Name: "newest", Release: 4},
	} {
		w.must(w.api.SetAlias(ctx, a))
	}
	first := w.record(store.NewRelease{Environment: blog, Functions: []store.NewFunction{held("post", "1"), held("twice", "1")}})
	w.must(nil, w.store.KeepRelease(ctx, blog, first.Number))
	w.release(store.NewRelease{Environment: staging, Functions: []store.NewFunction{held("twice", "2")}})
	w.release(store.NewRelease{Environment: staging, Functions: []store.NewFunction{held("b", "2")}})
	w.record(store.NewRelease{Environment: staging, Functions: []store.NewFunction{held("b", "3"), held("soon", "1")}})
	missing := "ResourceNotFoundException: Function not found: arn:aws:lambda:eu-west-1:"
	nowhere, ours := missing+function.Account(function.Environment{})+":function:", function.Account(shop)
	for target, want := range map[string]string{
		"gone:r1": "shop/gone:1 r1", "gone:1": "shop/gone:1 r3", "gone:prod": "shop/gone:1 r3", "gone:first": "shop/gone:1 r1",
		ours + ":function:gone:1": "shop/gone:1 r3", ours + ":function:gone:prod": "shop/gone:1 r3", ours + ":function:gone:r1": "shop/gone:1 r1",
		"new:r4": "shop/new:1 r4", "new:1": "shop/new:1 r3", "new:newest": "shop/new:1 r4",
		"post:r1": "blog/post:1 r1", "post:1": "blog/post:1 r1", "twice:r1": "InvalidParameterValueException: The name twice is not unique on this host; use the ARN of one of: blog/twice",
		"gone": nowhere + "gone:$LATEST", "gone:r2": nowhere + "gone:r2", "gone:2": nowhere + "gone:2", "gone:nobody": nowhere + "gone:nobody", "post": nowhere + "post:$LATEST",
		"soon:r3": nowhere + "soon:r3", "soon:1": nowhere + "soon:1", function.Account(blog) + ":function:post": missing + function.Account(blog),
	} {
		ref, err := function.ParseRef(target, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := w.resolved(gateway.Target{Ref: ref}); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %s, want %s", target, got, want)
		}
	}
	for _, env := range []function.Environment{shop, staging, blog} {
		for _, r := range w.pools.Live(env) {
			if n := r.InFlight(); n != 0 {
				t.Errorf("%d requests are bound to release %d still", n, r.ReleaseNumber())
			}
		}
	}
	// A call from inside stays on its caller's release, also when that lacks the function.
	caller, err := w.pools.Bind(shop, "a")
	if err != nil {
		t.Fatal(err)
	}
	req := &invocation.Request{ID: "1"}
	w.must(caller.Invoke(ctx, req))
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", "9")}})
	scope := inside(shop)
	scope.Caller = req.Binding
	ref, _ := function.ParseRef("gone:1", "")
	if got := w.resolved(gateway.Target{Scope: scope, Ref: ref}); got != "shop/gone:1 r3" {
		t.Errorf("from inside: %s", got)
	}
	caller.Close()
}

// TestFunctionsOfACanaryAreListed, also those that the active release does not have.
func TestFunctionsOfACanaryAreListed(t *testing.T) {
	w := shopWithCanary(t)
	got := map[string]string{}
	for _, f := range w.api.Functions(shop) {
		got[f.Key.Function] = fmt.Sprintf("version %d of release %d", f.Version, f.Release)
	}
	want := map[string]string{"a": "version 3 of release 3", "same": "version 1 of release 3", "new": "version 1 of release 4"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	d, err := w.api.Function("new", shop)
	if err != nil {
		t.Fatal(err)
	}
	if d.Release != 4 || d.Active.Number != 1 || d.Deployed.IsZero() {
		t.Errorf("detail %+v", d)
	}
	if d, err := w.api.Function("a", shop); err != nil || d.Release != 3 || d.Active.Number != 3 {
		t.Errorf("a function of both: %+v, %v", d, err)
	}
}

func TestAliasWeights(t *testing.T) {
	w := newTraffic(t)
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", "1")}})
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", "2")}})
	w.must(w.api.SetAlias(t.Context(), api.Alias{Environment: shop, Function: "a", Name: "split", Version: 2, Weights: map[int]float64{1: 0.3}}))
	ref, _ := function.ParseRef("a:split", "")
	count := map[string]int{}
	const n = 2000
	for range n {
		count[w.resolved(gateway.Target{Ref: ref})]++
	}
	got := count["shop/a:1 r2"]
	if len(count) != 2 || math.Abs(float64(got)-0.3*n) > 6*math.Sqrt(n*0.3*0.7) {
		t.Errorf("a weight of 0.3: %v", count)
	}
}

// TestNestedCallsStayUnderACanary: whatever release the root request draws, the calls that its function makes run on
// that one, through a version that both releases share as well, and whatever becomes of the canary meanwhile.
func TestNestedCallsStayUnderACanary(t *testing.T) {
	w := shopWithCanary(t)
	call := func(name string, caller invocation.Binding) (string, invocation.Binding, func()) {
		t.Helper()
		ref, err := function.ParseRef(name, "")
		if err != nil {
			t.Fatal(err)
		}
		scope := inside(shop)
		scope.Caller = caller
		route, err := w.resolver.Resolve(t.Context(), gateway.Target{Scope: scope, Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		req := &invocation.Request{ID: "1"}
		if _, err := route.Invoke(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s r%d", route.Version(), route.ReleaseNumber()), req.Binding, route.Close
	}
	want := map[int]string{3: "shop/a:3 r3", 4: "shop/a:4 r4"}
	for range 60 {
		_, binding, done := call("same", nil)
		through, binding2, done2 := call("same", binding)
		got, _, done3 := call("a", binding2)
		if n := binding.ReleaseNumber(); got != want[n] || through != fmt.Sprintf("shop/same:1 r%d", n) {
			t.Errorf("a request on release %d called %s, then %s", n, through, got)
		}
		done3()
		done2()
		done()
	}
	var canary invocation.Binding
	var close func()
	for canary == nil {
		_, b, done := call("same", nil)
		if b.ReleaseNumber() != 4 {
			done()
			continue
		}
		canary, close = b, done
	}
	w.must(w.api.Abort(t.Context(), api.ReleaseRequest{Environment: shop}))
	if got, _, done := call("new", canary); got != "shop/new:1 r4" {
		t.Errorf("a request of an aborted canary called %s", got)
	} else {
		if r := w.api.Releases(shop)[3]; r.Status != api.StateDraining || r.InFlight != 2 || r.Percent != 0 {
			t.Errorf("release 4 is %s with %d in flight", r.Status, r.InFlight)
		}
		done()
	}
	close()
	if r := w.api.Releases(shop)[3]; r.Status != api.StateKept || r.InFlight != 0 {
		t.Errorf("release 4 is %s with %d in flight", r.Status, r.InFlight)
	}
}

func TestReleasesForPeople(t *testing.T) {
	w := shopWithCanary(t)
	ref, _ := function.ParseRef("a:r4", "")
	route, err := w.resolver.Resolve(t.Context(), gateway.Target{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	w.must(route.Invoke(t.Context(), &invocation.Request{ID: "1"}))
	route.Close()
	failed := w.record(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", "5")}})
	w.must(w.store.FailRelease(t.Context(), shop, failed.Number))
	type row struct {
		Number   int
		Status   string
		Percent  float64
		Changed  []string
		Requests int64
	}
	var got []row
	for _, r := range w.api.Releases(function.Environment{Project: "shop"}) {
		got = append(got, row{r.Number, r.Status, r.Percent, r.Changed, r.Requests})
	}
	want := []row{
		{1, api.StateKept, 0, []string{"a", "gone"}, 0}, {2, api.StateKept, 0, []string{"a", "gone", "same"}, 0},
		{3, api.StateActive, 80, []string{"a"}, 0}, {4, api.StateCanary, 20, []string{"a", "new"}, 1}, {5, api.StateFailed, 0, []string{"a", "new", "same"}, 0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := len(w.api.Releases(function.Environment{Project: "other"})); n != 0 {
		t.Errorf("%d releases of another project", n)
	}
	tr := w.api.Traffic(shop)
	if len(tr) != 1 || tr[0].Active != 3 || tr[0].Canary == nil || tr[0].Canary.Release != 4 || tr[0].Canary.Percent != 20 || len(tr[0].Decisions) != 1 || tr[0].Decisions[0].Action != function.CanaryStarted {
		t.Errorf("traffic %+v", tr)
	}
	after, err := w.api.Promote(t.Context(), api.ReleaseRequest{Environment: shop, Release: 4})
	if err != nil || after.Active != 4 || after.Canary != nil || len(after.Decisions) != 2 || after.Decisions[1].By != function.ByUser {
		t.Errorf("%+v, %v", after, err)
	}
	if r := w.api.Releases(shop)[3]; r.Status != api.StateActive || r.Percent != 100 {
		t.Errorf("release 4 is %s with %v %%", r.Status, r.Percent)
	}
	res, err := w.api.Rollback(t.Context(), api.RollbackRequest{Environment: shop}, func(api.DeployEvent) {})
	if err != nil || res.Release.Number != 3 || w.pools.Active(shop).ReleaseNumber() != 3 {
		t.Errorf("%+v, %v", res, err)
	}
	w.images.lost["localhost/a@sha256:1"] = true
	var e *api.Error
	if _, err := w.api.Rollback(t.Context(), api.RollbackRequest{Environment: shop, Release: 1}, func(api.DeployEvent) {}); !errors.As(err, &e) || e.Code != api.CodeConflict {
		t.Errorf("back to a release whose image is gone: %v", err)
	}
}

func TestAliasesForPeople(t *testing.T) {
	w := shopWithCanary(t)
	ctx := t.Context()
	w.must(w.api.SetAlias(ctx, api.Alias{Environment: shop, Function: "a", Name: "split", Version: 3, Weights: map[int]float64{2: 0.5}}))
	w.must(w.api.SetAlias(ctx, api.Alias{Environment: shop, Name: "stable", Release: 2}))
	all, err := w.api.Aliases(shop, "")
	want := []api.Alias{
		{Environment: shop, Name: "live", Release: 3, Fixed: true}, {Environment: shop, Name: "previous", Release: 2, Fixed: true},
		{Environment: shop, Name: "stable", Release: 2}, {Environment: shop, Function: "a", Name: "split", Version: 3, Weights: map[int]float64{2: 0.5}},
	}
	if diff := cmp.Diff(want, all); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if of, err := w.api.Aliases(shop, "a"); err != nil || len(of) != 1 {
		t.Errorf("of one function: %v, %v", of, err)
	}
	if _, err := w.api.Aliases(shop, "nope"); !isCode(err, api.CodeNotFound) {
		t.Errorf("of no function: %v", err)
	}
	for what, tt := range map[string]struct {
		a   api.Alias
		bad func(error) bool
	}{
		"release of a function":     {api.Alias{Environment: shop, Function: "a", Name: "x", Release: 1}, func(err error) bool { return isCode(err, api.CodeInvalid) }},
		"version of an env":         {api.Alias{Environment: shop, Name: "x", Version: 1}, func(err error) bool { return isCode(err, api.CodeInvalid) }},
		"two weights":               {api.Alias{Environment: shop, Function: "a", Name: "x", Version: 1, Weights: map[int]float64{2: 0.1, 3: 0.1}}, func(err error) bool { return isCode(err, api.CodeInvalid) }},
		"version 0 with a weight":   {api.Alias{Environment: shop, Function: "a", Name: "x", Version: 1, Weights: map[int]float64{0: 0.1}}, func(err error) bool { return isCode(err, api.CodeInvalid) }},
		"fixed":                     {api.Alias{Environment: shop, Name: "live", Release: 1}, errdefs.IsInvalidArgument},
		"fixed, of a function":      {api.Alias{Environment: shop, Function: "a", Name: "live", Version: 1}, errdefs.IsInvalidArgument},
		"a number":                  {api.Alias{Environment: shop, Function: "a", Name: "12", Version: 1}, errdefs.IsInvalidArgument},
		"unknown version":           {api.Alias{Environment: shop, Function: "a", Name: "x", Version: 77}, errdefs.IsNotFound},
		"unknown release":           {api.Alias{Environment: shop, Name: "x", Release: 77}, errdefs.IsNotFound},
		"of an unknown environment": {api.Alias{Environment: staging, Name: "x", Release: 1}, errdefs.IsNotFound},
	} {
		if _, err := w.api.SetAlias(ctx, tt.a); !tt.bad(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if gone, err := w.api.DeleteAlias(ctx, shop, "a", "split"); err != nil || gone.Version != 3 || gone.Weights[2] != 0.5 {
		t.Errorf("%+v, %v", gone, err)
	}
	if gone, err := w.api.DeleteAlias(ctx, shop, "", "stable"); err != nil || gone.Release != 2 {
		t.Errorf("%+v, %v", gone, err)
	}
	if _, err := w.api.DeleteAlias(ctx, shop, "", "stable"); !errdefs.IsNotFound(err) {
		t.Errorf("once more: %v", err)
	}
	if _, err := w.api.DeleteAlias(ctx, shop, "", "live"); !isCode(err, api.CodeInvalid) {
		t.Errorf("a fixed one: %v", err)
	}
}

func isCode(err error, code string) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Code == code
}

func TestDiff(t *testing.T) {
	w := newTraffic(t)
	before, after := held("a", "1"), held("a", "2")
	before.Config.Environment = map[string]string{"KEEP": "x", "SECRET": "hunter2", "GONE": "g"}
	before.Config.Command = []string{"app.old"}
	before.Config.Concurrency.Max = 3
	after.Config.Environment = map[string]string{"KEEP": "x", "SECRET": "hunter3", "NEW": "n"}
	after.Config.MemoryMB, after.Config.CPU, after.Config.Timeout = 256, 0.5, 90*time.Second
	after.Image.DiffIDs = []string{"sha256:other"}
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{before, held("b", "1"), held("gone", "1"), held("same", "1")}, Default: "b"})
	p := freePort(t)
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{after, held("b", "1"), held("new", "1"), held("same", "1")}, Ports: map[string]int{"b": p}})
	got, err := w.api.Diff(shop, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := &api.ReleaseDiff{Environment: shop, From: 1, To: 2, Functions: []api.FunctionDiff{
		{Name: "a", Change: "changed", From: 1, To: 2, Image: true, Settings: []api.SettingDiff{
			{Name: "memory", From: "128MiB", To: "256MiB"}, {Name: "cpu", To: "0.5"}, {Name: "timeout", From: "3s", To: "1m30s"}, {Name: "concurrency.max", From: "3"},
			{Name: "command", From: `["app.old"]`}, {Name: "environment.GONE", From: "set"}, {Name: "environment.NEW", To: "set"}, {Name: "environment.SECRET", From: "set", To: "set to another value"},
		}},
		{Name: "b", Change: "changed", From: 1, To: 1, Settings: []api.SettingDiff{{Name: "default", From: "true", To: "false"}, {Name: "port", To: fmt.Sprint(p)}}},
		{Name: "gone", Change: "removed", From: 1},
		{Name: "new", Change: "added", To: 1},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if same, err := w.api.Diff(shop, 2, 2); err != nil || len(same.Functions) != 0 {
		t.Errorf("with itself: %+v, %v", same, err)
	}
	for _, err := range []error{second(w.api.Diff(shop, 1, 9)), second(w.api.Diff(shop, 9, 1)), second(w.api.Diff(staging, 0, 0))} {
		if !isCode(err, api.CodeNotFound) {
			t.Errorf("an unknown release: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestEnvironments(t *testing.T) {
	w := shopWithCanary(t)
	p := freePort(t)
	w.release(withPorts(staging, "1", map[string]int{"a": p}, "a"))
	w.wantPort(p, "function", "shop/staging/a:1 r1")
	all := w.api.Environments(function.Environment{})
	if len(all) != 2 || all[0].Account != function.Account(shop) || all[0].Active != 3 || all[0].Functions != 2 || all[1].Instances != 1 || all[1].Deployed.IsZero() {
		t.Errorf("environments %+v", all)
	}
	gone, err := w.api.RemoveEnvironment(t.Context(), staging)
	if err != nil || gone.Environment != staging || gone.Active != 1 {
		t.Fatalf("%+v, %v", gone, err)
	}
	w.wantClosed(p)
	gone, err = w.api.RemoveEnvironment(t.Context(), shop)
	if err != nil || gone.Functions != 2 {
		t.Fatalf("%+v, %v", gone, err)
	}
	if _, err := w.api.RemoveEnvironment(t.Context(), shop); !isCode(err, api.CodeNotFound) {
		t.Errorf("once more: %v", err)
	}
	if n := len(w.api.Environments(function.Environment{})); n != 0 || len(w.pools.Live(shop)) != 0 {
		t.Errorf("%d environments, %d live releases are left", n, len(w.pools.Live(shop)))
	}
	ref, _ := function.ParseRef("a", "")
	if got := w.resolved(gateway.Target{Ref: ref}); !strings.HasPrefix(got, "ResourceNotFoundException") {
		t.Errorf("a call: %s", got)
	}
}

// TestRestartBringsTheCanaryBack with its share; without its release running it can be aborted all the same.
func TestRestartBringsTheCanaryBack(t *testing.T) {
	w := shopWithCanary(t)
	p := freePort(t)
	w.must(w.api.Abort(t.Context(), api.ReleaseRequest{Environment: shop}))
	n := withPorts(shop, "9", map[string]int{"a": p}, "a", "same")
	r := w.record(n)
	w.must(nil, w.store.StartCanary(t.Context(), shop, function.Canary{Release: r.Number, Share: 3333}, byUser))
	w.pools.Deactivate(shop) // what a restart forgets
	d := (*Daemon)(w.api)
	d.releaser = newReleaser(w.pools, w.ports)
	w.must(nil, d.restore())
	d.group.Wait()
	canary, share := w.pools.Canary(shop)
	if w.pools.Active(shop).ReleaseNumber() != 3 || canary == nil || canary.ReleaseNumber() != r.Number || share != 3333 {
		t.Fatalf("active %v, canary %v with %d", w.pools.Active(shop), canary, share)
	}
	w.wantPort(p, "function", "Function not found") // a canary's own port waits for its promotion
	d.deployer = deploy.New(deploy.Options{Store: w.store, Images: w.images, Releases: d.releaser, Dir: tmpdir.New(t), RegistryHost: "localhost", Keep: 10, WarmTimeout: time.Minute, Log: d.log})
	w.must(w.api.Promote(t.Context(), api.ReleaseRequest{Environment: shop}))
	w.wantPort(p, "function", fmt.Sprintf("shop/a:%d r%d", r.Versions["a"], r.Number))
	if _, share := w.pools.Canary(shop); share != 0 || w.pools.Active(shop).ReleaseNumber() != r.Number {
		t.Errorf("after the promotion: active %d", w.pools.Active(shop).ReleaseNumber())
	}
}

// TestRollbacksAreCounted as deploys, with what they came to.
func TestRollbacksAreCounted(t *testing.T) {
	w := newTraffic(t)
	for _, digest := range []string{"1", "2"} {
		w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", digest)}})
	}
	none := func(api.DeployEvent) {}
	w.must(w.api.Rollback(t.Context(), api.RollbackRequest{Environment: shop}, none))
	if _, err := w.api.Rollback(t.Context(), api.RollbackRequest{Environment: shop, Release: 9}, none); err == nil {
		t.Error("back to a release that there is not")
	}
	var text strings.Builder
	w.must(nil, w.metrics.Write(&text, metrics.State{}))
	for _, want := range []string{`lfx_deploys_total{result="released"} 1`, `lfx_deploys_total{result="failed"} 1`, "lfx_deploy_seconds_count 2"} {
		if !strings.Contains(text.String(), want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

// TestWhatRequestsAreBoundToIsNotForgotten: a release that drains, one that was asked for by its number, and one with a
// version that was asked for by its number, keep their images until the request ends.
func TestWhatRequestsAreBoundToIsNotForgotten(t *testing.T) {
	w := newTraffic(t)
	d := (*Daemon)(w.api)
	d.deployer = deploy.New(deploy.Options{Store: w.store, Images: w.images, Releases: d.releaser, Dir: tmpdir.New(t), RegistryHost: "localhost", Keep: 1, Log: d.log})
	left := func() (numbers []int) {
		d.forgetUnused()
		for _, r := range w.store.View().Releases(shop) {
			numbers = append(numbers, r.Number)
		}
		return numbers
	}
	bind := func(target string) invocation.Route {
		t.Helper()
		ref, err := function.ParseRef(target, "")
		if err != nil {
			t.Fatal(err)
		}
		route, err := w.resolver.Resolve(t.Context(), gateway.Target{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		return route
	}
	release := func(digest string) {
		w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{held("a", digest), held("same", "1")}})
	}
	for _, digest := range []string{"1", "2", "3", "4"} {
		release(digest)
	}
	draining := bind("a") // on release 4
	byNumber := bind("a:r2")
	release("5")
	byVersion := bind("a:3") // on release 5, which has version 5
	for i, step := range []struct {
		end  invocation.Route
		want []int
	}{{nil, []int{2, 3, 4, 5}}, {byNumber, []int{3, 4, 5}}, {draining, []int{3, 5}}} {
		if step.end != nil {
			step.end.Close()
		}
		if got := left(); !slices.Equal(got, step.want) {
			t.Errorf("step %d: the releases %v are left, want %v", i, got, step.want)
		}
	}
	release("6")
	if got := left(); !slices.Equal(got, []int{3, 5, 6}) {
		t.Errorf("with a request that runs version 3 on release 5: %v", got)
	}
	byVersion.Close()
	if got := left(); !slices.Equal(got, []int{6}) {
		t.Errorf("in the end the releases %v are left", got)
	}
	route := bind("a")
	release("7")
	drained := w.releaser.Deactivate(shop)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := drained(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a removed environment does not wait for a request on the release before: %v", err)
	}
	route.Close()
	w.must(nil, drained(t.Context()))
}

// TestJudgeAbortsAFailingCanary: from the pools' own counters to the record.
func TestJudgeAbortsAFailingCanary(t *testing.T) {
	for _, failing := range []bool{true, false} {
		w := shopWithCanary(t)
		w.must(w.api.Abort(t.Context(), api.ReleaseRequest{Environment: shop}))
		rules := &function.Judgement{After: time.Minute, MinRequests: 20, MaxErrorRate: 0.01, MaxP99Ratio: 1000}
		rel := w.store.View().Release(shop, 4)
		cand, err := w.prepare(*rel)
		if err != nil {
			t.Fatal(err)
		}
		w.must(nil, w.store.StartCanary(t.Context(), shop, function.Canary{Release: 4, Share: 5000, Auto: rules}, byUser))
		cand.Share(5000)
		c := (*canaries)(w.api)
		j := judge.New(judge.Options{Source: c, Actions: c, Log: w.api.log})
		now := time.Now()
		j.Look(t.Context(), now)
		if failing {
			w.starter.mu.Lock()
			w.starter.broken = "shop/a:4"
			w.starter.mu.Unlock()
		}
		j.Look(t.Context(), now.Add(6*time.Second)) // the warm-up is over
		ref, _ := function.ParseRef("a", "")
		for range 200 {
			route, err := w.resolver.Resolve(t.Context(), gateway.Target{Ref: ref})
			if err != nil {
				t.Fatal(err)
			}
			w.must(route.Invoke(t.Context(), &invocation.Request{ID: "1"}))
			route.Close()
		}
		j.Look(t.Context(), now.Add(7*time.Second))
		j.Look(t.Context(), now.Add(61*time.Second))
		want, active := function.CanaryPromoted, 4
		if failing {
			want, active = function.CanaryAborted, 3
		}
		all := w.store.View().Decisions(shop)
		last := all[len(all)-1]
		if last.Action != want || last.By != function.ByJudge || last.Canary == nil || last.Canary.Requests+last.Active.Requests != 200 || last.Reason == "" {
			t.Errorf("failing %v: decision %+v, canary %+v, active %+v", failing, last, last.Canary, last.Active)
		}
		if n := w.pools.Active(shop).ReleaseNumber(); n != active || w.store.View().Canary(shop) != nil {
			t.Errorf("failing %v: release %d is active", failing, n)
		}
	}
}

// TestExtensionsAreCountedFromTheRecord: also after a restart, and only those of this canary's time.
func TestExtensionsAreCountedFromTheRecord(t *testing.T) {
	w := shopWithCanary(t)
	c := (*canaries)(w.api)
	if len(c.Canaries()) != 0 {
		t.Error("a canary without auto is judged")
	}
	w.must(w.api.Abort(t.Context(), api.ReleaseRequest{Environment: shop}))
	w.must(nil, w.store.NoteDecision(t.Context(), shop, function.Decision{Release: 4, Action: function.CanaryExtended, By: function.ByJudge}))
	rules := &function.Judgement{After: time.Minute, MinRequests: 20, MaxErrorRate: 0.01, MaxP99Ratio: 2}
	w.must(nil, w.store.StartCanary(t.Context(), shop, function.Canary{Release: 4, Share: 5000, Auto: rules}, byUser))
	for range 2 {
		w.must(nil, c.Extend(t.Context(), shop, function.Decision{Release: 4, Action: function.CanaryExtended, By: function.ByJudge}))
	}
	got := c.Canaries()
	if len(got) != 1 || got[0].Extended != 2 || got[0].Active != 3 || got[0].Release != 4 || *got[0].Auto != *rules {
		t.Errorf("canaries %+v", got)
	}
	if !slices.ContainsFunc(w.api.Traffic(shop), func(t api.Traffic) bool { return t.Canary != nil && t.Canary.Auto != nil }) {
		t.Error("the judgement is not shown")
	}
}
