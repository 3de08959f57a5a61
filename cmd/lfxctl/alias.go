package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

func (a *app) aliasCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "alias",
		Short: "Name versions of a function and releases of an environment",
		Long: `Alias shows, sets and removes aliases: names that a caller gives as the qualifier. An alias of a function points to one
of its versions, or to two with weights, as on AWS Lambda; an alias of an environment points to a release and means,
for every function, the version in that release. lfxd itself keeps live, the active release, and previous.`,
		Example: `  lfxctl alias ls
  lfxctl alias set hello-go prod=3
  lfxctl alias set stable=r6
  lfxctl invoke hello-go --qualifier prod`,
	}, a.aliasListCommand(), a.aliasSetCommand(), a.aliasRemoveCommand())
}

func (a *app) aliasListCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "ls [NAME]",
		Short: "List the aliases, or those of one function",
		Example: `  lfxctl alias ls
  lfxctl alias ls hello-go -o json`,
		Args:              args(0, 1, ""),
		ValidArgsFunction: a.completeNames,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			env, name, err := ofFunction(cmd.Context(), c, s, args)
			if err != nil {
				return err
			}
			all, err := c.Aliases(cmd.Context(), env, name)
			if err != nil {
				return err
			}
			slices.SortFunc(all, func(x, y api.Alias) int {
				return cmp.Or(cmp.Compare(x.Environment.String(), y.Environment.String()), cmp.Compare(x.Function, y.Function), cmp.Compare(x.Name, y.Name))
			})
			if *output == outputJSON {
				return a.printJSON(list(all))
			}
			a.printAliases(all)
			return nil
		}),
	}
	a.addScopeFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

// ofFunction is the environment and the name of the function that the first of args names; without one it
// is the scope's environment and no function.
func ofFunction(ctx context.Context, c *client.Client, s scope, args []string) (function.Environment, string, error) {
	if len(args) == 0 {
		return s.environment(), "", nil
	}
	found, err := resolve(ctx, c, args[0], s)
	if err != nil {
		return function.Environment{}, "", err
	}
	return found.Environment, found.Function, nil
}

func (a *app) aliasSetCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "set [NAME] ALIAS=TARGET",
		Short: "Make an alias, or point it elsewhere",
		Long: `Set points an alias of the function NAME to a version, 3, or to two of them, 3,4:10%: version 4 gets 10 % of the calls,
version 3 the rest. Without NAME it points an alias of the environment to a release: r6.`,
		Example: `  lfxctl alias set hello-go prod=3
  lfxctl alias set hello-go prod=3,4:10%
  lfxctl alias set stable=r6 --project shop --env staging`,
		Args: args(1, 2, "ALIAS=TARGET"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			names, directive := a.completeNames(cmd, args, prefix)
			if len(args) == 1 {
				names, directive = a.completeAliases(&s, 1)(cmd, args, prefix)
				for i := range names {
					names[i] += "="
				}
				directive |= cobra.ShellCompDirectiveNoSpace
			}
			return names, directive
		},
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			wanted, err := parseAlias(args[len(args)-1], len(args) == 2)
			if err != nil {
				return err
			}
			if wanted.Environment, wanted.Function, err = ofFunction(cmd.Context(), c, s, args[:len(args)-1]); err != nil {
				return err
			}
			set, err := c.SetAlias(cmd.Context(), wanted)
			if err != nil {
				return err
			}
			return a.printOutcome(*output, set, fmt.Sprintf("%s of %s is %s", set.Name, aliasOwner(set), aliasTarget(set)))
		}),
	}
	a.addOwnerFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

