package apparmor

import (
	"os/exec"
	"testing"
)

func TestLoadedIn(t *testing.T) {
	for _, c := range []struct {
		profiles string
		want     bool
	}{
		{"docker-default (enforce)\nlfx-function (enforce)\n", true},
		{"lfx-function (complain)\n", false},
		{"lfx-function-old (enforce)\n", false},
		{"", false},
	} {
		if got := loadedIn(c.profiles); got != c.want {
			t.Errorf("loadedIn(%q) = %v, want %v", c.profiles, got, c.want)
		}
	}
}

// TestProfileParses has the real parser read the profile; that needs no AppArmor in the kernel.
func TestProfileParses(t *testing.T) {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skip("apparmor_parser is not installed (Debian package apparmor)")
	}
	if out, err := exec.Command(parser, "--skip-kernel-load", "--skip-cache", "lfx-function").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
