package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// pluginExec runs CNI plugins. Unlike libcni's own it ends with its context even when a plugin's
// child (bridge starts host-local) hangs and holds the pipe: the plugin gets a process group, and the group is killed.
type pluginExec struct{ version.PluginDecoder }

var _ invoke.Exec = (*pluginExec)(nil)

// ExecPlugin runs the plugin at path and returns what it printed. A plugin that fails explains itself
// on stdout, as CNI wants it; its stderr is dropped, because ours is for our log.
func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	const tries = 5
	for i := 1; ; i++ {
		out, err := execOnce(ctx, path, stdin, environ)
		// another thread's fork still holds a file open for writing that was just written
		if i == tries || !errors.Is(err, syscall.ETXTBSY) {
			return out, err
		}
		select {
		case <-time.After(time.Duration(i) * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func execOnce(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout = environ, bytes.NewReader(stdin), &stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, pluginError(stdout.Bytes(), err)
}

// pluginError reads CNI's error object; what is none is shown as it is, in part.
func pluginError(stdout []byte, err error) error {
	const most = 300
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return &said
	}
	if len(stdout) == 0 {
		return fmt.Errorf("plugin said nothing: %w", err)
	}
	return fmt.Errorf("plugin said %q: %w", stdout[:min(len(stdout), most)], err)
}

// FindInPath finds the plugin in the configured directory.
func (*pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}
