package deploy

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/runtime/image"
)

// lose makes containerd forget every image, and the client is gone.
func (w *world) lose() {
	w.images.mu.Lock()
	w.images.names = map[string]image.Info{}
	w.images.mu.Unlock()
	w.session = "gone"
}

func TestRebuildBringsLostImagesBack(t *testing.T) {
	w := newWorld(t)
	w.images.registry["example.com/b:1@"+info("", "b1").Digest.String()] = "b1"
	req := w.request()
	req.Functions[0].Build.Target, req.Functions[0].Build.Args = "final", map[string]string{"A": "1"}
	w.write("a/Dockerfile", "FROM public.ecr.aws/lambda/provided:al2023 AS final\nARG A\nCOPY app /var/task/\n")
	w.write("a/sub/run.sh", "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(w.src, "a/sub/run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/run.sh", filepath.Join(w.src, "a/link")); err != nil {
		t.Fatal(err)
	}
	w.must(req)
	w.lose()
	delete(w.builder.last, "a")
	rebuilt, missing, err := w.Rebuild(t.Context())
	want := []Rebuilt{{Environment: shop, Release: 2, Functions: []string{"a", "b"}}}
	if diff := cmp.Diff(want, rebuilt); diff != "" || missing != 0 || err != nil {
		t.Fatalf("%d missing, %v (-want +got):\n%s", missing, err, diff)
	}
	got := w.builder.last["a"]
	if got.Target != "final" || !cmp.Equal(got.Args, map[string]string{"A": "1"}) || got.ContextDir == "" {
		t.Errorf("built with %+v", got)
	}
	rel := w.store.View().ActiveRelease(shop)
	if rel.Default != "a" || rel.Ports["b"] != 9001 || rel.Source.Revision != "abc" {
		t.Errorf("the new release is %+v", rel)
	}
	for name, n := range rel.Versions {
		v := w.store.View().Version(function.Key{Environment: shop, Function: name}, n)
		if old := w.store.View().Version(v.Key, 1); n != 2 || v.Identity != old.Identity {
			t.Errorf("%s is version %d of identity %s, was %s", name, n, v.Identity, old.Identity)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(w.rebuildDir(), "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if rebuilt, missing, err := w.Rebuild(t.Context()); len(rebuilt) > 0 || missing > 0 || err != nil {
		t.Errorf("rebuilding again: %v, %d, %v", rebuilt, missing, err)
	}
}

// TestRebuildKeepsWhatIsThere: only what is lost gets a new version.
func TestRebuildKeepsWhatIsThere(t *testing.T) {
	w := newWorld(t)
	w.must(w.request())
	v := w.store.View().Version(function.Key{Environment: shop, Function: "a"}, 1)
	for _, name := range []string{v.Image.Name, host + "/shop/a:r1"} {
		if err := w.images.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	rebuilt, missing, err := w.Rebuild(t.Context())
	if len(rebuilt) != 1 || !slices.Equal(rebuilt[0].Functions, []string{"a"}) || missing != 0 || err != nil {
		t.Fatalf("%v, %d, %v", rebuilt, missing, err)
	}
	if got, want := w.store.View().ActiveRelease(shop).Versions, map[string]int{"a": 2, "b": 1}; !cmp.Equal(got, want) {
		t.Errorf("versions %v, want %v", got, want)
	}
	in, err := w.images.get(host + "/shop/a:v2")
	if err != nil || !w.images.unpacked[in.Digest] {
		t.Errorf("version 2: %+v, %v", in, err)
	}
}

// TestRebuildSaysWhatItCannotDo: nothing changes then, and the reason names what to do.
func TestRebuildSaysWhatItCannotDo(t *testing.T) {
	for _, c := range []struct {
		name, want string
		harm       func(t *testing.T, w *world)
	}{
		{"stored sources gone", "stored sources are gone", func(t *testing.T, w *world) {
			if err := os.RemoveAll(w.contextDir()); err != nil {
				t.Fatal(err)
			}
		}},
		{"stored sources damaged", "damaged", func(t *testing.T, w *world) {
			path := filepath.Join(w.contextDir(), w.contexts()[0])
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"the registry does not have it", "example.com/b:1", func(t *testing.T, w *world) { w.images.registry = nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.must(w.request())
			c.harm(t, w)
			w.lose()
			rebuilt, missing, err := w.Rebuild(t.Context())
			if len(rebuilt) > 0 || missing != 2 || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %d, %v", rebuilt, missing, err)
			}
			if s := w.state(); s.Active[shop] != 1 || s.Routed[shop] != 1 || s.Deploys+s.Recorded+s.Busy+s.Open != 0 || len(s.Images) != 0 {
				t.Errorf("left: %+v", s)
			}
		})
	}
	t.Run("a deploy is running", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.request())
		w.lose()
		done, err := w.claim(t.Context(), shop, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		var busy *api.Error
		if _, missing, err := w.Rebuild(t.Context()); missing != 2 || !errors.As(err, &busy) || busy.Code != api.CodeConflict {
			t.Errorf("%d missing, %v", missing, err)
		}
	})
	t.Run("a canary runs", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.request())
		w.write("a/app", "two")
		req := w.request()
		req.Canary = 10
		w.must(req)
		w.lose()
		var busy *api.Error
		if _, missing, err := w.Rebuild(t.Context()); missing != 2 || !errors.As(err, &busy) || busy.Code != api.CodeConflict {
			t.Errorf("%d missing, %v", missing, err)
		}
	})
	t.Run("containerd is away", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.request())
		w.seam.mu.Lock()
		w.seam.at, w.seam.hit = len(w.seam.calls)+1, func() error { return errdefs.ErrUnavailable }
		w.seam.mu.Unlock()
		if rebuilt, _, err := w.Rebuild(t.Context()); len(rebuilt) > 0 || !errdefs.IsUnavailable(err) {
			t.Errorf("%v, %v", rebuilt, err)
		}
	})
}

// TestWhatAVersionIsMadeFromAgain: from its record alone.
func TestWhatAVersionIsMadeFromAgain(t *testing.T) {
	w := newWorld(t)
	rel := &function.Release{Environment: shop, Default: "f", Ports: map[string]int{"f": 7}}
	build := &function.Build{Context: "f", Target: "t"}
	for _, c := range []struct {
		name, image, refused string
		built                bool
		from                 function.Image
	}{
		{name: "built", from: function.Image{Context: "sha256:1", Build: build, BaseName: "x", BaseDigest: "sha256:2"}, built: true},
		{name: "pulled by tag", from: function.Image{BaseName: "example.com/x:1", BaseDigest: "sha256:2"}, image: "example.com/x:1@sha256:2"},
		{name: "pulled by digest", from: function.Image{BaseName: "example.com/x@sha256:3", BaseDigest: "sha256:2"}, image: "example.com/x@sha256:3"},
		{name: "built before it was recorded how", from: function.Image{Context: "sha256:1", BaseName: "x", BaseDigest: "sha256:2"}, refused: "is not recorded"},
		{name: "from nowhere", refused: "is not recorded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := &function.Version{Key: function.Key{Environment: shop, Function: "f"}, Number: 3, Image: c.from, Config: function.DefaultConfig()}
			p, err := (&job{Deployer: w.Deployer, id: "d1", req: api.DeployRequest{Environment: shop}}).again(rel, v)
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("refused with %v, want %q", err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.spec.Image != c.image || (p.spec.Build != nil) != c.built || !p.spec.Default || p.spec.Port != 7 || p.spec.Config.MemoryMB != v.Config.MemoryMB {
				t.Errorf("made from %+v", p.spec)
			}
		})
	}
}
