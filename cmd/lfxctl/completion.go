package main

import (
	"github.com/spf13/cobra"
)

func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the completion script of a shell",
		Long:  `Completion prints a script that completes commands, flags and, by asking the daemon, the names of functions.`,
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
