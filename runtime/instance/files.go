package instance

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/runtime/lfxinit"
)

// What is in an instance's directory, beside the record.
const (
	ioDir      = "io"
	secretsDir = "secrets"
	resolvFile = "etc/resolv.conf"
	hostsFile  = "etc/hosts"
	scratchDir = "root" // where the root of a sandbox is put together; empty on the host
)

// pipeSize is what each log pipe can hold before the function has to wait for the reader.
const pipeSize = 256 << 10

// pipes are our ends of the FIFOs. Until lfx-init has opened its own, we keep write ends, because a reader
// without any writer would see the end of the file.
type pipes struct {
	stdout, stderr, control *os.File
	keep                    []*os.File
	// gate is where lfx-init waits for its word; it is let go with keep. Both ends are open here, so that the word may be said first.
	gate *os.File
}

// makeFiles makes everything below dir that is mounted into the instance. Directories belong to the
// instance's root, FIFOs to the function's user and nobody else.
func makeFiles(dir string, uid uint32) error {
	root, user := int(uid), int(uid)+functionID
	for _, d := range []string{ioDir, secretsDir, "etc"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(dir, d), 0o755); err != nil { // whatever our umask
			return err
		}
	}
	if err := os.Chown(filepath.Join(dir, secretsDir), root, root); err != nil {
		return err
	}
	for _, name := range []string{lfxinit.StdoutName, lfxinit.StderrName, lfxinit.ControlName, lfxinit.GateName} {
		path := filepath.Join(dir, ioDir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return fmt.Errorf("make FIFO %s: %w", path, err)
		}
		if err := os.Chown(path, user, user); err != nil {
			return err
		}
	}
	// The place that lfx-init is mounted on, and files that get their contents once the address is known.
	for _, name := range []string{filepath.Join(ioDir, lfxinit.InitName), resolvFile, hostsFile} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o644); err != nil { // whatever our umask
			return err
		}
	}
	return nil
}

// writeNames fills /etc/resolv.conf and /etc/hosts in place: they are mounted already.
func (m *Manager) writeNames(id string, addr netip.Addr) error {
	dir := m.dir(id)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, resolvFile), m.o.ResolvConf(id, addr), 0o644),
		os.WriteFile(filepath.Join(dir, hostsFile), m.o.Hosts(id, addr), 0o644),
	)
}

func openPipes(dir string) (p pipes, err error) {
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	for _, f := range []struct {
		name string
		end  **os.File
	}{{lfxinit.StdoutName, &p.stdout}, {lfxinit.StderrName, &p.stderr}, {lfxinit.ControlName, &p.control}} {
		path := filepath.Join(dir, ioDir, f.name)
		if *f.end, err = openFIFO(path, unix.O_RDONLY); err != nil {
			return p, err
		}
		w, err := openFIFO(path, unix.O_WRONLY)
		if err != nil {
			return p, err
		}
		p.keep = append(p.keep, w)
	}
	p.gate, err = openFIFO(filepath.Join(dir, ioDir, lfxinit.GateName), unix.O_RDWR)
	return p, err
}

// open says the word for which lfx-init waits. It blocks while the FIFO is full: a long one is read while it is written.
func (p *pipes) open(word []byte) error {
	if err := p.gate.SetWriteDeadline(time.Now().Add(wordTimeout)); err != nil {
		return err
	}
	_, err := p.gate.Write(word)
	return err
}

// wordTimeout is how long lfx-init may take to read its word.
const wordTimeout = 5 * time.Second

// openFIFO opens one end without blocking, so that Go's poller waits on it. O_NOFOLLOW: the file is ours, but in a directory that an
// instance sees.
func openFIFO(path string, mode int) (*os.File, error) {
	fd, err := unix.Open(path, mode|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open FIFO %s: %w", path, err)
	}
	if name := filepath.Base(path); name == lfxinit.StdoutName || name == lfxinit.StderrName {
		// May be refused (fs.pipe-user-pages-soft); the default of 64 KiB works too.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// letGo closes our write ends, after which readers see the end once lfx-init is gone.
func (p *pipes) letGo() {
	for _, f := range p.keep {
		_ = f.Close()
	}
	if p.gate != nil {
		_ = p.gate.Close()
	}
}

func (p *pipes) close() {
	p.letGo()
	for _, f := range []*os.File{p.stdout, p.stderr, p.control} {
		if f != nil {
			_ = f.Close()
		}
	}
}
