package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

func (a *app) doctorCommand() *cobra.Command {
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check the daemon, the engine and the host",
		Long:  `Doctor lets the daemon check itself, the engine and the host, and says what to do about what it finds. It exits 1 when a check fails.`,
		Example: `  lfxctl doctor
  lfxctl doctor -o json | jq '.checks[] | select(.status != "ok")'`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			report, err := c.Doctor(cmd.Context())
			if connect, ok := errors.AsType[*client.ConnectError](err); ok {
				report.Checks = []api.DoctorCheck{{Name: "lfxd", Status: "fail", Detail: connect.Error(), Remedy: "`sudo lfxd doctor` checks the host without the daemon"}}
			} else if err != nil {
				return err
			}
			if *output == outputJSON {
				report.Checks = list(report.Checks)
				err = a.printJSON(report)
			} else {
				a.printReport(report)
				err = nil
			}
			if err == nil && failures(report) > 0 {
				return &silentError{exitFailure}
			}
			return err
		}),
	}
	output = addOutputFlag(cmd)
	return cmd
}

func (a *app) printReport(report api.DoctorReport) {
	width := 0
	for _, c := range report.Checks {
		width = max(width, len(c.Name))
	}
	colours := map[string]colour{"ok": green, "warn": yellow, "fail": red}
	for _, c := range report.Checks {
		status := a.paint(a.stdout, colours[c.Status], fmt.Sprintf("%-4s", c.Status))
		fmt.Fprintf(a.stdout, "%s  %-*s  %s\n", status, width, c.Name, c.Detail)
		if c.Remedy != "" {
			fmt.Fprintf(a.stdout, "      %*s  → %s\n", width, "", c.Remedy)
		}
	}
	if n := failures(report); n > 0 {
		fmt.Fprintf(a.stdout, "%s failed\n", count(n, "check"))
	} else {
		fmt.Fprintln(a.stdout, "no check failed")
	}
}

func failures(report api.DoctorReport) int {
	n := 0
	for _, c := range report.Checks {
		if c.Status == "fail" {
			n++
		}
	}
	return n
}
