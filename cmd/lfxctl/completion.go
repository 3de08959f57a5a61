package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the completion script of a shell",
		Long: `Completion prints a script that completes commands, flags and, by asking the daemon, the names of functions,
aliases and environments and the numbers of releases.`,
		Example: `  lfxctl completion bash | sudo tee /etc/bash_completion.d/lfxctl
  lfxctl completion zsh > "${fpath[1]}/_lfxctl"
  lfxctl completion fish > ~/.config/fish/completions/lfxctl.fish`,
		Args:      args(1, 1, "the shell"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.stdout)
			}
			return usagef("there is no completion for %q: use bash, zsh, fish or powershell", args[0])
		},
	}
}

// ask answers a completion with what the daemon says, as far as it begins with prefix. It waits one second
// at most and is silent about errors.
func (a *app) ask(cmd *cobra.Command, prefix string, question func(context.Context, *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp
	c, err := a.client()
	if err != nil {
		return nil, directive
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	answers, err := question(ctx, c)
	if err != nil {
		return nil, directive
	}
	answers = slices.DeleteFunc(answers, func(s string) bool { return !strings.HasPrefix(s, prefix) })
	slices.Sort(answers)
	return slices.Compact(answers), directive
}

// completeScope completes --project and --env.
func (a *app) completeScope(cmd *cobra.Command) {
	names := func(of func(api.EnvironmentInfo) string) cobra.CompletionFunc {
		return func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return a.ask(cmd, prefix, func(ctx context.Context, c *client.Client) ([]string, error) {
				var out []string
				all, err := c.Environments(ctx, function.Environment{})
				for _, e := range all {
					out = append(out, of(e))
				}
				return out, err
			})
		}
	}
	_ = cmd.RegisterFlagCompletionFunc("project", names(func(e api.EnvironmentInfo) string { return e.Project }))
	_ = cmd.RegisterFlagCompletionFunc("env", names(func(e api.EnvironmentInfo) string { return e.Environment.Name }))
}

// completeReleases completes up to most arguments with the numbers of kept releases, each with suffix.
func (a *app) completeReleases(s *scope, most int, suffix string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		answers, directive := a.ask(cmd, prefix, func(ctx context.Context, c *client.Client) ([]string, error) {
			var out []string
			all, err := c.Releases(ctx, s.environment())
			for _, r := range all {
				out = append(out, strconv.Itoa(r.Number)+suffix)
			}
			return out, err
		})
		if suffix != "" {
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		return answers, directive
	}
}

// completeAliases completes the argument at place with the names of aliases: of the function that the first
// argument names, or of environments when place is 0.
func (a *app) completeAliases(s *scope, place int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) != place {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(cmd, prefix, func(ctx context.Context, c *client.Client) ([]string, error) {
			env, fn := s.environment(), ""
			if place > 0 {
				found, err := resolve(ctx, c, args[0], *s)
				if err != nil {
					return nil, err
				}
				env, fn = found.Environment, found.Function
			}
			var out []string
			all, err := c.Aliases(ctx, env, fn)
			for _, alias := range all {
				if alias.Function == fn && !alias.Fixed {
					out = append(out, alias.Name)
				}
			}
			return out, err
		})
	}
}

// completeQualifier completes --qualifier with the releases and aliases that the function of the first
// argument answers to.
func (a *app) completeQualifier(s *scope) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.ask(cmd, prefix, func(ctx context.Context, c *client.Client) ([]string, error) {
			if len(args) == 0 {
				return nil, nil
			}
			found, err := resolve(ctx, c, args[0], *s)
			if err != nil {
				return nil, err
			}
			out := []string{function.Latest}
			releases, err := c.Releases(ctx, found.Environment)
			if err != nil {
				return nil, err
			}
			for _, r := range releases {
				if r.Versions[found.Function] != 0 {
					out = append(out, "r"+strconv.Itoa(r.Number))
				}
			}
			aliases, err := c.Aliases(ctx, found.Environment, "")
			for _, alias := range aliases {
				if alias.Function == "" || alias.Function == found.Function {
					out = append(out, alias.Name)
				}
			}
			return out, err
		})
	}
}
