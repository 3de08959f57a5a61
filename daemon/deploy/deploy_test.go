package deploy

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
)

// consistent holds the world against the record: nothing is missing and nothing is left.
func (w *world) consistent(when string) {
	w.t.Helper()
	s := w.state()
	if s.Deploys+s.Recorded+s.Busy+s.Open != 0 {
		w.t.Errorf("%s: left are %d intents, %d recorded releases, %d claims, %d candidates", when, s.Deploys, s.Recorded, s.Busy, s.Open)
	}
	if diff := cmp.Diff(s.Active, s.Routed); diff != "" {
		w.t.Errorf("%s: the record's active releases and the routed ones differ (-record +routed):\n%s", when, diff)
	}
	if diff := cmp.Diff(s.Share, s.Shared); diff != "" {
		w.t.Errorf("%s: the recorded shares and the routed ones differ (-record +routed):\n%s", when, diff)
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(w.imageNames())), s.Images); diff != "" {
		w.t.Errorf("%s: image names (-record +world):\n%s", when, diff)
	}
	used := map[string]bool{}
	view := w.store.View()
	for _, e := range view.Environments() {
		for _, f := range view.Functions(e.Environment) {
			for _, v := range f.Versions {
				if c := v.Image.Context; c != "" {
					used[filepath.Base(w.contextPath(c))] = true
				}
			}
		}
	}
	if got := s.Contexts; !slices.Equal(got, slices.Sorted(maps.Keys(used))) {
		w.t.Errorf("%s: contexts %v, the versions have %v", when, got, slices.Sorted(maps.Keys(used)))
	}
}

