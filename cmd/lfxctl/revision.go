package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"
)

// gitTimeout bounds each Git command: the revision informs, it must not hold up a deploy.
const gitTimeout = 5 * time.Second

// revision is the commit that dir is at, with "-dirty" when a file below dir differs from it. It is
// empty where there is no Git or no commit.
func revision(ctx context.Context, dir string) string {
	hash, err := git(ctx, dir, "rev-parse", "--verify", "HEAD")
	if err != nil || hash == "" {
		return ""
	}
	if changes, err := git(ctx, dir, "status", "--porcelain", "--", "."); err != nil || changes != "" {
		hash += "-dirty"
	}
	return hash
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", append([]string{"-C", dir}, args...)...)
	// GIT_OPTIONAL_LOCKS=0: status must not write the index of somebody's working tree.
	cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0")
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}
