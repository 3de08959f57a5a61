package lfxinit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRecordRoundTrip(t *testing.T) {
	want := []Record{{Started, 0, 2}, {Exited, 0, 139}, {Signaled, 0, 11}, {ExecFailed, ClassWorkingDir, int32(syscall.ENOENT)}}
	var b []byte
	for _, r := range want {
		b = r.Append(b)
	}
	rd := bytes.NewReader(b)
	var got []Record
	for {
		r, err := ReadRecord(rd)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func FuzzReadRecord(f *testing.F) {
	f.Add(Record{Exited, 0, 1}.Append(nil))
	f.Add([]byte{4, 0, 0, 0, 65, 0, 0, 0})
	f.Add([]byte{1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadRecord(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrRecord) {
				t.Errorf("error %v", err)
			}
			return
		}
		if got := r.Append(nil); !bytes.Equal(got, b[:RecordSize]) {
			t.Errorf("%x reads as %+v, which is %x", b[:RecordSize], r, got)
		}
	})
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/tool": 0o755, "b/tool": 0o755, "b/plain": 0o644} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, mode)); err != nil {
			t.Fatal(err)
		}
	}
	path := "PATH=" + dir + "/none:" + dir + "/b:" + dir + "/a"
	tests := []struct {
		name string
		env  []string
		want string
		err  error
	}{
		{"tool", []string{path}, dir + "/b/tool", nil},
		{"tool", []string{"PATH=/nowhere", path}, dir + "/b/tool", nil},
		{"plain", []string{path}, "", syscall.EACCES},
		{"none", []string{path}, "", syscall.ENOENT},
		{"", []string{path}, "", syscall.ENOENT},
		{"./tool", nil, "./tool", nil},
		{"/x/y", nil, "/x/y", nil},
		{"sh", nil, "/usr/bin/sh", nil},
	}
	for _, tt := range tests {
		got, err := lookPath(tt.name, tt.env)
		if got != tt.want || err != tt.err {
			t.Errorf("lookPath(%q, %v) = %q, %v; want %q, %v", tt.name, tt.env, got, err, tt.want, tt.err)
		}
	}
}

// built is an lfx-init with its FIFOs, and the test's ends of them.
type built struct {
	init                    string
	stdout, stderr, control *os.File
	gate                    *os.File
}

// build builds lfx-init into a folder with FIFOs.
func build(t *testing.T) *built {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: a PID namespace")
	}
	dir := t.TempDir()
	b := &built{init: filepath.Join(dir, InitName)}
	cmd := exec.Command("go", "build", "-o", b.init, "../../cmd/lfx-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, f := range []struct {
		name string
		end  **os.File
		mode int
	}{
		{StdoutName, &b.stdout, os.O_RDONLY | syscall.O_NONBLOCK}, {StderrName, &b.stderr, os.O_RDONLY | syscall.O_NONBLOCK},
		{ControlName, &b.control, os.O_RDONLY | syscall.O_NONBLOCK}, {GateName, &b.gate, os.O_RDWR},
	} {
		if err := syscall.Mkfifo(filepath.Join(dir, f.name), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(filepath.Join(dir, f.name), f.mode, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = file.Close() })
		*f.end = file
	}
	return b
}

// open says the word.
func (b *built) open(t *testing.T) {
	t.Helper()
	if _, err := b.gate.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// start runs lfx-init. It is PID 1 of a PID namespace of its own, so that its last kill(-1) stays inside.
func (b *built) start(t *testing.T, script string) (*exec.Cmd, io.WriteCloser) {
	t.Helper()
	cmd := exec.Command(b.init, "/", "sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, in
}

// first reads n bytes from a FIFO that may not have a writer yet.
func first(t *testing.T, f *os.File, n int) []byte {
	t.Helper()
	var got []byte
	deadline := time.Now().Add(10 * time.Second)
	for len(got) < n {
		b := make([]byte, n-len(got))
		k, _ := f.Read(b) // before the writer has opened, a read says EOF
		got = append(got, b[:k]...)
		if time.Now().After(deadline) {
			t.Fatalf("only %q within ten seconds", got)
		}
		time.Sleep(time.Millisecond)
	}
	return got
}

// TestReaderGone shows what happens when the daemon dies: the function is not hit by SIGPIPE, and ends as it would.
func TestReaderGone(t *testing.T) {
	b := build(t)
	b.open(t)
	cmd, in := b.start(t, "echo one; read x; echo two && exit 7")
	first(t, b.stdout, 4)
	for _, f := range []*os.File{b.stdout, b.stderr, b.control, b.gate} {
		_ = f.Close()
	}
	_ = in.Close()
	_ = cmd.Wait()
	// The shell's "echo two" succeeded although nobody can read it any more.
	if got := cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("exit code %d, want 7", got)
	}
}

// TestGate shows that nothing runs before the word.
func TestGate(t *testing.T) {
	b := build(t)
	cmd, in := b.start(t, "echo one; exit 3")
	defer in.Close()
	path := fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid)
	deadline := time.Now().Add(10 * time.Second)
	for !hasOpen(path, b.gate.Name()) { // it is at the gate
		if time.Now().After(deadline) {
			t.Fatal("lfx-init does not come to its gate")
		}
		time.Sleep(time.Millisecond)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	if err != nil || len(children) > 0 {
		t.Errorf("before the word it has the children %q, %v", children, err)
	}
	b.open(t)
	if got := string(first(t, b.stdout, 4)); got != "one\n" {
		t.Errorf("printed %q", got)
	}
	r, err := ReadRecord(bytes.NewReader(first(t, b.control, RecordSize)))
	if err != nil || r.Kind != Started {
		t.Errorf("first record %+v, %v", r, err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 3 {
		t.Errorf("exit code %d, want 3", got)
	}
}

// hasOpen says whether one of the descriptors below dir leads to the file of that name.
func hasOpen(dir, name string) bool {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && filepath.Base(to) == filepath.Base(name) {
			return true
		}
	}
	return false
}

// TestGateWithoutDaemon: when nobody is left to say the word, lfx-init ends and has run nothing.
func TestGateWithoutDaemon(t *testing.T) {
	b := build(t)
	cmd, in := b.start(t, "exit 3")
	defer in.Close()
	path := fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid)
	deadline := time.Now().Add(10 * time.Second)
	for !hasOpen(path, b.gate.Name()) {
		if time.Now().After(deadline) {
			t.Fatal("lfx-init does not come to its gate")
		}
		time.Sleep(time.Millisecond)
	}
	_ = b.gate.Close()
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != codeSetup {
		t.Errorf("exit code %d, want %d", got, codeSetup)
	}
}
