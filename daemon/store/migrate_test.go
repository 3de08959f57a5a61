package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/daemon/store/storetest"
	"lfx.dev/lfxd/internal/tmpdir"
)

// TestMigrateFromSchema1 opens a database that the first release of lfxd wrote (testdata/v1): shop has the
// releases 1 to 3, of which 3 is active, and the failed release 4; shop/staging has an active release 1 with
// a port; a deploy of shop was in progress.
func TestMigrateFromSchema1(t *testing.T) {
	dir := tmpdir.New(t)
	for _, name := range []string{"state.db", "state.rev"} {
		data, err := os.ReadFile(filepath.Join("testdata", "v1", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir)
	v := s.View()
	staging := function.Environment{Project: "shop", Name: "staging"}
	if r := v.ActiveRelease(storetest.Env); r == nil || r.Number != 3 || r.Versions["a"] != 3 || r.Versions["b"] != 1 || r.Activated.IsZero() {
		t.Errorf("active release %+v", r)
	}
	if n := len(v.Releases(storetest.Env)); n != 4 {
		t.Errorf("%d releases, want 4", n)
	}
	if r := v.ActiveRelease(staging); r == nil || r.Ports["a"] != 9001 || r.Default != "b" {
		t.Errorf("staging's release %+v", r)
	}
	if len(v.Deploys()) != 1 || v.Previous(storetest.Env) != 2 || v.Previous(staging) != 0 || v.Canary(storetest.Env) != nil || v.Decisions(storetest.Env) != nil {
		t.Errorf("deploys %v, previous %d, canary %v", v.Deploys(), v.Previous(storetest.Env), v.Canary(storetest.Env))
	}
	before := describe(v)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if got := describe(s.View()); got != before {
		t.Errorf("opened again it is another:\n%s\nwas\n%s", got, before)
	}
	// What is new in schema 2 works on rows of schema 1.
	for _, err := range []error{
		s.StartCanary(t.Context(), storetest.Env, function.Canary{Release: 2, Share: 100}, function.Decision{By: function.ByUser}),
		s.SetReleaseAlias(t.Context(), function.ReleaseAlias{Environment: storetest.Env, Name: "first", Release: 1}),
		s.Promote(t.Context(), storetest.Env, 2, function.Decision{By: function.ByUser}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if v := s.View(); v.ActiveRelease(storetest.Env).Number != 2 || v.Previous(storetest.Env) != 3 {
		t.Errorf("active %d, previous %d", v.ActiveRelease(storetest.Env).Number, v.Previous(storetest.Env))
	}
	if _, err := s.RecordRelease(t.Context(), store.NewRelease{Environment: staging, Functions: []store.NewFunction{storetest.Fn("a", "sha256:new")}}); err != nil {
		t.Error(err)
	}
}
