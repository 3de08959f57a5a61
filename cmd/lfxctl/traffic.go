package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

func (a *app) trafficCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "traffic",
		Short: "Show and set which release gets which share of the requests",
		Long: `Traffic shows for each environment which release gets its requests, how a canary is judged, and the latest decisions
about canaries with the figures on which they were made.`,
		Example: `  lfxctl traffic
  lfxctl traffic --project shop --env staging -o json
  lfxctl traffic set 8=25%`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			all, err := c.Traffic(cmd.Context(), s.environment())
			if err != nil {
				return err
			}
			slices.SortFunc(all, func(x, y api.Traffic) int { return cmp.Compare(x.Environment.String(), y.Environment.String()) })
			if *output == outputJSON {
				return a.printJSON(list(all))
			}
			a.printTraffic(all)
			return nil
		}),
	}
	a.addScopeFlags(cmd, &s)
	output = addOutputFlag(cmd)
	cmd.AddCommand(a.trafficSetCommand())
	return cmd
}

func (a *app) trafficSetCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "set N=SHARE",
		Short: "Give a release a share of the requests",
		Long: `Set gives release N a share of the requests, in percent, and the active release the rest. N is the canary or, when there
is none, any kept release: what it keeps warm is started first. A request draws once; the calls of its functions stay
on its release. All requests are given to a release by promote, deploy or rollback.`,
		Example: `  lfxctl traffic set 8=25%
  lfxctl traffic set 8=0.5% --env staging`,
		Args:              args(1, 1, "N=SHARE"),
		ValidArgsFunction: a.completeReleases(&s, 1, "="),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			number, portion, err := parseShare(args[0])
			if err != nil {
				return err
			}
			t, err := c.SetTraffic(cmd.Context(), api.TrafficRequest{Environment: s.environment(), Release: number, Percent: float64(portion)})
			if err != nil {
				return err
			}
			return a.printOutcome(*output, t, trafficSentence(t))
		}),
	}
	a.addTargetFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

// parseShare reads N=SHARE.
func parseShare(s string) (number int, portion percent, err error) {
	left, right, ok := strings.Cut(s, "=")
	if !ok {
		return 0, 0, usagef("%q is no share of a release: write it as 8=25%%", s)
	}
	if number, err = parseRelease(left); err != nil {
		return 0, 0, err
	}
	if portion, err = parsePercent(right); err != nil {
		return 0, 0, usagef("%v", err)
	}
	return number, portion, nil
}

func (a *app) promoteCommand() *cobra.Command {
	return a.endCanaryCommand("promote", "Give the canary all requests",
		`Promote makes the canary the active release; the one that was active before drains. With N nothing is done unless N is
the canary.`, (*client.Client).Promote, promoteSentence)
}

func (a *app) abortCommand() *cobra.Command {
	return a.endCanaryCommand("abort", "Take all requests away from the canary",
		`Abort gives the active release all requests again; the canary drains and is kept like any release that is not active.
With N nothing is done unless N is the canary.`, (*client.Client).Abort, abortSentence)
}

// endCanaryCommand is promote or abort.
func (a *app) endCanaryCommand(name, short, long string, end func(*client.Client, context.Context, api.ReleaseRequest) (*api.Traffic, error), sentence func(*api.Traffic) string) *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:               name + " [N]",
		Short:             short,
		Long:              long,
		Example:           fmt.Sprintf("  lfxctl %[1]s\n  lfxctl %[1]s 8 --project shop --env staging", name),
		Args:              args(0, 1, ""),
		ValidArgsFunction: a.completeReleases(&s, 1, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			number, err := optionalRelease(args)
			if err != nil {
				return err
			}
			t, err := end(c, cmd.Context(), api.ReleaseRequest{Environment: s.environment(), Release: number})
			if err != nil {
				return err
			}
			return a.printOutcome(*output, t, sentence(t))
		}),
	}
	a.addTargetFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

// printOutcome prints what a command did: one sentence, or the answer as JSON.
func (a *app) printOutcome(output outputFlag, answer any, sentence string) error {
	if output == outputJSON {
		return a.printJSON(answer)
	}
	_, err := fmt.Fprintln(a.stdout, sentence)
	return err
}