// parseAlias reads ALIAS=TARGET: 3 or 3,4:10% for a function, r6 for an environment.
func parseAlias(s string, ofFunction bool) (api.Alias, error) {
	name, target, ok := strings.Cut(s, "=")
	if !ok || name == "" || target == "" {
		return api.Alias{}, usagef("%q sets no alias: write ALIAS=TARGET, such as prod=3 or stable=r6", s)
	}
	alias := api.Alias{Name: name}
	first, second, weighted := strings.Cut(target, ",")
	kind, n := function.ParseQualifier(cmp.Or(first, " "))
	switch {
	case !ofFunction && kind == function.QualifierVersion:
		return api.Alias{}, usagef("%s is a version: say of which function, as in `lfxctl alias set hello-go %s`, or give a release, %s=r%s", first, s, name, first)
	case !ofFunction && (kind != function.QualifierRelease || weighted):
		return api.Alias{}, usagef("%q is no release: an alias of an environment points to one, such as %s=r6", target, name)
	case !ofFunction:
		alias.Release = n
		return alias, nil
	case kind == function.QualifierRelease:
		return api.Alias{}, usagef("%s is a release and %s would be an alias of one function: give a version, or leave the function out", first, name)
	case kind != function.QualifierVersion:
		return api.Alias{}, usagef("%q is no version: an alias of a function points to one, such as %s=3 or %s=3,4:10%%", first, name, name)
	}
	alias.Version = n
	if !weighted {
		return alias, nil
	}
	version, weight, err := parseWeight(second)
	switch {
	case err != nil:
		return api.Alias{}, err
	case version == n:
		return api.Alias{}, usagef("%q names version %d twice: give another one the share", s, n)
	}
	alias.Weights = map[int]float64{version: weight}
	return alias, nil
}

// parseWeight reads 4:10%; the weight is between 0 and 1.
func parseWeight(s string) (version int, weight float64, err error) {
	left, right, ok := strings.Cut(s, ":")
	kind, n := function.ParseQualifier(cmp.Or(left, " "))
	if !ok || kind != function.QualifierVersion {
		return 0, 0, usagef("%q is no second version with its share: write it as 4:10%%", s)
	}
	p, err := parsePercent(right)
	if err != nil {
		return 0, 0, usagef("%v", err)
	}
	return n, math.Round(float64(p)*100) / 10000, nil
}

func (a *app) aliasRemoveCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "rm [NAME] ALIAS",
		Short: "Remove an alias of a function, or without NAME of the environment",
		Example: `  lfxctl alias rm hello-go prod
  lfxctl alias rm stable`,
		Aliases: []string{"remove"},
		Args:    args(1, 2, "the ALIAS"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return a.completeAliases(&s, 1)(cmd, args, prefix)
			}
			names, directive := a.completeNames(cmd, args, prefix)
			aliases, _ := a.completeAliases(&s, 0)(cmd, args, prefix)
			return append(names, aliases...), directive
		},
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			env, name, err := ofFunction(cmd.Context(), c, s, args[:len(args)-1])
			if err != nil {
				return err
			}
			gone, err := c.DeleteAlias(cmd.Context(), env, name, args[len(args)-1])
			if err != nil {
				return err
			}
			return a.printOutcome(*output, gone, fmt.Sprintf("removed %s of %s, which was %s", gone.Name, aliasOwner(gone), aliasTarget(gone)))
		}),
	}
	a.addOwnerFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

func (a *app) printAliases(all []api.Alias) {
	if len(all) == 0 {
		fmt.Fprintln(a.stderr, "no aliases: `lfxctl alias set` makes one")
		return
	}
	t := &table{head: []string{"PROJECT", "ENV", "FUNCTION", "ALIAS", "TARGET"}}
	for _, alias := range all {
		target := text("%s", aliasTarget(&alias))
		if alias.Fixed {
			target.colour = dim
		}
		t.add(text("%s", alias.Project), text("%s", alias.Environment.Name), text("%s", alias.Function), text("%s", alias.Name), target)
	}
	a.print(t)
}

// aliasOwner is what an alias belongs to: a function or an environment.
func aliasOwner(alias *api.Alias) string {
	if alias.Function == "" {
		return alias.Environment.String()
	}
	return function.Key{Environment: alias.Environment, Function: alias.Function}.String()
}

// aliasTarget is "release 6", "version 3" or "version 3 (90%), version 4 (10%)".
func aliasTarget(alias *api.Alias) string {
	if alias.Function == "" {
		if alias.Release == 0 {
			return ""
		}
		return "release " + strconv.Itoa(alias.Release)
	}
	out, rest := "", 1.0
	for _, version := range slices.Sorted(maps.Keys(alias.Weights)) {
		out += fmt.Sprintf(", version %d (%s)", version, share(alias.Weights[version]*100))
		rest -= alias.Weights[version]
	}
	if out != "" {
		out = fmt.Sprintf(" (%s)", share(rest*100)) + out
	}
	return "version " + strconv.Itoa(alias.Version) + out
}
