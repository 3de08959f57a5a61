package main

import (
	"context"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

func (a *app) rollbackCommand() *cobra.Command {
	var s scope
	var wait bool
	mode := progressAuto
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "rollback [N]",
		Short: "Make an earlier release active again",
		Long: `Rollback makes the kept release N active again, without N the one that was active before. Nothing is built: what the
release keeps warm is started first, then one step switches all traffic; requests under way finish on the release on
which they began. N may also be a newer release than the active one.

A rollback that fails or is interrupted leaves the running release untouched.`,
		Example: `  lfxctl rollback
  lfxctl rollback 6 --wait
  lfxctl rollback 6 --project shop --env staging -o json`,
		Args:              args(0, 1, ""),
		ValidArgsFunction: a.completeReleases(&s, 1, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			number, err := optionalRelease(args)
			if err != nil {
				return err
			}
			if err := a.checkProgress(mode); err != nil {
				return err
			}
			req := api.RollbackRequest{Environment: s.environment(), Release: number, Wait: wait}
			result, err := a.watched(cmd.Context(), mode, "canceling: waiting for lfxd to stop (Ctrl-C again quits)", func(ctx context.Context, event func(api.DeployEvent)) (*api.DeployResult, error) {
				return c.Rollback(ctx, req, event)
			})
			if err != nil {
				return err
			}
			if *output == outputJSON {
				return a.printJSON(result)
			}
			a.printDeploy(result, deployPlan{})
			return nil
		}),
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for a deploy of the same environment instead of failing")
	addProgressFlag(cmd, &mode)
	a.addTargetFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}
