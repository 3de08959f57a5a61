package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// fakeRuntime writes a program that only knows its version.
func fakeRuntime(t *testing.T, dir, name, version string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(fmt.Sprintf("#!/bin/sh\necho %s version %s\n", name, version)), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestChooseRuntime(t *testing.T) {
	for _, c := range []struct {
		name       string
		crun, runc string
		configured string
		hybrid     bool
		want       string // base name
		note       string // part of the note
		err        string // part of the error
	}{
		{name: "new crun is preferred", crun: "1.29.1", runc: "1.5.2", configured: "auto", want: "crun"},
		{name: "crun at its floor", crun: "1.28", runc: "1.5.2", configured: "auto", want: "runc", note: "1.28"},
		{name: "crun at its floor, full number", crun: "1.28.0", runc: "1.5.2", configured: "auto", want: "crun"},
		{name: "old crun", crun: "1.8.1", runc: "1.5.2", configured: "auto", want: "runc", note: "at least 1.28.0 is needed"},
		{name: "crun on hybrid cgroups", crun: "1.29.1", runc: "1.5.2", configured: "auto", hybrid: true, want: "runc", note: "cgroup v1 beside v2"},
		{name: "no crun", runc: "1.5.2", configured: "auto", want: "runc"},
		{name: "runc by name", crun: "1.29.1", runc: "1.5.2", configured: "runc", want: "runc"},
		{name: "crun by name", crun: "1.29.1", runc: "1.5.2", configured: "crun", want: "crun"},
		{name: "old crun by name", crun: "1.8.1", runc: "1.5.2", configured: "crun", err: "at least 1.28.0 is needed"},
		{name: "crun by name on hybrid cgroups", crun: "1.29.1", runc: "1.5.2", configured: "crun", hybrid: true, err: "set engine.oci_runtime to runc"},
		{name: "old runc", runc: "1.1.5", configured: "auto", err: "runc"},
		{name: "nothing of that name", runc: "1.5.2", configured: "youki", err: "neither in"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("PATH", "/usr/bin:/bin") // sh
			if c.crun == "" {
				t.Setenv("PATH", "/nonexistent")
			} else {
				fakeRuntime(t, dir, "crun", c.crun)
			}
			if c.runc != "" {
				fakeRuntime(t, dir, "runc", c.runc)
			}
			got, err := ChooseRuntime(t.Context(), RuntimeChoice{Configured: c.configured, BinDir: dir, Hybrid: c.hybrid})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if filepath.Base(got.Path) != c.want || !strings.Contains(got.Note, c.note) || (c.note == "") != (got.Note == "") {
				t.Errorf("chose %+v, want %s with a note on %q", got, c.want, c.note)
			}
		})
	}
}

func TestMissingAbsoluteRuntimeIsNamed(t *testing.T) {
	_, err := ChooseRuntime(t.Context(), RuntimeChoice{Configured: "/nonexistent/runc", BinDir: t.TempDir()})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "/nonexistent/runc") {
		t.Errorf("error %v", err)
	}
}
