package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

// logsFlags are the flags of `lfxctl logs`.
type logsFlags struct {
	scope
	follow         bool
	since, request string
	limit          int
	output         *outputFlag
}

func (a *app) logsCommand() *cobra.Command {
	var flags logsFlags
	cmd := &cobra.Command{
		Use:   "logs [NAME]",
		Short: "Show what a function printed",
		Long: `Logs shows what a function and the platform wrote, oldest first: one function's, or without a NAME those of all
functions, each line headed by its function. With -f it goes on until Ctrl-C.`,
		Example: `  lfxctl logs hello-go --since 10m
  lfxctl logs hello-go -f
  lfxctl logs hello-go --request 8f1c… -o json
  lfxctl logs --project shop -f`,
		Args:              args(0, 1, ""),
		ValidArgsFunction: a.completeNames,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			return a.logs(cmd, c, strings.Join(args, ""), &flags)
		}),
	}
	cmd.Flags().BoolVarP(&flags.follow, "follow", "f", false, "go on with lines to come")
	cmd.Flags().StringVar(&flags.since, "since", "", "leave out older lines: an age (10m, 2h) or a time (RFC 3339)")
	cmd.Flags().StringVar(&flags.request, "request", "", "only the lines of this request ID")
	cmd.Flags().IntVarP(&flags.limit, "limit", "n", 0, "start with at most so many of the latest lines (default: what the daemon keeps)")
	a.addScopeFlags(cmd, &flags.scope)
	flags.output = addOutputFlag(cmd)
	return cmd
}

func (a *app) logs(cmd *cobra.Command, c *client.Client, name string, flags *logsFlags) error {
	query := client.LogQuery{Follow: flags.follow, Limit: flags.limit, RequestID: flags.request}
	query.Environment = flags.environment()
	var err error
	if query.Since, err = parseSince(flags.since, a.now()); err != nil {
		return err
	}
	if flags.limit < 0 {
		return usagef("--limit %d is negative: give a number of lines", flags.limit)
	}
	if flags.request != "" {
		// One invocation is shown whole. The printer filters too, for what arrives while following.
		query.Limit = 0
	}
	if name != "" {
		found, err := resolve(cmd.Context(), c, name, flags.scope)
		switch {
		case err == nil:
			query.Key = found.Key
		case errors.Is(err, errdefs.ErrNotFound) || isCode(err, api.CodeNotFound):
			// Its log may outlive a function: let the daemon say.
			if isARN(name) {
				return err
			}
			if query.Key, err = parseName(name, flags.scope); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return c.Logs(cmd.Context(), query, a.logPrinter(flags, name == ""))
}

func isCode(err error, code string) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Code == code
}

// logPrinter returns what prints one entry.
func (a *app) logPrinter(flags *logsFlags, withFunction bool) func(api.LogEntry) {
	encoder := json.NewEncoder(a.stdout)
	encoder.SetEscapeHTML(false)
	terminal := isTerminal(a.stdout)
	return func(e api.LogEntry) {
		if flags.request != "" && e.RequestID != flags.request {
			return
		}
		if *flags.output == outputJSON {
			_ = encoder.Encode(e)
			return
		}
		message := strings.TrimRight(e.Message, "\r\n")
		if terminal {
			message = visible(message)
		}
		head := a.paint(a.stdout, dim, e.Time.Local().Format("2006-01-02T15:04:05.000Z07:00"))
		if withFunction {
			head += " " + e.Key.String()
		}
		fmt.Fprintf(a.stdout, "%s %s\n", head, a.paint(a.stdout, streamColour(e.Stream), message))
	}
}

func streamColour(stream string) colour {
	switch stream {
	case "platform":
		return dim
	case "stderr":
		return yellow
	}
	return plain
}

// parseSince reads an age or a time; empty is the zero time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if age, err := time.ParseDuration(s); err == nil && age >= 0 {
		return now.Add(-age), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Time{}, usagef("--since %q is neither an age (10m, 2h) nor a time (2026-01-31T15:04:05Z)", s)
}
