package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/console"
)

// onTerminal runs lfxctl with a terminal as all three streams, types input, and returns the screen's
// bytes and the exit code.
func onTerminal(t *testing.T, script, input string, env []string, args ...string) (string, int) {
	t.Helper()
	s := newScript(t, script)
	master, slave, err := console.NewPty()
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	defer master.Close()
	if err := master.Resize(console.WinSize{Width: 100, Height: 30}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(slave, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := s.process(append([]string{"lfxctl"}, args...))
	cmd.Env = append(cmd.Env, append([]string{"TERM=xterm", "NO_COLOR="}, env...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	if _, err := io.WriteString(master, input); err != nil {
		t.Fatal(err)
	}
	var screen bytes.Buffer
	_, _ = io.Copy(&screen, master) // ends with EIO when the process has closed the terminal
	_ = cmd.Wait()
	return screen.String(), cmd.ProcessState.ExitCode()
}

func TestOnATerminalDeployIsOneDisplay(t *testing.T) {
	t.Parallel()
	screen, code := onTerminal(t, "testdata/deploy.txtar", "", nil, "deploy", "project")
	if code != 0 {
		t.Fatalf("exited %d:\n%s", code, screen)
	}
	for _, want := range []string{
		"[+] Building", "=> mirroring: go/Dockerfile, python/Dockerfile", "=> hello-go: [2/2] COPY main /main",
		"warning: hello-go: the base image is a stand-in", "\x1b[32mupdated\x1b[0m", "release 3 active (1 of 2 functions changed)",
	} {
		if !strings.Contains(screen, want) {
			t.Errorf("the screen lacks %q:\n%s", want, screen)
		}
	}
	if last := screen[strings.LastIndex(screen, "[+] Building"):]; !strings.Contains(last, "FINISHED") {
		t.Errorf("the display did not finish:\n%s", last)
	}
}

func TestOnATerminalColoursAreOptional(t *testing.T) {
	t.Parallel()
	for env, want := range map[string]bool{"X=": true, "NO_COLOR=1": false, "TERM=dumb": false} {
		screen, _ := onTerminal(t, "testdata/ps.txtar", "", []string{env}, "ps")
		if got := strings.Contains(screen, "\x1b[32mbusy"); got != want {
			t.Errorf("%s: got colours %t, want %t:\n%s", env, got, want, screen)
		}
	}
}

func TestOnATerminalRemovalAsks(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{"y\n": "removed examples/hello-go; release 4", "\n": "nothing was removed"} {
		screen, code := onTerminal(t, "testdata/rm.txtar", answer, nil, "rm", "hello-go")
		if code != 0 || !strings.Contains(screen, "Remove examples/hello-go? [y/N]") || !strings.Contains(screen, want) {
			t.Errorf("answer %q: exited %d, want %q:\n%s", answer, code, want, screen)
		}
	}
}

func TestOnATerminalInvokeNeedsNoEvent(t *testing.T) {
	t.Parallel()
	screen, code := onTerminal(t, "testdata/invoke.txtar", "", nil, "invoke", "hello-go")
	if code != 0 || !strings.Contains(screen, `"event":{}}`) {
		t.Errorf("exited %d:\n%s", code, screen)
	}
}

// Ctrl-C may come at any time, after the end of the display too.
func TestProgressTakesStepsAtAnyTime(t *testing.T) {
	var out lockedBuffer
	p := newProgress(&app{stderr: &out, lookup: func(string) (string, bool) { return "", false }}, progressPlain)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	context.AfterFunc(ctx, func() { p.step("canceling"); close(stopped) })
	p.build(status())
	cancel()
	<-stopped
	p.close()
	p.close()
	p.step("late")
	if got := out.String(); !strings.Contains(got, "==> canceling") || strings.Contains(got, "late") {
		t.Errorf("got %q", got)
	}
}

func TestOnATerminalEnvironmentRemovalAsks(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{"yes\n": "removed shop/staging with 1 function", "n\n": "nothing was removed"} {
		screen, code := onTerminal(t, "testdata/env.txtar", answer, nil, "env", "rm", "staging")
		question := "Remove shop/staging with 1 function, all their versions, releases, images and aliases, and 1 running instance? [y/N]"
		if code != 0 || !strings.Contains(screen, question) || !strings.Contains(screen, want) {
			t.Errorf("answer %q: exited %d, want %q:\n%s", answer, code, want, screen)
		}
	}
}

// A terminal shows one picture that is drawn over, in colours; Ctrl-C, typed, ends it.
func TestOnATerminalPsWatchDrawsOver(t *testing.T) {
	t.Parallel()
	a := &app{stderr: io.Discard, lookup: func(string) (string, bool) { return "", false }}
	master, slave, err := console.NewPty()
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	defer master.Close()
	tty, err := os.OpenFile(slave, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	a.stdout = tty
	ctx, cancel := context.WithCancelCause(t.Context())
	drawn := 0
	err = a.repeat(ctx, time.Millisecond, outputTable, func(context.Context) error {
		drawn++
		if drawn == 3 {
			cancel(errInterrupted)
		}
		_, err := io.WriteString(a.stdout, a.paint(a.stdout, green, "busy")+"\n")
		return err
	})
	tty.Close()
	var screen bytes.Buffer
	_, _ = io.Copy(&screen, master)
	if !errors.Is(err, errInterrupted) || drawn != 3 {
		t.Errorf("ended with %v after %d pictures", err, drawn)
	}
	if n := strings.Count(screen.String(), "\x1b[H\x1b[32mbusy\x1b[0m\x1b[K"); n != 3 {
		t.Errorf("%d of 3 pictures were drawn over the one before: %q", n, screen.String())
	}
	if a.stdout != tty {
		t.Error("standard output was not given back")
	}
}
