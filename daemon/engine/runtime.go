package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// AutoRuntime lets ChooseRuntime decide: crun, which starts faster, where there is one that is new
// enough and accepts the host's cgroups, else runc.
const AutoRuntime = "auto"

// crunFloor is the oldest crun without a known escape (CVE-2026-47766).
var crunFloor = []release{{1, 28, 0, false}}

// Runtime is the OCI runtime that instances get.
type Runtime struct {
	Path    string
	Version string
	// Note says why it is not the one that would be preferred; empty when it is.
	Note string
}

// RuntimeChoice is what ChooseRuntime decides from.
type RuntimeChoice struct {
	// Configured is AutoRuntime, a name or an absolute path.
	Configured string
	// BinDir holds the engine's own runtimes and is looked at before the PATH.
	BinDir string
	// Hybrid says that the host has cgroup v1 with a v2 hierarchy beside it, which crun refuses.
	Hybrid bool
}

// ChooseRuntime finds the OCI runtime and checks its version. One that was configured by name is
// taken or refused, never replaced: the error says what is wrong with it.
func ChooseRuntime(ctx context.Context, c RuntimeChoice) (Runtime, error) {
	if c.Configured != AutoRuntime {
		return checkRuntime(ctx, c, c.Configured)
	}
	crun, err := checkRuntime(ctx, c, "crun")
	if err == nil {
		return crun, nil
	}
	runc, rerr := checkRuntime(ctx, c, "runc")
	if rerr != nil {
		return Runtime{}, rerr
	}
	if !errors.Is(err, errdefs.ErrNotFound) {
		runc.Note = err.Error()
	}
	return runc, nil
}

// checkRuntime finds one runtime and holds it against its floor.
func checkRuntime(ctx context.Context, c RuntimeChoice, name string) (r Runtime, err error) {
	if r.Path, err = findProgram(c.BinDir, name); err != nil {
		return r, err
	}
	if r.Version, err = programVersion(ctx, r.Path, "--version"); err != nil {
		return r, err
	}
	if !strings.Contains(filepath.Base(r.Path), "crun") {
		return r, CheckFloors(Versions{Runc: r.Version})
	}
	if c.Hybrid {
		return r, fmt.Errorf("%s does not accept cgroup v1 beside v2, which this host has: set engine.oci_runtime to runc: %w", r.Path, errdefs.ErrFailedPrecondition)
	}
	got, ok := parseRelease(r.Version)
	if !ok || !safe(got, crunFloor) {
		return r, fmt.Errorf("crun %s (%s) has known security holes, at least %s is needed: update it or set engine.oci_runtime to runc: %w",
			r.Version, r.Path, crunFloor[0], errdefs.ErrFailedPrecondition)
	}
	return r, nil
}

// findProgram looks below dir first, then in the PATH.
func findProgram(dir, name string) (string, error) {
	if filepath.IsAbs(name) {
		if _, err := os.Stat(name); err != nil {
			return "", fmt.Errorf("the OCI runtime %s is not there: install it or change engine.oci_runtime: %w", name, errdefs.ErrNotFound)
		}
		return name, nil
	}
	if own := filepath.Join(dir, name); isProgram(own) {
		return own, nil
	}
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	return "", fmt.Errorf("the OCI runtime %s is neither in %s nor in the PATH: install it or change engine.oci_runtime: %w", name, dir, errdefs.ErrNotFound)
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
