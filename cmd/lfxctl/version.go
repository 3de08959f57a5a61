package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

// versionOutput is `lfxctl version -o json`.
type versionOutput struct {
	Client api.VersionInfo  `json:"client"`
	Daemon *api.VersionInfo `json:"daemon,omitempty"`
}

func (a *app) versionCommand() *cobra.Command {
	var onlyClient bool
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of lfxctl, lfxd and its engine",
		Example: `  lfxctl version
  lfxctl version --client
  lfxctl version -o json`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			out := versionOutput{Client: api.VersionInfo{Version: version, Go: runtime.Version()}}
			var failed error
			if !onlyClient {
				var daemon api.VersionInfo
				if daemon, failed = c.Version(cmd.Context()); failed == nil {
					out.Daemon = &daemon
				}
			}
			if *output == outputJSON {
				if err := a.printJSON(out); err != nil {
					return err
				}
			} else {
				a.printVersions(out)
			}
			return failed
		}),
	}
	cmd.Flags().BoolVar(&onlyClient, "client", false, "do not ask the daemon")
	output = addOutputFlag(cmd)
	return cmd
}

func (a *app) printVersions(out versionOutput) {
	fmt.Fprintf(a.stdout, "%-11s %s (%s, %s/%s)\n", "lfxctl", out.Client.Version, out.Client.Go, runtime.GOOS, runtime.GOARCH)
	if out.Daemon == nil {
		return
	}
	fmt.Fprintf(a.stdout, "%-11s %s (%s)\n", "lfxd", out.Daemon.Version, out.Daemon.Go)
	for _, part := range []field{{"containerd", out.Daemon.Containerd}, {"buildkit", out.Daemon.Buildkit}, {"runtime", out.Daemon.Runtime}} {
		if part.value != "" {
			fmt.Fprintf(a.stdout, "%-11s %s\n", part.name, part.value)
		}
	}
}
