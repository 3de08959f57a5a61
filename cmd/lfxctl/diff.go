package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

func (a *app) diffCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "diff N [M]",
		Short: "Show what differs between two releases",
		Long: `Diff shows which functions, images and settings differ between the releases N and M. With one number it shows what would
change if release N became the active one. Values of environment variables are not shown, since they often are secrets.`,
		Example: `  lfxctl diff 6 7
  lfxctl diff 8                         # from the active release to release 8
  lfxctl diff 6 7 --project shop -o json`,
		Args:              args(1, 2, "the number of a release"),
		ValidArgsFunction: a.completeReleases(&s, 2, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			from, to := 0, 0
			numbers := []*int{&to}
			if len(args) == 2 {
				numbers = []*int{&from, &to}
			}
			for i, n := range numbers {
				var err error
				if *n, err = parseRelease(args[i]); err != nil {
					return err
				}
			}
			d, err := c.Diff(cmd.Context(), s.environment(), from, to)
			if err != nil {
				return err
			}
			if *output == outputJSON {
				return a.printJSON(d)
			}
			a.printDiff(d)
			return nil
		}),
	}
	a.addTargetFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

func (a *app) printDiff(d *api.ReleaseDiff) {
	if len(d.Functions) == 0 {
		fmt.Fprintf(a.stdout, "the releases %d and %d of %s have the same functions\n", d.From, d.To, d.Environment)
		return
	}
	t := &table{head: []string{"FUNCTION", "CHANGE", fmt.Sprintf("RELEASE %d", d.From), fmt.Sprintf("RELEASE %d", d.To), "WHAT"}}
	for _, f := range d.Functions {
		t.add(text("%s", f.Name), cell{f.Change, diffColour(f.Change)}, text("%s", number(f.From)), text("%s", number(f.To)), text("%s", strings.Join(differences(&f), ", ")))
	}
	a.print(t)
}

// differences is what differs: "image", "memory 128MiB → 256MiB".
func differences(f *api.FunctionDiff) []string {
	var out []string
	if f.Image {
		out = append(out, "image")
	}
	for _, s := range f.Settings {
		from, to := s.From, s.To
		switch {
		case from == "" && to == "":
			out = append(out, visible(s.Name))
			continue
		case from == "":
			from = "unset"
		case to == "":
			to = "unset"
		}
		out = append(out, visible(fmt.Sprintf("%s %s → %s", s.Name, from, to)))
	}
	return out
}

func diffColour(change string) colour {
	switch change {
	case "added":
		return green
	case "removed":
		return red
	}
	return yellow
}
