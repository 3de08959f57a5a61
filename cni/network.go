package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/libcni"

	"lfx.dev/lfxd/cni/firewall"
)

const cniVersion = "1.1.0"

// network is one bridge with its subnet and the conflist that attaches to it.
type network struct {
	bridge  string // also the name of the CNI network
	subnet  netip.Prefix
	gateway netip.Addr
	pinned  bool // each port is tied to one address; true for functions, whose attachments are ours
	list    *libcni.NetworkConfigList
	json    []byte
}

func newNetwork(c Config, bridge string, subnet netip.Prefix, pinned bool) (*network, error) {
	n := &network{bridge: bridge, subnet: subnet.Masked(), gateway: addrAt(subnet, 1), pinned: pinned}
	var err error
	if n.json, err = n.conflist(c); err != nil {
		return nil, fmt.Errorf("network %s: %w", bridge, err)
	}
	if n.list, err = libcni.NetworkConfFromBytes(n.json); err != nil {
		return nil, fmt.Errorf("network %s: %w", bridge, err)
	}
	return n, nil
}

// conflist renders the CNI configuration. Masquerade and filtering are static rules of package
// firewall and not plugins: those cost several times the rest of an ADD, and never clean up.
// isDefaultGateway is absent because beside an IPAM default route it fails with "file exists".
func (n *network) conflist(c Config) ([]byte, error) {
	type object = map[string]any
	return json.MarshalIndent(object{
		"cniVersion": cniVersion,
		"name":       n.bridge,
		"plugins": []object{{
			"type": "bridge", "bridge": n.bridge, "isGateway": true, "hairpinMode": false, "promiscMode": false,
			"ipMasq": false, "portIsolation": true, "mtu": c.MTU,
			"ipam": object{
				"type": "host-local", "dataDir": c.ipamDir(),
				"ranges": [][]object{{{"subnet": n.subnet.String(), "rangeStart": n.rangeStart().String(), "gateway": n.gateway.String()}}},
				"routes": []object{{"dst": "0.0.0.0/0"}},
			},
		}},
	}, "", "  ")
}

// rangeStart leaves the first 256 addresses of a large subnet free for what is not an instance.
func (n *network) rangeStart() netip.Addr {
	if n.subnet.Bits() <= 20 {
		return addrAt(n.subnet, 256)
	}
	return addrAt(n.subnet, 2)
}

func (n *network) rules() firewall.Bridge {
	return firewall.Bridge{Name: n.bridge, Gateway: n.gateway, Subnet: n.subnet}
}
