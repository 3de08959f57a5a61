package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Purge is Close and then ends every container of this engine and removes what is volatile:
// shims, mounts below RunDir and StateDir, the build bridge and its cgroup, RunDir itself. Images,
// build cache and logs in StateDir stay. It also works on an engine that this process never started.
// It goes on after an error and returns all of them; ctx bounds the whole.
func (e *Engine) Purge(ctx context.Context) error {
	errs := []error{e.Close(ctx)}
	errs = append(errs,
		e.deleteContainers(ctx),
		endCommands(ctx, "containerd-shim-runc-v2", e.cfg.socket("containerd"), 2*time.Second),
		e.unmountAll(),
		deleteBridge(e.cfg.BuildBridge),
		removeBuildCgroups(&e.cfg),
		e.removeFIFOs(),
	)
	if err := errors.Join(errs...); err != nil {
		// What is still mounted or running below RunDir would be lost from sight, or worse, emptied.
		return fmt.Errorf("remove the engine: %w", err)
	}
	if err := os.RemoveAll(e.cfg.RunDir); err != nil {
		return fmt.Errorf("remove the engine: %w", err)
	}
	tmp := filepath.Join(e.cfg.StateDir, "tmp")
	return errors.Join(os.RemoveAll(tmp), os.RemoveAll(filepath.Join(e.cfg.StateDir, "containerd", "tmpmounts")))
}

// deleteContainers has runc kill and delete every container in its state directory, whoever watches it.
func (e *Engine) deleteContainers(ctx context.Context) error {
	dirs, err := filepath.Glob(filepath.Join(e.cfg.runcRoot(), "*", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		cmd := exec.CommandContext(ctx, e.RuncPath(), "--root", filepath.Dir(dir), "delete", "--force", filepath.Base(dir))
		if out, err := cmd.CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("delete container %s: %w: %s", filepath.Base(dir), err, strings.TrimSpace(string(out))))
		}
	}
	return errors.Join(errs...)
}

// unmountAll detaches every mount below RunDir and StateDir, those mounted last first.
func (e *Engine) unmountAll() error {
	below := func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, e.cfg.RunDir+"/") && !strings.HasPrefix(m.Mountpoint, e.cfg.StateDir+"/"), false
	}
	mounts, err := mountinfo.GetMounts(below)
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}

// deleteBridge removes the build bridge. Another kind of interface under that name is left alone.
func deleteBridge(name string) error {
	link, err := netlink.LinkByName(name)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return nil
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove bridge %s: %w", name, err)
	}
	return nil
}
