// Command lfxctl is the command line of lfxd: it deploys projects, invokes functions and shows what runs.
// It reaches the daemon through daemon/client only, one file per command, and builds on Linux, macOS
// and Windows. main.go wires the process, root.go the command tree, output.go tables and times,
// names.go what a NAME means. docs/lfxctl.md is the reference; a test writes it from the commands.
package main

import (
	"context"
	"os"
)

// version is set at link time with -ldflags "-X main.version=v1.2.3".
var version = "dev"

func main() {
	os.Exit(run(context.Background(), &app{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		lookup: os.LookupEnv,
	}, os.Args[1:]))
}
