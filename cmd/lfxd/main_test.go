package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lfx.dev/lfxd/daemon"
	"lfx.dev/lfxd/daemon/store"
)

// output runs lfxd with these arguments and returns its exit code and what it printed.
func output(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	read := func(f **os.File) func() string {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		old := *f
		*f = w
		out := make(chan string, 1)
		go func() { // ends when w is closed
			b, _ := io.ReadAll(r)
			r.Close()
			out <- string(b)
		}()
		return func() string { *f = old; w.Close(); return <-out }
	}
	o, e := read(&os.Stdout), read(&os.Stderr)
	code = run(args)
	return code, o(), e()
}

func TestMistakesOnTheCommandLine(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := file("good.toml", "")
	for name, tt := range map[string]struct {
		args   []string
		code   int
		stderr string // a part of it
	}{
		"good":                {[]string{"check", "--config", good}, 0, ""},
		"good, with a level":  {[]string{"check", "--config", good, "--log-level", "debug"}, 0, ""},
		"unknown flag":        {[]string{"--wiht-engine"}, exitUsage, "lfxd: unknown flag: --wiht-engine"},
		"flag of a command":   {[]string{"down", "--nope"}, exitUsage, "unknown flag: --nope"},
		"flag without value":  {[]string{"check", "--config"}, exitUsage, "flag needs an argument: --config"},
		"unknown command":     {[]string{"strat"}, exitUsage, `unknown command "strat" for "lfxd"`},
		"argument too much":   {[]string{"check", "x"}, exitUsage, `unknown command "x" for "lfxd check"`},
		"engine, no part":     {[]string{"engine", "exec"}, exitUsage, "exec takes one part of the engine, containerd or buildkitd"},
		"log level":           {[]string{"check", "--config", good, "--log-level", "loud"}, exitUsage, `--log-level: "loud" is none of debug, info, warn and error`},
		"no such file":        {[]string{"check", "--config", filepath.Join(dir, "none.toml")}, exitConfig, "none.toml"},
		"not TOML":            {[]string{"check", "--config", file("bad.toml", "a = = b\n")}, exitConfig, "bad.toml"},
		"unknown key":         {[]string{"check", "--config", file("key.toml", "statedir = \"/x\"\n")}, exitConfig, "statedir"},
		"wrong value":         {[]string{"check", "--config", file("value.toml", "[listen]\ntcp = \"nowhere\"\n")}, exitConfig, "listen.tcp"},
		"config of a command": {[]string{"down", "--config", filepath.Join(dir, "none.toml")}, exitConfig, "none.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := output(t, tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.stderr) || (tt.code == 0) != (stderr == "") || stdout != "" {
				t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	code, stdout, stderr := output(t, "--version")
	if code != 0 || stdout != "lfxd version "+version+"\n" || stderr != "" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	code, stdout, _ = output(t, "--help")
	if code != 0 || !strings.Contains(stdout, "lfxd --with-engine") {
		t.Errorf("exit %d, %q", code, stdout)
	}
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{fmt.Errorf("open: %w", store.ErrLocked), exitLocked},
		{fmt.Errorf("open: %w", daemon.ErrInUse), exitLocked},
		{fmt.Errorf("x: %w", usageError{errors.New("y")}), exitUsage},
		{fmt.Errorf("x: %w", configError{errors.New("y")}), exitConfig},
	} {
		var b bytes.Buffer
		if got := report(&b, tt.err); got != tt.want {
			t.Errorf("%v: exit %d, want %d", tt.err, got, tt.want)
		}
		if want := fmt.Sprintf("lfxd: %v\n", tt.err); tt.err != nil && b.String() != want {
			t.Errorf("said %q, want %q", b.String(), want)
		}
	}
}
