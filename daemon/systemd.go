package daemon

import (
	"os"
	"path/filepath"

	"lfx.dev/lfxd/runtime/cgroup"
)

// The slices under systemd; contrib/systemd has their limits.
const (
	functionSlice = "lfx-fn.slice"
	buildSlice    = "lfx-build.slice"
	scopePrefix   = "lfx"
)

// systemdCgroups says whether systemd makes the cgroups of functions and builds. It does on a host that it booted
// (sd_booted(3)), unless lfxd supervises its engine itself: then nothing of ours is known to systemd.
func (o Options) systemdCgroups() bool {
	if o.WithEngine {
		return false
	}
	fi, err := os.Lstat("/run/systemd/system")
	return err == nil && fi.IsDir()
}

// cgroups is the layout of the instances' cgroups.
func (d *Daemon) cgroups() (cgroup.Layout, error) {
	if d.opts.systemdCgroups() {
		return cgroup.Systemd(functionSlice, scopePrefix)
	}
	return cgroup.Plain(filepath.Join(d.cfg.CgroupParent, "fn")), nil
}
