package main

import (
	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/client"
)

func (a *app) metricsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print the daemon's figures",
		Long: `Metrics prints what /metrics on the control socket answers: the daemon's figures in the text format of Prometheus.
A collector of its own can read them there too:

    curl --unix-socket /run/lfxd/lfxd.sock http://lfx/metrics`,
		Example: `  lfxctl metrics
  lfxctl metrics | grep hello-go`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return c.Metrics(cmd.Context(), a.stdout)
		}),
	}
}
