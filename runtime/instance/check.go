package instance

import (
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/runtime/cgroup"
)

// check compares the parked init with what the spec asked for, before any code of the function runs. The
// kernel's view is what counts: an option that a runtime has dropped silently is found here. It does not depend
// on the spec's text.
func (i *Instance) check() error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.pid))
	if err != nil {
		return err
	}
	if err := checkStatus(string(status), i.rec.UID); err != nil {
		return fmt.Errorf("self-check: %w", err)
	}
	for _, f := range []string{"uid_map", "gid_map"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", i.pid, f))
		if err != nil {
			return err
		}
		if got, want := strings.Join(strings.Fields(string(b)), " "), fmt.Sprintf("0 %d %d", i.rec.UID, rangeSize); got != want {
			return differs(f, got, want)
		}
	}
	return checkLimits(i.group, i.spec)
}

// checkStatus looks at the text of /proc/<pid>/status.
func checkStatus(status string, first uint32) error {
	user := fmt.Sprint(first + functionID)
	all := strings.Join([]string{user, user, user, user}, " ")
	const none = "0000000000000000"
	want := map[string]string{
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
		"NoNewPrivs": "1", "Seccomp": "2", "Uid": all, "Gid": all, "Groups": "",
	}
	for line := range strings.Lines(status) {
		k, v, _ := strings.Cut(line, ":")
		w, ok := want[k]
		if !ok {
			continue
		}
		if got := strings.Join(strings.Fields(v), " "); got != w {
			return differs(k, got, w)
		}
		delete(want, k)
	}
	for k, w := range want {
		return differs(k, "nothing", w)
	}
	return nil
}

func checkLimits(g cgroup.Group, s Spec) error {
	memory, pids, err := g.Limits()
	if err != nil {
		return err
	}
	if want := uint64(hardMemory(s)); memory != want {
		return differs("memory limit", memory, want)
	}
	if pids != pidsLimit {
		return differs("pids limit", pids, pidsLimit)
	}
	cores, err := g.CPUQuota()
	if err != nil {
		return err
	}
	if want := max(s.Cores, 1); math.Abs(cores-want) > 0.001*want {
		return differs("CPU quota", cores, want)
	}
	return nil
}

func differs(what string, got, want any) error {
	return fmt.Errorf("%s is %v, not %v: %w", what, got, want, errdefs.ErrFailedPrecondition)
}
