// Package dns is the resolver that functions and builds see: a forwarder on the address of their
// gateway, the one port of the host that their network may reach.
//
// It forwards what it is asked to the upstreams that the operator named or that the host's
// resolv.conf names, from the host's side, so a stub resolver on the host's 127.0.0.53 works although no
// function can reach that address. It keeps no cache and changes no answer, except that an answer too long for
// the asker's UDP buffer is truncated and marked so.
//
// The package also writes the two files that a function's libc reads for names: resolv.conf and hosts.
package dns
