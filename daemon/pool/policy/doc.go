// Package policy says how long an idle instance is kept, when one is made ahead of need, and which idle
// instance goes first when room is asked for.
//
// It is pure and deterministic: no clock, no goroutine, no lock, no I/O, nothing of ours imported. The
// pool drives it in the daemon, and integration/sim drives the same code through days of a synthetic
// trace, so that a change can be judged without a host (make sim).
//
// What is known of a function is a Func: a histogram of its idle times, in bins of a minute up to
// four hours. An idle time is how long an instance had been idle when an invocation took it, or would have
// been, had it not been given up. When several run at a time, the last that becomes idle is taken first, so that the n-th
// instance is used when n calls run at a time: its level. Each level, in groups of half an octave, has a
// histogram of its own. What a function costs is a Cost. A Policy weighs both, and its
// Window says what is worth its memory at which age of an idle instance:
//
//	          idle                                   next call expected
//	age  0 ────┬──────────────┬─────────────────────────┬───────────┬──────────►
//	warm       │ until KeepFor│                         │PrewarmAt…PrewarmUntil
//	spare      │              │ until SpareFor, where not warm      │
//	cold       otherwise
//
// Warm is an idle instance (the pool freezes it), a spare one that was created and not started, which takes
// a megabyte or so and saves a part of the start. Each minute at each temperature is compared: the
// probability that the call comes in it × the wait that it saves × Options.Worth, against the memory that is
// held meanwhile. This is the hybrid histogram policy of Shahrad et al. (Serverless in the Wild,
// USENIX ATC 2020: from the 5th to the 99th percentile of idle times) with a price: what is likely,
// slow to start or small is kept, what is rare or large goes at once.
//
// A function of which little is known gets a fixed window (Options.Fallback).
//
// The calls, all under the lock that guards the Func:
//
//	an invocation takes an idle instance        f.Observe(level, how long it was idle)
//	it finds none, and one is started           f.Missed(level, now)
//	an idle instance is given up                f.GaveUp(level, when it became idle)
//	when none lives, and the window opens       f.Absent() … start one … f.Prewarmed()
//
// A Func is a plain value: a new version of a function starts with a copy of what is known of the
// one before.
package policy
