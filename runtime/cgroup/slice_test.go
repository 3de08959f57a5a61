package cgroup

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestSlicePath(t *testing.T) {
	for name, want := range map[string]string{
		"lfx.slice":      "/lfx.slice",
		"lfx-fn.slice":   "/lfx.slice/lfx-fn.slice",
		"a-b-c.slice":    "/a.slice/a-b.slice/a-b-c.slice",
		"system_1.slice": "/system_1.slice",
	} {
		got, err := SlicePath(name)
		if err != nil || got != want {
			t.Errorf("SlicePath(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"", "lfx", ".slice", "-.slice", "lfx-.slice", "-fn.slice", "a--b.slice", "a/b.slice", "a:b.slice", "lfx.scope"} {
		if got, err := SlicePath(name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("SlicePath(%q) = %q, %v, want an invalid argument", name, got, err)
		}
	}
}

func TestLayout(t *testing.T) {
	systemd, err := Systemd("lfx-fn.slice", "lfx")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		layout            Layout
		parent, name, oci string
	}{
		{Plain("/lfx/fn"), "/lfx/fn", "i-1", "/lfx/fn/i-1"},
		{systemd, "/lfx.slice/lfx-fn.slice", "lfx-i-1.scope", "lfx-fn.slice:lfx:i-1"},
	} {
		if got := c.layout.Parent(); got != c.parent {
			t.Errorf("Parent() = %q, want %q", got, c.parent)
		}
		if got := c.layout.Name("i-1"); got != c.name {
			t.Errorf("Name() = %q, want %q", got, c.name)
		}
		if got := c.layout.OCI("i-1"); got != c.oci {
			t.Errorf("OCI() = %q, want %q", got, c.oci)
		}
		if id, ok := c.layout.ID(c.name); !ok || id != "i-1" {
			t.Errorf("ID(%q) = %q, %v", c.name, id, ok)
		}
	}
	for _, name := range []string{"lfx-.scope", "other.scope", "lfx-i-1.service", "docker-i.scope"} {
		if id, ok := systemd.ID(name); ok {
			t.Errorf("ID(%q) = %q, want none", name, id)
		}
	}
}
