package daemon

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemAvailable(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want int64
		ok   bool
	}{
		"there":   {"MemTotal:        4000000 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n", 2000000 << 10, true},
		"missing": {"MemTotal:        4000000 kB\n", 0, false},
		"broken":  {"MemAvailable: many kB\n", 0, false},
		"empty":   {"", 0, false},
	} {
		path := filepath.Join(t.TempDir(), "meminfo")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok := memAvailable(path); got != tt.want || ok != tt.ok {
			t.Errorf("%s: %d, %v, want %d, %v", name, got, ok, tt.want, tt.ok)
		}
	}
	if _, ok := memAvailable(filepath.Join(t.TempDir(), "none")); ok {
		t.Error("a file that is not there tells")
	}
	if got, ok := memAvailable("/proc/meminfo"); !ok || got <= 0 || got > hostMemory() {
		t.Errorf("this host: %d, %v of %d", got, ok, hostMemory())
	}
}