func TestFirstDeploy(t *testing.T) {
	w := newWorld(t)
	var steps []string
	builds := 0
	res, err := w.Deploy(t.Context(), w.request(), func(e api.DeployEvent) {
		if e.Step != "" {
			steps = append(steps, e.Step)
		}
		if e.Build != nil {
			builds++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(steps) == 0 || builds != 1 {
		t.Errorf("steps %q, %d build events", steps, builds)
	}
	if res.Unchanged || res.Plan || res.Release.Number != 1 || res.Release.State != function.ReleaseActive || res.Release.Default != "a" {
		t.Errorf("result %+v", res)
	}
	for i, want := range []api.DeployFunction{
		{Name: "a", Version: 1, Change: "created", Base: "public.ecr.aws/lambda/provided:al2023"},
		{Name: "b", Version: 1, Change: "created", Base: "example.com/b:1", Port: 9001},
	} {
		got := res.Functions[i]
		if got.Digest == "" {
			t.Errorf("%s has no digest", got.Name)
		}
		got.Digest = ""
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("function %d (-want +got):\n%s", i, diff)
		}
	}
	v := w.store.View().Version(function.Key{Environment: shop, Function: "a"}, 1)
	in, err := w.images.get(v.Image.Name)
	if err != nil || in.Digest.String() != v.Image.Digest || !w.images.unpacked[in.Digest] {
		t.Errorf("image of a: %+v, %v", v.Image, err)
	}
	for k, want := range map[string]string{
		ocispec.AnnotationVersion: "1", ocispec.AnnotationRefName: "v1", ocispec.AnnotationRevision: "abc", ocispec.AnnotationSource: "/src",
		ocispec.AnnotationBaseImageName: "public.ecr.aws/lambda/provided:al2023", labelProject: "shop", labelEnvironment: "default", annotRelease: "1",
	} {
		if in.Annotations[k] != want {
			t.Errorf("annotation %s = %q, want %q", k, in.Annotations[k], want)
		}
	}
	if got := w.builder.last["a"].Labels; got[ocispec.AnnotationTitle] != "a" || got[ocispec.AnnotationVersion] != "" || got[annotRelease] != "" {
		t.Errorf("labels %v: they must be stable", got)
	}
	w.consistent("after the first deploy")
}

// TestSharedFolderIsPackedOnce: functions of one folder share its archive, however many they are.
func TestSharedFolderIsPackedOnce(t *testing.T) {
	w := newWorld(t)
	if err := os.MkdirAll(w.contextDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, w.contextDir(), unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	req := w.request()
	for _, name := range []string{"c", "d"} {
		req.Functions = append(req.Functions, function.Spec{Name: name, Build: &function.Build{Context: "a"}, Config: function.DefaultConfig()})
	}
	w.must(req)
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	n, err := unix.Read(watch, buf)
	if err != nil {
		t.Fatal(err)
	}
	packed := 0
	for b := buf[:n]; len(b) > 0; packed++ {
		b = b[unix.SizeofInotifyEvent+binary.NativeEndian.Uint32(b[12:]):]
	}
	if packed != 1 || len(w.contexts()) != 1 {
		t.Errorf("the folder was packed %d times, the archives are %q", packed, w.contexts())
	}
	for _, name := range []string{"a", "c", "d"} {
		v := w.store.View().Version(function.Key{Environment: shop, Function: name}, 1)
		if got := filepath.Base(w.contextPath(v.Image.Context)); got != w.contexts()[0] {
			t.Errorf("%s has the archive %q, want %q", name, got, w.contexts()[0])
		}
	}
	w.consistent("after a deploy of one folder for three functions")
}

func TestUnchangedRedeployMakesNothing(t *testing.T) {
	w := newWorld(t)
	w.must(w.request())
	before, revision := w.state(), w.store.View().Releases(shop)
	for _, plan := range []bool{false, true} {
		req := w.request()
		req.Plan = plan
		req.Source.Revision = "other"
		res := w.must(req)
		if !res.Unchanged || res.Release.Number != 1 || res.Functions[0].Change != "unchanged" || res.Functions[0].Version != 1 {
			t.Errorf("plan %v: %+v", plan, res)
		}
		if diff := cmp.Diff(before, w.state()); diff != "" {
			t.Errorf("plan %v changed (-before +after):\n%s", plan, diff)
		}
	}
	if got := w.store.View().Releases(shop); len(got) != len(revision) {
		t.Errorf("%d releases", len(got))
	}
	w.consistent("after an unchanged redeploy")
}

func TestChangesMakeVersionsAndAnOlderStateTakesItsVersionAgain(t *testing.T) {
	w := newWorld(t)
	w.must(w.request())
	w.write("a/app", "two")
	res := w.must(w.request())
	if got := res.Release.Versions; got["a"] != 2 || got["b"] != 1 || res.Functions[0].Change != "updated" || res.Functions[1].Change != "unchanged" {
		t.Errorf("changed code: %v %+v", got, res.Functions)
	}
	w.write("a/app", "one")
	if got := w.must(w.request()).Release.Versions["a"]; got != 1 {
		t.Errorf("back to the first state: version %d, want 1", got)
	}
	req := w.request()
	req.Functions[1].Config.MemoryMB = 256
	if got := w.must(req).Release.Versions; got["a"] != 1 || got["b"] != 2 {
		t.Errorf("changed configuration: %v", got)
	}
	req.Functions = req.Functions[:1]
	res = w.must(req)
	if diff := cmp.Diff(map[string]int{"a": 1}, res.Release.Versions); diff != "" || res.Functions[1].Change != "removed" || res.Functions[1].Name != "b" {
		t.Errorf("a function left out: %+v", res)
	}
	w.consistent("after five deploys")
	if n := len(w.store.View().Releases(shop)); n != 2 {
		t.Errorf("%d releases are kept, want 2", n)
	}
}

func TestPlanChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.must(w.request())
	before := w.state()
	w.write("a/app", "two")
	req := w.request()
	req.Plan = true
	res := w.must(req)
	if !res.Plan || res.Release.Number != 2 || res.Functions[0].Version != 2 || res.Functions[0].Change != "updated" || res.Functions[0].Digest == "" {
		t.Errorf("plan %+v", res)
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("the plan changed (-before +after):\n%s", diff)
	}
	w.consistent("after a plan")
}

// TestEveryFailureLeavesTheRunningRelease walks all calls out of the deployer. At each of them, once
// the call fails, and once the client goes away: unless the deploy succeeded all the same, nothing has
// changed; and a deploy after it succeeds.
func TestEveryFailureLeavesTheRunningRelease(t *testing.T) {
	clean := newWorld(t)
	clean.must(clean.request())
	first := len(clean.seam.calls)
	clean.change()
	clean.must(clean.request())
	calls := slices.Clone(clean.seam.calls)
	if len(calls) < first+15 {
		t.Fatalf("the second deploy makes only the calls %v", calls[first:])
	}
	w := newWorld(t)
	w.must(w.request())
	for i, name := range calls[first:] {
		for _, how := range []string{"error", "cancel"} {
			when := fmt.Sprintf("call %d (%s), %s", i+1, name, how)
			if !w.failAt(i+1, when, how) {
				continue
			}
			if name == "remove" && how == "error" { // a name stays, until the next deploy or Tidy
				if err := w.Tidy(t.Context()); err != nil {
					t.Errorf("%s: tidy: %v", when, err)
				}
			}
			w.consistent(when)
			w = newWorld(t) // it succeeded all the same
			w.must(w.request())
		}
	}
}

// change makes the next deploy one with a new version of each function and another base image.
func (w *world) change() {
	w.changes++
	w.write("a/app", fmt.Sprint("changed", w.changes))
	w.images.registry["example.com/b:1"] = fmt.Sprint("changed", w.changes)
}

// failAt deploys a change, during which one call goes wrong; it reports whether the deploy succeeded.
func (w *world) failAt(call int, when, how string) bool {
	w.t.Helper()
	before := w.state()
	ctx, cancel := context.WithCancelCause(w.t.Context())
	defer cancel(nil)
	w.seam.at = len(w.seam.calls) + call
	w.seam.hit = func() error {
		if how == "cancel" {
			cancel(errInjected)
			return nil
		}
		return errInjected
	}
	w.change()
	res, err := w.deploy(ctx, w.request())
	w.seam.at = 0
	if err == nil {
		if res.Release.State != function.ReleaseActive || res.Release.Number == before.Active[shop] {
			w.t.Errorf("%s: it succeeded with %+v", when, res.Release)
		}
		return true
	}
	if !errors.Is(err, errInjected) {
		w.t.Errorf("%s: err = %v, want the injected one", when, err)
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		w.t.Errorf("%s: the failed deploy changed (-before +after):\n%s", when, diff)
	}
	w.consistent(when)
	return false
}

func TestFirstDeployThatFailsLeavesNothing(t *testing.T) {
	clean := newWorld(t)
	clean.must(clean.request())
	w := newWorld(t)
	for i, name := range clean.seam.calls {
		if name == "remove" || name == "activate" { // these do not fail it
			continue
		}
		when := fmt.Sprintf("call %d (%s)", i+1, name)
		if w.failAt(i+1, when, "error") {
			t.Fatalf("%s: it succeeded", when)
		}
		if s := w.state(); len(s.Images)+len(s.Contexts)+len(s.Routed) != 0 {
			t.Errorf("%s: left %+v", when, s)
		}
	}
	w.must(w.request())
	w.consistent("after the deploy that succeeded")
}

func TestErrorsNameTheFunction(t *testing.T) {
	w := newWorld(t)
	req := w.request()
	req.Functions[1].Image = "example.com/none:1"
	_, err := w.deploy(t.Context(), req)
	if err == nil || !strings.HasPrefix(err.Error(), "function b: ") || !errdefs.IsNotFound(err) {
		t.Errorf("err = %v", err)
	}
	w.write("a/Dockerfile", "FRUM x\n")
	_, err = w.deploy(t.Context(), w.request())
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeInvalid || !strings.HasPrefix(e.Message, "function a: ") || !strings.Contains(e.Message, "a/Dockerfile:1") {
		t.Errorf("err = %v", err)
	}
	w.consistent("after bad requests")
}

func TestEverythingWrongIsReportedAtOnce(t *testing.T) {
	w := newWorld(t)
	req := w.request()
	req.Project, req.SessionID = "No Such", ""
	req.Functions[1].Config.MemoryMB = 1
	req.Functions[1].Name = "b b"
	_, err := w.deploy(t.Context(), req)
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeInvalid || len(e.Details) < 4 {
		t.Fatalf("err = %+v", e)
	}
	if len(w.seam.calls) != 0 || len(w.store.View().Environments()) != 0 {
		t.Errorf("calls %v", w.seam.calls)
	}
}

// TestTwoDeploysOfOneEnvironment: the second is told so, or waits; another environment is free.
func TestTwoDeploysOfOneEnvironment(t *testing.T) {
	w := newWorld(t)
	building, goOn := make(chan struct{}), make(chan struct{})
	w.seam.at = 1 // the session
	w.seam.hit = func() error { close(building); <-goOn; return nil }
	first := make(chan error, 1)
	go func() { _, err := w.deploy(context.Background(), w.request()); first <- err }() // ends before the test
	<-building
	_, err := w.deploy(t.Context(), w.request())
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeConflict || e.Message != "another deploy of shop is running: wait for it, or use --wait" {
		t.Errorf("err = %v", err)
	}
	if _, err := w.Remove(t.Context(), function.Key{Environment: shop, Function: "a"}); !errors.As(err, &e) || e.Code != api.CodeConflict {
		t.Errorf("remove meanwhile: %v", err)
	}
	other := w.request()
	other.Environment.Name = "staging"
	other.Functions[1].Port = 0
	if _, err := w.deploy(t.Context(), other); err != nil {
		t.Errorf("another environment: %v", err)
	}
	wait := w.request()
	wait.Wait = true
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := w.Deploy(ctx, wait, func(api.DeployEvent) { cancel(errInjected) }); !errors.Is(err, errInjected) {
		t.Errorf("a wait that was given up: %v", err)
	}
	second := make(chan error, 1)
	waiting := make(chan struct{}, 100)
	go func() { // ends before the test
		_, err := w.Deploy(context.Background(), wait, func(api.DeployEvent) { waiting <- struct{}{} })
		second <- err
	}()
	<-waiting
	close(goOn)
	if err := errors.Join(<-first, <-second); err != nil {
		t.Error(err)
	}
	w.consistent("after all")
}

func TestWarmTimesOut(t *testing.T) {
	w := newWorld(t)
	w.must(w.request())
	before := w.state()
	w.opts.WarmTimeout = 1
	w.releases.warming = make(chan struct{})
	w.change()
	_, err := w.deploy(t.Context(), w.request())
	if err == nil || !strings.Contains(err.Error(), "the instances were not ready within 1ns") {
		t.Errorf("err = %v", err)
	}
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("it changed (-before +after):\n%s", diff)
	}
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	w.must(w.request())
	a, b := function.Key{Environment: shop, Function: "a"}, function.Key{Environment: shop, Function: "b"}
	res, err := w.Remove(t.Context(), a)
	if err != nil || res.Release != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
	rel := w.store.View().ActiveRelease(shop)
	if diff := cmp.Diff(map[string]int{"b": 1}, rel.Versions); diff != "" || rel.Default != "" || rel.Ports["b"] != 9001 {
		t.Errorf("release %+v", rel)
	}
	w.consistent("after the first removal")
	if _, err := w.Remove(t.Context(), a); !errdefs.IsNotFound(err) {
		t.Errorf("once more: %v", err)
	}
	if w.store.View().ActiveRelease(shop) == nil {
		t.Fatal("the other function went as well")
	}
	if res, err = w.Remove(t.Context(), b); err != nil || res.Release != 0 {
		t.Errorf("the last: %+v, %v", res, err)
	}
	if s := w.state(); len(s.Images)+len(s.Contexts)+len(s.Routed) != 0 {
		t.Errorf("left: %+v", s)
	}
	if left, _ := filepath.Glob(filepath.Join(w.dir, "mirrors", "*", "*")); len(left) != 0 {
		t.Errorf("mirrors are left: %v", left)
	}
	if _, err := w.Remove(t.Context(), b); !errdefs.IsNotFound(err) {
		t.Errorf("from an empty environment: %v", err)
	}
	if got := w.must(w.request()).Release; got.Number != 3 || got.Versions["a"] != 2 {
		t.Errorf("numbers are used twice: %+v", got)
	}
	w.consistent("after coming back")
}

func TestFailedRemovalChangesNothing(t *testing.T) {
	clean := newWorld(t)
	clean.must(clean.request())
	first := len(clean.seam.calls)
	key := function.Key{Environment: shop, Function: "a"}
	if _, err := clean.Remove(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.must(w.request())
	before := w.state()
	for i, name := range clean.seam.calls[first:] {
		if name == "remove" || name == "activate" { // these do not fail it
			continue
		}
		w.seam.at, w.seam.hit = len(w.seam.calls)+i+1, func() error { return errInjected }
		if _, err := w.Remove(t.Context(), key); !errors.Is(err, errInjected) {
			t.Errorf("call %d (%s): err = %v", i+1, name, err)
		}
		if diff := cmp.Diff(before, w.state()); diff != "" {
			t.Errorf("call %d (%s) changed (-before +after):\n%s", i+1, name, diff)
		}
		w.consistent(name)
	}
}

// TestRecoverUndoesWhatACrashLeft at the worst moment: images under temporary names, versions and a
// release recorded, half of them tagged, a context and a mirror stored.
func TestRecoverUndoesWhatACrashLeft(t *testing.T) {
	w := newWorld(t)
	w.must(w.request())
	before := w.state()
	in := store.Deploy{ID: "d1", Environment: shop, Images: []string{host + "/shop/a:d1"}}
	if err := w.store.BeginDeploy(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	rec, err := w.store.RecordRelease(t.Context(), store.NewRelease{
		Environment: shop, Functions: []store.NewFunction{{Name: "a", Identity: "x", Config: function.DefaultConfig()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	other := function.Environment{Project: "gone", Name: "default"}
	if _, err := w.store.RecordRelease(t.Context(), store.NewRelease{ // of a removal, which has no intent
		Environment: other, Functions: []store.NewFunction{{Name: "a", Identity: "x", Config: function.DefaultConfig()}},
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{in.Images[0], versionName(host, rec.Versions[0]), releaseName(host, &rec.Release, "a"), host + "/shop/b:d0"} {
		w.images.put(name, info(name, "x"))
	}
	w.images.put("example.com/others:1", info("example.com/others:1", "y"))
	for _, f := range []string{"contexts/.new-1", "contexts/00" + contextSuffix, "mirrors/nobody/default/0/app"} {
		p := filepath.Join(w.dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	w.seam.at, w.seam.hit = len(w.seam.calls)+1, func() error { return errInjected }
	if err := w.Recover(t.Context()); !errors.Is(err, errInjected) {
		t.Errorf("a recovery that fails: %v", err)
	}
	if err := w.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.images.get("example.com/others:1"); err != nil {
		t.Errorf("another's image is gone: %v", err)
	}
	w.images.Remove(t.Context(), "example.com/others:1")
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("after the recovery (-before +after):\n%s", diff)
	}
	w.consistent("after the recovery")
	if _, err := os.Stat(filepath.Join(w.dir, "mirrors", "nobody")); !os.IsNotExist(err) {
		t.Errorf("the mirror of an environment without releases: %v", err)
	}
}

func TestStoredContextIsTheMirror(t *testing.T) {
	w := newWorld(t)
	w.write("a/sub/x", "x")
	if err := os.Symlink("app", filepath.Join(w.src, "a", "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(w.src, "a", "app"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.must(w.request())
	v := w.store.View().Version(function.Key{Environment: shop, Function: "a"}, 1)
	f, err := os.Open(w.contextPath(v.Image.Context))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var got []string
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%c %o %s %s %s", h.Typeflag, h.Mode, h.Name, h.Linkname, body))
	}
	want := []string{"0 644 Dockerfile  FROM public.ecr.aws/lambda/provided:al2023\nCOPY app /var/task/\n", "0 755 app  one", "2 777 link app ", "5 755 sub/  ", "0 644 sub/x  x"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
	again, err := w.storeContext(t.Context(), w.mirrorDir(shop, &function.Build{Context: "a"}))
	if err != nil || again != v.Image.Context {
		t.Errorf("the same content gives %s, %v; want %s", again, err, v.Image.Context)
	}
}
