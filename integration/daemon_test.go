//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

// daemonUnderTest is one lfxd with an engine of its own.
type daemonUnderTest struct {
	root   string // of the repository
	state  string
	run    string
	config string
	cgroup string
	log    string
	bin    string   // folder of other binaries than the run's; usually empty
	env    []string // added to lfxd's environment
	bridge string   // of the functions
	table  string   // of nftables
	client *client.Client

	mu  sync.Mutex
	cmd *exec.Cmd
	end chan error // receives the process's end
}

// binary is the path of one of our programs; LFX_TEST_BIN names another folder than build/bin.
func (t *daemonUnderTest) binary(name string) string {
	if t.bin != "" {
		return filepath.Join(t.bin, name)
	}
	if dir := os.Getenv("LFX_TEST_BIN"); dir != "" {
		return filepath.Join(dir, name)
	}
	return filepath.Join(t.root, "build/bin", name)
}

// startTimeout bounds a start of lfxd with its engine.
const startTimeout = 90 * time.Second

func startDaemon() (*daemonUnderTest, error) {
	root, err := filepath.Abs("..")
	if err != nil {
		return nil, err
	}
	t := &daemonUnderTest{
		root: root, state: fmt.Sprintf("/var/lib/lfxd-test-%d", os.Getpid()),
		run: fmt.Sprintf("/run/lfxt%d", os.Getpid()), cgroup: fmt.Sprintf("/lfxt%d", os.Getpid()),
		bridge: "lfx0", table: "lfx",
	}
	t.config, t.log = filepath.Join(t.state, "config.toml"), filepath.Join(t.state, "lfxd.log")
	for _, need := range []string{"build/engine/containerd", "build/engine/lfx-init", "build/bin/lfxd", "build/bin/lfxctl", "build/images/python.tar", "contrib/examples/lambda-go/bootstrap"} {
		if _, err := os.Stat(filepath.Join(root, need)); err != nil {
			return nil, fmt.Errorf("%s is missing: run make engine build images examples first", need)
		}
	}
	if err := os.MkdirAll(t.state, 0o711); err != nil {
		return nil, err
	}
	if err := os.WriteFile(t.config, []byte(t.toml()), 0o600); err != nil {
		return nil, err
	}
	if t.client, err = client.New("unix://" + t.run + "/lfxd.sock"); err != nil {
		return nil, err
	}
	if err := t.start(); err != nil {
		t.showLog()
		return nil, err
	}
	return t, t.importImages()
}

// toml is the configuration of the run: private paths, and the stand-ins for AWS's base images.
func (t *daemonUnderTest) toml() string {
	return fmt.Sprintf(`state_dir = %q
run_dir = %q
libexec_dir = %q
cgroup_parent = %q
log_level = "debug"

[listen]
control_group = ""
invoke_group = ""

[functions]
idle_timeout = "5m"
queue_limit = 50
spares = 0
sandboxes_ahead = 2
queue_timeout = %q
init_timeout = %q

[logs]
journald = "off"

[base_images]
"public.ecr.aws/lambda/provided:al2023" = "localhost/lfx-base/provided:1"
"public.ecr.aws/lambda/python:3.11" = "localhost/lfx-base/python:3.11"
"public.ecr.aws/lambda/nodejs:18" = "localhost/lfx-base/nodejs:18"
`, t.state, t.run, filepath.Join(t.root, "build/engine"), t.cgroup, fmt.Sprintf("%ds", slow(20)), fmt.Sprintf("%ds", slow(3)))
}

// slow stretches a time in seconds on emulated machines, where LFX_TEST_SLOW is set.
func slow(seconds int) int {
	if os.Getenv("LFX_TEST_SLOW") != "" {
		return 15 * seconds
	}
	return seconds
}

// start runs lfxd and waits until it answers.
func (t *daemonUnderTest) start() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	out, err := os.OpenFile(t.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // the child has its own descriptor
	cmd := exec.Command(t.binary("lfxd"), "--with-engine", "--config", t.config)
	cmd.Stdout, cmd.Stderr = out, out
	if os.Getenv("LFX_TEST_LOG") != "" {
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	}
	cmd.Env = append(os.Environ(), t.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	t.cmd, t.end = cmd, make(chan error, 1)
	go func() { t.end <- cmd.Wait() }() // ends with the process
	return poll(startTimeout, func() error {
		select {
		case err := <-t.end:
			t.end <- err
			log, _ := os.ReadFile(t.log)
			return final{fmt.Errorf("lfxd ended at its start: %v; the end of its log:\n%s", err, log[max(0, len(log)-1000):])}
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := t.client.Version(ctx)
		return err
	})
}

// signal sends lfxd a signal and waits for its end.
func (t *daemonUnderTest) signal(s syscall.Signal) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.cmd.Process.Signal(s); err != nil {
		return err
	}
	select {
	case err := <-t.end:
		t.end <- err
		if s == syscall.SIGTERM {
			return err
		}
		return nil
	case <-time.After(2 * time.Minute):
		return errors.New("lfxd did not end within two minutes")
	}
}

func (t *daemonUnderTest) pid() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cmd.Process.Pid
}

// ctr runs containerd's own client against the engine.
func (t *daemonUnderTest) ctr(args ...string) (string, error) {
	all := append([]string{"--address", t.run + "/engine/sock/containerd.sock", "--namespace", "lfx"}, args...)
	return output(filepath.Join(t.root, "build/engine/ctr"), all...)
}

func (t *daemonUnderTest) importImages() error {
	for _, name := range []string{"provided", "python", "nodejs"} {
		if _, err := t.ctr("images", "import", "--local", filepath.Join(t.root, "build/images", name+".tar")); err != nil {
			return err
		}
	}
	return nil
}

