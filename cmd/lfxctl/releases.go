package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

func (a *app) releasesCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "releases",
		Short: "List the releases, newest first",
		Long: `Releases lists the releases that are kept: when each was made and from which revision, the functions whose version
differs from the release before it, and what it does now. STATE is active, canary, draining (no longer active, but
requests are bound to it), kept (a rollback can make it active) or failed, with the share of the requests where
several releases get some. REQUESTS and ERRORS count since lfxd was started, nested calls included.`,
		Example: `  lfxctl releases
  lfxctl releases --project shop --env staging -o json`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			all, err := c.Releases(cmd.Context(), s.environment())
			if err != nil {
				return err
			}
			slices.SortFunc(all, func(x, y api.ReleaseInfo) int {
				return cmp.Or(cmp.Compare(x.Environment.String(), y.Environment.String()), cmp.Compare(y.Number, x.Number))
			})
			if *output == outputJSON {
				return a.printJSON(list(all))
			}
			a.printReleases(all)
			return nil
		}),
	}
	a.addScopeFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

func (a *app) printReleases(all []api.ReleaseInfo) {
	if len(all) == 0 {
		fmt.Fprintln(a.stderr, "no releases: `lfxctl deploy` makes the first one")
		return
	}
	t := &table{head: []string{"PROJECT", "ENV", "RELEASE", "STATE", "CREATED", "REVISION", "CHANGED", "IN-FLIGHT", "REQUESTS", "ERRORS"}}
	for _, r := range all {
		t.add(text("%s", r.Project), text("%s", r.Environment.Name), text("%d", r.Number), cell{releaseState(&r), releaseColour(releaseStatus(&r))},
			text("%s", a.ago(r.Created)), text("%s", shortRevision(r.Source.Revision)), text("%s", shortList(r.Changed)),
			text("%d", r.InFlight), text("%d", r.Requests), text("%d", r.Errors))
	}
	a.print(t)
}

// releaseStatus is a State constant; a daemon that says none has at least the recorded state.
func releaseStatus(r *api.ReleaseInfo) string { return cmp.Or(r.Status, string(r.State)) }

// releaseState is "active", "canary 10%", "active 90%".
func releaseState(r *api.ReleaseInfo) string {
	if r.Percent > 0 && r.Percent < 100 {
		return releaseStatus(r) + " " + share(r.Percent)
	}
	return releaseStatus(r)
}

func releaseColour(status string) colour {
	switch status {
	case api.StateActive:
		return green
	case api.StateCanary, api.StateDraining:
		return yellow
	case api.StateFailed:
		return red
	}
	return plain
}

// shortList is "a, b, c" and how many more there are.
func shortList(names []string) string {
	const most = 3
	if len(names) <= most+1 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s +%d", strings.Join(names[:most], ", "), len(names)-most)
}

// shortRevision cuts a Git revision to 12 digits and keeps "-dirty".
func shortRevision(revision string) string {
	hash, dirty := strings.CutSuffix(revision, "-dirty")
	hash = hash[:min(12, len(hash))]
	if dirty {
		return hash + "-dirty"
	}
	return hash
}

// parseRelease reads the number of a release: 7 or r7.
func parseRelease(s string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(s, "r"))
	if err != nil || n < 1 || strings.ContainsAny(s, "+-") {
		return 0, usagef("%q is no release: give its number, as `lfxctl releases` shows it", s)
	}
	return n, nil
}

// optionalRelease is the number in the first argument, 0 without one.
func optionalRelease(args []string) (int, error) {
	if len(args) == 0 {
		return 0, nil
	}
	return parseRelease(args[0])
}
