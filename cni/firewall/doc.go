// Package firewall owns the two nftables tables that keep functions and builds away from the
// host, from each other, from the LAN and from link-local addresses.
//
//	table inet <Table>     what may be routed, what may reach the host, masquerade
//	table bridge <Table>   which (address, MAC) pairs may leave which of our ports
//
// The tables are static: an instance is one element in each of two sets, ports and who, written
// over netlink without starting a process. The tables themselves are written as one nft script,
// because its text is the rule set that a person reviews and nft applies it as one transaction: at no
// moment is there a table with half of its rules. Rules match interfaces by name, so the tables
// are installed before the bridges exist.
//
// The package does not create interfaces, does not decide who gets an address and does not probe:
// package cni does.
package firewall
