package dns

import (
	"fmt"
	"net/netip"
)

// ResolvConf is the contents of /etc/resolv.conf of an instance whose forwarder answers on gateway.
func ResolvConf(gateway netip.Addr) []byte {
	return fmt.Appendf(nil, "nameserver %s\noptions timeout:2 attempts:3\n", gateway)
}

// Hosts is the contents of /etc/hosts of an instance. An invalid ip, or an empty hostname, leaves
// only the local names; sandbox.localdomain is what AWS's own environments call themselves.
func Hosts(hostname string, ip netip.Addr) []byte {
	out := []byte("127.0.0.1 localhost sandbox sandbox.localdomain\n")
	if hostname == "" || !ip.IsValid() {
		return out
	}
	return fmt.Appendf(out, "%s %s\n", ip, hostname)
}
