package logs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/daemon/function"
)

func key(name string) function.Key {
	return function.Key{Environment: function.Environment{Project: "shop", Name: "default"}, Function: name}
}

func entry(name string, i int) Entry {
	return Entry{
		Time: time.Unix(int64(i), 0).UTC(), Key: key(name), Version: 1, Release: 2, Instance: "i1",
		RequestID: fmt.Sprintf("r%d", i/10), Stream: StreamStdout, Message: fmt.Sprintf("%s %d", name, i),
	}
}

func openStore(t testing.TB, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func messages(t testing.TB, s *Store, q Query) (got []string) {
	t.Helper()
	for e, err := range s.Query(t.Context(), q) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Message)
	}
	return got
}

// never is an interval that no test waits for.
const never = time.Hour

func TestVisibleAtOnceAndAfterRestart(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{FlushInterval: never})
	want := entry("a", 1)
	want.Message = "nul \x00, ansi \x1b[31m, lines\nand <html>"
	s.Append(want)
	check := func(when string) {
		t.Helper()
		for e, err := range s.Query(t.Context(), Query{Key: key("a")}) {
			if diff := cmp.Diff(want, e); err != nil || diff != "" {
				t.Errorf("%s: %v\n%s", when, err, diff)
			}
		}
		if n := len(messages(t, s, Query{Key: key("a")})); n != 1 {
			t.Errorf("%s: %d entries, want 1", when, n)
		}
	}
	check("in memory")
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("on disk")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.Append(entry("a", 2)) // no effect, no panic
	s = openStore(t, dir, Options{FlushInterval: never})
	check("after a restart")
}

func TestQuerySelects(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{FlushInterval: never, SegmentBytes: 1 << 10})
	for i := range 50 {
		s.Append(entry("a", i))
		s.Append(entry("b", i))
		if i == 20 {
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		q    Query
		want []string
	}{
		"limit":    {Query{Key: key("a"), Limit: 2}, []string{"a 48", "a 49"}},
		"since":    {Query{Key: key("a"), Since: time.Unix(48, 0)}, []string{"a 48", "a 49"}},
		"until":    {Query{Key: key("a"), Until: time.Unix(1, 0)}, []string{"a 0", "a 1"}},
		"request":  {Query{Key: key("b"), RequestID: "r2", Limit: 1}, []string{"b 29"}},
		"merged":   {Query{Key: function.Key{Environment: key("a").Environment}, Limit: 4}, []string{"a 48", "b 48", "a 49", "b 49"}},
		"unknown":  {Query{Key: key("c")}, nil},
		"no match": {Query{Key: function.Key{Environment: function.Environment{Project: "x"}}}, nil},
	} {
		if diff := cmp.Diff(test.want, messages(t, s, test.q)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got := len(messages(t, s, Query{})); got != 100 {
		t.Errorf("everything is %d entries, want 100", got)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("gone"))
	for _, err := range s.Query(ctx, Query{Key: key("a")}) {
		if err == nil || err.Error() != "gone" {
			t.Errorf("cancelled: %v", err)
		}
	}
}

func TestFollowMissesAndRepeatsNothing(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{FlushInterval: time.Millisecond})
	const total = 3000
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range total {
			s.Append(entry("a", i))
		}
	})
	for range 4 {
		ctx, cancel := context.WithCancel(t.Context())
		next := 0
		for e, err := range s.Query(ctx, Query{Key: key("a"), Follow: true}) {
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("a %d", next); e.Message != want {
				t.Fatalf("got %q, want %q", e.Message, want)
			}
			if next++; next == total {
				cancel()
			}
		}
		cancel()
		if next != total {
			t.Errorf("the sequence ended after %d entries", next)
		}
	}
	writing.Wait()
}

func TestFollowEndsWithStore(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	s.Append(entry("a", 0))
	n := 0
	for range s.Query(t.Context(), Query{Follow: true}) {
		if n++; n == 1 {
			s.Append(entry("new", 1)) // a function that was not there at first
		} else if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n != 2 {
		t.Errorf("%d entries, want 2", n)
	}
}

func TestSlowFollowerIsTold(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{FollowBytes: 2000})
	s.Append(entry("a", 0))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	for e, err := range s.Query(ctx, Query{Key: key("a"), Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, e.Message); len(got) == 1 {
			for i := range 100 {
				s.Append(entry("a", i+1))
			}
		}
		if e.Stream == StreamPlatform {
			cancel()
		}
	}
	if last := got[len(got)-1]; len(got) > 20 || !strings.Contains(last, "lfxd dropped") {
		t.Errorf("%d entries, the last is %q", len(got), last)
	}
}

func diskUse(t *testing.T, dir string) (total int64, files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		total += info.Size()
		files++
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return total, files
}

func TestBoundedOnDisk(t *testing.T) {
	dir := t.TempDir()
	const bound = 64 << 10
	opts := Options{MaxBytesPerFunction: bound, FlushInterval: never}
	s := openStore(t, dir, opts)
	for i := range 2000 {
		e := entry("a", i)
		e.Message = fmt.Sprintf("%05d %s", i, strings.Repeat("\x01", 100)) // grows when it is escaped
		s.Append(e)
		if i%50 == 49 {
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if used, _ := diskUse(t, dir); used > bound {
				t.Fatalf("%d bytes on disk, the bound is %d", used, bound)
			}
		}
	}
	if used, files := diskUse(t, dir); used < bound/2 || files < 4 {
		t.Errorf("only %d bytes in %d files are kept of %d", used, files, bound)
	}
	s.Close()
	s = openStore(t, dir, opts)
	s.Append(entry("a", 9999))
	got := messages(t, s, Query{Key: key("a")})
	if !strings.HasPrefix(got[len(got)-2], "01999") || got[len(got)-1] != "a 9999" {
		t.Errorf("the newest are %.10q", got[len(got)-2:])
	}
}

