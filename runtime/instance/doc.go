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
//	network namespace → lo up and listener inside → network attached → self-check → task started
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
