// Package cgroup reads and steers the cgroup of one instance: CPU quota, memory, OOM, freezer, kill.
//
// The OCI runtime creates the cgroup and sets the limits that hold from the first instruction on; this
// package does what happens later, always by direct file access, never through containerd, since it sits on
// the path of an invocation. It does not create cgroups and knows nothing of containers.
//
// A Group has two implementations: cgroup v2 (unified), and v1, where each controller is a hierarchy of its own. A
// hybrid host (v1 controllers plus an empty v2 hierarchy without controllers) is v1.
//
// # Memory
//
// The hard limit of an instance is memory + /tmp, because tmpfs pages are charged to it. What the
// function itself uses is Memory.Function: usage without page cache (which the kernel gives back under pressure)
// and without the tmpfs. A Tripwire tells when it goes over its own limit: the kernel notifies about usage
// over the limit (v1: an eventfd on a usage threshold; v2: memory.high and its event), and from then on, as long as
// usage stays there, the difference is computed every few milliseconds.
package cgroup
