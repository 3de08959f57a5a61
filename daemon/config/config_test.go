package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDefaultIsValidAndIsTheEmptyFile(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
	c, err := Parse("empty", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Error(diff)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if _, err := Load(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	text := `
log_level = "debug"
[functions]
idle_timeout = "1h30m"
memory_budget = "6GiB"
[build]
context_limit = "1.5 GiB"
[base_images]
"public.ecr.aws/lambda/python:3.13" = "localhost/lfx/python:3.11"
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.Functions.IdleTimeout.Duration != 90*time.Minute || c.Functions.MemoryBudget.Bytes != 6<<30 ||
		c.Functions.MemoryBudget.Percent != 0 || c.Build.ContextLimit != 3<<29 || len(c.BaseImages) != 1 || c.LogLevel >= 0 {
		t.Errorf("loaded %+v", c)
	}
	if c.Functions.InitTimeout != Default().Functions.InitTimeout {
		t.Error("a table replaced the defaults of its other keys")
	}
}

func TestParseErrorsNameTheLine(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"unknown key":   {"region = \"eu-west-1\"\nspeed = 3\n", `f:2: there is no key "speed"`},
		"unknown table": {"\n\n[sound]\nvolume = 11\n", `f:3: there is no key "sound`},
		"nested":        {"[build]\ntimeout = \"1m\"\ncolour = 1\n", `f:3: there is no key "build.colour"`},
		"wrong type":    {"[network]\n\nmtu = \"big\"\n", "f:3:"},
		"no duration":   {"[functions]\nidle_timeout = \"soon\"\n", `"soon" is not a duration`},
		"bare number":   {"[functions]\nidle_timeout = 10\n", `"10" is not a duration`}, // go-toml gives no position here
		"no size":       {"[build]\ncontext_limit = \"-1MiB\"\n", "is not a size"},
		"no string":     {"\nstate_dir = 5\n", "f:2: state_dir must be a string in quotes"},
		"no number":     {"[network]\nmtu = \"x\"\n", "f:2: network.mtu must be a whole number"},
		"no list":       {"[listen]\nallowed_hosts = 1\n", "allowed_hosts"},
		"level":         {"log_level = \"loud\"\n", "loud"},
		"syntax":        {"a = = 1\n", "f:1:"},
		"twice":         {"region = \"a\"\nregion = \"b\"\n", "f:"},
	} {
		_, err := Parse("f", []byte(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: err = %v, want %q in it", name, err, test.want)
		}
	}
}

func TestUnknownKeysAreAllReported(t *testing.T) {
	_, err := Parse("f", []byte("one = 1\ntwo = 2\n"))
	if err == nil || !strings.Contains(err.Error(), "one") || !strings.Contains(err.Error(), "two") {
		t.Errorf("err = %v", err)
	}
}

func TestValidate(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"relative state": {func(c *Config) { c.StateDir = "state" }, "state_dir:"},
		"dotdot":         {func(c *Config) { c.StateDir = "/var/../etc" }, "state_dir:"},
		"root":           {func(c *Config) { c.RunDir = "/" }, "run_dir:"},
		"long run_dir":   {func(c *Config) { c.RunDir = "/run/" + strings.Repeat("x", 20) }, "run_dir: \"/run/xxxxxxxxxxxxxxxxxxxx\" has 25"},
		"same dirs":      {func(c *Config) { c.RunDir, c.StateDir = "/run/x", "/run/x" }, "run_dir:"},
		"namespace":      {func(c *Config) { c.Namespace = "a/b" }, "namespace:"},
		"region":         {func(c *Config) { c.Region = "Berlin" }, "region:"},
		"latest":         {func(c *Config) { c.BaseImages["a:latest"] = "b" }, "base_images:"},
		"empty base":     {func(c *Config) { c.BaseImages["a"] = "" }, "base_images:"},
		"runtime":        {func(c *Config) { c.Engine.OCIRuntime = "../runc" }, "engine.oci_runtime:"},
		"containerd":     {func(c *Config) { c.Engine.ContainerdAddress = "tcp://x" }, "engine.containerd_address:"},
		"tcp everywhere": {func(c *Config) { c.Listen.TCP = "0.0.0.0:9000" }, "TLS and access keys"},
		"tcp name":       {func(c *Config) { c.Listen.TCP = "localhost:9000" }, "listen.tcp:"},
		"port address":   {func(c *Config) { c.Listen.FunctionPortAddress = "0.0.0.0" }, "listen.function_port_address:"},
		"same sockets":   {func(c *Config) { c.Listen.InvokeSocket = "/run/lfxd/lfxd.sock" }, "listen.invoke_socket:"},
		"long socket":    {func(c *Config) { c.Listen.ControlSocket = "/" + strings.Repeat("x", 107) }, "listen.control_socket:"},
		"host with port": {func(c *Config) { c.Listen.AllowedHosts = []string{"localhost:9000"} }, "listen.allowed_hosts:"},
		"host star":      {func(c *Config) { c.Listen.AllowedHosts = []string{"*"} }, "listen.allowed_hosts:"},
		"bridge":         {func(c *Config) { c.Network.Bridge = "sixteencharacter" }, "network.bridge:"},
		"bridge slash":   {func(c *Config) { c.Network.Bridge = "a/b" }, "network.bridge:"},
		"same bridge":    {func(c *Config) { c.Network.BuildBridge = "lfx0" }, "network.build_bridge:"},
		"overlap":        {func(c *Config) { c.Network.BuildSubnet = "10.201.128.0/20" }, "overlaps"},
		"host bits":      {func(c *Config) { c.Network.Subnet = "10.201.0.1/16" }, "write 10.201.0.0/16"},
		"public subnet":  {func(c *Config) { c.Network.Subnet = "8.8.0.0/16" }, "private"},
		"ipv6 subnet":    {func(c *Config) { c.Network.Subnet = "fd00::/64" }, "IPv4"},
		"tiny subnet":    {func(c *Config) { c.Network.Subnet = "10.0.0.0/30" }, "between 8 and 28"},
		"table":          {func(c *Config) { c.Network.Table = "x; flush ruleset" }, "network.table:"},
		"mtu":            {func(c *Config) { c.Network.MTU = 9 }, "network.mtu:"},
		"dns":            {func(c *Config) { c.Network.DNS = []string{"dns.example"} }, "network.dns:"},
		"allow metadata": {func(c *Config) { c.Network.Allow = []string{"169.254.169.254:80"} }, "never"},
		"allow all":      {func(c *Config) { c.Network.Allow = []string{"0.0.0.0/0:80"} }, "never"},
		"allow no port":  {func(c *Config) { c.Network.Allow = []string{"10.0.0.1"} }, "no port"},
		"idle":           {func(c *Config) { c.Functions.IdleTimeout = Duration{} }, "functions.idle_timeout:"},
		"budget":         {func(c *Config) { c.Functions.MemoryBudget = Budget{} }, "functions.memory_budget:"},
		"parallel":       {func(c *Config) { c.Build.MaxParallel = 0 }, "build.max_parallel:"},
		"journald":       {func(c *Config) { c.Logs.Journald = "yes" }, "logs.journald:"},
		"keep":           {func(c *Config) { c.Releases.Keep = 0 }, "releases.keep:"},
	} {
		c := Default()
		test.change(c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: err = %v, want %q in it", name, err, test.want)
		}
	}
	c := Default()
	c.Region, c.Network.MTU = "x", 1
	if err := c.Validate(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two problems give %v", err)
	}
}

func TestParseAllow(t *testing.T) {
	to, port, err := ParseAllow("192.168.1.0/24:5432")
	if err != nil || to.String() != "192.168.1.0/24" || port != 5432 {
		t.Errorf("got %v %d %v", to, port, err)
	}
	if to, _, err := ParseAllow("192.168.1.5:443"); err != nil || to.String() != "192.168.1.5/32" {
		t.Errorf("got %v %v", to, err)
	}
}

func TestDefaultMax(t *testing.T) {
	c := Default()
	for _, test := range []struct {
		cores  int
		memory int64
		mb     int
		want   int
	}{{2, 8 << 30, 128, 8}, {8, 4 << 30, 1024, 3}, {1, 256 << 20, 1024, 1}} {
		if got := c.DefaultMax(test.cores, test.memory, test.mb); got != test.want {
			t.Errorf("DefaultMax(%d, %d, %d) = %d, want %d", test.cores, test.memory, test.mb, got, test.want)
		}
	}
	c.Functions.DefaultMax = 7
	if got := c.DefaultMax(2, 8<<30, 128); got != 7 {
		t.Errorf("the configured limit is ignored: %d", got)
	}
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"256MiB", "1.5 GiB", "0", "1e3kB", "NaN", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var a, b Size
		if a.UnmarshalText([]byte(s)) != nil {
			return
		}
		text, _ := a.MarshalText()
		if err := b.UnmarshalText(text); err != nil || a < 0 || (a < 1<<50 && a != b) {
			t.Errorf("%q is %d, written %s, read %d (%v)", s, a, text, b, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[network]\nsubnet = \"10.0.0.0/8\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := Parse("f", data); err == nil {
			_ = c.Validate()
		}
	})
}
