// Package lfxinit is PID 1 of every instance and the records it writes to the daemon.
//
// A runtime that is PID 1 itself survives its own SIGSEGV, SIGABRT and SIGTERM (the kernel gives
// PID 1 no default actions), and an exit(139) cannot be told from a segmentation fault. Therefore
// the small static program lfx-init (cmd/lfx-init, which only calls Main) is PID 1. It
//
//  1. opens the log FIFOs StdoutName and StderrName and the control FIFO ControlName beside its
//     own executable, in Dir;
//  2. waits at the gate FIFO GateName for the daemon's word that everything stands (for most instances it
//     is there already; a spare instance, and a sandbox that has no function yet, wait here until they are wanted; what
//     the sandbox is to start comes with the word), and ends when the daemon is gone before;
//  3. changes to the working directory and looks argv[0] up in the container's PATH, as runc does;
//  4. starts the runtime with the FIFOs as stdout and stderr, in a session of its own;
//  5. forwards signals to it and reaps everything that becomes its child, orphans included;
//  6. reports start, exec failure and end of the runtime as Records on the control FIFO;
//  7. kills what is left and exits with the status a shell would show.
//
// It runs as uid 1000 of a user namespace, without capabilities, under seccomp and
// no-new-privileges, so it can do nothing to an instance that the function could not do itself, and
// what it reports is as trustworthy as the function: a function may forge a record about itself.
//
// # When the daemon is gone
//
// lfx-init keeps both ends of each log FIFO open. When the daemon dies, a function that prints is
// therefore never hit by SIGPIPE or EPIPE: its output stays in the pipe, and once that is full the
// function waits until the daemon's reconciliation destroys it (seconds), or until a successor that
// was handed the read ends goes on reading. Records are written without blocking and given up
// when nobody reads.
//
// The package uses package syscall and os/signal only: neither fmt nor net are linked in, which keeps the
// program small and its start short.
package lfxinit
