package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

func (a *app) envCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "env",
		Short: "List and remove environments",
		Long: `Env lists and removes environments. An environment is one deployment of a project, with its own releases, aliases,
instances and account id; ` + "`lfxctl deploy --env NAME`" + ` makes one.`,
		Example: `  lfxctl env ls
  lfxctl env rm staging`,
	}, a.envListCommand(), a.envRemoveCommand())
}

func (a *app) envListCommand() *cobra.Command {
	var project string
	var output *outputFlag
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the environments",
		Example: `  lfxctl env ls
  lfxctl env ls --project shop -o json`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			all, err := c.Environments(cmd.Context(), function.Environment{Project: project})
			if err != nil {
				return err
			}
			slices.SortFunc(all, func(x, y api.EnvironmentInfo) int { return cmp.Compare(x.Environment.String(), y.Environment.String()) })
			if *output == outputJSON {
				return a.printJSON(list(all))
			}
			a.printEnvironments(all)
			return nil
		}),
	}
	cmd.Flags().StringVar(&project, "project", "", "the project (default: all)")
	a.completeScope(cmd)
	output = addOutputFlag(cmd)
	return cmd
}

func (a *app) printEnvironments(all []api.EnvironmentInfo) {
	if len(all) == 0 {
		fmt.Fprintln(a.stderr, "no environments: `lfxctl deploy` makes the first one")
		return
	}
	t := &table{head: []string{"PROJECT", "ENV", "ACCOUNT", "RELEASE", "FUNCTIONS", "INSTANCES", "DEPLOYED"}}
	for _, e := range all {
		t.add(text("%s", e.Project), text("%s", e.Environment.Name), text("%s", e.Account), text("%s", number(e.Active)),
			text("%d", e.Functions), text("%d", e.Instances), text("%s", a.ago(e.Deployed)))
	}
	a.print(t)
}

func (a *app) envRemoveCommand() *cobra.Command {
	var project string
	var yes bool
	var output *outputFlag
	cmd := &cobra.Command{
		Use:     "rm ENVIRONMENT",
		Aliases: []string{"remove"},
		Short:   "Remove an environment with all that belongs to it",
		Long: `Rm removes an environment: its functions with all versions, images and stored build contexts, its releases and aliases.
Requests under way finish; new ones find nothing. ENVIRONMENT is its name, or project/name. It cannot be undone: only
another deploy makes the environment again.`,
		Example: `  lfxctl env rm staging
  lfxctl env rm shop/pr-17 --yes`,
		Args: args(1, 1, "the name of the ENVIRONMENT"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.ask(cmd, prefix, func(ctx context.Context, c *client.Client) ([]string, error) {
				all, err := c.Environments(ctx, function.Environment{Project: project})
				return environmentNames(all), err
			})
		},
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			found, err := findEnvironment(cmd.Context(), c, args[0], project)
			if err != nil {
				return err
			}
			what := fmt.Sprintf("%s with %s, all their versions, releases, images and aliases, and %s",
				environmentName(found.Environment), count(found.Functions, "function"), count(found.Instances, "running instance"))
			if ok, err := a.confirm(yes, what); err != nil || !ok {
				return err
			}
			gone, err := c.RemoveEnvironment(cmd.Context(), found.Environment)
			if err != nil {
				return err
			}
			return a.printOutcome(*output, gone, fmt.Sprintf("removed %s with %s", environmentName(gone.Environment), count(gone.Functions, "function")))
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringVar(&project, "project", "", "the project (default: the one that has this environment)")
	a.completeScope(cmd)
	output = addOutputFlag(cmd)
	return cmd
}

// environmentName is "project/name", for the default environment too: what is removed is named in full.
func environmentName(env function.Environment) string { return env.Project + "/" + env.Name }

// environmentNames completes: bare names where they are unique.
func environmentNames(all []api.EnvironmentInfo) []string {
	times := map[string]int{}
	for _, e := range all {
		times[e.Environment.Name]++
	}
	var out []string
	for _, e := range all {
		if times[e.Environment.Name] == 1 {
			out = append(out, e.Environment.Name)
		}
		out = append(out, environmentName(e.Environment))
	}
	return out
}

// findEnvironment finds the one environment that name or project/name means.
func findEnvironment(ctx context.Context, c *client.Client, name, project string) (*api.EnvironmentInfo, error) {
	wanted := function.Environment{Project: project, Name: name}
	if left, right, ok := strings.Cut(name, "/"); ok {
		if project != "" && project != left {
			return nil, usagef("%q names project %s but --project says %s: leave one of them out", name, left, project)
		}
		wanted = function.Environment{Project: left, Name: right}
	}
	if wanted.Name == "" || strings.Contains(wanted.Name, "/") || strings.HasPrefix(name, "/") {
		return nil, usagef("%q is no environment: use its name or project/name", name)
	}
	all, err := c.Environments(ctx, function.Environment{Project: wanted.Project})
	if err != nil {
		return nil, err
	}
	found := slices.DeleteFunc(all, func(e api.EnvironmentInfo) bool {
		return e.Environment.Name != wanted.Name || wanted.Project != "" && e.Project != wanted.Project
	})
	switch len(found) {
	case 1:
		return &found[0], nil
	case 0:
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no environment %s: `lfxctl env ls` lists them", name)}
	}
	e := &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%s is ambiguous: say which one", name)}
	for _, f := range found {
		e.Details = append(e.Details, environmentName(f.Environment))
	}
	slices.Sort(e.Details)
	return nil, e
}
