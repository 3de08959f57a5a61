// Package pressure tells when the host becomes short of memory, so that others can give some back before the kernel has to
// kill.
//
// Where the kernel has pressure stall information (PSI), a trigger wakes the watch as soon as processes stall; beside it
// the memory that is available is looked at every second, which is all there is on other kernels. A stall counts only while
// memory is short on the whole host: a function that fights with its own limit stalls too.
package pressure

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Sources of a notice.
const (
	// Stall: processes wait for memory, and little is available.
	Stall = "processes stall for want of memory"
	// Available: hardly any memory is available.
	Available = "little memory is available"
)

const (
	// trigger asks the kernel for a notice when some process has stalled for 200 ms in two seconds, in microseconds. Without
	// CAP_SYS_RESOURCE it takes multiples of two seconds only.
	trigger = "some 200000 2000000\x00"
	// interval is the pause between two looks at what is available, and the least between two notices.
	interval = time.Second
)

// Options say what to watch. The zero value of each field but Notify has a default.
type Options struct {
	// Stalls is the pressure file; default /proc/pressure/memory.
	Stalls string
	// Meminfo is the file with what is available; default /proc/meminfo.
	Meminfo string
	// Short is the share of the host's memory below which stalls count, Low that below which it is a
	// notice by itself; default 0.25 and 0.1.
	Short, Low float64
	// Notify is called from Watch's goroutine, at most about once a second while it lasts.
	Notify func(source string)
	Log    *slog.Logger
}

func (o *Options) defaults() {
	if o.Stalls == "" {
		o.Stalls = "/proc/pressure/memory"
	}
	if o.Meminfo == "" {
		o.Meminfo = "/proc/meminfo"
	}
	if o.Short == 0 {
		o.Short = 0.25
	}
	if o.Low == 0 {
		o.Low = 0.1
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Watch blocks until ctx ends. What it cannot read is logged once and then done without.
func Watch(ctx context.Context, o Options) {
	o.defaults()
	w := watch{o: o}
	stalls, err := openStalls(o.Stalls)
	if err != nil {
		o.Log.Info("the kernel does not tell when processes stall for want of memory; lfxd looks once a second", "error", err)
	} else {
		defer stalls.Close()
	}
	wake, err := newWake(ctx)
	if err != nil {
		o.Log.Warn("nobody watches the host's memory", "error", err)
		return
	}
	defer wake.close()
	for ctx.Err() == nil {
		stalled, broken := w.wait(stalls, wake.fd)
		if broken {
			stalls.Close()
			stalls = nil
			o.Log.Info("the kernel does not tell any more when processes stall for want of memory; lfxd looks once a second")
		}
		if ctx.Err() == nil {
			w.look(stalled)
		}
	}
}

// openStalls registers a trigger; the file must stay open.
func openStalls(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if _, err := unix.Write(fd, []byte(trigger)); err != nil {
		unix.Close(fd) //nolint:errcheck // the first error says more
		return nil, &fs.PathError{Op: "set a trigger on", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// wake ends a poll when a context ends.
type wake struct {
	fd   int
	stop func() bool
	done chan struct{}
}

func newWake(ctx context.Context) (*wake, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	k := &wake{fd: fd, done: make(chan struct{})}
	k.stop = context.AfterFunc(ctx, func() {
		defer close(k.done)
		unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) //nolint:errcheck // the poll ends after a second at the latest
	})
	return k, nil
}

func (k *wake) close() {
	if !k.stop() {
		<-k.done
	}
	unix.Close(k.fd) //nolint:errcheck // nothing is left to do
}

type watch struct {
	o      Options
	told   time.Time
	failed bool // reading what is available
}

// wait blocks for an interval, a stall or the end; broken means that the pressure file is of no use any more.
func (w *watch) wait(stalls *os.File, end int) (stalled, broken bool) {
	fds := []unix.PollFd{{Fd: int32(end), Events: unix.POLLIN}}
	if stalls != nil {
		fds = append(fds, unix.PollFd{Fd: int32(stalls.Fd()), Events: unix.POLLPRI})
	}
	n, err := unix.Poll(fds, int(interval/time.Millisecond))
	if err != nil || n <= 0 || stalls == nil {
		return false, false
	}
	return fds[1].Revents&unix.POLLPRI != 0, fds[1].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// look reads what is available and tells when that is too little.
func (w *watch) look(stalled bool) {
	available, total, err := readMeminfo(w.o.Meminfo)
	if err != nil {
		if !w.failed {
			w.failed = true
			w.o.Log.Warn("how much memory is available cannot be read", "error", err)
		}
		if !stalled {
			return
		}
		available, total = 0, 1 // a stall alone must do
	}
	share, source := float64(available)/float64(total), ""
	switch {
	case share < w.o.Low:
		source = Available
	case stalled && share < w.o.Short:
		source = Stall
	}
	if stalled && err != nil {
		source = Stall
	}
	if source == "" || time.Since(w.told) < interval*9/10 {
		return
	}
	w.told = time.Now()
	w.o.Notify(source)
}

func readMeminfo(path string) (available, total uint64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	available, total, err = parseMeminfo(b)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", path, err)
	}
	return available, total, nil
}

// parseMeminfo returns MemAvailable and MemTotal in KiB; the second is never zero.
func parseMeminfo(text []byte) (available, total uint64, err error) {
	var have int
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan() && have < 2; {
		name, value, _ := bytes.Cut(s.Bytes(), []byte(":"))
		to := map[string]*uint64{"MemAvailable": &available, "MemTotal": &total}[string(name)]
		if to == nil {
			continue
		}
		n, perr := strconv.ParseUint(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 64)
		if perr != nil {
			return 0, 0, fmt.Errorf("%s: %w", name, perr)
		}
		*to = n
		have++
	}
	if have < 2 || total == 0 {
		return 0, 0, errors.New("it has no MemAvailable and MemTotal")
	}
	return available, total, nil
}
