package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const cgroupRoot = "/sys/fs/cgroup"

// limitBuilds creates the cgroup that all build steps run below and sets what they may use
// together: BuildKit itself limits neither memory nor processes.
func limitBuilds(c *Config) error {
	if c.BuildSlice != "" {
		return nil // the slice's unit has the limits
	}
	var err error
	if cgroups.Mode() == cgroups.Unified {
		err = limitBuilds2(c)
	} else {
		err = limitBuilds1(c)
	}
	if err != nil {
		return fmt.Errorf("limit builds in cgroup %s: %w", c.buildCgroup(), err)
	}
	return nil
}

func limitBuilds1(c *Config) error {
	res := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &c.BuildPids}}
	wanted := []cgroup1.Name{cgroup1.Pids}
	if c.BuildMemory > 0 {
		res.Memory = &specs.LinuxMemory{Limit: &c.BuildMemory}
		wanted = append(wanted, cgroup1.Memory)
	}
	hierarchy := func() ([]cgroup1.Subsystem, error) {
		all, err := cgroup1.Default()
		return slices.DeleteFunc(all, func(s cgroup1.Subsystem) bool { return !slices.Contains(wanted, s.Name()) }), err
	}
	_, err := cgroup1.New(cgroup1.StaticPath(c.buildCgroup()), res, cgroup1.WithHierarchy(hierarchy))
	return err
}

func limitBuilds2(c *Config) error {
	res := &cgroup2.Resources{Pids: &cgroup2.Pids{Max: c.BuildPids}}
	if c.BuildMemory > 0 {
		noSwap := int64(0)
		res.Memory = &cgroup2.Memory{Max: &c.BuildMemory, Swap: &noSwap}
	}
	_, err := cgroup2.NewManager(cgroupRoot, c.buildCgroup(), res)
	return err
}

// removeBuildCgroups removes the build cgroup with what is below it in every hierarchy, and its
// parent where that has become empty. Nothing runs in them any more.
func removeBuildCgroups(c *Config) error {
	if c.BuildSlice != "" {
		return nil // systemd removes what is empty
	}
	hierarchies, err := filepath.Glob(filepath.Join(cgroupRoot, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range append(hierarchies, cgroupRoot) {
		if info, err := os.Lstat(root); err != nil || !info.IsDir() {
			continue
		}
		errs = append(errs, removeCgroup(filepath.Join(root, c.buildCgroup())))
		os.Remove(filepath.Join(root, c.CgroupParent)) // others may still live there
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup and those below it, deepest first. One that is not there is no error.
func removeCgroup(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
