package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Versions are what the parts of an engine call themselves; an empty one was not asked for.
type Versions struct {
	Containerd, Runc, BuildKit, CNIPlugins, Kernel string
}

// floors hold the oldest safe release of each maintained series; later series are safe as a whole.
// Below them lie known escapes: containerd CVE-2026-53488, -47262, -46680, -53489, -53492, -50195; runc
// CVE-2025-31133, -52565, -52881, CVE-2026-41579; BuildKit CVE-2026-33747, -33748; CNI plugins
// before 1.7.0 know no portIsolation; kernels before 5.19 no idmapped mounts on overlayfs.
var floors = []struct {
	part   string
	of     func(Versions) string
	series []release
}{
	{"containerd", func(v Versions) string { return v.Containerd }, []release{{2, 2, 5, false}, {2, 3, 2, false}}},
	{"runc", func(v Versions) string { return v.Runc }, []release{{1, 3, 6, false}, {1, 4, 3, false}, {1, 5, 0, false}}},
	{"BuildKit", func(v Versions) string { return v.BuildKit }, []release{{0, 31, 2, false}}},
	{"CNI plugins", func(v Versions) string { return v.CNIPlugins }, []release{{1, 7, 0, false}}},
	{"the kernel", func(v Versions) string { return v.Kernel }, []release{{5, 19, 0, false}}},
}

// release is a version; pre marks one that came before the release of the same number.
type release struct {
	major, minor, patch int
	pre                 bool
}

func (r release) String() string { return fmt.Sprintf("%d.%d.%d", r.major, r.minor, r.patch) }

func (r release) less(o release) bool {
	switch {
	case r.major != o.major:
		return r.major < o.major
	case r.minor != o.minor:
		return r.minor < o.minor
	case r.patch != o.patch:
		return r.patch < o.patch
	}
	return r.pre && !o.pre
}

var (
	releasePattern = regexp.MustCompile(`^v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(-(?:alpha|beta|rc|pre|dev)[^+]*)?`)
	versionInText  = regexp.MustCompile(`v?\d{1,6}\.\d{1,6}\.\d{1,6}(-[0-9A-Za-z.-]+)?`)
)

// parseRelease reads a version as these programs and the kernel print it ("v2.4.2", "1.5.2+dev", "6.1.0-37-amd64").
func parseRelease(s string) (release, bool) {
	m := releasePattern.FindStringSubmatch(s)
	if m == nil {
		return release{}, false
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // at most six digits, or absent and zero
	}
	return release{n[0], n[1], n[2], m[4] != ""}, true
}

// safe says whether got is at or above the floor of its series, or of a series later than all.
func safe(got release, series []release) bool {
	for _, floor := range series {
		if got.major == floor.major && got.minor == floor.minor {
			return !got.less(floor)
		}
	}
	return !got.less(series[len(series)-1])
}

// CheckFloors reports every part that is older than its floor, or does not say how old it is. Parts
// with an empty version are not looked at. The error is errdefs.ErrFailedPrecondition.
func CheckFloors(v Versions) error {
	var errs []error
	for _, f := range floors {
		s := f.of(v)
		if s == "" {
			continue
		}
		got, ok := parseRelease(s)
		switch {
		case !ok || got == release{}:
			errs = append(errs, fmt.Errorf("%s does not say its version (%q): build the engine with `make engine`, which sets it", f.part, s))
		case !safe(got, f.series):
			errs = append(errs, fmt.Errorf("%s %s has known security holes: at least %s is needed", f.part, s, f.series))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	return nil
}

// Versions asks every part. It blocks until all have answered or ctx ends; the engine must run.
func (e *Engine) Versions(ctx context.Context) (Versions, error) {
	v, err := e.binaryVersions(ctx)
	if err != nil {
		return v, err
	}
	if v.Containerd, err = e.containerdVersion(ctx); err != nil {
		return v, err
	}
	v.BuildKit, err = e.buildkitVersion(ctx)
	return v, err
}

// binaryVersions asks the parts that are programs and not daemons, and the kernel.
func (e *Engine) binaryVersions(ctx context.Context) (v Versions, err error) {
	if v.Runc, err = programVersion(ctx, filepath.Join(e.cfg.BinDir, "runc"), "--version"); err != nil {
		return v, err
	}
	if v.CNIPlugins, err = programVersion(ctx, filepath.Join(e.cfg.BinDir, "bridge")); err != nil {
		return v, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return v, fmt.Errorf("ask the kernel's version: %w", err)
	}
	v.Kernel = unix.ByteSliceToString(uts.Release[:])
	return v, nil
}

// programVersion runs a program and returns the first version number it prints. CNI plugins print
// theirs, and end with an error, when no command is given.
func programVersion(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if m := versionInText.Find(out); m != nil {
		return string(m), nil
	}
	if err == nil {
		err = fmt.Errorf("it printed %.100q", out)
	}
	return "", fmt.Errorf("ask %s its version: %w", path, err)
}