func TestTornLineIsSkippedAndCut(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{FlushInterval: never})
	s.Append(entry("a", 1))
	s.Close()
	path := filepath.Join(dir, "shop", "default", "a", "0000000000000001.ndjson")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "not json\n", `{"message":"torn`)
	f.Close()
	s = openStore(t, dir, Options{FlushInterval: never})
	s.Append(entry("a", 2))
	want := []string{"a 1", "a 2"}
	if diff := cmp.Diff(want, messages(t, s, Query{Key: key("a")})); diff != "" {
		t.Error(diff)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, messages(t, s, Query{Key: key("a")})); diff != "" {
		t.Error(diff)
	}
}

// TestDiskTrouble makes writing impossible and possible again: nobody waits, what fits in memory is kept,
// the rest is counted.
func TestDiskTrouble(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{FlushInterval: never, QueueBytes: 4 << 10})
	s.Append(entry("a", 0))
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	segment := filepath.Join(dir, "shop", "default", "a", "0000000000000001.ndjson")
	if err := os.Rename(segment, segment+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(segment, 0o700); err != nil { // cannot be opened for writing, by root neither
		t.Fatal(err)
	}
	for i := range 1000 {
		s.Append(entry("a", i+1))
	}
	if err := s.Flush(t.Context()); err == nil {
		t.Fatal("writing worked")
	}
	// In one step: the store's own writer may try at any time, and would make a new segment.
	if err := unix.Renameat2(unix.AT_FDCWD, segment+".away", unix.AT_FDCWD, segment, unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := messages(t, s, Query{Key: key("a")})
	if len(got) < 10 || got[0] != "a 0" || got[1] != "a 1" || !strings.HasPrefix(got[len(got)-1], "lfxd dropped 9") {
		t.Errorf("%d entries, the last is %q", len(got), got[len(got)-1])
	}
}

func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s := openStore(t, dir, Options{FlushInterval: never})
	defer s.Close()
	for i := range 1000 {
		s.Append(entry("a", i))
	}
	if err := s.Flush(t.Context()); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("err = %v, want ENOSPC", err)
	}
	if got := messages(t, s, Query{Key: key("a")}); len(got) != 1000 || got[999] != "a 999" {
		t.Errorf("%d entries are visible", len(got))
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := messages(t, s, Query{Key: key("a")})
	for i, m := range got {
		if m != fmt.Sprintf("a %d", i) {
			t.Fatalf("entry %d is %q", i, m)
		}
	}
	if len(got) != 1000 {
		t.Errorf("%d entries on disk", len(got))
	}
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{FlushInterval: never})
	s.Append(entry("a", 1))
	s.Append(entry("b", 1))
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Append(entry("a", 2))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for e := range s.Query(ctx, Query{Key: key("a"), Follow: true}) {
		switch e.Message {
		case "a 2":
			if err := s.Remove(key("a")); err != nil {
				t.Fatal(err)
			}
			if got := messages(t, s, Query{Key: key("a")}); got != nil {
				t.Errorf("still there: %v", got)
			}
			s.Append(entry("a", 3))
		case "a 3":
			cancel()
		}
	}
	if got := messages(t, s, Query{}); !cmp.Equal(got, []string{"b 1", "a 3"}) {
		t.Errorf("left: %v", got)
	}
	for _, name := range []string{"a", "b", "never was"} {
		if err := s.Remove(key(name)); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("folders are left: %v", left)
	}
}

type fakeSink struct {
	mu  sync.Mutex
	got []string
}

func (f *fakeSink) Send(e Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = append(f.got, e.Message)
	return errors.New("the journal is gone")
}

func TestSinkGetsEverything(t *testing.T) {
	var sink fakeSink
	s := openStore(t, t.TempDir(), Options{Sink: &sink})
	for i := range 100 {
		s.Append(entry("a", i))
	}
	s.Close()
	if len(sink.got) != 100 || sink.got[99] != "a 99" {
		t.Errorf("the sink got %d entries", len(sink.got))
	}
}

func TestJournalFields(t *testing.T) {
	want := map[string]string{
		"SYSLOG_IDENTIFIER": "lfx", "LFX_PROJECT": "shop", "LFX_ENVIRONMENT": "default", "LFX_FUNCTION": "a", "LFX_VERSION": "1",
		"LFX_RELEASE": "2", "LFX_INSTANCE": "i1", "LFX_REQUEST_ID": "r0", "LFX_STREAM": "stdout",
	}
	if diff := cmp.Diff(want, journalFields(entry("a", 1))); diff != "" {
		t.Error(diff)
	}
}

func TestConcurrentAppendsAndQueries(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{FlushInterval: time.Millisecond, MaxBytesPerFunction: 32 << 10})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 500 {
				s.Append(entry(fmt.Sprintf("f%d", (w+i)%3), i))
			}
		})
		wg.Go(func() {
			for range 10 {
				messages(t, s, Query{Limit: 50})
			}
		})
	}
	wg.Wait()
}

// FuzzComponent checks that a part of a key becomes one harmless file name, and back.
func FuzzComponent(f *testing.F) {
	for _, s := range []string{"hello-go", "..", "", "a/b", "%2e", "ä", "\x00", strings.Repeat("x", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name := component(s)
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > 255 {
			t.Errorf("%q becomes %q", s, name)
		}
		if back, ok := uncomponent(name); ok && back != s {
			t.Errorf("%q becomes %q becomes %q", s, name, back)
		}
	})
}
