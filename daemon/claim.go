package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another lfxd uses the run directory; lfxd exits with status 75.
var ErrInUse = errors.New("in use by another lfxd")

// claimRunDir takes the run directory for this process: the sockets and everything volatile that is
// named in it would else be taken from a daemon that runs. The lock is on the directory itself, so
// nothing is left behind, and ends with the process.
func (d *Daemon) claimRunDir() error {
	f, err := os.Open(d.cfg.RunDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Down, with nothing to remove
	}
	if err != nil {
		return err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		f.Close() //nolint:errcheck // read only
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("the run directory %s is %w: stop that one, or give this one another run_dir, with a listen.tcp and a [network] of its own", d.cfg.RunDir, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("lock the run directory %s: %w", d.cfg.RunDir, err)
	}
	d.onClose(func() { f.Close() }) //nolint:errcheck // read only
	return nil
}
