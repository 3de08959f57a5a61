package lfxinit

import (
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPrepareEnv(t *testing.T) {
	dir := t.TempDir()
	passwd := dir + "/passwd"
	if err := os.WriteFile(passwd, []byte("root:x:0:0::/root:/bin/sh\nshort:x:1000\nf:x:1000:1000::/home/f:/bin/sh\ng:x:1000:1000::/home/g:\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, passwd string
		env, want    []string
	}{
		{"from passwd", passwd, []string{"A=1"}, []string{"A=1", "HOME=/home/f"}},
		{"set", passwd, []string{"HOME=/x", "A=1"}, []string{"HOME=/x", "A=1"}},
		{"empty", passwd, []string{"HOME=", "A=1"}, []string{"A=1", "HOME=/home/f"}},
		{"twice", passwd, []string{"A=1", "B=2", "A=3"}, []string{"B=2", "A=3", "HOME=/home/f"}},
		{"no passwd", dir + "/none", nil, []string{"HOME=/"}},
		{"a FIFO", dir + "/fifo", nil, []string{"HOME=/"}},
		{"a directory", dir, nil, []string{"HOME=/"}},
	} {
		if diff := cmp.Diff(tt.want, prepareEnv(tt.env, tt.passwd, 1000)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if got := homeOf(passwd, 7); got != "/" {
		t.Errorf("of an unknown uid: %q", got)
	}
}
