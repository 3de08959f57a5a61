package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon"
)

// engineCommand is for the units that run lfxd's own engine under systemd.
func engineCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "engine", Short: "Run one part of lfxd's own engine (for its systemd units)",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do: exec, ready or wanted, and with which part")}
		},
	}
	for _, sub := range []struct {
		use, short string
		run        func(daemon.EngineUnit, context.Context) error
	}{
		{"exec", "Write the configuration and become containerd or buildkitd", daemon.EngineUnit.Exec},
		{"ready", "Wait until containerd or buildkitd answers", daemon.EngineUnit.Ready},
		{"wanted", "Succeed unless the configuration names another containerd or buildkitd", func(u daemon.EngineUnit, _ context.Context) error { return u.Wanted() }},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: sub.use + " containerd|buildkitd", Short: sub.short,
			Args: func(_ *cobra.Command, args []string) error {
				if len(args) != 1 || args[0] != "containerd" && args[0] != "buildkitd" {
					return usageError{fmt.Errorf("%s takes one part of the engine, containerd or buildkitd", sub.use)}
				}
				return nil
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				opts, err := prepare(*f)
				if err != nil {
					return err
				}
				ctx := cmd.Context()
				if ctx == nil {
					ctx = context.Background()
				}
				return sub.run(daemon.NewEngineUnit(opts, args[0]), ctx)
			},
		})
	}
	return cmd
}
