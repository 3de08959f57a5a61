package instance

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files")

func goldenInput() specInput {
	return specInput{
		Spec: Spec{ID: "hello-1", Args: []string{"/lambda-entrypoint.sh", "app.handler"}, Env: []string{"PATH=/bin", "AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001"},
			Dir: "/var/task", MemoryMB: 128, TmpMB: 512, Cores: 128.0 / 1769},
		uid: defaultUIDBase, dir: "/run/lfxd/instances/hello-1", initPath: "/usr/libexec/lfxd/lfx-init", cgroupsPath: "/lfx/fn/hello-1",
	}
}

func TestOCISpecGolden(t *testing.T) {
	thermal := []string{"/sys/devices/system/cpu/cpu0/thermal_throttle"}
	for name, h := range map[string]host{
		"v1": {cgroupVersion: 1, swapLimit: true, ipv6: true, thermal: thermal},
		"v2": {cgroupVersion: 2, swapLimit: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := ociSpec(goldenInput(), h)
			s.Linux.Seccomp = nil // TestSeccomp; it follows containerd's list, which depends on the machine
			got, err := json.MarshalIndent(s, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "spec-"+name+".json")
			if *update {
				if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
				t.Errorf("spec (-want +got); if this is meant, run with -update:\n%s", diff)
			}
			if s.Hooks != nil {
				t.Error("the spec has hooks")
			}
		})
	}
}

// TestScopeSpec: systemd must be told at create what is to hold in the end.
func TestScopeSpec(t *testing.T) {
	in := goldenInput()
	in.scope, in.cgroupsPath = true, "lfx-fn.slice:lfx:hello-1"
	for _, version := range []int{1, 2} {
		s := ociSpec(in, host{cgroupVersion: version})
		r := s.Linux.Resources
		if s.Linux.CgroupsPath != in.cgroupsPath || *r.CPU.Quota != 7236 {
			t.Errorf("v%d: path %q, quota %d", version, s.Linux.CgroupsPath, *r.CPU.Quota)
		}
		if got, want := r.Unified["memory.high"], map[int]string{2: "134217728"}[version]; got != want {
			t.Errorf("v%d: memory.high = %q, want %q", version, got, want)
		}
	}
}

func TestSeccomp(t *testing.T) {
	p := ociSpec(goldenInput(), host{cgroupVersion: 1}).Linux.Seccomp
	if p.DefaultAction != specs.ActErrno || len(p.Architectures) != 1 {
		t.Errorf("default %s, architectures %v", p.DefaultAction, p.Architectures)
	}
	var allowed []string
	var sockets []map[uint]uint64
	enosys := false
	for _, r := range p.Syscalls {
		if r.Action != specs.ActAllow {
			enosys = enosys || slices.Contains(r.Names, "clone3")
			continue
		}
		allowed = append(allowed, r.Names...)
		if slices.Contains(r.Names, "socketpair") && !cmp.Equal(r.Args, []specs.LinuxSeccompArg{{Index: 0, Value: 1, Op: specs.OpEqualTo}}) {
			t.Errorf("socketpair is allowed by %+v, want AF_UNIX only", r.Args)
		}
		if slices.Contains(r.Names, "socket") {
			m := map[uint]uint64{}
			for _, a := range r.Args {
				if _, twice := m[a.Index]; twice || a.Op != specs.OpEqualTo {
					t.Errorf("socket rule %+v: conditions must be equalities on different arguments", r)
				}
				m[a.Index] = a.Value
			}
			sockets = append(sockets, m)
		}
	}
	if diff := cmp.Diff([]map[uint]uint64{{0: 1}, {0: 2}, {0: 10}, {0: 16, 2: 0}}, sockets); diff != "" {
		t.Errorf("socket rules (-want +got):\n%s", diff)
	}
	for _, name := range append([]string{"clone3"}, deniedSyscalls...) {
		if slices.Contains(allowed, name) {
			t.Errorf("%s is allowed", name)
		}
	}
	for _, name := range []string{"read", "execve", "clone", "futex", "epoll_wait", "sendmsg", "socketpair"} {
		if !slices.Contains(allowed, name) {
			t.Errorf("%s is not allowed", name)
		}
	}
	if !enosys {
		t.Error("clone3 does not answer ENOSYS")
	}
}

