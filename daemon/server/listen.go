package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenUnix listens on a Unix socket of mode 0660 that belongs to root and a group; a group that
// does not exist leaves the socket to root alone, and note says so. A socket left over from a crash
// is replaced; anything else at the path is refused.
func ListenUnix(path, group string) (l net.Listener, note string, err error) {
	gid, note := groupID(group)
	fi, err := os.Lstat(path)
	switch {
	case err == nil && fi.Mode().Type() != fs.ModeSocket:
		return nil, "", fmt.Errorf("%s exists and is not a socket: move it away", path)
	case err == nil:
		if err := os.Remove(path); err != nil {
			return nil, "", fmt.Errorf("replace the old socket: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, "", err
	}
	// The mask makes the socket private from its first moment; connecting needs write permission.
	old := syscall.Umask(0o177)
	l, err = net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, "", fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660)); err != nil {
		l.Close() //nolint:errcheck // nothing was served
		return nil, "", fmt.Errorf("give %s to group %s: %w", path, group, err)
	}
	return l, note, nil
}

// groupID looks a group up; root's when it does not exist.
func groupID(group string) (gid int, note string) {
	if group == "" {
		return 0, ""
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Sprintf("group %s does not exist: only root may use the socket", group)
	}
	gid, err = strconv.Atoi(g.Gid)
	if err != nil {
		return 0, fmt.Sprintf("group %s has no numeric id: only root may use the socket", group)
	}
	return gid, ""
}

// peerListener logs who connects to the control socket.
type peerListener struct {
	net.Listener
	log *slog.Logger
}

// Accept implements net.Listener.
func (l peerListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if uc, ok := c.(*net.UnixConn); ok && err == nil && l.log.Enabled(context.Background(), slog.LevelDebug) {
		if cred, err := peer(uc); err == nil {
			l.log.Debug("control connection", "uid", cred.Uid, "gid", cred.Gid, "pid", cred.Pid)
		}
	}
	return c, err
}

func peer(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(cerr, err)
}