// trafficSentence is "release 8 of shop gets 25%, release 7 the rest".
func trafficSentence(t *api.Traffic) string {
	if t.Canary == nil {
		return fmt.Sprintf("release %d of %s gets all requests", t.Active, t.Environment)
	}
	return fmt.Sprintf("release %d of %s gets %s, release %d the rest", t.Canary.Release, t.Environment, share(t.Canary.Percent), t.Active)
}

func promoteSentence(t *api.Traffic) string {
	return fmt.Sprintf("release %d of %s is active and gets all requests", t.Active, t.Environment)
}

func abortSentence(t *api.Traffic) string {
	sentence := fmt.Sprintf("release %d of %s gets all requests again", t.Active, t.Environment)
	if n := len(t.Decisions); n > 0 && t.Decisions[n-1].Action == "aborted" {
		return fmt.Sprintf("release %d was aborted: %s", t.Decisions[n-1].Release, sentence)
	}
	return sentence
}

func (a *app) printTraffic(all []api.Traffic) {
	if len(all) == 0 {
		fmt.Fprintln(a.stderr, "nothing is deployed: `lfxctl deploy` makes the first release")
		return
	}
	t := &table{head: []string{"PROJECT", "ENV", "RELEASE", "STATE", "SHARE", "SINCE"}}
	for _, e := range all {
		rest := 100.0
		if e.Canary != nil {
			rest -= e.Canary.Percent
		}
		if e.Active != 0 { // else nothing was activated yet
			t.add(text("%s", e.Project), text("%s", e.Environment.Name), text("%d", e.Active), cell{api.StateActive, green}, text("%s", share(rest)), text(""))
		}
		if e.Canary != nil {
			t.add(text("%s", e.Project), text("%s", e.Environment.Name), text("%d", e.Canary.Release), cell{api.StateCanary, yellow},
				text("%s", share(e.Canary.Percent)), text("%s", a.ago(e.Canary.Since)))
		}
	}
	if len(t.rows) == 0 {
		fmt.Fprintln(a.stderr, "no release is active: `lfxctl releases` shows what is kept, `lfxctl rollback N` activates one of them")
		return
	}
	a.print(t)
	for _, e := range all {
		if e.Canary != nil && e.Canary.Auto != nil {
			fmt.Fprintf(a.stdout, "\nrelease %d of %s is judged: %s\n", e.Canary.Release, e.Environment, judgement(e.Canary.Auto))
		}
	}
	a.printDecisions(all)
}

// judgement says when a canary is promoted.
func judgement(j *api.Judgement) string {
	return fmt.Sprintf("promoted after %s with at least %s, when its error rate is at most %s points above the active release's and its p99 at most %g times as long; else aborted",
		shortDuration(j.After), count(j.MinRequests, "request"), strings.TrimSuffix(share(j.MaxErrorRate*100), "%"), j.MaxP99Ratio)
}

func (a *app) printDecisions(all []api.Traffic) {
	t := &table{head: []string{"WHEN", "ENVIRONMENT", "RELEASE", "DECISION", "BY", "CANARY", "ACTIVE", "REASON"}}
	for _, e := range all {
		for _, d := range e.Decisions {
			t.add(text("%s", a.ago(d.Time)), text("%s", e.Environment), text("%d", d.Release), cell{d.Action, decisionColour(d.Action)},
				text("%s", d.By), text("%s", figures(d.Canary)), text("%s", figures(d.Active)), text("%s", visible(d.Reason)))
		}
	}
	if len(t.rows) > 0 {
		fmt.Fprintln(a.stdout)
		a.print(t)
	}
}

func decisionColour(action string) colour {
	switch action {
	case "promoted":
		return green
	case "aborted":
		return red
	}
	return plain
}

// figures is "120 requests, 0.83% errors, p99 45ms".
func figures(f *api.Figures) string {
	if f == nil {
		return ""
	}
	return fmt.Sprintf("%s, %s errors, p99 %s", count(int(f.Requests), "request"), share(f.ErrorRate*100), shortDuration(f.P99))
}

// shortDuration is a duration with three digits that matter and without zero units: "10m", "1.25ms".
func shortDuration(d time.Duration) string {
	unit := time.Duration(1)
	for unit*1000 <= d.Abs() && unit < time.Second {
		unit *= 10
	}
	s := d.Round(unit).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