func TestSpecValidate(t *testing.T) {
	good := func() Spec {
		return Spec{ID: "a", Args: []string{"/x"}, Dir: "/var/task", MemoryMB: 128, TmpMB: 512, Cores: 1, Env: []string{"A=b"}}
	}
	if err := good().validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Spec){
		"id":          func(s *Spec) { s.ID = "../x" },
		"empty id":    func(s *Spec) { s.ID = "" },
		"long id":     func(s *Spec) { s.ID = strings.Repeat("a", 64) },
		"args":        func(s *Spec) { s.Args = nil },
		"empty arg":   func(s *Spec) { s.Args = []string{""} },
		"nul":         func(s *Spec) { s.Args = []string{"/x", "a\x00b"} },
		"env":         func(s *Spec) { s.Env = []string{"=x"} },
		"env nul":     func(s *Spec) { s.Env = []string{"A=\x00"} },
		"relative":    func(s *Spec) { s.Dir = "task" },
		"proc":        func(s *Spec) { s.Dir = "/proc/self/fd/7" },
		"proc hidden": func(s *Spec) { s.Dir = "/var/../proc" },
		"sys":         func(s *Spec) { s.Dir = "/sys" },
		"memory":      func(s *Spec) { s.MemoryMB = 0 },
		"tmp":         func(s *Spec) { s.TmpMB = 0 },
		"cores":       func(s *Spec) { s.Cores = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			s := good()
			change(&s)
			if err := s.validate(); !errdefs.IsInvalidArgument(err) {
				t.Errorf("error = %v, want invalid argument", err)
			}
		})
	}
}

func TestStates(t *testing.T) {
	legal := map[State][]State{Creating: {Created, Exited, Removed}, Created: {Started, Exited}, Started: {Exited}, Exited: {Removed}}
	for from := State(0); from <= Removed+1; from++ {
		for to := State(0); to <= Removed+1; to++ {
			got, err := from.to(to)
			want := slices.Contains(legal[from], to)
			if (err == nil) != want || (want && got != to) || (!want && got != from) || (err != nil && !errdefs.IsFailedPrecondition(err)) {
				t.Errorf("%v → %v = %v, %v", from, to, got, err)
			}
		}
	}
}

func TestUIDRanges(t *testing.T) {
	u := newUIDRanges(1000, 2)
	u.claim(1000, "old")
	u.claim(7, "not ours")
	a, err := u.take("a")
	if err != nil || a != 1000+rangeSize {
		t.Fatalf("take = %d, %v", a, err)
	}
	if _, err := u.take("b"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("take without a free range: %v", err)
	}
	u.release(a, "somebody else")
	if _, err := u.take("b"); err == nil {
		t.Error("a range was released by who does not have it")
	}
	u.release(1000, "old")
	if b, err := u.take("b"); err != nil || b != 1000 {
		t.Errorf("take = %d, %v", b, err)
	}
}

func TestCheckStatus(t *testing.T) {
	good := "Name:\trunc\nUid:\t5000\t5000\t5000\t5000\nGid:\t5000\t5000\t5000\t5000\nGroups:\t \nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n" +
		"CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
	if err := checkStatus(good, 4000); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{
		{"CapEff:\t0000000000000000", "CapEff:\t0000000000000001"}, {"NoNewPrivs:\t1", "NoNewPrivs:\t0"}, {"Seccomp:\t2\n", ""},
		{"Seccomp:\t2", "Seccomp:\t0"}, {"Groups:\t ", "Groups:\t0"}, {"Uid:\t5000", "Uid:\t0"},
	} {
		if err := checkStatus(strings.Replace(good, c[0], c[1], 1), 4000); err == nil {
			t.Errorf("%q passes", c[1])
		}
	}
}

func TestShimOf(t *testing.T) {
	line := strings.Join([]string{"/x/containerd-shim-runc-v2", "-namespace", "lfx", "-id", "a", "-address", "/run/c.sock", ""}, "\x00")
	if id, ok := shimOf(line, "lfx", "/run/c.sock"); !ok || id != "a" {
		t.Errorf("shimOf = %q, %v", id, ok)
	}
	for _, c := range [][2]string{{"other", "/run/c.sock"}, {"lfx", "/run/other.sock"}} {
		if id, ok := shimOf(line, c[0], c[1]); ok {
			t.Errorf("shimOf for %v = %q", c, id)
		}
	}
	if _, ok := shimOf("", "lfx", ""); ok {
		t.Error("a zombie is a shim")
	}
}
