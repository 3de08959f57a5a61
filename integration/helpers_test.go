//go:build integration

package integration

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"

	"lfx.dev/lfxd/daemon/api"
)

func decode64(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// instances lists the instances of a function.
func instances(t *testing.T, function string) []api.InstanceInfo {
	t.Helper()
	all, err := d.client.Instances(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out []api.InstanceInfo
	for _, i := range all {
		if i.Key.Function == function {
			out = append(out, i)
		}
	}
	return out
}

// instancePIDs are the processes of an instance as the host sees them.
func instancePIDs(t *testing.T, id string) []string {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if b, err := os.ReadFile(pattern + d.cgroup + "/fn/" + id + "/cgroup.procs"); err == nil {
			return strings.Fields(string(b))
		}
	}
	t.Fatalf("instance %s has no cgroup", id)
	return nil
}

// gone reports processes of an instance that are still there; a number may be somebody else's by now.
func gone(id string, pids []string) error {
	for _, p := range pids {
		if b, err := os.ReadFile("/proc/" + p + "/cgroup"); err == nil && strings.Contains(string(b), id) {
			return fmt.Errorf("process %s is still there, in\n%s", p, b)
		}
	}
	return nil
}