// finish takes the daemon down and checks that the host is as it was before.
func (t *daemonUnderTest) finish(before hostState) error {
	_, err := output(t.binary("lfxd"), "down", "--with-engine", "--config", t.config)
	if err == nil {
		err = poll(30*time.Second, func() error { return before.diff(observeHost(), t) })
	}
	if os.Getenv("LFX_TEST_KEEP") != "" {
		fmt.Fprintln(os.Stderr, "kept:", t.state)
		return err
	}
	if err != nil {
		t.showLog()
	}
	return errors.Join(err, os.RemoveAll(t.state))
}

// showLog prints the end of the daemon's log.
func (t *daemonUnderTest) showLog() {
	data, err := os.ReadFile(t.log)
	if err != nil {
		return
	}
	if len(data) > 16<<10 {
		data = data[len(data)-16<<10:]
	}
	fmt.Fprintf(os.Stderr, "--- %s\n%s---\n", t.log, data)
}

// output runs a command and returns what it prints; the error has it too.
func output(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// final is an error that polling does not get over.
type final struct{ error }

// poll calls f until it succeeds or the time is over; its last error is returned.
func poll(timeout time.Duration, f func() error) error {
	deadline := time.Now().Add(timeout)
	pause := 5 * time.Millisecond
	for {
		err := f()
		var stop final
		if err == nil || errors.As(err, &stop) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
		pause = min(2*pause, 200*time.Millisecond)
	}
}

// project is a folder that a test deploys.
type project struct {
	t   *testing.T
	dir string
	env function.Environment
}

// newProject makes a project from files (path → contents) in an environment of the test's own. When
// the test ends everything of it is removed and the leak check runs.
func newProject(t *testing.T, files map[string]string) *project {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	return adopt(t, dir)
}

// adopt deploys an existing folder.
func adopt(t *testing.T, dir string) *project {
	p := &project{t: t, dir: dir}
	baseline := d.observe(t)
	t.Cleanup(func() {
		p.removeAll()
		checkLeaks(t, baseline)
	})
	return p
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// lfxctl runs the CLI against the daemon under test.
func lfxctl(args ...string) (stdout, stderr string, code int) {
	return lfxctlIn("", nil, args...)
}

func lfxctlIn(dir string, stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	return d.lfxctlIn(dir, stdin, args...)
}

func (t *daemonUnderTest) lfxctlIn(dir string, stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, t.binary("lfxctl"), args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, stdin, &out, &errOut
	cmd.Env = append(os.Environ(), "LFX_HOST=unix://"+t.run+"/lfxd.sock", "NO_COLOR=1")
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return out.String(), err.Error(), -1
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// deploy deploys the project and returns the result.
func (p *project) deploy(args ...string) deployResult {
	p.t.Helper()
	res, stderr, code := p.tryDeploy(args...)
	if code != 0 {
		p.t.Fatalf("lfxctl deploy: exit %d\n%s", code, stderr)
	}
	return res
}

// deployResult is what the tests read of `lfxctl deploy -o json`.
type deployResult struct {
	Release struct {
		Number   int            `json:"release"`
		Versions map[string]int `json:"versions"`
		function.Environment
	} `json:"release"`
	Unchanged bool `json:"unchanged"`
	Plan      bool `json:"plan"`
	Functions []struct {
		Name, Change, Digest, Base string
		Version                    int
	} `json:"functions"`
}

func (p *project) tryDeploy(args ...string) (res deployResult, stderr string, code int) {
	p.t.Helper()
	stdout, stderr, code := lfxctl(append([]string{"deploy", p.dir, "-o", "json", "--progress", "plain"}, args...)...)
	if code == 0 {
		if err := json.Unmarshal([]byte(stdout), &res); err != nil {
			p.t.Fatalf("lfxctl deploy -o json printed %q: %v", stdout, err)
		}
	}
	return res, stderr, code
}

// removeAll removes every function of every environment.
func (p *project) removeAll() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	all, err := d.client.Functions(ctx, function.Environment{})
	if err != nil {
		p.t.Errorf("list functions: %v", err)
		return
	}
	for _, f := range all {
		if _, err := d.client.RemoveFunction(ctx, f.Key); err != nil {
			p.t.Errorf("remove %s: %v", f.Key, err)
		}
	}
}

// answer is one HTTP answer.
type answer struct {
	status int
	header http.Header
	body   string
}

// post sends a raw request as curl does.
func post(t *testing.T, url, body string, headers ...string) answer {
	t.Helper()
	return do(t, http.DefaultClient, "POST", url, body, headers...)
}

func do(t *testing.T, c *http.Client, method, url, body string, headers ...string) answer {
	t.Helper()
	a, err := try(c, method, url, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func try(c *http.Client, method, url, body string, headers ...string) (answer, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded") // what curl -d says
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

// overSocket is a client that reaches a Unix socket of the daemon.
func overSocket(name string) *http.Client { return d.overSocket(name) }

func (t *daemonUnderTest) overSocket(name string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(t.run, name))
		},
	}}
}

// invokeURL is the URL of a function's Invoke on the shared TCP listener.
func invokeURL(name string) string {
	return "http://localhost:9000/2015-03-31/functions/" + name + "/invocations"
}

// python is the folder of a function on the Python base image.
func python(dir, code string) map[string]string {
	return map[string]string{
		dir + "/Dockerfile": "FROM public.ecr.aws/lambda/python:3.11\nCOPY app.py ${LAMBDA_TASK_ROOT}/\nCMD [\"app.handler\"]\n",
		dir + "/app.py":     code,
	}
}

// with joins files.
func with(all ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range all {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}
