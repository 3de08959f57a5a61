package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

func (a *app) lsCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the deployed functions",
		Long:    `Ls lists the functions of the active releases. To AWS clients an environment is an account; its id is in their ARNs.`,
		Example: `  lfxctl ls
  lfxctl ls --project shop --env staging
  lfxctl ls -o json | jq -r '.[].arn'`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			functions, err := c.Functions(cmd.Context(), s.environment())
			if err != nil {
				return err
			}
			slices.SortFunc(functions, func(x, y api.FunctionSummary) int { return cmp.Compare(x.Key.String(), y.Key.String()) })
			if *output == outputJSON {
				return a.printJSON(list(functions))
			}
			a.printFunctions(functions)
			return nil
		}),
	}
	a.addScopeFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

func (a *app) printFunctions(functions []api.FunctionSummary) {
	if len(functions) == 0 {
		fmt.Fprintln(a.stderr, "no functions: `lfxctl deploy` deploys the project in the current directory")
		return
	}
	t := &table{head: []string{"PROJECT", "ENV", "ACCOUNT", "FUNCTION", "VERSION", "RELEASE", "MEMORY", "TIMEOUT", "INSTANCES", "PORT", "DEPLOYED"}}
	for _, f := range functions {
		name := f.Function
		if f.Default {
			name += " (default)"
		}
		t.add(text("%s", f.Project), text("%s", f.Environment.Name), text("%s", f.Account), text("%s", name), text("%d", f.Version), text("%d", f.Release),
			text("%s", memory(f.MemoryMB)), text("%s", f.Timeout), text("%s", instances(f)), text("%s", number(f.Port)), text("%s", a.ago(f.Deployed)))
	}
	a.print(t)
}

func instances(f api.FunctionSummary) string {
	if f.InFlight > 0 {
		return fmt.Sprintf("%d (%d busy)", f.Instances, f.InFlight)
	}
	return fmt.Sprint(f.Instances)
}
