package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"

	"lfx.dev/lfxd/buildkit/source"
)

// daemon serves sessions on a Unix socket, as lfxd does.
func daemon(t *testing.T) (*Sessions, source.Dialer) {
	t.Helper()
	dir, err := os.MkdirTemp("", "lfxs") // short: socket paths are limited to 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	sessions, err := NewSessions()
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /lfx/v1/session", sessions)
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{Handler: mux, ReadTimeout: time.Second, WriteTimeout: time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(l) }()
	t.Cleanup(func() { cancel(); srv.Close(); <-served; os.RemoveAll(dir) })
	return sessions, func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", sock) }
}

// offer offers directories and returns the daemon's end.
func offer(t *testing.T, dirs map[string]string) session.Caller {
	t.Helper()
	sessions, dial := daemon(t)
	id, done, err := source.Offer(context.Background(), source.Options{Dial: dial, Path: "/lfx/v1/session", Dirs: dirs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
	caller, err := sessions.Caller(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return caller
}

// list describes a directory: one line per entry.
func list(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fi, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %s", fi.Mode(), rel)
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			line += " -> " + target
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", data)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func receive(t *testing.T, c session.Caller, dest string, opts ReceiveOptions) (Received, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return Receive(ctx, c, "hello", dest, opts)
}

func TestReceive(t *testing.T) {
	src := tree(t, map[string]string{
		"Dockerfile": "FROM scratch\n", ".dockerignore": "Dockerfile\n*.log\nnode_modules\n!keep.log\n", "app.py": "1", "a.log": "x",
		"keep.log": "k", "node_modules/x/y": "z", "lib/ä b.py": "2", "run.sh": "#!",
	})
	for name, mode := range map[string]os.FileMode{"app.py": 0o600, "run.sh": 0o4711} {
		if err := os.Chmod(filepath.Join(src, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/shadow", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(src, "app.py"), filepath.Join(src, "same.py")); err != nil {
		t.Fatal(err)
	}
	caller := offer(t, map[string]string{"hello": src})
	dest := filepath.Join(t.TempDir(), "mirror")
	got, err := receive(t, caller, dest, ReceiveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`-rw-r--r-- .dockerignore "Dockerfile\n*.log\nnode_modules\n!keep.log\n"`, `-rw-r--r-- Dockerfile "FROM scratch\n"`,
		`-rw-r--r-- app.py "1"`, `-rw-r--r-- keep.log "k"`, `drwxr-xr-x lib`, `-rw-r--r-- lib/ä b.py "2"`,
		`Lrwxrwxrwx link -> /etc/shadow`, `-rwxr-xr-x run.sh "#!"`, `-rw-r--r-- same.py "1"`,
	}
	if diff := cmp.Diff(want, list(t, dest)); diff != "" {
		t.Errorf("mirror (-want +got):\n%s", diff)
	}
	if got.Entries != len(want) || got.Transferred == 0 {
		t.Errorf("Received = %+v", got)
	}

	// Nothing changed: nothing travels. Then one file does, one goes, one comes.
	if got, err = receive(t, caller, dest, ReceiveOptions{}); err != nil || got.Transferred != 0 {
		t.Errorf("again: %+v, %v", got, err)
	}
	writeFile(t, src, "app.py", "changed")
	writeFile(t, src, "new/file", "n")
	if err := os.Remove(filepath.Join(src, "keep.log")); err != nil {
		t.Fatal(err)
	}
	if got, err = receive(t, caller, dest, ReceiveOptions{}); err != nil || got.Transferred != 2*int64(len("changed"))+1 {
		t.Errorf("after a change: %+v, %v", got, err)
	}
	after := list(t, dest)
	if slices.Contains(after, `-rw-r--r-- keep.log "k"`) || !slices.Contains(after, `-rw-r--r-- new/file "n"`) || !slices.Contains(after, `-rw-r--r-- app.py "changed"`) {
		t.Errorf("mirror after a change: %v", after)
	}
	if entries, _ := os.ReadDir(filepath.Dir(dest)); len(entries) != 2 {
		t.Errorf("left beside the mirror: %v", entries)
	}
	if err := RemoveMirror(dest); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(dest)); len(entries) != 0 {
		t.Errorf("left after RemoveMirror: %v", entries)
	}
}

// <Dockerfile>.dockerignore counts instead of .dockerignore.
func TestReceiveOwnIgnore(t *testing.T) {
	src := tree(t, map[string]string{
		"build/Dockerfile.prod": "FROM scratch\n", "build/Dockerfile.prod.dockerignore": "a\nbuild\n", ".dockerignore": "b\n", "a": "a", "b": "b", "build/x": "x",
	})
	caller := offer(t, map[string]string{"hello": src})
	dest := filepath.Join(t.TempDir(), "m")
	if _, err := receive(t, caller, dest, ReceiveOptions{Dockerfile: "build/Dockerfile.prod"}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`-rw-r--r-- .dockerignore "b\n"`, `-rw-r--r-- b "b"`, `drwxr-xr-x build`,
		`-rw-r--r-- build/Dockerfile.prod "FROM scratch\n"`, `-rw-r--r-- build/Dockerfile.prod.dockerignore "a\nbuild\n"`,
	}
	if diff := cmp.Diff(want, list(t, dest)); diff != "" {
		t.Errorf("mirror (-want +got):\n%s", diff)
	}
}

func TestReceiveRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		make func(dir string) error
		opts ReceiveOptions
		want string
	}{
		"fifo":                {func(d string) error { return syscall.Mkfifo(d+"/f", 0o600) }, ReceiveOptions{}, `"f" is neither`},
		"device":              {func(d string) error { return syscall.Mknod(d+"/f", syscall.S_IFCHR, 1<<8|3) }, ReceiveOptions{}, `"f" is neither`},
		"socket":              {func(d string) error { return listen(d + "/f") }, ReceiveOptions{}, `"f" is neither`},
		"no Dockerfile":       {func(d string) error { return os.Remove(d + "/Dockerfile") }, ReceiveOptions{}, "no Dockerfile"},
		"linked Dockerfile":   {relink("Dockerfile"), ReceiveOptions{}, "regular file"},
		"linked dockerignore": {relink(".dockerignore"), ReceiveOptions{}, "regular file"},
		"outer Dockerfile":    {nothing, ReceiveOptions{Dockerfile: "../Dockerfile"}, "leaves the context"},
		"bytes":               {func(d string) error { return os.Truncate(d+"/Dockerfile", 3<<20) }, ReceiveOptions{Limits: Limits{Bytes: 2 << 20, Entries: 9, PathLength: 99, PathDepth: 9}}, "larger than 2 MiB"},
		"entries":             {func(d string) error { return os.MkdirAll(d+"/1/2/3", 0o755) }, ReceiveOptions{Limits: Limits{Bytes: 1 << 20, Entries: 3, PathLength: 99, PathDepth: 9}}, "more than 3 files"},
		"depth":               {func(d string) error { return os.MkdirAll(d+"/1/2/3", 0o755) }, ReceiveOptions{Limits: Limits{Bytes: 1 << 20, Entries: 9, PathLength: 99, PathDepth: 2}}, "deeper than 2"},
		"length":              {func(d string) error { return os.Mkdir(d+"/"+strings.Repeat("x", 100), 0o755) }, ReceiveOptions{Limits: Limits{Bytes: 1 << 20, Entries: 9, PathLength: 99, PathDepth: 9}}, "longer than 99"},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Getuid() != 0 && name == "device" {
				t.Skip("needs root: makes a device")
			}
			src := tree(t, map[string]string{"Dockerfile": "FROM scratch\n", ".dockerignore": "ignored\n"})
			if err := tc.make(src); err != nil {
				t.Fatal(err)
			}
			caller := offer(t, map[string]string{"hello": src})
			dest := filepath.Join(t.TempDir(), "m")
			_, err := receive(t, caller, dest, tc.opts)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Receive = %v, want %q", err, tc.want)
			}
			if name != "no Dockerfile" && !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
		})
	}
}

