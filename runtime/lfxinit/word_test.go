package lfxinit

import (
	"bytes"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func TestWords(t *testing.T) {
	if c, ok := readWord(bytes.NewReader(Go()).Read); c != nil || !ok {
		t.Errorf("Go reads as %v, %v", c, ok)
	}
	want := Command{Dir: "/var/task", Args: []string{"/bootstrap", "", "x y"}, Env: []string{"A=1", "B="}}
	for name, r := range map[string]func([]byte) (int, error){
		"at once":  bytes.NewReader(want.Word()).Read,
		"by bytes": iotest.OneByteReader(bytes.NewReader(want.Word())).Read,
	} {
		if got, ok := readWord(r); !ok || cmp.Diff(want, *got) != "" {
			t.Errorf("%s: %v, %v", name, got, ok)
		}
	}
	whole := want.Word()
	for n := range whole {
		if _, ok := readWord(bytes.NewReader(whole[:n]).Read); ok {
			t.Errorf("the first %d bytes are a word", n)
		}
	}
}

func FuzzReadWord(f *testing.F) {
	f.Add(Command{Dir: "/", Args: []string{"a"}, Env: []string{"B=c"}}.Word())
	f.Add([]byte{1})
	f.Add([]byte{2, 5, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := readWord(bytes.NewReader(b).Read)
		if !ok || c == nil {
			return
		}
		if again, ok := readWord(bytes.NewReader(c.Word()).Read); !ok || cmp.Diff(c, again) != "" {
			t.Errorf("%+v reads back as %+v, %v", c, again, ok)
		}
	})
}
