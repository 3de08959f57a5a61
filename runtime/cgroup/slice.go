package cgroup

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

const sliceSuffix = ".slice"

// SlicePath returns the path of a systemd slice within a hierarchy: a dash in a slice's name is a level
// (systemd.slice(5)), so "lfx-fn.slice" is /lfx.slice/lfx-fn.slice. A name that systemd would refuse is
// errdefs.ErrInvalidArgument.
func SlicePath(name string) (string, error) {
	stem, ok := strings.CutSuffix(name, sliceSuffix)
	if !ok || stem == "" || strings.ContainsAny(name, "/ :") {
		return "", fmt.Errorf("%q is not the name of a systemd slice such as lfx-fn.slice: %w", name, errdefs.ErrInvalidArgument)
	}
	dir, prefix := "/", ""
	for part := range strings.SplitSeq(stem, "-") {
		if part == "" {
			return "", fmt.Errorf("systemd slice %q has a dash without a name on both sides: %w", name, errdefs.ErrInvalidArgument)
		}
		prefix += part
		dir = path.Join(dir, prefix+sliceSuffix)
		prefix += "-"
	}
	return dir, nil
}

// Layout says where the cgroups of instances are and what they are called.
type Layout struct {
	parent        string
	slice, prefix string // under systemd only
}

// Plain is the layout of cgroups that the OCI runtime makes itself: parent/ID.
func Plain(parent string) Layout { return Layout{parent: parent} }

// Systemd is the layout of cgroups that systemd makes for the OCI runtime: a scope unit PREFIX-ID.scope in the slice.
func Systemd(slice, prefix string) (Layout, error) {
	dir, err := SlicePath(slice)
	return Layout{parent: dir, slice: slice, prefix: prefix}, err
}

// Driven reports whether systemd makes the cgroups.
func (l Layout) Driven() bool { return l.slice != "" }

// Parent is the path of the cgroup that holds all of them.
func (l Layout) Parent() string { return l.parent }

// Name returns the name of the cgroup of an instance below Parent.
func (l Layout) Name(id string) string {
	if !l.Driven() {
		return id
	}
	return l.prefix + "-" + id + ".scope"
}

// ID returns the instance that a cgroup below Parent belongs to; false for others.
func (l Layout) ID(name string) (string, bool) {
	if !l.Driven() {
		return name, true
	}
	rest, ok := strings.CutPrefix(name, l.prefix+"-")
	id, ok2 := strings.CutSuffix(rest, ".scope")
	return id, ok && ok2 && id != ""
}

// OCI returns what an OCI spec's linux.cgroupsPath says for an instance. The form with colons means a scope to a
// runtime that was told to use systemd, and to any other a cgroup literally so named.
func (l Layout) OCI(id string) string {
	if !l.Driven() {
		return path.Join(l.parent, id)
	}
	return l.slice + ":" + l.prefix + ":" + id
}
