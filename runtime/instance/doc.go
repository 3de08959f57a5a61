// Package instance makes, watches and destroys instances. An instance is what AWS calls an execution
// environment: one running copy of one version of a function, with its own root file system, user
// namespace, network namespace, cgroup, /tmp and Runtime API listener.
//
// It owns everything that an instance consists of: snapshot, container record and task in containerd, the OCI spec
// (a literal of our own, spec.go), log FIFOs, the 127.0.0.1:9001 listener inside the instance, the uid range, the
// cgroup's later steering and the record on tmpfs. It does not own the image (unpacked before), the network
// (the Network interface, offered by package cni), what is spoken on the listener, or when to start and stop what.
//
// # Life of an instance
//
//	creating ───► created ───► started ───► exited ───► removed
//	    │            │                        ▲            ▲
//	    ├────────────┴── killed while parked ─┘            │
//	    └─────────────── a step before the task failed ────┘
//
// Create's order cannot leak: a record on tmpfs is written before anything external exists, and everything external is named from
// the instance's ID:
//
//	record → FIFOs and files → snapshot → container → task (its init is parked, the namespaces exist) → descriptor of the
//	network namespace → lo up and listener inside → network attached → self-check → task started → word
//
// Why each step is where it is, and what keeps it short:
//
//	record       first of all: everything later is found by its name. A file on tmpfs.
//	files        FIFOs and name files, which the container mounts.
//	snapshot,    wait for containerd's disk, one transaction each, and do not need each other: made at the same time. The image
//	container    is unpacked before, its chain is remembered, so nothing is looked up.
//	task         the runtime's create, the longest step, in a shim that stands already (shim.go). After it the namespaces exist and
//	             nothing of ours or of the image runs in them.
//	descriptor   before anything is put into the namespace, so that it can be taken out again even when the process dies.
//	listener     before the address: nobody reaches the instance before its Runtime API stands.
//	network      CNI ADD, behind a firewall that stands, pinned when it returns.
//	self-check   what the kernel says of the parked process, after all that could change it.
//	start        the runtime's start lets go of its init, which becomes lfx-init. Not earlier, although lfx-init would
//	             wait: before the check it is not known that what is let go of has lost its rights.
//	word         in the gate FIFO: lfx-init starts the runtime of the function. Said before start unless
//	             the instance is held, so that nobody waits for containerd's answer.
//
// # Ahead of need
//
// Three things can be done before a request is there, each with its record, so that a crash at any time leaves what Reconcile finds:
//
//   - A network made ahead (ahead.go) is record, files, namespaces, listener and address of an instance of any version. The
//     container then joins these namespaces; the self-check also asks whether it is in them.
//   - A sandbox (sandbox.go) is that and a started container with an empty root, in which lfx-init waits. Create then makes snapshot and root,
//     writes the limits and says the word, which carries what is to be started.
//   - A held instance (Spec.Hold) is everything but the word: a spare. lfx-init has run no code of the image; Begin is one write.
//     When the daemon dies, the gate closes and lfx-init ends by itself.
//
// A step that fails undoes what came before on a fresh, bounded context. What cannot be undone (containerd is down) stays
// recorded, and Reconcile finishes it.
//
// # What is named how
//
//	container, snapshot, task, hostname   ID
//	cgroup                                <Cgroups.Parent>/<Cgroups.Name(ID)> in every hierarchy
//	files                                 <Dir>/ID/: record.json, io/ (FIFOs), etc/, secrets/
//	containerd label                      dev.lfx.instance=ID, on container and snapshot; BuildKit's things
//	                                      in the same namespace do not have it and are left alone
//
// # Exits
//
// The end of an instance is learnt from the kernel (a pidfd of PID 1) and from lfx-init's control FIFO, never from containerd's
// events: it is not missed while containerd restarts.
package instance
