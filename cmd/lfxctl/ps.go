package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

func (a *app) psCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the running instances",
		Long:  `Ps lists the instances (AWS: execution environments) that run on the host.`,
		Example: `  lfxctl ps
  lfxctl ps --project shop -o json`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			all, err := c.Instances(cmd.Context())
			if err != nil {
				return err
			}
			all = slices.DeleteFunc(all, func(i api.InstanceInfo) bool { return !s.holds(i.Environment) })
			if *output == outputJSON {
				return a.printJSON(list(all))
			}
			if len(all) == 0 {
				fmt.Fprintln(a.stderr, "no instances: the next invocation of a function starts one")
				return nil
			}
			a.printInstances(all)
			return nil
		}),
	}
	addScopeFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

func (s scope) holds(env function.Environment) bool {
	return (s.project == "" || s.project == env.Project) && (s.env == "" || s.env == env.Name)
}

func (a *app) printInstances(all []api.InstanceInfo) {
	slices.SortFunc(all, func(x, y api.InstanceInfo) int {
		return cmp.Or(cmp.Compare(x.Key.String(), y.Key.String()), x.Started.Compare(y.Started), cmp.Compare(x.ID, y.ID))
	})
	t := &table{head: []string{"INSTANCE", "FUNCTION", "VERSION", "STATE", "ADDRESS", "STARTED", "USED"}}
	for _, i := range all {
		t.add(text("%s", i.ID), text("%s", i.Key), text("%d", i.Version), cell{i.State, stateColour(i.State)},
			text("%s", i.Address), text("%s", a.ago(i.Started)), text("%s", a.ago(i.Used)))
	}
	a.print(t)
}

func stateColour(state string) colour {
	switch state {
	case "busy":
		return green
	case "starting", "stopping":
		return yellow
	}
	return plain
}
