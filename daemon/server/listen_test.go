package server

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lfx.dev/lfxd/daemon/api"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: sockets are given to root and a group")
	}
}

func TestListenUnix(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	old := syscall.Umask(0o022)
	defer syscall.Umask(old)
	for name, tt := range map[string]struct {
		group string
		gid   uint32
		note  string
	}{
		"no group":      {"", 0, ""},
		"a group":       {"daemon", 1, ""},
		"missing group": {"lfx-no-such-group", 0, "group lfx-no-such-group does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			l, note, err := ListenUnix(path, tt.group)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			fi, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			st := fi.Sys().(*syscall.Stat_t)
			if fi.Mode().Perm() != 0o660 || st.Uid != 0 || st.Gid != tt.gid {
				t.Errorf("%s %d:%d", fi.Mode(), st.Uid, st.Gid)
			}
			if !strings.HasPrefix(note, tt.note) || (tt.note == "") != (note == "") {
				t.Errorf("note %q", note)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("the closed socket is still there: %v", err)
			}
		})
	}
	if mask := syscall.Umask(0o022); mask != 0o022 {
		t.Errorf("the umask is %o now", mask)
	}
}

func TestListenUnixReplacesAStaleSocket(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "s")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	l, _, err := ListenUnix(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestListenUnixRefuses(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                               file + " exists and is not a socket: move it away",
		link:                               link + " exists and is not a socket: move it away",
		dir:                                dir + " exists and is not a socket: move it away",
		filepath.Join(file, "x"):           "not a directory",
		filepath.Join(dir, "none", "x"):    "no such file or directory",
		"/tmp/" + strings.Repeat("x", 120): "invalid argument",
	} {
		l, _, err := ListenUnix(path, "")
		if err == nil {
			l.Close()
			t.Errorf("listening on %s", path)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("the file was changed")
	}
}

func TestPeerIsLogged(t *testing.T) {
	needRoot(t)
	w := start(t, KindTCP, nil)
	path := filepath.Join(t.TempDir(), "s")
	l, _, err := ListenUnix(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.server.Serve(l, KindControl, nil); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("GET " + api.PathVersion + " HTTP/1.1\r\nHost: lfx\r\nConnection: close\r\n\r\n"))
	buf := make([]byte, 4096)
	n, _ := c.Read(buf)
	if !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200") {
		t.Errorf("answer %q", buf[:n])
	}
	if log := w.log.String(); !strings.Contains(log, "control connection") || !strings.Contains(log, "uid=0") {
		t.Errorf("the peer is not in the log:\n%s", log)
	}
}
