// Package images tests what the stand-in base images are made of.
package images

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestPythonRuntimeClient runs the client's own tests under the Python the image has, or this host's.
func TestPythonRuntimeClient(t *testing.T) {
	python := "python3"
	if path, err := exec.LookPath("/usr/bin/python3.11"); err == nil {
		python = path
	} else if _, err := exec.LookPath(python); err != nil {
		t.Skip("needs python3")
	}
	cmd := exec.Command(python, "-m", "unittest")
	cmd.Dir = "python"
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestEntrypoint(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		env  string
		code int
		says string
	}{
		{"no handler", nil, "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001", 142, "entrypoint requires the handler name to be the first argument\n"},
		{"two handlers", []string{"a", "b"}, "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001", 142, "entrypoint requires the handler name to be the first argument\n"},
		{"no platform", []string{"app.handler"}, "A=b", 1, "there is no emulator in this image"},
		{"empty platform", []string{"app.handler"}, "AWS_LAMBDA_RUNTIME_API=", 1, "there is no emulator in this image"},
		{"no bootstrap", []string{"app.handler"}, "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001", 127, "/var/runtime/bootstrap"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := os.Stat("/var/runtime/bootstrap"); err == nil && c.code == 127 {
				t.Skip("this host has a /var/runtime/bootstrap")
			}
			cmd := exec.Command("/bin/sh", append([]string{"common/lambda-entrypoint.sh"}, c.args...)...)
			cmd.Env = []string{"PATH=/usr/bin:/bin", c.env}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != c.code {
				t.Errorf("ended with %v, want exit status %d", err, c.code)
			}
			if !strings.Contains(stderr.String(), c.says) {
				t.Errorf("said %q, want %q", stderr.String(), c.says)
			}
		})
	}
}
