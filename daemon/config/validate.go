package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Limits of the kernel and of the engine.
const (
	// maxRunDir leaves room in the 42 characters that containerd allows for the directory of its shims'
	// sockets, which the engine keeps below run_dir.
	maxRunDir = 24
	// maxInterface is IFNAMSIZ without the terminating zero.
	maxInterface = 15
	// maxSandboxesAhead is far below the addresses of the smallest subnet and the uid ranges there are.
	maxSandboxesAhead = 8
	// maxSocket is what sockaddr_un holds.
	maxSocket = 107
)

var (
	regionPattern    = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-\d$`)
	namespacePattern = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$`)
	interfacePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)
	tablePattern     = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)
	hostPattern      = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)
)

// Validate reports everything that is wrong, one error per problem joined, each naming its key.
func (c *Config) Validate() error {
	var p problems
	c.validateGeneral(&p)
	c.validateListen(&p)
	c.validateNetwork(&p)
	c.validateBounds(&p)
	return errors.Join(p...)
}

type problems []error

func (p *problems) add(key, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
}

// check adds the problem unless ok.
func (p *problems) check(ok bool, key, format string, args ...any) {
	if !ok {
		p.add(key, format, args...)
	}
}

func (p *problems) path(key, value string) {
	p.check(filepath.IsAbs(value) && filepath.Clean(value) == value && value != "/", key,
		"%q must be an absolute path without .. and without a trailing slash", value)
}

func (c *Config) validateGeneral(p *problems) {
	p.path("state_dir", c.StateDir)
	p.path("run_dir", c.RunDir)
	p.path("libexec_dir", c.LibexecDir)
	p.check(len(c.RunDir) <= maxRunDir, "run_dir", "%q has %d characters; at most %d fit, because sockets lie below it", c.RunDir, len(c.RunDir), maxRunDir)
	p.check(c.StateDir != c.RunDir, "run_dir", "must not be state_dir: one survives a reboot, the other must not")
	p.check(namespacePattern.MatchString(c.Namespace) && len(c.Namespace) <= 76, "namespace",
		"%q must be letters and digits, with single dots, dashes or underscores between them", c.Namespace)
	p.check(regionPattern.MatchString(c.Region), "region", "%q does not look like a region such as us-east-1", c.Region)
	p.path("cgroup_parent", c.CgroupParent)
	for from, to := range c.BaseImages {
		p.check(strings.TrimSpace(from) == from && from != "" && strings.TrimSpace(to) == to && to != "", "base_images",
			"%q = %q: both sides must be image references", from, to)
		p.check(!strings.HasSuffix(from, ":latest"), "base_images", "%q: leave out :latest, BuildKit does", from)
	}
	for key, address := range map[string]string{"engine.containerd_address": c.Engine.ContainerdAddress, "engine.buildkit_address": c.Engine.BuildkitAddress} {
		if address != "" {
			p.path(key, strings.TrimPrefix(address, "unix://"))
		}
	}
	runtime := c.Engine.OCIRuntime
	p.check(runtime != "" && (filepath.IsAbs(runtime) || filepath.Base(runtime) == runtime && runtime != ".." && runtime != "."),
		"engine.oci_runtime", "%q must be a name or an absolute path", runtime)
}

func (c *Config) validateListen(p *problems) {
	if c.Listen.TCP != "" {
		a, err := netip.ParseAddrPort(c.Listen.TCP)
		switch {
		case err != nil:
			p.add("listen.tcp", "%q must be a loopback address and a port, such as 127.0.0.1:9000, or empty", c.Listen.TCP)
		case !a.Addr().IsLoopback():
			p.add("listen.tcp", "%s is not a loopback address: listening elsewhere needs TLS and access keys, which lfxd does not have yet; use 127.0.0.1:%d and a proxy in front",
				a, a.Port())
		}
	}
	for key, path := range map[string]string{"listen.control_socket": c.ControlSocketPath(), "listen.invoke_socket": c.InvokeSocketPath()} {
		p.path(key, path)
		p.check(len(path) <= maxSocket, key, "%q has %d characters; a socket's path has at most %d", path, len(path), maxSocket)
	}
	p.check(c.ControlSocketPath() != c.InvokeSocketPath(), "listen.invoke_socket", "must not be the control socket, or invoking would mean to control")
	a, err := netip.ParseAddr(c.Listen.FunctionPortAddress)
	p.check(err == nil && a.IsLoopback(), "listen.function_port_address", "%q must be a loopback address, such as 127.0.0.1", c.Listen.FunctionPortAddress)
	for _, host := range c.Listen.AllowedHosts {
		p.check(validHost(host), "listen.allowed_hosts", "%q is no host name, address or *.name; a port does not belong there", host)
	}
}

