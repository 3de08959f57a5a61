// Package apparmor loads the AppArmor profile under which instances run, on hosts where AppArmor is
// on. It is one layer among several: the instance has no capabilities, a seccomp filter and a user
// namespace with or without it.
package apparmor

import (
	"bytes"
	"context"
	_ "embed" // the profile
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/containerd/errdefs"
)

// Profile is the name of the profile of instances.
const Profile = "lfx-function"

// Text is the profile as it is loaded.
//
//go:embed lfx-function
var Text []byte

// Files of the kernel.
const (
	enabledFile  = "/sys/module/apparmor/parameters/enabled"
	profilesFile = "/sys/kernel/security/apparmor/profiles"
)

// Enabled reports whether the kernel has AppArmor switched on.
func Enabled() bool {
	b, err := os.ReadFile(enabledFile)
	return err == nil && strings.HasPrefix(string(b), "Y")
}

// Loaded reports whether the profile is in the kernel and enforced. When the list of profiles cannot
// be read (securityfs is not mounted) the error wraps fs.ErrNotExist.
func Loaded() (bool, error) {
	b, err := os.ReadFile(profilesFile)
	if err != nil {
		return false, fmt.Errorf("read the list of AppArmor profiles: %w", err)
	}
	return loadedIn(string(b)), nil
}

func loadedIn(profiles string) bool {
	for line := range strings.Lines(profiles) {
		if strings.TrimSpace(line) == Profile+" (enforce)" {
			return true
		}
	}
	return false
}

// Load puts the profile into the kernel, replacing an older one, and proves that it is there. It runs
// apparmor_parser; the error of class not found says that it is not installed.
func Load(ctx context.Context) error {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		return fmt.Errorf("AppArmor is on, but apparmor_parser is missing: apt-get install apparmor: %w", errdefs.ErrNotFound)
	}
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache")
	cmd.Stdin = bytes.NewReader(Text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load the AppArmor profile %s: %w: %s", Profile, err, bytes.TrimSpace(out))
	}
	ok, err := Loaded()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the parser succeeded; nothing more can be seen
	}
	if err == nil && !ok {
		err = fmt.Errorf("apparmor_parser succeeded, but the profile %s is not enforced", Profile)
	}
	return err
}

// Remove takes the profile out of the kernel. No instance may be using it.
func Remove(ctx context.Context) error {
	ok, err := Loaded()
	if err != nil || !ok {
		return nil //nolint:nilerr // nothing to remove, or no way to know
	}
	cmd := exec.CommandContext(ctx, "apparmor_parser", "--remove")
	cmd.Stdin = bytes.NewReader(Text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("remove the AppArmor profile %s: %w: %s", Profile, err, bytes.TrimSpace(out))
	}
	return nil
}
