package firewall

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Egress is an operator's exception: functions may reach these private addresses.
type Egress struct {
	Prefix netip.Prefix
	Port   uint16 // TCP and UDP; zero means every port
}

// linkLocal holds the metadata service. No exception opens any of it.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// ParseEgress parses ADDRESS or PREFIX with an optional :PORT, such as "10.0.0.5:5432",
// "10.1.0.0/16:443" or "192.168.1.10". The error is errdefs.ErrInvalidArgument.
func ParseEgress(s string) (Egress, error) {
	var e Egress
	host, port, found := strings.Cut(s, ":")
	if found {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '+' {
			return Egress{}, fmt.Errorf("egress exception %q: the port must be 1 to 65535: %w", s, errdefs.ErrInvalidArgument)
		}
		e.Port = uint16(n)
	}
	prefix, err := netip.ParsePrefix(host)
	if err != nil {
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return Egress{}, fmt.Errorf("egress exception %q: want an IPv4 address or prefix with an optional :port: %w", s, errdefs.ErrInvalidArgument)
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	e.Prefix = prefix.Masked()
	if err := e.validate(); err != nil {
		return Egress{}, err
	}
	return e, nil
}

// String is the form ParseEgress reads.
func (e Egress) String() string {
	host := e.Prefix.String()
	if e.Prefix.IsSingleIP() {
		host = e.Prefix.Addr().String()
	}
	if e.Port == 0 {
		return host
	}
	return fmt.Sprintf("%s:%d", host, e.Port)
}

func (e Egress) validate() error {
	if !e.Prefix.IsValid() || !e.Prefix.Addr().Is4() {
		return fmt.Errorf("egress exception %s: only IPv4 is routed for functions: %w", e, errdefs.ErrInvalidArgument)
	}
	if e.Prefix.Overlaps(linkLocal) {
		return fmt.Errorf("egress exception %s: link-local addresses hold the metadata service and stay closed: %w", e, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (e Egress) rule() string {
	if e.Port == 0 {
		return fmt.Sprintf("ip daddr %s accept", e.Prefix.Masked())
	}
	return fmt.Sprintf("ip daddr %s meta l4proto { tcp, udp } th dport %d accept", e.Prefix.Masked(), e.Port)
}
