// Package cni gives an instance a network: an address on a bridge by way of the CNI plugins, behind
// a firewall that was there before the bridge and is proven by a probe before anything runs.
//
//	New ─▶ Setup ─▶ Run (re-asserts until its context ends) ─▶ Teardown
//	          └───▶ Attach / Detach / GC / Attachments, from any goroutine
//
// Order is the security property. Setup installs the nftables tables, then turns forwarding on, then
// makes the bridges, then lets throw-away network namespaces try to reach each other and the host; when any
// of that succeeds Setup fails. Attach runs CNI ADD and pins the address to the port before it
// returns, so the caller must not start the instance earlier.
//
// Everything outside memory is named from the instance's id and recorded under Config.RunDir before it is made:
//
//	<RunDir>/ipam/<bridge>/<address>   who holds an address (host-local's own format)
//	<RunDir>/cni/results/              libcni's cache
//	<RunDir>/cni/attach/<id>.json      our record, written before ADD
//	<RunDir>/cni/ip_forward            what net.ipv4.ip_forward was before us
//	alias "lfx:<table>:<id>"           on the host side of each veth pair
//
// Package firewall owns the tables, package dns the forwarder on the gateway. This package knows
// nothing of functions, versions or containers: it is handed the path of a network namespace. It
// does not bring the loopback of that namespace up; whoever listens on it does.
package cni
