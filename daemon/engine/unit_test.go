package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

func goodConfig() Config {
	return Config{
		BinDir: "/usr/libexec/lfxd", StateDir: "/var/lib/lfxd/engine", RunDir: "/run/lfxd/engine",
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

func TestNewRefusesMistakes(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // empty: accepted
	}{
		{"defaults", func(c *Config) {}, ""},
		{"relative", func(c *Config) { c.StateDir = "state" }, `StateDir "state"`},
		{"root", func(c *Config) { c.RunDir = "/" }, `RunDir "/"`},
		{"unclean", func(c *Config) { c.BinDir = "/a/../b" }, `BinDir "/a/../b"`},
		{"longest run dir", func(c *Config) { c.RunDir = "/" + strings.Repeat("r", 39) }, ""},
		{"run dir too long", func(c *Config) { c.RunDir = "/" + strings.Repeat("r", 44) }, "is 5 bytes too long for the shims' sockets: choose a path of at most 40 bytes"},
		{"IPv6 subnet", func(c *Config) { c.BuildSubnet = "fd00::/64" }, "build subnet"},
		{"host bits", func(c *Config) { c.BuildSubnet = "10.1.2.3/16" }, "build subnet"},
		{"no room", func(c *Config) { c.BuildSubnet = "10.1.2.0/31" }, "build subnet"},
		{"bridge name", func(c *Config) { c.BuildBridge = "a-name-of-16-byt" }, "build bridge"},
		{"bridge slash", func(c *Config) { c.BuildBridge = "a/b" }, "build bridge"},
		{"cgroup", func(c *Config) { c.CgroupParent = "/lfx/../.." }, "cgroup parent"},
		{"dns", func(c *Config) { c.DNS = []string{"8.8.8.8", "dns.example"} }, `"dns.example"`},
		{"log", func(c *Config) { c.Log = nil }, "Log is nil"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := goodConfig()
			c.change(&cfg)
			_, err := New(cfg)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("New = %v, want no error", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errdefs.IsInvalidArgument(err)):
				t.Errorf("New = %v, want an invalid argument error with %q", err, c.want)
			}
		})
	}
}

