package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

// whyOutput is `lfxctl why -o json`.
type whyOutput struct {
	*api.Record
	Logs []api.LogEntry `json:"logs"`
}

func (a *app) whyCommand() *cobra.Command {
	var output *outputFlag
	cmd := &cobra.Command{
		Use:   "why REQUEST-ID",
		Short: "Tell the whole story of one invocation",
		Long: `Why tells what lfxd remembers of one invocation: the function, version and release that served it, the instance and
where the time of its start went, how long it waited and ran, what came of it, and its log lines. The request id is in
the answer's header x-amzn-RequestId and in the log. Records are kept in memory: old ones give way, and a restart
forgets them all.`,
		Example: `  lfxctl why 8f1c2d3e-4b5a-4c6d-8e7f-9a0b1c2d3e4f
  lfxctl why 8f1c2d3e-4b5a-4c6d-8e7f-9a0b1c2d3e4f -o json | jq .phases_us`,
		Args: args(1, 1, "the REQUEST-ID"),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			record, err := c.Record(cmd.Context(), args[0])
			if refused, ok := errors.AsType[*api.Error](err); ok && refused.Code == api.CodeNotFound {
				refused.Details = append(refused.Details, fmt.Sprintf("`lfxctl logs --request %s` shows its log lines, where they are kept", visible(args[0])))
			}
			if err != nil {
				return err
			}
			lines, err := requestLog(cmd.Context(), c, record)
			if err != nil {
				return err
			}
			if *output == outputJSON {
				return a.printJSON(whyOutput{record, list(lines)})
			}
			a.printRecord(record)
			a.printLines(lines)
			return nil
		}),
	}
	output = addOutputFlag(cmd)
	return cmd
}

// requestLog returns the log lines of an invocation; none when its log is gone.
func requestLog(ctx context.Context, c *client.Client, r *api.Record) ([]api.LogEntry, error) {
	var lines []api.LogEntry
	err := c.Logs(ctx, client.LogQuery{Key: r.Key, RequestID: r.RequestID}, func(e api.LogEntry) {
		if e.RequestID == r.RequestID {
			lines = append(lines, e)
		}
	})
	if isCode(err, api.CodeNotFound) {
		return nil, nil
	}
	return lines, err
}

func (a *app) printLines(lines []api.LogEntry) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintln(a.stdout)
	printer := a.logPrinter(&logsFlags{output: new(outputTable)}, false)
	for _, e := range lines {
		printer(e)
	}
}

func (a *app) printRecord(r *api.Record) {
	for _, f := range recordFields(a, r) {
		if f.value != "" {
			fmt.Fprintf(a.stdout, "%-12s %s\n", f.name+":", f.value)
		}
	}
}

func recordFields(a *app, r *api.Record) []field {
	instance := r.Instance
	if instance != "" {
		instance += map[bool]string{true: " (cold: its first invocation)", false: " (warm)"}[r.Cold]
	}
	parent := ""
	if r.Parent != "" {
		parent = fmt.Sprintf("request %s, `lfxctl why %s`", r.Parent, r.Parent)
	}
	outcome := r.Outcome
	if r.Status != 0 {
		outcome += fmt.Sprintf(", status %d", r.Status)
	}
	accepted := r.Accepted.Local().Format("2006-01-02T15:04:05.000Z07:00")
	if ago := a.ago(r.Accepted); strings.HasSuffix(ago, "ago") {
		accepted += ", " + ago
	}
	return []field{
		{"Request", r.RequestID},
		{"Function", servedBy(r)},
		{"Qualifier", r.Qualifier},
		{"Called by", parent},
		{"Accepted", accepted},
		{"Instance", instance},
		{"Outcome", outcome},
		{"Error", visible(strings.Trim(r.ErrorType+": "+r.Detail, ": "))},
		{"Time", timeOf(r)},
		{"Start", phases(r.Phases)},
		{"Payload", fmt.Sprintf("%d bytes in, %d bytes out", r.RequestBytes, r.ResponseBytes)},
	}
}

// servedBy is "shop/hello, version 3 of release 7".
func servedBy(r *api.Record) string {
	s := r.Key.String()
	if r.Key.Function == "" {
		s = "none was found"
	}
	if r.Version != 0 {
		s += fmt.Sprintf(", version %d", r.Version)
	}
	if r.Release != 0 {
		s += fmt.Sprintf(" of release %d", r.Release)
	}
	return s
}

// timeOf is "312ms: 300ms queue, 11ms function, 1ms lfxd".
func timeOf(r *api.Record) string {
	rest := max(0, r.Total-r.Queue-r.Function)
	return fmt.Sprintf("%s: %s queue, %s function, %s lfxd", shortDuration(r.Total), shortDuration(r.Queue), shortDuration(r.Function), shortDuration(rest))
}

// phaseOrder is the order in which an instance is started.
var phaseOrder = []string{"turn", "files", "container", "create", "network", "check", "start", "init", "handler", "ahead"}

// phases is "create 29ms, network 12ms, …" in the order of a start; those that are not known come last.
func phases(us map[string]int64) string {
	names := slices.SortedFunc(maps.Keys(us), func(x, y string) int {
		place := func(name string) int {
			if i := slices.Index(phaseOrder, name); i >= 0 {
				return i
			}
			return len(phaseOrder)
		}
		return cmp.Or(cmp.Compare(place(x), place(y)), cmp.Compare(x, y))
	})
	var out []string
	for _, name := range names {
		out = append(out, fmt.Sprintf("%s %s", name, shortDuration(time.Duration(us[name])*time.Microsecond)))
	}
	return strings.Join(out, ", ")
}

// recordPatience bounds how long a finished invocation's record is waited for: it is written when the answer
// has gone out, which may be a moment after the client has it.
const recordPatience = 250 * time.Millisecond

// coldStart returns the record of an invocation that was cold, nil for any other and where the daemon does
// not say: the log tail is shown all the same.
func coldStart(ctx context.Context, c *client.Client, requestID string) *api.Record {
	ctx, cancel := context.WithTimeout(ctx, recordPatience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for requestID != "" {
		record, err := c.Record(ctx, requestID)
		switch {
		case err == nil && record.Cold:
			return record
		case err == nil, !errors.Is(err, context.DeadlineExceeded) && !isCode(err, api.CodeNotFound):
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	return nil
}
