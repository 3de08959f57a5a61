// Package failpoint marks the places at which a test may make the daemon die, wait or fail.
//
//	failpoint.Here("deploy.recorded")                     // may kill or delay
//	if err := failpoint.Error("deploy.unpack"); err != nil // may also fail
//
// Built without the tag "failpoint" both do nothing and are inlined away. Built with it, the variable
// LFX_FAILPOINTS names a control file, which is read anew at every point:
//
//	deploy.recorded kill          # SIGKILL to the daemon itself
//	deploy.unpack   2*error disk  # the first two times: fail with that text
//	deploy.warm     delay 5s
//
// Every point that is reached is appended to the file of the same name with ".hits". SIGUSR2 writes
// the number of goroutines to the one with ".goroutines". Names are unique in the daemon.
package failpoint
