package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/console"
	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

// watchInterval is the time between two pictures of `lfxctl ps -w`.
const watchInterval = time.Second

func (a *app) psCommand() *cobra.Command {
	var s scope
	var watch bool
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the running instances",
		Long: `Ps lists the instances (AWS: execution environments) that run on the host. STATE is starting, spare (created ahead,
has run no code of the function yet), idle, frozen (idle, and its processes stopped), busy or stopping. MEMORY is what the
instance uses now, AGE the time since it was started, USED when its last invocation ended.

With -w it goes on until Ctrl-C: a terminal shows the current picture, anything else gets one after the other.`,
		Example: `  lfxctl ps
  lfxctl ps -w
  lfxctl ps --project shop -o json`,
		Args: args(0, 0, ""),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			show := func(ctx context.Context) error { return a.showInstances(ctx, c, s, *output, watch) }
			if watch {
				return a.repeat(cmd.Context(), watchInterval, *output, show)
			}
			return show(cmd.Context())
		}),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every second")
	a.addScopeFlags(cmd, &s)
	output = addOutputFlag(cmd)
	return cmd
}

// showInstances prints one picture.
func (a *app) showInstances(ctx context.Context, c *client.Client, s scope, output outputFlag, watch bool) error {
	all, err := c.Instances(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(i api.InstanceInfo) bool { return !s.holds(i.Environment) })
	sortInstances(all)
	switch {
	case output == outputJSON && watch:
		return json.NewEncoder(a.stdout).Encode(list(all)) // a line for each picture
	case output == outputJSON:
		return a.printJSON(list(all))
	case len(all) == 0 && watch:
		fmt.Fprintln(a.stdout, "no instances")
	case len(all) == 0:
		fmt.Fprintln(a.stderr, "no instances: the next invocation of a function starts one")
	default:
		if watch {
			fmt.Fprintf(a.stdout, "%s  %s\n\n", a.now().Local().Format(time.TimeOnly), instanceTotals(all))
		}
		a.printInstances(all)
	}
	return nil
}

// repeat shows something again and again until ctx ends, whose cause it returns, or show fails. A terminal
// shows the last picture only; elsewhere an empty line is between two tables.
func (a *app) repeat(ctx context.Context, interval time.Duration, output outputFlag, show func(context.Context) error) error {
	screen := output == outputTable && isTerminal(a.stdout) && a.getenv("TERM") != "dumb"
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 0; ; n++ {
		picture, err := a.captured(func() error { return show(ctx) })
		if err != nil {
			return err
		}
		switch {
		case screen:
			picture = overwrite(picture, a.terminalRows())
		case n > 0 && output == outputTable:
			picture = append([]byte("\n"), picture...)
		}
		if _, err := a.stdout.Write(picture); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// captured returns what body prints to stdout. Colours are as for stdout itself.
func (a *app) captured(body func() error) ([]byte, error) {
	var buffer bytes.Buffer
	stdout := a.stdout
	a.stdout = &capture{Writer: &buffer, of: stdout}
	defer func() { a.stdout = stdout }()
	err := body()
	return buffer.Bytes(), err
}

// capture stands in for a stream.
type capture struct {
	io.Writer
	of io.Writer
}

// terminalRows is the height of the terminal that stdout is, 0 when that is not known.
func (a *app) terminalRows() int {
	file, ok := a.stdout.(*os.File)
	if !ok {
		return 0
	}
	c, err := console.ConsoleFromFile(file)
	if err != nil {
		return 0
	}
	size, err := c.Size()
	if err != nil {
		return 0
	}
	return int(size.Height)
}

// overwrite makes a picture that replaces the one before without a flicker: home, every line cleared to its
// end, and what is left below cleared. Long lines are cut instead of wrapped, and so are lines that a terminal
// of so many rows has no room for: otherwise it would scroll.
func overwrite(picture []byte, rows int) []byte {
	const home, clearLine, clearBelow, noWrap, wrap = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[?7l", "\x1b[?7h"
	lines := strings.SplitAfter(string(picture), "\n")
	lines = lines[:len(lines)-1] // each ends with a newline
	if more := len(lines) - (rows - 1); rows > 2 && more > 0 {
		lines = append(lines[:rows-2], fmt.Sprintf("… %d more\n", more+1))
	}
	text := strings.ReplaceAll(strings.Join(lines, ""), "\n", clearLine+"\n")
	return []byte(noWrap + home + text + clearBelow + wrap)
}

func (s scope) holds(env function.Environment) bool {
	return (s.project == "" || s.project == env.Project) && (s.env == "" || s.env == env.Name)
}

func sortInstances(all []api.InstanceInfo) {
	slices.SortFunc(all, func(x, y api.InstanceInfo) int {
		return cmp.Or(cmp.Compare(x.Key.String(), y.Key.String()), x.Started.Compare(y.Started), cmp.Compare(x.ID, y.ID))
	})
}

// instanceTotals is "3 instances: 1 busy, 2 idle; 120MiB".
func instanceTotals(all []api.InstanceInfo) string {
	var bytes int64
	states := map[string]int{}
	for _, i := range all {
		bytes += i.MemoryBytes
		states[i.State]++
	}
	var parts []string
	for _, state := range []string{"busy", "idle", "frozen", "spare", "starting", "stopping"} {
		if n := states[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	return fmt.Sprintf("%s: %s; %s", count(len(all), "instance"), strings.Join(parts, ", "), mebibytes(bytes))
}

func (a *app) printInstances(all []api.InstanceInfo) {
	t := &table{head: []string{"INSTANCE", "FUNCTION", "VERSION", "RELEASE", "STATE", "IN-FLIGHT", "MEMORY", "AGE", "USED"}}
	for _, i := range all {
		t.add(text("%s", i.ID), text("%s", i.Key), text("%d", i.Version), text("%s", number(i.Release)), cell{i.State, stateColour(i.State)},
			text("%d", i.InFlight), text("%s", mebibytes(i.MemoryBytes)), text("%s", a.age(i.Started)), text("%s", a.ago(i.Used)))
	}
	a.print(t)
}

func stateColour(state string) colour {
	switch state {
	case "busy":
		return green
	case "starting", "stopping":
		return yellow
	case "spare", "frozen":
		return dim
	}
	return plain
}
