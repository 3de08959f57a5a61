package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/client"
)

func (a *app) rmCommand() *cobra.Command {
	var s scope
	var yes bool
	var output *outputFlag
	cmd := &cobra.Command{
		Use:     "rm NAME",
		Aliases: []string{"remove"},
		Short:   "Remove a function",
		Long: `Rm makes and activates a release of the project without the function. The next deploy of a manifest
that still has it brings it back.`,
		Example: `  lfxctl rm hello-go
  lfxctl rm shop/staging/checkout --yes`,
		Args:              args(1, 1, "the function's NAME"),
		ValidArgsFunction: a.completeNames,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			found, err := resolve(cmd.Context(), c, args[0], s)
			if err != nil {
				return err
			}
			if ok, err := a.confirm(yes, found.Key.String()); err != nil || !ok {
				return err
			}
			result, err := c.RemoveFunction(cmd.Context(), found.Key)
			if err != nil {
				return err
			}
			if *output == outputJSON {
				return a.printJSON(result)
			}
			if result.Release == 0 {
				fmt.Fprintf(a.stdout, "removed %s; %s has no functions left\n", found.Key, found.Environment)
			} else {
				fmt.Fprintf(a.stdout, "removed %s; release %d of %s is active\n", found.Key, result.Release, found.Environment)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	a.addScopeFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

// confirm asks on the terminal; where there is none --yes must have been said.
func (a *app) confirm(yes bool, what string) (bool, error) {
	if yes {
		return true, nil
	}
	if !isTerminal(a.stdin) {
		return false, usagef("removing %s needs a confirmation and standard input is no terminal: add --yes", what)
	}
	fmt.Fprintf(a.stderr, "Remove %s? [y/N] ", what)
	answer, _ := bufio.NewReader(a.stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true, nil
	}
	fmt.Fprintln(a.stderr, "nothing was removed")
	return false, nil
}