func TestNewReportsAllMistakes(t *testing.T) {
	cfg := goodConfig()
	cfg.BuildSubnet, cfg.DNS = "x", []string{"y"}
	_, err := New(cfg)
	for _, want := range []string{`"x"`, `"y"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want it to mention %s", err, want)
		}
	}
}

// TestConfigurationIsEncoded holds that no value of ours can become syntax.
func TestConfigurationIsEncoded(t *testing.T) {
	cfg := goodConfig()
	cfg.setDefaults()
	cfg.StateDir = "/st\"ate\n[grpc]\nx = 'y'"
	cfg.Namespace = "l\"f'x\\"
	cfg.DNS = []string{"10.0.0.1"}

	data, err := containerdTOML(&cfg, true)
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Version  int
		Root     string
		OOMScore int `toml:"oom_score"`
		Plugins  map[string]map[string]any
	}
	if err := toml.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	if c.Version != 4 || c.Root != cfg.StateDir+"/containerd" || c.OOMScore != -999 {
		t.Errorf("containerd.toml = %+v", c)
	}
	want := map[string]map[string]any{
		"io.containerd.server.v1.grpc":   {"address": "/run/lfxd/engine/sock/containerd.sock"},
		"io.containerd.server.v1.ttrpc":  {"address": "/run/lfxd/engine/sock/containerd-ttrpc.sock"},
		"io.containerd.shim.v1.manager":  {"socket_dir": "/run/lfxd/engine/s"},
		"io.containerd.metadata.v1.bolt": {"content_sharing_policy": "isolated", "no_sync": false},
	}
	if diff := cmp.Diff(want, c.Plugins); diff != "" {
		t.Errorf("plugins (-want +got):\n%s", diff)
	}

	if data, err = buildkitTOML(&cfg); err != nil {
		t.Fatal(err)
	}
	var b struct {
		Root   string
		CDI    struct{ Disabled bool }
		DNS    struct{ Nameservers []string }
		Worker struct {
			OCI        struct{ Enabled bool }
			Containerd struct{ Namespace, NetworkMode, DefaultCgroupParent string }
		}
		Frontend map[string]struct{ Enabled *bool }
	}
	if err := toml.Unmarshal(data, &b); err != nil {
		t.Fatal(err)
	}
	w := b.Worker
	if b.Root != cfg.StateDir+"/buildkit" || !b.CDI.Disabled || w.OCI.Enabled || w.Containerd.Namespace != cfg.Namespace ||
		w.Containerd.NetworkMode != "cni" || w.Containerd.DefaultCgroupParent != "/lfx/build" || b.DNS.Nameservers[0] != "10.0.0.1" {
		t.Errorf("buildkitd.toml = %+v", b)
	}
	slice := cfg
	slice.BuildSlice = "lfx-build.slice"
	if data, err = buildkitTOML(&slice); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"defaultCgroupParent = 'lfx-build.slice:lfx-build:'", "SystemdCgroup = true"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("buildkitd.toml under systemd has no %s:\n%s", want, data)
		}
	}
	if f := b.Frontend["gateway.v0"]; f.Enabled == nil || *f.Enabled {
		t.Errorf("gateway.v0 is not disabled: %+v", b.Frontend)
	}
}

func TestBuildConflist(t *testing.T) {
	cfg := goodConfig()
	cfg.setDefaults()
	data, err := buildConflist(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	var want any
	json.Unmarshal([]byte(`{"cniVersion":"1.1.0","name":"lfxb0","plugins":[{"type":"bridge","bridge":"lfxb0",
		"isGateway":true,"ipMasq":false,"portIsolation":true,"hairpinMode":false,"promiscMode":false,"mtu":1500,
		"ipam":{"type":"host-local","dataDir":"/run/lfxd/engine/ipam",
		"ranges":[[{"subnet":"10.202.0.0/16","gateway":"10.202.0.1"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`), &want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("build.conflist (-want +got):\n%s", diff)
	}
}

func TestChildEnvPassesOnLittle(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://proxy:1")
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector")
	cfg := goodConfig()
	got := childEnv(&cfg)
	if !strings.HasPrefix(got[0], "PATH=/usr/libexec/lfxd:") {
		t.Errorf("first variable = %s, want PATH with BinDir first", got[0])
	}
	all := strings.Join(got, "\n") + "\n"
	if !strings.Contains(all, "HTTPS_PROXY=http://proxy:1\n") || strings.Contains(all, "NOTIFY_SOCKET") || strings.Contains(all, "OTEL") {
		t.Errorf("environment = %s", all)
	}
}

func TestCheckFloors(t *testing.T) {
	good := Versions{Containerd: "v2.4.2", Runc: "1.5.2", BuildKit: "v0.34.2", CNIPlugins: "v1.9.1", Kernel: "6.1.0-37-amd64"}
	for _, c := range []struct {
		name   string
		change func(*Versions)
		want   string
	}{
		{"all good", func(v *Versions) {}, ""},
		{"not asked", func(v *Versions) { *v = Versions{} }, ""},
		{"containerd old series", func(v *Versions) { v.Containerd = "v2.1.9" }, "containerd v2.1.9 has known security holes"},
		{"containerd 1", func(v *Versions) { v.Containerd = "1.7.99" }, "containerd 1.7.99"},
		{"containerd floor 2.2", func(v *Versions) { v.Containerd = "2.2.5" }, ""},
		{"containerd below 2.2", func(v *Versions) { v.Containerd = "2.2.4" }, "2.2.4"},
		{"containerd below 2.3", func(v *Versions) { v.Containerd = "2.3.1" }, "2.3.1"},
		{"containerd prerelease of the floor", func(v *Versions) { v.Containerd = "2.3.2-rc.1" }, "2.3.2-rc.1"},
		{"containerd build metadata", func(v *Versions) { v.Containerd = "2.3.2+unknown" }, ""},
		{"Debian's suffix is no prerelease", func(v *Versions) { v.Runc = "1.4.3-1~deb12u1" }, ""},
		{"containerd next major", func(v *Versions) { v.Containerd = "3.0.0" }, ""},
		{"runc", func(v *Versions) { v.Runc = "1.4.2" }, "runc 1.4.2"},
		{"runc 1.3", func(v *Versions) { v.Runc = "1.3.6" }, ""},
		{"runc rc", func(v *Versions) { v.Runc = "1.5.0-rc.2" }, "runc 1.5.0-rc.2"},
		{"unset BuildKit", func(v *Versions) { v.BuildKit = "v0.0.0+unknown" }, "BuildKit does not say its version"},
		{"nonsense", func(v *Versions) { v.BuildKit = "devel" }, `BuildKit does not say its version ("devel")`},
		{"plugins", func(v *Versions) { v.CNIPlugins = "v1.6.2" }, "CNI plugins v1.6.2"},
		{"kernel", func(v *Versions) { v.Kernel = "5.15.0-91-generic" }, "the kernel 5.15.0"},
		{"kernel two numbers", func(v *Versions) { v.Kernel = "6.18" }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := good
			c.change(&v)
			err := CheckFloors(v)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("CheckFloors(%+v) = %v, want no error", v, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errdefs.IsFailedPrecondition(err)):
				t.Errorf("CheckFloors(%+v) = %v, want a failed precondition with %q", v, err, c.want)
			}
		})
	}
}

func FuzzParseRelease(f *testing.F) {
	for _, s := range []string{"v2.4.2", "1.5.0-rc.1", "6.18", "", "v0.0.0+unknown", "99999999999999999999.1.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := parseRelease(s)
		if !ok {
			return
		}
		again, ok := parseRelease("v" + r.String())
		r.pre = false
		if !ok || again != r {
			t.Errorf("parseRelease(%q) = %v, printed and parsed again %v, %v", s, r, again, ok)
		}
	})
}

func FuzzStartTime(f *testing.F) {
	f.Add([]byte("12 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20"))
	f.Add([]byte(""))
	f.Add([]byte("1 ("))
	f.Fuzz(func(t *testing.T, stat []byte) {
		startTime(stat) // must not panic
	})
}

func TestStartTime(t *testing.T) {
	got, err := startTime([]byte("12 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20"))
	if err != nil || got != 777 {
		t.Errorf("startTime = %d, %v, want 777", got, err)
	}
	me, err := identify(os.Getpid())
	if err != nil || me.StartTime == 0 || me.BootID == "" || me.Executable == "" {
		t.Errorf("identify(me) = %+v, %v", me, err)
	}
}

func TestReadIdentityRefusesNonsense(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	for _, s := range []string{"", "{", `{"pid":1}`, `{"pid":-7}`, `{"pid":"12"}`} {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := readIdentity(path); err == nil {
			t.Errorf("readIdentity of %q = %+v, want an error", s, id)
		}
	}
}

func TestRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	if err := rotate(path, 10); err != nil {
		t.Errorf("rotate of a missing file = %v", err)
	}
	log, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	fmt.Fprint(log, "0123456789")
	if err := rotate(path, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + ".1"); !os.IsNotExist(err) {
		t.Errorf("a file within the limit was rotated (%v)", err)
	}
	fmt.Fprint(log, "x")
	if err := rotate(path, 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(log, "after") // the writer's descriptor is still good
	got, _ := os.ReadFile(path)
	old, _ := os.ReadFile(path + ".1")
	if string(got) != "after" || string(old) != "0123456789x" {
		t.Errorf("after rotate: %q and %q", got, old)
	}
}

func TestLastLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	if got := lastLines(path, 0, 3); got != "" {
		t.Errorf("lastLines of a missing file = %q", got)
	}
	if err := os.WriteFile(path, []byte("old\na\nb\nc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from int64
		n    int
		want string
	}{{0, 2, "b\nc"}, {4, 9, "a\nb\nc"}, {100, 1, "c"}} {
		if got := lastLines(path, c.from, c.n); got != c.want {
			t.Errorf("lastLines(%d, %d) = %q, want %q", c.from, c.n, got, c.want)
		}
	}
}

// silentChild is a program that answers from its n-th start on, and hangs before. It writes "stacks" when it gets SIGQUIT, and "ready" to
// the returned folder's file starts when it can.
func silentChild(t *testing.T, n int, timeout time.Duration) (*child, string) {
	t.Helper()
	dir := t.TempDir()
	starts, answers := filepath.Join(dir, "starts"), filepath.Join(dir, "answers")
	script := fmt.Sprintf("#!/bin/sh\ntrap 'echo stacks; exit 2' QUIT\necho ready >>%s\n[ $(wc -l <%s) -lt %d ] || : >%s\nwhile :; do sleep 0.05; done\n", starts, starts, n, answers)
	bin := filepath.Join(dir, "silent-child")
	if err := os.WriteFile(bin, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c := &child{
		name: "silent-child", bin: bin, config: filepath.Join(dir, "config"), env: []string{"PATH=/usr/bin:/bin"},
		log: filepath.Join(dir, "log"), record: filepath.Join(dir, "record"), maxLog: 1 << 20, timeout: timeout,
		probe: func(context.Context) error { _, err := os.Stat(answers); return err }, ready: func() error { return nil },
		logger: slog.New(slog.DiscardHandler),
	}
	t.Cleanup(func() {
		if err := c.stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c, dir
}

func content(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	return string(b)
}

func TestASilentChildIsStartedOnceMore(t *testing.T) {
	for name, from := range map[string]int{"once": 2, "always": 99} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, dir := silentChild(t, from, 9*time.Second)
			err := c.launch(t.Context())
			state := c.State()
			if got := content(t, dir, "starts"); got != "ready\nready\n" {
				t.Errorf("started %q", got)
			}
			if got := content(t, dir, "log"); !strings.Contains(got, "stacks") {
				t.Errorf("it was not asked where it hangs: %q", got)
			}
			if name == "once" {
				if err != nil || state.Phase != Running {
					t.Errorf("launch = %v, state %+v", err, state)
				}
				return
			}
			if err == nil || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no such file") || state.Phase != Stopped {
				t.Errorf("launch = %v, state %+v", err, state)
			}
		})
	}
}

func TestAChildWhoseStartIsCancelledIsNotAskedForStacks(t *testing.T) {
	c, dir := silentChild(t, 99, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // ends with the start of the program, or with the test's context
		for content(t, dir, "starts") == "" && t.Context().Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	if err := c.launch(ctx); err == nil || c.State().Phase != Stopped {
		t.Errorf("launch = %v, state %+v", err, c.State())
	}
	if starts, log := content(t, dir, "starts"), content(t, dir, "log"); starts != "ready\n" || log != "" {
		t.Errorf("starts %q, log %q", starts, log)
	}
}

func TestIncompleteEngineIsNamed(t *testing.T) {
	cfg := goodConfig()
	cfg.BinDir = t.TempDir()
	err := cfg.checkBinaries()
	if err == nil || !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "buildkitd") || !strings.Contains(err.Error(), "make engine") {
		t.Errorf("checkBinaries = %v", err)
	}
}

func TestRemembersWhetherTheHostHadAContainerd(t *testing.T) {
	for _, c := range []struct {
		name string
		have []string
		want bool
	}{
		{"nothing", nil, false},
		{"our own leftovers", []string{"fifo/123/stdout"}, false},
		{"a containerd's state", []string{"fifo/123/stdout", "containerd.sock"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			cfg := goodConfig()
			cfg.RunDir = filepath.Join(dir, "engine")
			e := &Engine{cfg: cfg, containerdRun: filepath.Join(dir, "containerd")}
			for _, name := range append(c.have, "../engine/there") {
				path := filepath.Join(e.containerdRun, name)
				if err := os.MkdirAll(path, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if c.have == nil {
				os.Remove(e.containerdRun) //nolint:errcheck // it was made for "..", if at all
			}
			if err := e.recordHost(); err != nil {
				t.Fatal(err)
			}
			var got hostBefore
			data, err := os.ReadFile(e.hostFile())
			if err != nil || json.Unmarshal(data, &got) != nil || got.ContainerdRun != c.want {
				t.Errorf("recorded %s (%v), want %v", data, err, c.want)
			}
			if err := removeFIFOs(e.containerdRun); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(e.containerdRun); (err == nil) != c.want {
				t.Errorf("%s afterwards: %v", e.containerdRun, err)
			}
		})
	}
}
