package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A buildkitd that is killed leaves the step that it was running: task, shim, container record and
// cgroup. BuildKit itself never looks for them. It does remove its network namespaces when it starts.

// sweepBuilds ends and removes the build steps of a buildkitd that runs no more. They are told from
// everything else in the namespace by their cgroup. It goes on after errors and returns them all.
func (e *Engine) sweepBuilds(ctx context.Context) error {
	client, err := containerd.New(e.cfg.socket("containerd"), containerd.WithDefaultNamespace(e.cfg.Namespace))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	all, err := client.Containers(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	var errs []error
	for _, c := range all {
		spec, err := c.Spec(ctx)
		if err != nil || !e.cfg.isBuild(spec) {
			continue
		}
		e.cfg.Log.Info("removing a build step that was interrupted", "container", c.ID())
		errs = append(errs, removeStep(ctx, c))
	}
	if e.cfg.BuildSlice == "" {
		e.removeStepCgroups(0)
	}
	return errors.Join(errs...)
}

// isBuild says whether a container is a build step of ours.
func (c *Config) isBuild(spec *specs.Spec) bool {
	if spec == nil || spec.Linux == nil {
		return false
	}
	parent := c.buildCgroupParent()
	if c.BuildSlice == "" {
		parent += "/"
	}
	return strings.HasPrefix(spec.Linux.CgroupsPath, parent)
}

func removeStep(ctx context.Context, c containerd.Container) error {
	task, err := c.Task(ctx, nil)
	switch {
	case err == nil:
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("end build step %s: %w", c.ID(), err)
		}
	case !errdefs.IsNotFound(err):
		return fmt.Errorf("find build step %s: %w", c.ID(), err)
	}
	// The root file system is a mount that BuildKit made and owns, not a snapshot of the record's.
	if err := c.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("forget build step %s: %w", c.ID(), err)
	}
	return nil
}

// tidyAge is how old a step's empty cgroup must be to be dead: a step has a process in its cgroup from
// the moment after it was made until its end.
const tidyAge = 5 * time.Second

// Tidy removes the cgroups that interrupted build steps left behind. A build that is cancelled while
// runc makes its container leaves one, empty. Call it from time to time; it does not block.
func (e *Engine) Tidy() {
	if e.cfg.BuildSlice == "" {
		e.removeStepCgroups(tidyAge)
	}
}

// removeStepCgroups removes the cgroups of that age of steps that have ended; the kernel refuses to
// remove others.
func (e *Engine) removeStepCgroups(age time.Duration) {
	for _, pattern := range []string{
		filepath.Join(cgroupRoot, "*", e.cfg.buildCgroup(), "buildkit", "*"),
		filepath.Join(cgroupRoot, e.cfg.buildCgroup(), "buildkit", "*"),
	} {
		dirs, _ := filepath.Glob(pattern) // the pattern is well formed
		for _, d := range dirs {
			if info, err := os.Stat(d); err == nil && time.Since(info.ModTime()) >= age {
				_ = unix.Rmdir(d)
			}
		}
	}
}

// containerdRun is where BuildKit has the FIFOs of its steps, whatever it is told (containerd:
// pkg/cio, defaults.DefaultFIFODir). A host's own containerd has its state there.
const containerdRun = "/run/containerd"

// hostBefore says how the host was before an engine of ours first ran. It lies in RunDir and so does
// not outlive a reboot, as little as what it describes.
type hostBefore struct {
	// ContainerdRun is set when containerdRun was there, with more than what we leave in it.
	ContainerdRun bool `json:"containerd_run"`
}

func (e *Engine) hostFile() string { return filepath.Join(e.cfg.RunDir, "host.json") }

// recordHost writes hostBefore, once for all starts until Purge.
func (e *Engine) recordHost() error {
	if _, err := os.Lstat(e.hostFile()); err == nil {
		return nil
	}
	entries, err := os.ReadDir(e.containerdRun)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data, err := json.Marshal(hostBefore{ContainerdRun: len(entries) > 1 || len(entries) == 1 && entries[0].Name() != "fifo"})
	if err != nil {
		return err
	}
	return replaceFile(e.hostFile(), data)
}

// removeFIFOs removes what interrupted steps left of their FIFOs, and the directories when they were
// not there before us. Another buildkitd may use them too: then nothing is touched.
func (e *Engine) removeFIFOs() error {
	data, err := os.ReadFile(e.hostFile())
	var before hostBefore
	if err != nil || json.Unmarshal(data, &before) != nil || before.ContainerdRun || len(commandsWith("buildkitd", "")) > 0 {
		return nil // not known, or not ours
	}
	return removeFIFOs(e.containerdRun)
}

// removeFIFOs removes the FIFOs below run, and run when it is empty then.
func removeFIFOs(run string) error {
	dir := filepath.Join(run, "fifo")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, entry := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	_ = unix.Rmdir(dir) // not empty: somebody began to use it
	_ = unix.Rmdir(run)
	return errors.Join(errs...)
}
