//go:build failpoint

package failpoint

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPoints(t *testing.T) {
	control := filepath.Join(t.TempDir(), "control")
	t.Setenv(variable, control)
	seen = map[string]int{}
	if err := Error("a"); err != nil {
		t.Fatalf("without a control file: %v", err)
	}
	if err := os.WriteFile(control, []byte("a 1*error no good\nb delay 1ms\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Error("a"); err == nil || err.Error() != "failpoint a: no good" {
		t.Errorf("first hit: %v", err)
	}
	if err := Error("a"); err != nil {
		t.Errorf("second hit: %v", err)
	}
	Here("b")
	hits, err := os.ReadFile(control + ".hits")
	if err != nil || string(hits) != "a\na\na\nb\n" {
		t.Errorf("hits %q, %v", hits, err)
	}
}
