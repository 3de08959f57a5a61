// Package integration tests lfxd as a black box: real containerd, BuildKit, runc, CNI plugins and
// nftables, our own binaries as a user runs them, and AWS's own clients.
//
//	make integration        # after make engine build images examples
//	make test-faults        # every fault of every part, where the above takes a sample (LFX_FAULTS=full)
//	make test-load          # releases switched and instances killed under load, for a minute each (LFX_LOAD=full)
//
// The tests carry the build tag "integration", those with hostile functions and faults "faults" as
// well, and run as root. TestMain moves the whole run into a network namespace of its own, which has
// no way out, and starts one `lfxd --with-engine` with private directories, sockets and cgroups. Each test deploys under an environment of its own and
// ends with the leak check: whatever the test made must be gone again. At the end `lfxd down` must
// leave nothing of the daemon on the host.
//
// LFX_TEST_KEEP=1 keeps the state directory and shows where it is; LFX_TEST_LOG=1 shows the daemon's
// log as it comes (it is shown anyway when a test fails). LFX_TEST_BIN names a folder with other
// binaries than build/bin.
package integration
