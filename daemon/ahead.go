package daemon

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/daemon/worker"
)

// ahead says what is made before there is a request.
func (d *Daemon) ahead() worker.Ahead {
	f := d.cfg.Functions
	a := worker.Ahead{Spares: f.Spares, MaxSpares: f.MaxSpares, Routed: d.routed, Room: roomForSpares}
	if f.SandboxesAhead == 0 {
		return a
	}
	if !strings.Contains(filepath.Base(d.runtime.Path), "runc") {
		d.log.Info("sandboxes are not made ahead: only runc is known to join their networks", "runtime", d.runtime.Path)
		return a
	}
	a.Networks, a.Maker = f.SandboxesAhead, d.instances
	return a
}

// routed lists the versions of all releases that new requests go to: the active ones and their canaries.
func (d *Daemon) routed() (all []*function.Version) {
	seen := map[*function.Version]bool{}
	for _, env := range d.store.View().Environments() {
		active := d.pools.Active(env.Environment)
		canary, _ := d.pools.Canary(env.Environment)
		for _, r := range []*pool.Release{active, canary} {
			if r == nil {
				continue
			}
			for name := range r.Record().Versions {
				p := r.Pool(name)
				if p == nil {
					continue
				}
				if v := p.Version(); !seen[v] && !v.Config.Concurrency.Stopped {
					seen[v] = true
					all = append(all, v)
				}
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
