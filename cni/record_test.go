package cni

import (
	"os"
	"path/filepath"
	"testing"
)

func TestUnfinishedRecordsAreRemoved(t *testing.T) {
	m := &Manager{conf: Config{RunDir: t.TempDir()}}
	if err := os.MkdirAll(m.conf.recordDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.json", "a.json.tmp", "b.json.tmp"} {
		if err := os.WriteFile(filepath.Join(m.conf.recordDir(), name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.removeUnfinished(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(m.conf.recordDir())
	if err != nil || len(left) != 1 || left[0].Name() != "a.json" {
		t.Errorf("left %v, %v", left, err)
	}
}
