// Package systemd tests the Debian package and the units on a real systemd, booted by systemd-nspawn
// in a small Debian tree, without a network.
//
//	go test -tags integration ./integration/systemd/
//
// It needs root, systemd-nspawn and, once, mmdebstrap and Debian's packages: the tree is kept below
// build/systemd by the content of tree.sh. The package is made from build/bin (LFX_TEST_BIN names another
// folder) and build/engine. The machine lives in a cgroup of its own in every hierarchy, and in
// namespaces of its own; at the end nothing of it is left on the host. LFX_TEST_KEEP=1 keeps its tree.
package systemd
