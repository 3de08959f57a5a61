package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon"
	"lfx.dev/lfxd/daemon/config"
)

// doctorCommand checks the host without a daemon; `lfxctl doctor` asks the daemon that runs.
func doctorCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Check the host before the first start, or when lfxd does not start", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := f.config
			if path == "" {
				path = config.Path
			}
			c, err := config.Load(path)
			if f.config == "" && errors.Is(err, fs.ErrNotExist) {
				c, err = config.Default(), nil
			}
			if err != nil {
				return usageError{err}
			}
			failed := 0
			for _, check := range daemon.Doctor(c).Checks {
				fmt.Fprintf(cmd.OutOrStdout(), "%-4s  %-16s  %s\n", check.Status, check.Name, check.Detail)
				if check.Remedy != "" {
					fmt.Fprintf(cmd.OutOrStdout(), "      %16s  → %s\n", "", check.Remedy)
				}
				if check.Status == "fail" {
					failed++
				}
			}
			if failed > 0 {
				return fmt.Errorf("%d of the checks failed", failed)
			}
			return nil
		},
	}
}
