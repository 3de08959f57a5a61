package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/daemon/store/storetest"
	"lfx.dev/lfxd/internal/tmpdir"
)

// childEnv makes the test binary a child that writes until it is killed.
const childEnv = "LFX_STORE_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		writeForever(dir)
	}
	os.Exit(m.Run())
}

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestContract(t *testing.T) {
	storetest.Suite(t, func(t *testing.T, dir string) storetest.Store { return open(t, dir) })
}

// fill makes n releases, each with a version of its own, and activates each.
func fill(t *testing.T, s *store.Store, n int) {
	t.Helper()
	for i := range n {
		r, err := s.RecordRelease(t.Context(), release(i))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Activate(t.Context(), storetest.Env, r.Release.Number); err != nil {
			t.Fatal(err)
		}
	}
}

func release(i int) store.NewRelease {
	return store.NewRelease{Environment: storetest.Env, Functions: []store.NewFunction{
		storetest.Fn("a", fmt.Sprintf("sha256:%d", i)), storetest.Fn("b", "sha256:same")}}
}

func TestFilesAreExclusiveAndPrivate(t *testing.T) {
	dir := filepath.Join(tmpdir.New(t), "state")
	s := open(t, dir)
	fill(t, s, 1)
	for name, want := range map[string]os.FileMode{"": os.ModeDir | 0o700, "state.db": 0o600, "state.db-wal": 0o600, "state.rev": 0o600, "lock": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%v", err)
		} else if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "state.db-shm")); err == nil {
		t.Error("there is a shared-memory file: the lock is not exclusive")
	}
}

func TestSecondOpenerIsRefused(t *testing.T) {
	dir := tmpdir.New(t)
	first := open(t, dir)
	refused := func(name, dir string) {
		t.Helper()
		_, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
		if !errors.Is(err, store.ErrLocked) {
			t.Errorf("%s: err = %v, want ErrLocked", name, err)
		}
	}
	refused("same path", dir)
	link := filepath.Join(tmpdir.New(t), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	refused("through a symlink", link)

	// A hard-linked database has another lock file; then SQLite's own lock refuses.
	hard := tmpdir.New(t)
	for _, name := range []string{"state.db", "state.rev"} {
		if err := os.Link(filepath.Join(dir, name), filepath.Join(hard, name)); err != nil {
			t.Fatal(err)
		}
	}
	refused("hard link", hard)
	fill(t, first, 1)
}

func TestSecondOpenerOnBindMount(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a bind mount needs root")
	}
	dir, other := tmpdir.New(t), tmpdir.New(t)
	s := open(t, dir)
	if err := unix.Mount(dir, other, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("bind mounts are not possible here: %v", err)
	}
	defer unix.Unmount(other, unix.MNT_DETACH)
	if _, err := store.Open(t.Context(), other, slog.New(slog.DiscardHandler)); !errors.Is(err, store.ErrLocked) {
		t.Errorf("err = %v, want ErrLocked", err)
	}
	fill(t, s, 1)
}

// writeForever is the child: it prints the number of each release after it was acknowledged.
func writeForever(dir string) {
	ctx := context.Background()
	s, err := store.Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(1)
	}
	for i := s.View().Revision(); ; i++ {
		r, err := s.RecordRelease(ctx, release(int(i)))
		if err == nil {
			err = s.Activate(ctx, storetest.Env, r.Release.Number)
		}
		if err != nil {
			fmt.Println("write:", err)
			os.Exit(1)
		}
		fmt.Println(r.Release.Number)
	}
}

func TestKilledInTheMiddle(t *testing.T) {
	dir := tmpdir.New(t)
	last := 0
	for round := range 5 {
		acked := killedChild(t, dir, 3+rand.IntN(20))
		s := open(t, dir)
		active := s.View().ActiveRelease(storetest.Env)
		if active == nil || active.Number < acked || active.Number > acked+1 {
			t.Fatalf("round %d: release %d was acknowledged, found %+v", round, acked, active)
		}
		if acked <= last {
			t.Fatalf("round %d: numbers went from %d to %d", round, last, acked)
		}
		for n := 1; n <= acked; n++ {
			if s.View().Release(storetest.Env, n) == nil {
				t.Fatalf("round %d: release %d is lost", round, n)
			}
		}
		last = acked
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killedChild runs a writing child, kills it after n acknowledged releases and returns the last one.
func killedChild(t *testing.T, dir string, n int) (acked int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		number, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Errorf("child: %s", lines.Text())
			break
		}
		if acked = number; n == 0 {
			_ = cmd.Process.Kill()
		}
		n--
	}
	_ = cmd.Wait()
	return acked
}

// crashed makes a state directory as a crash leaves it, with the log beside the database.
func crashed(t *testing.T) string {
	t.Helper()
	dir := tmpdir.New(t)
	s := open(t, dir)
	fill(t, s, 5)
	copied := tmpdir.New(t)
	copyFiles(t, dir, copied)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return copied
}

