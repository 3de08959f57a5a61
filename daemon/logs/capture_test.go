package logs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// collector gathers what a capture emits.
type collector struct {
	mu      sync.Mutex
	lines   []string
	lost    int64
	reports int
}

func (c *collector) emit(line []byte, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, Message(line, more))
}

func (c *collector) dropped(_, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost += bytes
	c.reports++
}

func (c *collector) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.lines, "\n")
}

// fifo makes a FIFO, and opens its read end as the daemon does.
func fifo(t testing.TB) (path string, r *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "stdout")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return path, r
}

func writer(t testing.TB, path string) *os.File {
	t.Helper()
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func capture(t testing.TB, r *os.File, c *collector, opts CaptureOptions) *Capture {
	t.Helper()
	opts.Dropped = c.dropped
	got, err := NewCapture(r, c.emit, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { got.Close() })
	return got
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func TestDrainComesAfterEverythingWritten(t *testing.T) {
	path, r := fifo(t)
	var c collector
	capt := capture(t, r, &c, CaptureOptions{})
	w := writer(t, path)
	for i := range 2000 {
		line := fmt.Sprintf("line %d", i)
		if _, err := w.WriteString(line + "\n"); err != nil {
			t.Fatal(err)
		}
		capt.Drain()
		c.mu.Lock()
		last := c.lines[len(c.lines)-1]
		c.mu.Unlock()
		if last != line {
			t.Fatalf("after Drain the last line is %q, want %q", last, line)
		}
	}
	if len(c.lines) != 2000 {
		t.Errorf("%d lines, want 2000", len(c.lines))
	}
}

func TestDrainFlushesUnfinishedLine(t *testing.T) {
	path, r := fifo(t)
	var c collector
	capt := capture(t, r, &c, CaptureOptions{})
	w := writer(t, path)
	fmt.Fprint(w, "no end")
	capt.Drain()
	if got := c.text(); got != "no end" {
		t.Errorf("got %q", got)
	}
}

func TestReaderEmitsWithoutDrain(t *testing.T) {
	path, r := fifo(t)
	var c collector
	capture(t, r, &c, CaptureOptions{})
	w := writer(t, path)
	fmt.Fprintln(w, "hello")
	eventually(t, "the line", func() bool { return c.text() == "hello" })
}

func TestNextWriterIsReadToo(t *testing.T) {
	path, r := fifo(t)
	var c collector
	capture(t, r, &c, CaptureOptions{})
	for i := range 3 {
		w := writer(t, path)
		fmt.Fprintf(w, "writer %d", i)
		w.Close()
		want := fmt.Sprintf("writer %d", i)
		eventually(t, want, func() bool { return strings.HasSuffix(c.text(), want) })
	}
}

func TestCloseEmitsWhatIsLeft(t *testing.T) {
	path, r := fifo(t)
	var c collector
	capt := capture(t, r, &c, CaptureOptions{})
	w := writer(t, path)
	fmt.Fprint(w, "a\nb")
	if err := capt.Close(); err != nil {
		t.Error(err)
	}
	if got := c.text(); got != "a\nb" {
		t.Errorf("got %q", got)
	}
	if err := capt.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	capt.Drain()
	if _, err := w.WriteString("late"); err == nil {
		t.Error("the read end is still open")
	}
}

func TestBlockingFileIsRefused(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := NewCapture(f, nil, CaptureOptions{}); err == nil {
		t.Error("a file that cannot be polled was accepted")
	}
}

func TestFloodIsDroppedAndReported(t *testing.T) {
	path, r := fifo(t)
	var c collector
	capt := capture(t, r, &c, CaptureOptions{Rate: 64 << 10, Burst: 256 << 10})
	w := writer(t, path)
	const total = 8 << 20
	line := append(bytes.Repeat([]byte("x"), 1023), '\n')
	start := time.Now()
	for range total / len(line) {
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the writer was held up for %v", took)
	}
	capt.Drain()
	c.mu.Lock()
	kept, lost, reports := int64(0), c.lost, c.reports
	for _, l := range c.lines {
		kept += int64(len(l)) + 1
	}
	c.mu.Unlock()
	if kept+lost < total-1024 || kept+lost > total+1024 {
		t.Errorf("kept %d and lost %d of %d bytes", kept, lost, total)
	}
	if lost < total/2 || reports == 0 {
		t.Errorf("lost %d in %d reports: the flood was not held", lost, reports)
	}
}

func TestHugeLineIsCut(t *testing.T) {
	path, r := fifo(t)
	var c collector
	capt := capture(t, r, &c, CaptureOptions{LineLimit: 1 << 10})
	w := writer(t, path)
	fmt.Fprintln(w, strings.Repeat("y", 10<<10))
	capt.Drain()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lines) != 10 || !strings.HasSuffix(c.lines[0], continued) || strings.HasSuffix(c.lines[9], continued) {
		t.Errorf("%d pieces", len(c.lines))
	}
}

func BenchmarkDrainEmpty(b *testing.B) {
	path, r := fifo(b)
	var c collector
	capt := capture(b, r, &c, CaptureOptions{})
	writer(b, path)
	b.ReportAllocs()
	for b.Loop() {
		capt.Drain()
	}
}
