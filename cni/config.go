package cni

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/cni/firewall"
)

// Egress is an operator's exception to the rule that functions reach no private address.
type Egress = firewall.Egress

// Config is what a Manager needs. New fills zero fields with the defaults named here.
type Config struct {
	Bridge      string       // functions' bridge; "lfx0"
	Subnet      netip.Prefix // IPv4, /8 to /28; 10.201.0.0/16
	BuildBridge string       // builds' bridge; "lfxb0"
	BuildSubnet netip.Prefix // 10.202.0.0/16
	BinDir      string       // holds the plugins bridge and host-local; required
	RunDir      string       // on a tmpfs, so that a reboot frees every address; required
	Table       string       // name of both nftables tables; "lfx"
	MTU         int          // of bridges and veths, in bytes; 0 takes that of the host's default route, else 1500
	Allow       []Egress     // private addresses that functions and builds may reach all the same

	// DNSUpstreams are asked by the forwarder on the gateways; empty means the host's resolv.conf.
	DNSUpstreams []netip.AddrPort
	// ResolvConf is read for upstreams when DNSUpstreams is empty; "/etc/resolv.conf".
	ResolvConf string
	// NoDNS starts no forwarder: for hosts whose own resolver answers on the gateway.
	NoDNS bool

	// GCGrace is how long GC spares an attachment that it does not find in the list it was given,
	// because the list may be older than the attachment; 10 s. Negative means not at all.
	GCGrace time.Duration

	// OnBreach is called when the firewall was changed by somebody else, or cannot be verified, after
	// the bridges were cut; OnRestored when rules stand and bridges carry frames again. They run on
	// Run's goroutine and delay the repair, so they must not block.
	OnBreach   func(cause error)
	OnRestored func()

	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Bridge = cmp.Or(c.Bridge, "lfx0")
	c.BuildBridge = cmp.Or(c.BuildBridge, "lfxb0")
	c.Table = cmp.Or(c.Table, "lfx")
	c.Subnet = cmp.Or(c.Subnet, netip.MustParsePrefix("10.201.0.0/16"))
	c.BuildSubnet = cmp.Or(c.BuildSubnet, netip.MustParsePrefix("10.202.0.0/16"))
	c.ResolvConf = cmp.Or(c.ResolvConf, "/etc/resolv.conf")
	c.GCGrace = cmp.Or(c.GCGrace, 10*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnBreach == nil {
		c.OnBreach = func(error) {}
	}
	if c.OnRestored == nil {
		c.OnRestored = func() {}
	}
	return c
}

// minMTU is the smallest that IPv4 hosts must accept whole.
const minMTU = 576

// validate reports the first field that cannot work, as errdefs.ErrInvalidArgument. Names and
// addresses of bridges are judged by the firewall, whose script they go into.
func (c Config) validate() error {
	for field, p := range map[string]netip.Prefix{"subnet": c.Subnet, "build subnet": c.BuildSubnet} {
		if !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 28 {
			return fmt.Errorf("%s %s: must be IPv4, between /8 and /28: %w", field, p, errdefs.ErrInvalidArgument)
		}
	}
	switch {
	case c.Subnet.Overlaps(c.BuildSubnet):
		return fmt.Errorf("subnet %s and build subnet %s overlap: %w", c.Subnet, c.BuildSubnet, errdefs.ErrInvalidArgument)
	case c.Bridge == c.BuildBridge:
		return fmt.Errorf("functions and builds cannot share bridge %s: %w", c.Bridge, errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(c.RunDir):
		return fmt.Errorf("run directory %q: must be an absolute path: %w", c.RunDir, errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(c.BinDir):
		return fmt.Errorf("plugin directory %q: must be an absolute path: %w", c.BinDir, errdefs.ErrInvalidArgument)
	case c.MTU != 0 && (c.MTU < minMTU || c.MTU > 65535):
		return fmt.Errorf("mtu %d: must be %d to 65535: %w", c.MTU, minMTU, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkPlugins reports a plugin that is missing with what to do, as errdefs.ErrFailedPrecondition.
func (c Config) checkPlugins() error {
	for _, name := range []string{"bridge", "host-local"} {
		path := filepath.Join(c.BinDir, name)
		if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 || info.IsDir() {
			return fmt.Errorf("the CNI plugin %s is not installed: make engine builds it, or point the configuration at the directory that has it: %w", path, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

func (c Config) ipamDir() string     { return filepath.Join(c.RunDir, "ipam") }
func (c Config) cniDir() string      { return filepath.Join(c.RunDir, "cni") }
func (c Config) recordDir() string   { return filepath.Join(c.cniDir(), "attach") }
func (c Config) forwardFile() string { return filepath.Join(c.cniDir(), "ip_forward") }

// addrAt is the address n places after the beginning of p.
func addrAt(p netip.Prefix, n uint32) netip.Addr {
	base := p.Masked().Addr().As4()
	var out [4]byte
	binary.BigEndian.PutUint32(out[:], binary.BigEndian.Uint32(base[:])+n)
	return netip.AddrFrom4(out)
}

// validID is what may be part of file names and of a link's alias; CNI's own rule is the same.
var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func checkID(id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("attachment id %q: must match %s: %w", id, validID, errdefs.ErrInvalidArgument)
	}
	return nil
}