func nothing(string) error { return nil }

func relink(name string) func(string) error {
	return func(d string) error {
		return errors.Join(os.Rename(d+"/"+name, d+"/real"), os.Symlink("real", d+"/"+name))
	}
}

// listen leaves a socket file behind.
func listen(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

// Ignored special files do not matter.
func TestReceiveIgnoredSocket(t *testing.T) {
	src := tree(t, map[string]string{"Dockerfile": "FROM scratch\n", ".dockerignore": "ignored\n"})
	if err := listen(src + "/ignored"); err != nil {
		t.Fatal(err)
	}
	if _, err := receive(t, offer(t, map[string]string{"hello": src}), filepath.Join(t.TempDir(), "m"), ReceiveOptions{}); err != nil {
		t.Fatal(err)
	}
}

// What the last call left half-written is made anew, whatever it looks like.
func TestReceiveRepairs(t *testing.T) {
	src := tree(t, map[string]string{"Dockerfile": "FROM scratch\n", "a": "right"})
	caller := offer(t, map[string]string{"hello": src})
	dest := filepath.Join(t.TempDir(), "m")
	if _, err := receive(t, caller, dest, ReceiveOptions{}); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(dest, "a"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dest, "a", "WRONG")
	if err := os.Chtimes(filepath.Join(dest, "a"), fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := listen(src + "/sock"); err != nil { // makes the next call fail after it began to write
		t.Fatal(err)
	}
	if _, err := receive(t, caller, dest, ReceiveOptions{}); err == nil {
		t.Fatal("a socket was accepted")
	}
	if err := os.Remove(src + "/sock"); err != nil {
		t.Fatal(err)
	}
	if _, err := receive(t, caller, dest, ReceiveOptions{}); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(filepath.Join(dest, "a")); string(data) != "right" {
		t.Errorf("a = %q", data)
	}
}

// An unreadable file fails the transfer; it must not become an empty one.
func TestReceiveUnreadable(t *testing.T) {
	caller := fakeClient(t, []*types.Stat{
		{Path: "Dockerfile", Mode: 0o644, Size: 1}, {Path: "gone", Mode: 0o644, Size: 4},
	}, map[uint32]string{0: "x"})
	_, err := receive(t, caller, filepath.Join(t.TempDir(), "m"), ReceiveOptions{})
	if err == nil || !strings.Contains(err.Error(), "became shorter") {
		t.Errorf("Receive = %v", err)
	}
}

// A client that speaks the protocol but not the truth cannot write outside of its mirror.
func TestReceiveHostile(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	symlink := uint32(fs.ModeSymlink | 0o777)
	for name, stats := range map[string][]*types.Stat{
		"absolute":     {{Path: outside, Mode: 0o644, Size: 1}},
		"dotdot":       {{Path: "../victim", Mode: 0o644, Size: 1}},
		"inner dotdot": {{Path: "a", Mode: uint32(fs.ModeDir | 0o755)}, {Path: "a/../../victim", Mode: 0o644, Size: 1}},
		"nul":          {{Path: "a\x00b", Mode: 0o644, Size: 1}},
		"empty":        {{Path: "", Mode: 0o644, Size: 1}},
		"long name":    {{Path: strings.Repeat("n", 256), Mode: 0o644}},
		"through link": {{Path: "l", Mode: symlink, Linkname: filepath.Dir(outside)}, {Path: "l/victim", Mode: 0o644, Size: 1}},
		"onto link":    {{Path: "l", Mode: symlink, Linkname: outside}, {Path: "l", Mode: 0o644, Size: 1}},
		"negative":     {{Path: "a", Mode: 0o644, Size: -5}},
		"bad link":     {{Path: "a", Mode: symlink}},
		"huge":         {{Path: "a", Mode: 0o644, Size: 1 << 40}},
		"setid dir":    {{Path: "a", Mode: uint32(fs.ModeDir | fs.ModeSetuid | fs.ModeSticky | 0o777)}, {Path: "b", Mode: uint32(fs.ModeDevice), Devmajor: 1, Devminor: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			all := append([]*types.Stat{{Path: "Dockerfile", Mode: 0o644, Size: 1}}, stats...)
			data := map[uint32]string{0: "x"}
			for i := range stats {
				data[uint32(i+1)] = "X"
			}
			dest := filepath.Join(t.TempDir(), "m")
			if _, err := receive(t, fakeClient(t, all, data), dest, ReceiveOptions{}); err == nil {
				t.Error("accepted")
			}
			if got, _ := os.ReadFile(outside); string(got) != "safe" {
				t.Errorf("the file outside is now %q", got)
			}
		})
	}
	t.Run("more than announced", func(t *testing.T) {
		c := fakeClient(t, []*types.Stat{{Path: "Dockerfile", Mode: 0o644, Size: 1}}, map[uint32]string{0: strings.Repeat("x", 2<<20)})
		_, err := receive(t, c, filepath.Join(t.TempDir(), "m"), ReceiveOptions{Limits: Limits{Bytes: 1 << 20, Entries: 9, PathLength: 99, PathDepth: 9}})
		if err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
			t.Errorf("Receive = %v", err)
		}
	})
	t.Run("hard link out", func(t *testing.T) {
		c := fakeClient(t, []*types.Stat{{Path: "Dockerfile", Mode: 0o644, Size: 1}, {Path: "h", Mode: 0o644, Size: 1, Linkname: "../victim"}}, map[uint32]string{0: "x", 1: "y"})
		dest := filepath.Join(t.TempDir(), "m")
		if _, err := receive(t, c, dest, ReceiveOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(filepath.Join(dest, "h")); string(got) != "y" {
			t.Errorf("h = %q, want a file of its own", got)
		}
	})
}

// fakeClient opens a session whose filesync service sends just those entries and contents.
func fakeClient(t *testing.T, stats []*types.Stat, data map[uint32]string) session.Caller {
	t.Helper()
	sessions, err := NewSessions()
	if err != nil {
		t.Fatal(err)
	}
	s, err := session.NewSession(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	s.Allow(fakeSync{stats: stats, data: data})
	ours, theirs := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() {
		s.Run(ctx, func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			go func() { sessions.manager.HandleConn(ctx, ours, meta); done <- struct{}{} }()
			return theirs, nil
		})
		done <- struct{}{}
	}()
	t.Cleanup(func() { cancel(); s.Close(); <-done; <-done })
	caller, err := sessions.Caller(ctx, s.ID())
	if err != nil {
		t.Fatal(err)
	}
	return caller
}

type fakeSync struct {
	filesync.UnimplementedFileSyncServer
	stats []*types.Stat
	data  map[uint32]string
}

func (f fakeSync) Register(s *grpc.Server) { filesync.RegisterFileSyncServer(s, f) }

func (f fakeSync) DiffCopy(stream filesync.FileSync_DiffCopyServer) error {
	for _, st := range f.stats {
		if err := stream.Send(&types.Packet{Type: types.PACKET_STAT, Stat: st.Clone()}); err != nil {
			return err
		}
	}
	if err := stream.Send(&types.Packet{Type: types.PACKET_STAT}); err != nil {
		return err
	}
	for {
		p, err := stream.Recv()
		if err != nil {
			return err
		}
		switch p.Type {
		case types.PACKET_FIN:
			return stream.Send(&types.Packet{Type: types.PACKET_FIN})
		case types.PACKET_ERR:
			return errors.New(string(p.Data))
		case types.PACKET_REQ:
			for text := f.data[p.ID]; text != ""; {
				n := min(len(text), 1<<20)
				if err := stream.Send(&types.Packet{Type: types.PACKET_DATA, ID: p.ID, Data: []byte(text[:n])}); err != nil {
					return err
				}
				text = text[n:]
			}
			if err := stream.Send(&types.Packet{Type: types.PACKET_DATA, ID: p.ID}); err != nil {
				return err
			}
		}
	}
}

func TestOfferRefused(t *testing.T) {
	_, dial := daemon(t)
	_, _, err := source.Offer(context.Background(), source.Options{Dial: dial, Path: "/elsewhere", Dirs: map[string]string{"a": t.TempDir()}})
	if err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("Offer = %v", err)
	}
	if _, _, err := source.Offer(context.Background(), source.Options{Dial: dial, Path: "/lfx/v1/session", Dirs: map[string]string{"a": "/nonexistent"}}); err == nil {
		t.Error("offered a directory that is not there")
	}
	down := func(context.Context) (net.Conn, error) { return nil, io.ErrUnexpectedEOF }
	if _, _, err := source.Offer(context.Background(), source.Options{Dial: down, Path: "/lfx/v1/session"}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Offer = %v, want the dialer's error", err)
	}
}

// The daemon notices at once that the client has gone, and a build in its context ends.
func TestSessionEnds(t *testing.T) {
	sessions, dial := daemon(t)
	id, done, err := source.Offer(context.Background(), source.Options{Dial: dial, Path: "/lfx/v1/session", Dirs: map[string]string{"a": t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	caller, err := sessions.Caller(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	ctx := caller.Context(context.Background())
	done()
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the session is still open")
	}
	wait, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := sessions.Caller(wait, id); err == nil {
		t.Error("a closed session was found")
	}
	if _, err := sessions.Caller(context.Background(), "../x"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Caller with a bad id = %v", err)
	}
}

// Two thousand files of 20 MB: seconds at first, next to nothing after a change.
func TestReceiveLarge(t *testing.T) {
	src := t.TempDir()
	writeFile(t, src, "Dockerfile", "FROM scratch\n")
	text := strings.Repeat("x", 10_000)
	for i := range 2000 {
		writeFile(t, src, fmt.Sprintf("d%d/f%d", i%40, i), text)
	}
	caller := offer(t, map[string]string{"hello": src})
	dest := filepath.Join(t.TempDir(), "m")
	start := time.Now()
	got, err := receive(t, caller, dest, ReceiveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	first := time.Since(start)
	writeFile(t, src, "d1/f1", "changed")
	start = time.Now()
	again, err := receive(t, caller, dest, ReceiveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries, %d bytes: %v; then %d bytes: %v (%d CPUs)", got.Entries, got.Transferred, first, again.Transferred, time.Since(start), runtime.NumCPU())
	if again.Transferred != int64(len("changed")) {
		t.Errorf("%d bytes travelled after a change", again.Transferred)
	}
}
