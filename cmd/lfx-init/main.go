// Command lfx-init is PID 1 of every instance; see package lfxinit. It is built static (CGO_ENABLED=0)
// and bind-mounted read-only into each instance.
//
//	lfx-init WORKDIR ARGV0 [ARG...]
//
// The Go runtime would read cgroup files at start, and again every second, to choose GOMAXPROCS; the two settings stop that.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"os"

	"lfx.dev/lfxd/runtime/lfxinit"
)

func main() { os.Exit(lfxinit.Main(os.Args, os.Environ())) }