func validHost(host string) bool {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return err == nil && a.Is6() && strings.HasSuffix(host, "]")
	}
	return hostPattern.MatchString(host)
}

func (c *Config) validateNetwork(p *problems) {
	n := c.Network
	for key, name := range map[string]string{"network.bridge": n.Bridge, "network.build_bridge": n.BuildBridge} {
		p.check(len(name) <= maxInterface && interfacePattern.MatchString(name), key,
			"%q must be a name of at most %d letters, digits, dots, dashes and underscores", name, maxInterface)
	}
	p.check(n.Bridge != n.BuildBridge, "network.build_bridge", "must differ from bridge: builds and functions do not share one")
	functions, ok := subnet(p, "network.subnet", n.Subnet)
	builds, ok2 := subnet(p, "network.build_subnet", n.BuildSubnet)
	p.check(!ok || !ok2 || !functions.Overlaps(builds), "network.build_subnet", "%s overlaps subnet %s", n.BuildSubnet, n.Subnet)
	p.check(tablePattern.MatchString(n.Table) && len(n.Table) <= 64, "network.table", "%q must be a letter followed by letters, digits and underscores", n.Table)
	p.check(n.MTU >= 576 && n.MTU <= 65535, "network.mtu", "%d is not between 576 and 65535", n.MTU)
	for _, server := range n.DNS {
		_, err := netip.ParseAddr(server)
		_, err2 := netip.ParseAddrPort(server)
		p.check(err == nil || err2 == nil, "network.dns", "%q must be an address or address:port", server)
	}
	for _, rule := range n.Allow {
		_, _, err := ParseAllow(rule)
		if err != nil {
			p.add("network.allow", "%v", err)
		}
	}
}

// subnet checks one IPv4 network with room for instances.
func subnet(p *problems, key, value string) (netip.Prefix, bool) {
	n, err := netip.ParsePrefix(value)
	switch {
	case err != nil || !n.Addr().Is4():
		p.add(key, "%q must be an IPv4 network such as 10.201.0.0/16", value)
	case n.Masked() != n:
		p.add(key, "%s has host bits; write %s", value, n.Masked())
	case n.Bits() < 8 || n.Bits() > 28:
		p.add(key, "%s must have between 8 and 28 network bits", value)
	case !n.Addr().IsPrivate() && !netip.MustParsePrefix("100.64.0.0/10").Contains(n.Addr()):
		p.add(key, "%s is not a private network (10/8, 172.16/12, 192.168/16 or 100.64/10)", value)
	default:
		return n, true
	}
	return netip.Prefix{}, false
}

// ParseAllow reads one entry of network.allow, "192.168.1.5:5432" or "10.0.0.0/24:443". Loopback,
// link-local and multicast destinations cannot be allowed: metadata services and the host live there.
func ParseAllow(rule string) (netip.Prefix, uint16, error) {
	i := strings.LastIndexByte(rule, ':')
	if i < 0 {
		return netip.Prefix{}, 0, fmt.Errorf("%q has no port; write it as 192.168.1.5:5432 or 10.0.0.0/24:443", rule)
	}
	port, err := strconv.ParseUint(rule[i+1:], 10, 16)
	if err != nil || port == 0 {
		return netip.Prefix{}, 0, fmt.Errorf("%q has no port between 1 and 65535", rule)
	}
	to, err := netip.ParsePrefix(rule[:i])
	if err != nil {
		a, err := netip.ParseAddr(rule[:i])
		if err != nil {
			return netip.Prefix{}, 0, fmt.Errorf("%q does not begin with an IPv4 address or network", rule)
		}
		to = netip.PrefixFrom(a, a.BitLen())
	}
	if !to.Addr().Is4() || to.Masked() != to {
		return netip.Prefix{}, 0, fmt.Errorf("%q must begin with an IPv4 address, or a network without host bits", rule)
	}
	for _, never := range neverAllowed {
		if never.Overlaps(to) {
			return netip.Prefix{}, 0, fmt.Errorf("%q reaches into %s, which functions never may", rule, never)
		}
	}
	return to, uint16(port), nil
}

