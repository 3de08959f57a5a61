package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"lfx.dev/lfxd/daemon/function"
)

var update = flag.Bool("update", false, "write the golden outputs in testdata and docs/lfxctl.md anew")

// lfxctlVariable makes the test binary be lfxctl.
const lfxctlVariable = "LFXCTL_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(lfxctlVariable) != "" {
		main()
	}
	logrus.SetOutput(io.Discard) // BuildKit's session manager, in the fake daemon, reports every hang-up
	os.Exit(m.Run())
}

// patience bounds what a test waits for.
const patience = time.Minute

func scriptEnv(fake *fakeDaemon) map[string]string {
	return map[string]string{
		"LFX_HOST": "unix://" + fake.socket,
		"TZ":       "UTC",
		// Whatever repository the temporary directory may be in is not the project's.
		"GIT_CEILING_DIRECTORIES": filepath.Clean(os.TempDir()),
		"ACCOUNT":                 function.Account(key("examples", "default", "").Environment),
		"STAGING":                 function.Account(key("shop", "staging", "").Environment),
	}
}

// interrupt runs a command, sends it SIGINT so many times once it has printed marker, each after the
// reaction to the one before, and checks its exit code. Its outputs are stdout and stderr then.
func (s *script) interrupt(times, code, marker string, args []string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	var stdout, stderr lockedBuffer
	cmd := s.process(args)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	err = poll(ctx, func() bool { return strings.Contains(stdout.String()+stderr.String(), marker) })
	for i := range n {
		if i > 0 {
			err = errors.Join(err, poll(ctx, func() bool { return strings.Contains(stderr.String(), "canceling") }))
		}
		err = errors.Join(err, cmd.Process.Signal(os.Interrupt))
	}
	if err != nil {
		_ = cmd.Process.Kill()
	}
	_ = cmd.Wait()
	s.stdout, s.stderr = stdout.String(), stderr.String()
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); err == nil && got != code {
		err = fmt.Errorf("exited %s, want %s", got, code)
	}
	return err
}

// poll waits for a condition of the outside world.
func poll(ctx context.Context, condition func() bool) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// lockedBuffer is written by a process's copier while a test reads it.
type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was written so far.
func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
