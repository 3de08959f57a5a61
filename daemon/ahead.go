package daemon

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/worker"
)

// ahead says what is made before there is a request.
func (d *Daemon) ahead() worker.Ahead {
	f := d.cfg.Functions
	a := worker.Ahead{Spares: f.Spares, MaxSpares: f.MaxSpares, Routed: d.routed, Room: roomForSpares}
	if f.NetworksAhead == 0 {
		return a
	}
	if !strings.Contains(filepath.Base(d.runtime.Path), "runc") {
		d.log.Info("networks are not made ahead: only runc is known to join them", "runtime", d.runtime.Path)
		return a
	}
	a.Networks, a.Maker = f.NetworksAhead, d.instances
	return a
}

// routed lists the versions of all active releases.
func (d *Daemon) routed() (all []*function.Version) {
	view := d.store.View()
	for _, env := range view.Environments() {
		rel := view.ActiveRelease(env.Environment)
		if rel == nil {
			continue
		}
		for name, n := range rel.Versions {
			if v := view.Version(function.Key{Environment: env.Environment, Function: name}, n); v != nil {
				all = append(all, v)
			}
		}
	}
	return all
}

// spareShare is the part of the host's memory that must be available for spares to be kept, as a divisor.
const spareShare = 10

// roomForSpares says whether a tenth of the host's memory is available. Where the kernel does not tell, there is room.
func roomForSpares() bool {
	available, ok := memAvailable("/proc/meminfo")
	return !ok || available >= hostMemory()/spareShare
}

// memAvailable reads how many bytes can be used without swapping.
func memAvailable(path string) (int64, bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(lines.Text(), "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10, true
		}
	}
	return 0, false
}
