package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestNewValidates(t *testing.T) {
	good := Config{BinDir: "/bin", RunDir: "/run/x"}
	for name, change := range map[string]func(*Config){
		"overlapping subnets": func(c *Config) { c.BuildSubnet = netip.MustParsePrefix("10.201.128.0/24") },
		"IPv6":                func(c *Config) { c.Subnet = netip.MustParsePrefix("fd00::/64") },
		"small subnet":        func(c *Config) { c.Subnet = netip.MustParsePrefix("10.201.0.0/29") },
		"one bridge for both": func(c *Config) { c.BuildBridge = "lfx0" },
		"bridge name":         func(c *Config) { c.Bridge = "../x" },
		"table name":          func(c *Config) { c.Table = "a b" },
		"relative run dir":    func(c *Config) { c.RunDir = "run" },
		"no plugin dir":       func(c *Config) { c.BinDir = "" },
		"tiny MTU":            func(c *Config) { c.MTU = 100 },
		"metadata exception":  func(c *Config) { c.Allow = []Egress{{Prefix: netip.MustParsePrefix("169.254.169.254/32")}} },
	} {
		c := good
		change(&c)
		if _, err := New(c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: New = %v, want ErrInvalidArgument", name, err)
		}
	}
}

// TestConflist holds the contract of the configuration that BuildKit reads too.
func TestConflist(t *testing.T) {
	c := Config{BinDir: "/bin", RunDir: "/run/x", MTU: 1400}.withDefaults()
	n, err := newNetwork(c, c.BuildBridge, c.BuildSubnet, false)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cniVersion":"1.1.0","name":"lfxb0","plugins":[{"type":"bridge","bridge":"lfxb0","isGateway":true,"hairpinMode":false,
		"promiscMode":false,"ipMasq":false,"portIsolation":true,"mtu":1400,"ipam":{"type":"host-local","dataDir":"/run/x/ipam",
		"ranges":[[{"subnet":"10.202.0.0/16","rangeStart":"10.202.1.0","gateway":"10.202.0.1"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`
	var gotDoc, wantDoc any
	if err := errors.Join(json.Unmarshal(n.json, &gotDoc), json.Unmarshal([]byte(want), &wantDoc)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantDoc, gotDoc); diff != "" {
		t.Errorf("conflist (-want +got):\n%s", diff)
	}
}

func TestKeyLock(t *testing.T) {
	var k keyLock
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := k.lock(t.Context(), "b")
	if err != nil {
		t.Fatal("another id waits")
	}
	other()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.lock(ended, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("lock of a held id = %v, want the context's end", err)
	}
	unlock()
	if len(k.held) != 0 {
		t.Errorf("%d locks are kept, want none", len(k.held))
	}
}

func FuzzParseHolder(f *testing.F) {
	f.Add([]byte("id-1\r\neth0"))
	f.Add([]byte("../../etc/passwd\r\neth0"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		if id := parseHolder(data); id != "" && (checkID(id) != nil || strings.ContainsAny(id, "/\x00")) {
			t.Errorf("parseHolder(%q) = %q", data, id)
		}
	})
}

func FuzzPluginError(f *testing.F) {
	f.Add([]byte(`{"code":11,"msg":"no"}`))
	f.Add([]byte(`{{{`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, out []byte) {
		if err := pluginError(out, errors.New("exit status 1")); err == nil || err.Error() == "" {
			t.Errorf("pluginError(%q) = %v", out, err)
		}
	})
}
