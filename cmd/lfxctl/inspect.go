package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

func (a *app) inspectCommand() *cobra.Command {
	var s scope
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show one function: configuration, image, versions, instances",
		Long: `Inspect shows one function: its configuration, image, versions and instances.

Values of environment variables are left out of the text, since they often are secrets; -o json has them.`,
		Example: `  lfxctl inspect hello-go
  lfxctl inspect shop/staging/checkout -o json | jq .active.image.digest`,
		Args:              args(1, 1, "the function's NAME"),
		ValidArgsFunction: a.completeNames,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			found, err := resolve(cmd.Context(), c, args[0], s)
			if err != nil {
				return err
			}
			detail, err := c.Function(cmd.Context(), found.Key)
			if err != nil {
				return err
			}
			if *output == outputJSON {
				return a.printJSON(detail)
			}
			a.printDetail(detail)
			return nil
		}),
	}
	a.addScopeFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

func (a *app) printDetail(d *api.FunctionDetail) {
	for _, f := range detailFields(a, d) {
		if f.value != "" && f.value != "-" {
			fmt.Fprintf(a.stdout, "%-12s %s\n", f.name+":", f.value)
		}
	}
	versions := &table{head: []string{"VERSION", "DIGEST", "BASE", "CREATED"}}
	for _, v := range slices.Backward(slices.SortedFunc(slices.Values(d.Versions), byNumber)) {
		number := text("%d", v.Number)
		if v.Number == d.Active.Number {
			number = cell{number.text + " (active)", green}
		}
		versions.add(number, text("%s", shortDigest(v.Image.Digest)), text("%s", v.Image.BaseName), text("%s", a.ago(v.Created)))
	}
	fmt.Fprintln(a.stdout)
	a.print(versions)
	if len(d.Running) > 0 {
		fmt.Fprintln(a.stdout)
		sortInstances(d.Running)
		a.printInstances(d.Running)
	}
}

type field struct{ name, value string }

func detailFields(a *app, d *api.FunctionDetail) []field {
	c := d.Active.Config
	cpu := fmt.Sprintf("%.2g of a core", c.Cores())
	if c.Cores() >= 1 {
		cpu = fmt.Sprintf("%.3g cores", c.Cores())
	}
	return []field{
		{"Function", d.Key.String()},
		{"ARN", d.ARN},
		{"Version", fmt.Sprintf("%d of release %d, deployed %s", d.Version, d.Release, a.ago(d.Deployed))},
		{"Image", d.Active.Image.Name},
		{"Digest", d.Active.Image.Digest},
		{"Base", d.Active.Image.BaseName},
		{"Memory", memory(d.MemoryMB)},
		{"CPU", cpu},
		{"/tmp", memory(c.TmpMB)},
		{"Timeout", d.Timeout},
		{"Concurrency", concurrency(c.Concurrency)},
		{"Command", strings.Join(d.Active.Argv(), " ")},
		{"Environment", strings.Join(slices.Sorted(maps.Keys(c.Environment)), ", ")},
		{"Default", map[bool]string{true: "answers as \"function\""}[d.Default]},
		{"Port", number(d.Port)},
	}
}

func concurrency(c function.Concurrency) string {
	if c.Stopped {
		return "stopped: every call is throttled"
	}
	most := "the daemon's default"
	if c.Max != 0 {
		most = strconv.Itoa(c.Max)
	}
	text := fmt.Sprintf("%d always warm, at most %s", c.Min, most)
	if n := c.AtOnce(); n > 1 {
		text += fmt.Sprintf(", each for up to %d calls at once", n)
	}
	return text
}

// shortDigest is the first 12 hex digits, as containerd's tools show digests.
func shortDigest(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(12, len(hex))]
}

func byNumber(x, y function.Version) int { return cmp.Compare(x.Number, y.Number) }
