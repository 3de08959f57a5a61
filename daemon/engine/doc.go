// Package engine supervises a private containerd and buildkitd for `lfxd --with-engine`.
//
// It owns their configuration files, their processes, their log files and, on Purge, everything
// volatile that they leave on the host. It does not own what runs in them: containers, images and
// builds belong to runtime/* and buildkit, which reach the engine as clients.
//
//	e, err := engine.New(cfg)   // checks the configuration, touches nothing
//	err = e.Start(ctx)          // writes configs, starts or adopts both, waits until both answer
//	e.State()                   // what runs, since when, how often it was restarted
//	err = e.Close(ctx)          // ends both; functions go on under their shims
//	err = e.Purge(ctx)          // ends everything and leaves nothing in RunDir or mounted
//
// # Life of a child
//
//	Stopped --Start--> Starting --answers--> Running --process ends--> Waiting --1 s … 30 s--> Starting
//	   ^                                        |                         |
//	   +------------------ Close ---------------+-------------------------+
//
// One that is Starting and silent for a third of StartTimeout is ended with SIGQUIT, which writes the stacks of its goroutines to its
// log, and started once more.
//
// Children outlive a daemon that is killed: they have no parent-death signal, a session of their
// own and a file for output. A record in RunDir (process id, start time, boot id, executable, hash
// of the configuration) lets the next Start adopt them when nothing has changed and they answer;
// otherwise it ends them and starts anew.
//
// # Where things are
//
//	StateDir/etc/           containerd.toml, buildkitd.toml, build.conflist (generated)
//	StateDir/containerd/    containerd's root: content, snapshots, metadata
//	StateDir/buildkit/      buildkitd's root: cache records, build history
//	StateDir/log/           containerd.log, buildkitd.log and one older file of each
//	StateDir/tmp/           TMPDIR of both
//	RunDir/sock/            sockets; 0700, because buildkitd makes its own world-writable
//	RunDir/c/               containerd's state; 0711, because user namespaces traverse it
//	RunDir/s/               shim sockets
//	RunDir/runc/            runc's state
//	RunDir/ipam/            addresses of build containers
//	RunDir/*.json           records of the children
//
// The build bridge appears when buildkitd starts: install the firewall before Start.
package engine