var neverAllowed = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
}

// maxRecords bounds the records of invocations: about 300 MB.
const maxRecords = 1_000_000

func (c *Config) validateBounds(p *problems) {
	atLeast := func(key string, value, least int64, unit string) {
		p.check(value >= least, key, "%d%s is too small, it must be at least %d%s", value, unit, least, unit)
	}
	duration := func(key string, value Duration, least time.Duration) {
		p.check(value.Duration >= least, key, "%s is too short, it must be at least %s", value, least)
	}
	size := func(key string, value, least Size) {
		p.check(value >= least, key, "%s is too small, it must be at least %s", value, least)
	}
	atLeast("functions.default_max", int64(c.Functions.DefaultMax), 0, "")
	duration("functions.idle_timeout", c.Functions.IdleTimeout, time.Second)
	k := c.Functions.KeepAlive
	p.check(k == "adaptive" || k == "fixed", "functions.keep_alive", "%q must be adaptive or fixed", k)
	duration("functions.init_timeout", c.Functions.InitTimeout, time.Second)
	atLeast("functions.queue_limit", int64(c.Functions.QueueLimit), 0, "")
	duration("functions.queue_timeout", c.Functions.QueueTimeout, 100*time.Millisecond)
	atLeast("functions.spares", int64(c.Functions.Spares), 0, "")
	atLeast("functions.max_spares", int64(c.Functions.MaxSpares), 0, "")
	p.check(c.Functions.SandboxesAhead >= 0 && c.Functions.SandboxesAhead <= maxSandboxesAhead, "functions.sandboxes_ahead",
		"%d is not between 0 and %d", c.Functions.SandboxesAhead, maxSandboxesAhead)
	b := c.Functions.MemoryBudget
	p.check(b.Percent > 0 || b.Bytes >= 128<<20, "functions.memory_budget", "%s has no room for a single function; write for example 80%%", b)
	o := c.Functions.MemoryOvercommit
	p.check(o >= 1 && o <= 1000, "functions.memory_overcommit", "%v is not between 1 and 1000", o)
	atLeast("functions.max_instances", int64(c.Functions.MaxInstances), 0, "")
	freeze := c.Functions.FreezeAfter.Duration
	p.check(freeze == 0 || freeze >= 100*time.Millisecond, "functions.freeze_after", "%s is too short, it must be at least 100ms, or 0s for never", freeze)
	duration("build.timeout", c.Build.Timeout, time.Second)
	atLeast("build.max_parallel", int64(c.Build.MaxParallel), 1, "")
	size("build.context_limit", c.Build.ContextLimit, 1<<10)
	atLeast("build.context_entries", int64(c.Build.ContextEntries), 1, "")
	size("build.log_limit", c.Build.LogLimit, 1<<10)
	size("build.cache_limit", c.Build.CacheLimit, 64<<20)
	size("logs.max_bytes_per_function", c.Logs.MaxBytesPerFunction, 64<<10)
	j := c.Logs.Journald
	p.check(j == "auto" || j == "on" || j == "off", "logs.journald", "%q must be auto, on or off", j)
	r := c.Records.Max
	p.check(r >= 0 && r <= maxRecords, "records.max", "%d must be between 0 (none) and %d", r, maxRecords)
	atLeast("releases.keep", int64(c.Releases.Keep), 1, "")
}
