// Package store keeps what must survive: environments, functions, versions, releases and the
// deploys in progress, in one SQLite file. It owns no image, instance or address; it only records
// them. Rules about names live in daemon/function; what to keep and when is the caller's.
//
// # Reading and writing
//
// Reads never touch the disk: View returns an immutable Snapshot behind an atomic pointer, and
// readers take no lock. Writes are serialised; each is one transaction that is on disk, fsynced,
// before it takes effect and before the call returns. A write that fails changed nothing. An error
// of class ErrFatal (an fsync that failed, a page that could not be read) means that nobody knows
// what is on disk: every later write answers ErrFatal too, Fatal is closed, and the daemon must
// exit and recover from disk: an fsync is never tried twice on one descriptor, because the kernel
// may have dropped the dirty pages after the first failure.
//
// # Files in the state directory
//
//	lock          flock(2), held while the store is open; holds the owner's pid, for people
//	state.db      the database; 0600, because function configuration may hold secrets
//	state.db-wal  SQLite's write-ahead log; belongs to state.db and is never deleted by hand
//	state.rev     the last committed revision, fsynced after every commit
//
// The lock file stops a second daemon on the same directory, SQLite's exclusive lock stops one that
// reaches the same state.db by another path. A database that is behind state.rev has lost commits
// (an old copy, a deleted or damaged -wal) and is refused. Somebody who restores a backup on purpose
// writes the word "accept" into state.rev.
//
// # Schema (user_version 2, application_id "lfxS")
//
//	meta               one row: node, revision, number of rows and sum of their checksums
//	environments       id ─┐        project, name (unique together), account (unique), next_release
//	functions          id ─┼─┐      environment_id → environments, name, next_version
//	versions               │ └──►   (function_id, number): identity, image, config (JSON), created
//	releases               └────►   (environment_id, number): state, default, source, created, activated
//	release_functions               (environment_id, release, function_id): version, port
//	deploys            id           project, environment, started, images (JSON)
//	traffic            environment_id: previous release, share of the canary, since, judgement (JSON)
//	decisions          (environment_id, number): decision about a canary (JSON), the newest 50
//	function_aliases   (function_id, name): version, extra version, weight
//	release_aliases    (environment_id, name): release
//
// Every row carries crc, the CRC32C of its table's name and its other columns, checked whenever
// the row is read; meta holds the sum over all rows and the checksum of the schema text, so a row
// that vanished is noticed as well.
//
// # Numbers
//
// Versions are numbered from 1 per function, releases from 1 per environment, and no number is used
// twice, not even after its owner was removed: rows of environments and functions stay as counters.
//
// # States of a release
//
//	          Activate             Activate of another
//	recorded ──────────► active ◄─────────────────────► superseded
//	  │ │ │                ▲        Activate (rollback)   ▲  ▲  │
//	  │ │ │                │ Promote                      │  │  │
//	  │ │ └───────────► canary ───────────────────────────┘  │  │
//	  │ │  StartCanary     ▲   EndCanary                     │  │
//	  │ │                  └─────────────────────────────────┼──┘ StartCanary
//	  │ └────────────────────────────────────────────────────┘ KeepRelease
//	  └─► failed    FailRelease
//
// A superseded release is kept and gets no requests but those that name it. At most one release of an
// environment is active and at most one is the canary; a canary has an active release beside it.
package store
