package lfxinit

import (
	"bytes"
	"errors"
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

// TestReaderGone shows what happens when the daemon dies: the function is not hit by SIGPIPE, and ends as it would.
func TestReaderGone(t *testing.T) {
	dir := t.TempDir()
	init := filepath.Join(dir, InitName)
	cmd := exec.Command("go", "build", "-o", init, "../../cmd/lfx-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	var ends []*os.File
	for _, name := range []string{StdoutName, StderrName, ControlName} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, f)
	}
	// Not PID 1 here: a PID namespace of its own, so that its last kill(-1) stays inside.
	cmd = exec.Command(init, "/", "sh", "-c", "echo one; read x; echo two && exit 7")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		t.Skip("needs root: a PID namespace")
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	deadline := time.Now().Add(10 * time.Second)
	for { // before the writer has opened, a read says EOF
		if n, _ := ends[0].Read(b); n == 4 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no output")
		}
		time.Sleep(time.Millisecond)
	}
	for _, f := range ends {
		_ = f.Close()
	}
	_ = in.Close()
	_ = cmd.Wait()
	// The shell's "echo two" succeeded although nobody can read it any more.
	if got := cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("exit code %d, want 7", got)
	}
}
