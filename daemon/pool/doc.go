// Package pool decides which instance serves which invocation.
//
// A Pool holds all instances of one version and the queue of requests that wait for one. A Release
// is a live release: its pools, and a count of the requests bound to it. The Manager knows the
// active release of every environment.
//
//	Manager ── environment ── active Release ── name → Pool ── idle stack, queue, instances
//
// A request is bound to exactly one release when it is accepted (Manager.Bind) and keeps it until
// its Bound is closed; a release that is no longer active drains: its pools live until no request is
// bound to it, and pools that two releases share simply go on.
//
// Requests wait in a bounded FIFO queue for whichever comes first, a freed instance or a new one
// (late binding); idle instances are reused last-in-first-out. The maximum is a hard cap per
// function across its versions.
//
// The package imports neither containerd nor SQLite: a Starter makes instances.
//
// Locks: Manager.mu guards the environments and is never taken on the warm path; Pool.mu guards one
// version. Order: Manager.mu, then Pool.mu, then limit.mu. None is held across I/O.
package pool
