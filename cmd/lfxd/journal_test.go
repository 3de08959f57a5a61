package main

import (
	"bytes"
	"testing"
)

func TestPriorities(t *testing.T) {
	for line, want := range map[string]string{
		"level=ERROR msg=a\n": "<3>msg=a\n",
		"level=WARN msg=a\n":  "<4>msg=a\n",
		"level=INFO msg=a\n":  "<6>msg=a\n",
		"level=DEBUG msg=a\n": "<7>msg=a\n",
		"level=INFO+2 msg=a":  "level=INFO+2 msg=a",
		"something else\n":    "something else\n",
	} {
		var b bytes.Buffer
		n, err := priorities{&b}.Write([]byte(line))
		if err != nil || n != len(line) || b.String() != want {
			t.Errorf("Write(%q) = %d, %v and wrote %q, want %q", line, n, err, b.String(), want)
		}
	}
}
