// Package pool decides which instance serves which invocation.
//
// A Pool holds all instances of one version and the queue of requests that wait for one. A Release
// is a live release: its pools, and a count of the requests bound to it. The Manager knows the
// active release of every environment, and the canary that gets a share of the requests beside it.
//
//	Manager ── environment ─┬─ active Release ─── name → Pool ── idle stack, queue, instances
//	                        └─ canary Release, share
//
// A request is bound to exactly one release when it is accepted (Manager.Bind, which draws between the active
// one and the canary) and keeps it until its Bound is closed; what its function calls is bound to the same one
// (Release.Bind), whatever the shares. A release that is no longer routed to drains: its pools live until no
// request is bound to it, and pools that two releases share simply go on.
//
// Requests wait in a bounded FIFO queue for whichever comes first, a freed instance or a new one
// (late binding); idle instances are reused last-in-first-out:
//
//	starting ──► busy ⇄ idle ⇄ frozen          a worker that can be frozen is, by the sweeper; the one
//	    │          │      │       │            who takes it thaws it (freeze.go)
//	    ▼          ▼      ▼       ▼
//	  failed      leaving (stopping) ──► gone
//
// An instance needs room in three limits (limit.go): the function's maximum across its versions, the instances of the
// host, and memory (memory.go). Room is given out in turn, and idle instances of others give way.
// Package policy says how long idle ones are kept (keep.go).
//
// A request needs no goroutine that waits for it (Bound.Begin): who frees an instance hands the next event out
// (Pool.grant), and the outcome goes to a Completion. Bound.Invoke is for callers that have a goroutine anyhow.
//
// Where a version's instances run several invocations at once, a slot takes as many requests as its runtime has parked next
// calls, and the pool is that of one release (many.go).
//
// The package imports neither containerd nor SQLite: a Starter makes instances.
//
// Locks: environment.mu serialises switches; Manager.mu guards the environments and pools; neither is taken on
// the warm path. Pool.mu guards one version; slot.frost is held while an instance is frozen or thawed. Order: environment.mu,
// then Manager.mu, then slot.frost, then Pool.mu, then limit.mu. None but frost is held across I/O.
package pool
