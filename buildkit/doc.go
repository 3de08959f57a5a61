// Package buildkit turns a source tree into an image: it is the client of buildkitd.
//
// The way of a tree:
//
//	lfxctl                                 lfxd
//	source.Offer ── POST /lfx/v1/session ──► Sessions      a hijacked connection; lfxctl serves its directories on it
//	             ◄── filesync ────────────── Receive       the daemon pulls what changed into a mirror of its own
//	                                         CheckDockerfile   what must be refused is refused before anything runs
//	                                         Client.Build      BuildKit builds from the mirror; the image lands in
//	                                                           containerd's image store, in the same namespace
//
// The client of a deploy is not trusted with the daemon's files: everything that arrives on a
// session passes the rules in guard.go before it touches the disk, and it is written through a
// directory handle that no path can leave.
//
// An image depends on the tree and not on who sends it or when: owners, modes and times are
// normalised (see Receive and contextFS), so that the same source gives the same layers.
//
// What the package does not do: naming, numbering, deciding what to build, unpacking and running.
// Packages source and progress hold what lfxctl needs; they build on every platform.
package buildkit
