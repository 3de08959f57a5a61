package firewall

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// Limits per source address, of security relevance only as an order of magnitude: the first keeps
// one instance from filling the host's conntrack table, the second from drowning the forwarder.
const (
	maxConnsPerSource = 1024
	dnsPerSecond      = 200
	dnsBurst          = 400
)

// private4 is what no function may reach through the gateway unless an Egress says so: this
// network, private networks, carrier NAT, loopback, link-local with the metadata service, Azure's
// metadata address, protocol assignments, benchmarking, multicast and reserved.
var private4 = []string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3",
}

var (
	tableName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
	linkName  = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_-]{0,14}$`)
)

// Bridge is one of our bridges with the subnet behind it.
type Bridge struct {
	Name    string
	Gateway netip.Addr   // the bridge's own address, where the DNS forwarder answers
	Subnet  netip.Prefix // masked
}

// Rules is what the static tables are generated from.
type Rules struct {
	Table   string // name of both tables
	Bridges []Bridge
	Allow   []Egress
	// OnlyOurs drops every forwarded packet that is neither from nor to our bridges: for a host that
	// was no router before we turned ip_forward on.
	OnlyOurs bool
}

// Validate reports the first rule that r breaks as errdefs.ErrInvalidArgument. Everything that
// ends up in the script has a form in which it cannot be anything but a name or an address.
func (r Rules) Validate() error {
	if !tableName.MatchString(r.Table) {
		return fmt.Errorf("nft table name %q: must match %s: %w", r.Table, tableName, errdefs.ErrInvalidArgument)
	}
	if len(r.Bridges) == 0 {
		return fmt.Errorf("no bridge to protect: %w", errdefs.ErrInvalidArgument)
	}
	for _, b := range r.Bridges {
		if !linkName.MatchString(b.Name) {
			return fmt.Errorf("bridge name %q: must match %s: %w", b.Name, linkName, errdefs.ErrInvalidArgument)
		}
		if !b.Subnet.IsValid() || !b.Subnet.Addr().Is4() || b.Subnet != b.Subnet.Masked() {
			return fmt.Errorf("subnet %s of bridge %s: must be an IPv4 prefix: %w", b.Subnet, b.Name, errdefs.ErrInvalidArgument)
		}
		if !b.Subnet.Contains(b.Gateway) {
			return fmt.Errorf("gateway %s of bridge %s is not in %s: %w", b.Gateway, b.Name, b.Subnet, errdefs.ErrInvalidArgument)
		}
	}
	for _, e := range r.Allow {
		if err := e.validate(); err != nil {
			return err
		}
	}
	return nil
}

// script is a generated rule set and how many rules each chain must hold after it was applied.
type script struct {
	text  string
	rules map[string]int // "family/chain" → number of rules
}

// builder writes a script chain by chain and counts.
type builder struct {
	strings.Builder
	family string
	chain  string
	rules  map[string]int
}

func (b *builder) line(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }

// table begins a table that replaces whatever carries its name, in the same transaction.
func (b *builder) table(family, name string) {
	b.family = family
	b.line("table %s %s", family, name)
	b.line("delete table %s %s", family, name)
	b.line("table %s %s {", family, name)
}

// open begins a chain; spec is its hook, empty for a chain that is jumped to.
func (b *builder) open(name, spec string) {
	b.chain = b.family + "/" + name
	b.rules[b.chain] = 0
	b.line("  chain %s {", name)
	if spec != "" {
		b.line("    %s", spec)
	}
}

func (b *builder) rule(format string, args ...any) {
	b.rules[b.chain]++
	b.line("    "+format, args...)
}

func (b *builder) close() { b.line("  }") }

// generate renders both tables with the given pins.
func (r Rules) generate(pins []Pin) script {
	b := &builder{rules: map[string]int{}}
	r.inet(b)
	r.bridge(b, pins)
	return script{text: b.String(), rules: b.rules}
}

func (r Rules) inet(b *builder) {
	ours, subnets, gateways := r.lists()
	b.table("inet", r.Table)
	b.line("  set private4 { type ipv4_addr; flags interval; elements = { %s } }", strings.Join(private4, ", "))
	b.line("  set rtapi { type ipv4_addr . inet_service; }") // instances whose loopback is not the host's
	b.line("  set fn_conns { type ipv4_addr; flags dynamic; size 65535; }")
	b.line("  set fn_dns { type ipv4_addr; flags dynamic; timeout 1m; size 65535; }")

	b.open("raw_pre", "type filter hook prerouting priority raw; policy accept;")
	b.rule(`iifname != { %s, "lo" } ip daddr { %s } counter drop`, ours, subnets) // no direct routing from the LAN
	b.rule(`iifname { %s } fib saddr . iif oif missing counter drop`, ours)
	b.close()

	b.open("input", "type filter hook input priority filter - 10; policy accept;")
	b.rule(`iifname { %s } jump from_fn`, ours)
	b.close()

	b.open("from_fn", "")
	b.rule("ct state invalid drop")
	b.rule("meta l4proto { tcp, udp } th dport 53 add @fn_dns { ip saddr limit rate over %d/second burst %d packets } counter drop", dnsPerSecond, dnsBurst)
	b.rule("ct state established,related accept")
	b.rule("ip daddr %s ip saddr . tcp dport @rtapi accept", r.Bridges[0].Gateway)
	b.rule("iifname . ip daddr { %s } meta l4proto { tcp, udp } th dport 53 accept", gateways)
	b.rule("counter drop") // our own listeners, ssh, containerd, everything
	b.close()

	b.open("forward", "type filter hook forward priority filter - 10; policy accept;")
	b.rule(`iifname { %[1]s } oifname { %[1]s } counter drop`, ours) // a peer, by way of the gateway
	b.rule(`oifname { %s } ct state established,related accept`, ours)
	b.rule(`oifname { %s } counter drop`, ours) // nobody opens a connection to a function
	b.rule(`iifname { %s } jump egress`, ours)
	if r.OnlyOurs {
		b.rule(`iifname != { %[1]s } oifname != { %[1]s } counter drop`, ours)
	}
	b.close()

	r.egress(b)

	b.open("postrouting", "type nat hook postrouting priority srcnat; policy accept;")
	b.rule(`ip saddr { %s } oifname != { %s } masquerade`, subnets, ours)
	b.close()
	b.line("}")
}

// egress writes what may leave. The exceptions are rules and not a set: intervals in a set must not
// overlap, and an operator's list may.
func (r Rules) egress(b *builder) {
	b.open("egress", "")
	b.rule("meta nfproto ipv6 counter drop")
	b.rule("ct state invalid drop")
	b.rule("ct state new add @fn_conns { ip saddr ct count over %d } counter drop", maxConnsPerSource)
	for _, e := range r.Allow {
		b.rule("%s", e.rule())
	}
	b.rule("ip daddr @private4 counter drop")
	b.rule("tcp dport 25 counter drop")
	b.close()
}

// bridge pins address, ARP and MAC of every instance; "meta ibrname" is not in every kernel, so
// our ports are a set.
func (r Rules) bridge(b *builder, pins []Pin) {
	var ports, who []string
	for _, p := range pins {
		ports = append(ports, fmt.Sprintf("%q", p.Port))
		who = append(who, fmt.Sprintf("%q . %s . %s", p.Port, p.IP, p.MAC))
	}
	b.table("bridge", r.Table)
	b.line("  set ports { type ifname; %s }", elements(ports))
	b.line("  set who { type ifname . ipv4_addr . ether_addr; %s }", elements(who))
	b.open("pre", "type filter hook prerouting priority -300; policy accept;")
	// The port belongs to the key: a neighbour's address with the neighbour's own MAC would turn its frames to
	// this port.
	b.rule("iifname @ports ether type ip iifname . ip saddr . ether saddr != @who counter drop")
	b.rule("iifname @ports ether type arp iifname . arp saddr ip . arp saddr ether != @who counter drop")
	b.rule("iifname @ports ether type arp iifname . arp saddr ip . ether saddr != @who counter drop")
	b.rule("iifname @ports ether type != { ip, arp } counter drop")
	b.close()
	b.line("}")
}

func elements(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return "elements = { " + strings.Join(list, ", ") + " }"
}

// lists renders the bridges as contents of anonymous sets: names, subnets, name . gateway.
func (r Rules) lists() (names, subnets, gateways string) {
	var n, s, g []string
	for _, b := range r.Bridges {
		n = append(n, fmt.Sprintf("%q", b.Name))
		s = append(s, b.Subnet.String())
		g = append(g, fmt.Sprintf("%q . %s", b.Name, b.Gateway))
	}
	return strings.Join(n, ", "), strings.Join(s, ", "), strings.Join(g, ", ")
}
