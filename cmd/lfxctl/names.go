package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

// scope is --project and --env.
type scope struct{ project, env string }

// addScopeFlags is for commands that show what there is.
func (a *app) addScopeFlags(cmd *cobra.Command, s *scope) {
	cmd.Flags().StringVar(&s.project, "project", "", "the project (default: all)")
	cmd.Flags().StringVar(&s.env, "env", "", "the environment of the project (default: all)")
	a.completeScope(cmd)
}

// addOwnerFlags is for commands that work on a function when they are given a NAME, else on one environment.
func (a *app) addOwnerFlags(cmd *cobra.Command, s *scope) {
	cmd.Flags().StringVar(&s.project, "project", "", "the project (default: that of NAME, else the only one)")
	cmd.Flags().StringVar(&s.env, "env", "", "the environment of the project (default: that of NAME, else default)")
	a.completeScope(cmd)
}

// addTargetFlags is for commands that work on one environment; the daemon completes what is left out.
func (a *app) addTargetFlags(cmd *cobra.Command, s *scope) {
	cmd.Flags().StringVar(&s.project, "project", "", "the project (default: the only one)")
	cmd.Flags().StringVar(&s.env, "env", function.DefaultEnvironment, "the environment of the project")
	a.completeScope(cmd)
}

func (s scope) environment() function.Environment {
	return function.Environment{Project: s.project, Name: s.env}
}

// isARN says whether a NAME is an ARN or a partial one, which only the daemon can read.
func isARN(name string) bool { return strings.Contains(name, ":") }

// parseName reads name, project/name or project/environment/name, completed by the scope's flags.
// Absent parts of the key stay empty: unlike project/name, whose environment is "default" as in
// everything the daemon prints, a bare name may be any function that is called so.
func parseName(name string, s scope) (function.Key, error) {
	parts := strings.Split(name, "/")
	if len(parts) > 3 || slices.Contains(parts, "") {
		return function.Key{}, usagef("%q is no function name: use name, project/name, project/environment/name or an ARN", name)
	}
	key := function.Key{Function: parts[len(parts)-1], Environment: s.environment()}
	if len(parts) == 1 {
		return key, nil
	}
	if s.project != "" && s.project != parts[0] {
		return function.Key{}, usagef("%q names project %s but --project says %s: leave one of them out", name, parts[0], s.project)
	}
	key.Project = parts[0]
	if len(parts) == 3 {
		if s.env != "" && s.env != parts[1] {
			return function.Key{}, usagef("%q names environment %s but --env says %s: leave one of them out", name, parts[1], s.env)
		}
		key.Environment.Name = parts[1]
	} else if s.env == "" {
		key.Environment.Name = function.DefaultEnvironment
	}
	return key, nil
}

// resolve finds the one function that a NAME means. It asks the daemon for its functions; an
// ambiguous name lists the candidates.
func resolve(ctx context.Context, c *client.Client, name string, s scope) (*api.FunctionSummary, error) {
	var key function.Key
	if !isARN(name) {
		var err error
		if key, err = parseName(name, s); err != nil {
			return nil, err
		}
	}
	all, err := c.Functions(ctx, key.Environment)
	if err != nil {
		return nil, err
	}
	var found []api.FunctionSummary
	for _, f := range all {
		if matches(f, name, key) {
			found = append(found, f)
		}
	}
	switch len(found) {
	case 1:
		return &found[0], nil
	case 0:
		return nil, unknownFunction(name, all)
	}
	return nil, ambiguous(name, found)
}

func matches(f api.FunctionSummary, name string, key function.Key) bool {
	if isARN(name) {
		return name == f.ARN || name == f.Account+":function:"+f.Function ||
			strings.HasPrefix(f.ARN, "arn:") && strings.HasSuffix(f.ARN, ":"+name) && strings.Contains(name, f.Account)
	}
	return f.Function == key.Function &&
		(key.Project == "" || f.Project == key.Project) &&
		(key.Environment.Name == "" || f.Environment.Name == key.Environment.Name)
}

func unknownFunction(name string, all []api.FunctionSummary) error {
	e := &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no function %s: `lfxctl ls` lists them", name)}
	if len(all) == 0 {
		e.Message = fmt.Sprintf("there is no function %s, none is deployed: `lfxctl deploy` deploys a project", name)
	}
	return e
}

func ambiguous(name string, found []api.FunctionSummary) error {
	e := &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%s is ambiguous: say which one", name)}
	for _, f := range found {
		e.Details = append(e.Details, f.Key.String())
	}
	slices.Sort(e.Details)
	return e
}

// completeNames completes the first argument with the names that the daemon knows: bare ones where
// they are unique.
func (a *app) completeNames(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(cmd, prefix, func(ctx context.Context, c *client.Client) ([]string, error) {
		all, err := c.Functions(ctx, function.Environment{})
		return completions(all, prefix), err
	})
}

func completions(all []api.FunctionSummary, prefix string) []string {
	times := map[string]int{}
	for _, f := range all {
		times[f.Function]++
	}
	var out []string
	for _, f := range all {
		name := f.Key.String()
		if times[f.Function] == 1 && !strings.Contains(prefix, "/") {
			name = f.Function
		}
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
