package pressure

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/internal/leaktest"
	"lfx.dev/lfxd/internal/tmpdir"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestParseMeminfo(t *testing.T) {
	for _, c := range []struct {
		text             string
		available, total uint64
		ok               bool
	}{
		{"MemTotal:       24683520 kB\nMemFree:        20480000 kB\nMemAvailable:   23948288 kB\n", 23948288, 24683520, true},
		{"MemAvailable: 1 kB\nMemTotal: 2 kB", 1, 2, true},
		{"MemTotal: 2 kB\n", 0, 0, false},
		{"MemTotal: 0 kB\nMemAvailable: 0 kB\n", 0, 0, false},
		{"MemTotal: x kB\nMemAvailable: 1 kB\n", 0, 0, false},
		{"", 0, 0, false},
	} {
		available, total, err := parseMeminfo([]byte(c.text))
		if (err == nil) != c.ok || c.ok && (available != c.available || total != c.total) {
			t.Errorf("%q: %d, %d, %v; want %d, %d", c.text, available, total, err, c.available, c.total)
		}
	}
}

func FuzzParseMeminfo(f *testing.F) {
	f.Add([]byte("MemTotal: 2 kB\nMemAvailable: 1 kB\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, total, err := parseMeminfo(text); err == nil && total == 0 {
			t.Error("a total of zero, by which somebody divides")
		}
	})
}

func TestLook(t *testing.T) {
	dir := tmpdir.New(t)
	for _, c := range []struct {
		available int // of 1000
		stalled   bool
		want      string
	}{
		{900, false, ""}, {900, true, ""}, {200, false, ""}, {200, true, Stall}, {50, false, Available}, {50, true, Available},
		{-1, false, ""}, {-1, true, Stall}, // no such file
	} {
		path := filepath.Join(dir, "none")
		if c.available >= 0 {
			path = filepath.Join(dir, "meminfo")
			if err := os.WriteFile(path, fmt.Appendf(nil, "MemTotal: 1000 kB\nMemAvailable: %d kB\n", c.available), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		o := Options{Meminfo: path, Notify: func(source string) { got = append(got, source) }}
		o.defaults()
		w := watch{o: o}
		w.look(c.stalled)
		w.look(c.stalled) // at once again: not told twice
		if c.want == "" && len(got) != 0 || c.want != "" && (len(got) != 1 || got[0] != c.want) {
			t.Errorf("%d of 1000 available, stalled %v: told %q, want %q once", c.available, c.stalled, got, c.want)
		}
	}
}

// TestWatchWithoutPSI polls, tells, and ends with its context.
func TestWatchWithoutPSI(t *testing.T) {
	meminfo := filepath.Join(tmpdir.New(t), "meminfo")
	if err := os.WriteFile(meminfo, []byte("MemTotal: 100 kB\nMemAvailable: 1 kB\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, done := make(chan string, 10), make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		Watch(ctx, Options{Stalls: meminfo + ".none", Meminfo: meminfo, Notify: func(source string) { told <- source }})
	}()
	select {
	case source := <-told:
		if source != Available {
			t.Errorf("told %q, want %q", source, Available)
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody was told")
	}
	cancel()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the watch does not end")
	}
}

// TestTrigger sets the trigger on the kernel that is there.
func TestTrigger(t *testing.T) {
	const path = "/proc/pressure/memory"
	if unix.Access(path, unix.W_OK) != nil {
		t.Skip("needs pressure stall information and root")
	}
	f, err := openStalls(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := watch{}
	ctx, cancel := context.WithCancel(t.Context())
	k, err := newWake(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	cancel()
	if _, broken := w.wait(f, k.fd); broken {
		t.Error("the kernel refuses to be polled")
	}
}