func copyFiles(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func wantDamaged(t *testing.T, dir, what string) {
	t.Helper()
	s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, store.ErrDamaged) {
		t.Errorf("%s: err = %v, want ErrDamaged", what, err)
	} else if !strings.Contains(err.Error(), "accept") {
		t.Errorf("%s: no remedy in %v", what, err)
	}
}

func TestLossesAreDetected(t *testing.T) {
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(name string, size int64) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, name), size); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]func(*testing.T, string){
		"wal deleted":        remove("state.db-wal"),
		"wal truncated":      truncate("state.db-wal", 9000),
		"wal emptied":        truncate("state.db-wal", 0),
		"database deleted":   func(t *testing.T, dir string) { remove("state.db")(t, dir); remove("state.db-wal")(t, dir) },
		"revision deleted":   remove("state.rev"),
		"revision emptied":   truncate("state.rev", 0),
		"revision truncated": truncate("state.rev", 10),
		"another database": func(t *testing.T, dir string) {
			other := tmpdir.New(t)
			s := open(t, other)
			fill(t, s, 9)
			s.Close()
			remove("state.db-wal")(t, dir)
			data, err := os.ReadFile(filepath.Join(other, "state.db"))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "state.db"), data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			dir := crashed(t)
			damage(t, dir)
			wantDamaged(t, dir, name)
			wantDamaged(t, dir, name+", a second time")
		})
	}
	open(t, crashed(t)) // nothing done to it: opens
}

func TestOldCopyIsRefusedUnlessAccepted(t *testing.T) {
	dir, backup := tmpdir.New(t), tmpdir.New(t)
	s := open(t, dir)
	fill(t, s, 2)
	s.Close()
	copyFiles(t, dir, backup)
	s = open(t, dir)
	fill(t, s, 3)
	s.Close()
	data, err := os.ReadFile(filepath.Join(backup, "state.db"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "state.db"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, dir, "old copy")
	if err := os.WriteFile(filepath.Join(dir, "state.rev"), []byte("accept\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if got := s.View().ActiveRelease(storetest.Env).Number; got != 2 {
		t.Errorf("active release = %d, want 2", got)
	}
	fill(t, s, 1)
	s.Close()
	open(t, dir)
}

// TestBitFlips flips one bit at many places of the database: it must be refused, or nothing may
// have changed.
func TestBitFlips(t *testing.T) {
	dir := tmpdir.New(t)
	s := open(t, dir)
	fill(t, s, 4)
	want := describe(s.View())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "state.db")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := os.ReadFile(filepath.Join(dir, "state.rev"))
	if err != nil {
		t.Fatal(err)
	}
	detected := 0
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 160 {
		bad := append([]byte(nil), good...)
		at := random.IntN(len(bad))
		if i < 100 {
			at = i // the header, bit by bit
		}
		bad[at] ^= 1 << random.IntN(8)
		if err := errors.Join(os.WriteFile(path, bad, 0o600), os.WriteFile(filepath.Join(dir, "state.rev"), rev, 0o600)); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(path + "-wal")
		s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			detected++
			continue
		}
		if got := describe(s.View()); got != want {
			t.Errorf("a flip at %d changed the state silently:\n%s", at, got)
		}
		s.Close()
	}
	if detected == 0 {
		t.Error("not one flip was detected")
	}
	t.Logf("%d of 160 flips refused, the others hit unused bytes", detected)
}

func describe(v *store.Snapshot) string {
	var b strings.Builder
	for _, e := range v.Environments() {
		fmt.Fprintln(&b, e.Environment, e.Account, e.Created)
		for _, r := range v.Releases(e.Environment) {
			fmt.Fprintf(&b, "%+v\n", *r)
		}
		for _, f := range v.Functions(e.Environment) {
			for _, version := range f.Versions {
				fmt.Fprintf(&b, "%+v\n", *version)
			}
		}
	}
	return b.String()
}

func TestReadersNeverWait(t *testing.T) {
	s := open(t, tmpdir.New(t))
	fill(t, s, 1)
	key := function.Key{Environment: storetest.Env, Function: "a"}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := s.View()
				r := v.ActiveRelease(storetest.Env)
				if v.Version(key, r.Versions["a"]) == nil || len(v.ByName("a")) != 1 {
					t.Error("a snapshot contradicts itself")
					return
				}
			}
		})
	}
	fill(t, s, 20)
	close(stop)
	readers.Wait()
}

func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a tmpfs needs root")
	}
	dir := tmpdir.New(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=400k"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fill(t, s, 1)
	filler := filepath.Join(dir, "filler")
	_ = os.WriteFile(filler, make([]byte, 400<<10), 0o600) // as much as fits
	before := describe(s.View())
	for i := 0; err == nil && i < 1000; i++ {
		if _, err = s.RecordRelease(t.Context(), release(100+i)); err == nil {
			before = describe(s.View())
		}
	}
	if err == nil {
		t.Fatal("the disk never filled")
	}
	if got := describe(s.View()); got != before {
		t.Errorf("a write that failed changed the state")
	}
	if errors.Is(err, store.ErrFatal) {
		t.Fatalf("a full disk is not fatal, got %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	fill(t, s, 1)
}
