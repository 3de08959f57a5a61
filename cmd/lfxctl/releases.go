package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

func (a *app) releasesCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "releases",
		Short: "List the releases, newest first",
		Example: `  lfxctl releases
  lfxctl releases --project shop --env staging -o json`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			all, err := c.Releases(cmd.Context(), s.environment())
			if err != nil {
				return err
			}
			slices.SortFunc(all, func(x, y function.Release) int {
				return cmp.Or(cmp.Compare(x.Environment.String(), y.Environment.String()), cmp.Compare(y.Number, x.Number))
			})
			if *output == outputJSON {
				return a.printJSON(list(all))
			}
			a.printReleases(all)
			return nil
		}),
	}
	addScopeFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

func (a *app) printReleases(all []function.Release) {
	if len(all) == 0 {
		fmt.Fprintln(a.stderr, "no releases: `lfxctl deploy` makes the first one")
		return
	}
	t := &table{head: []string{"PROJECT", "ENV", "RELEASE", "STATE", "CREATED", "REVISION", "FUNCTIONS"}}
	for _, r := range all {
		t.add(text("%s", r.Project), text("%s", r.Environment.Name), text("%d", r.Number), cell{string(r.State), releaseColour(r.State)},
			text("%s", a.ago(r.Created)), text("%s", shortRevision(r.Source.Revision)), text("%s", versionsOf(&r)))
	}
	a.print(t)
}

func releaseColour(state function.ReleaseState) colour {
	switch state {
	case function.ReleaseActive:
		return green
	case function.ReleaseFailed:
		return red
	}
	return plain
}

// versionsOf is "hello-go:2 hello-python:1".
func versionsOf(r *function.Release) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		out = append(out, fmt.Sprintf("%s:%d", name, r.Versions[name]))
	}
	return strings.Join(out, " ")
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
