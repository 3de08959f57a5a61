package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailure     = 1   // the call failed, or the function did
	exitUsage       = 2   // the command line, the manifest or the request is wrong; nothing was tried
	exitInterrupted = 130 // Ctrl-C
)

// app is what every command works with: the process around it and the global flags.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	lookup         func(string) (string, bool) // os.LookupEnv

	host string // --host
}

// silentError ends the command with a code; everything there is to say was printed.
type silentError struct{ code int }

func (e *silentError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// usageError is a wrong command line or manifest.
type usageError struct {
	message string
	// details are further lines, one per problem.
	details []string
}

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// run executes one command line and returns the exit code. It blocks until the command ended and
// all its goroutines with it.
func run(ctx context.Context, a *app, args []string) int {
	ctx, stop := a.interruptible(ctx)
	defer stop()
	root := a.rootCommand()
	root.SetArgs(args)
	return a.report(ctx, root.ExecuteContext(ctx))
}

// report prints err as people should read it and returns the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	if silent, ok := errors.AsType[*silentError](err); ok {
		return silent.code
	}
	code, details := exitFailure, []string(nil)
	canceled, isCanceled := errors.AsType[*client.CanceledError](err)
	usage, isUsage := errors.AsType[*usageError](err)
	refused, isRefused := errors.AsType[*api.Error](err)
	switch {
	case isCanceled:
		err, code = canceled, exitInterrupted
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case isUsage:
		code, details = exitUsage, usage.details
	case isRefused:
		details = refused.Details
		if refused.Code == api.CodeInvalid {
			code = exitUsage
		}
	}
	fmt.Fprintf(a.stderr, "lfxctl: %s\n", strings.TrimSpace(err.Error()))
	for _, line := range details {
		fmt.Fprintf(a.stderr, "  %s\n", line)
	}
	return code
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "lfxctl",
		Short: "Run AWS Lambda container functions on this host",
		Long: `lfxctl deploys projects of AWS Lambda container functions to lfxd, invokes them and shows what runs.

A NAME is a function's name when it is unique on the host, else project/name, project/environment/name or an ARN.
LFX_HOST (or --host) says where lfxd listens: unix:///path or http://localhost:9000; by default ` + client.DefaultSocket + `.
Exit codes: 0 done, 1 failed, 2 wrong command line or manifest, 130 interrupted.`,
		Example: `  lfxctl deploy                         # build and release the project in this directory
  lfxctl invoke hello-go -d '{"name":"x"}'
  lfxctl logs hello-go -f`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.PersistentFlags().StringVar(&a.host, "host", "", "where lfxd listens: unix:///path or http://localhost:9000 (default $LFX_HOST)")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%v: `%s --help` lists the flags", err, cmd.CommandPath())
	})
	root.AddCommand(
		a.deployCommand(), a.invokeCommand(), a.lsCommand(), a.inspectCommand(), a.logsCommand(), a.rmCommand(),
		a.psCommand(), a.releasesCommand(), a.rollbackCommand(), a.trafficCommand(), a.promoteCommand(), a.abortCommand(),
		a.diffCommand(), a.aliasCommand(), a.envCommand(), a.whyCommand(), a.metricsCommand(),
		a.doctorCommand(), a.versionCommand(), a.completionCommand(),
	)
	return root
}

func unknownCommand(parent *cobra.Command, name string) error {
	path := parent.CommandPath()
	if near := parent.SuggestionsFor(name); len(near) > 0 {
		return usagef("unknown command %q: did you mean `%s %s`?", name, path, strings.Join(near, "` or `"+path+" "))
	}
	return usagef("unknown command %q: `%s --help` lists the commands", name, path)
}

// group makes cmd one that only holds others.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		return cmd.Help()
	}
	cmd.AddCommand(commands...)
	return cmd
}

// args checks the number of positional arguments; what names them in the error.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("%s is missing: usage: %s", what, cmd.UseLine())
		case len(args) > most:
			return usagef("unexpected argument %q: usage: %s", args[most], cmd.UseLine())
		}
		return nil
	}
}

// client returns a client of the daemon that --host or LFX_HOST names. The caller closes it.
func (a *app) client() (*client.Client, error) {
	addr := a.host
	if addr == "" {
		addr = a.getenv("LFX_HOST")
	}
	c, err := client.New(addr)
	if err != nil {
		return nil, &usageError{message: err.Error()}
	}
	return c, nil
}

// withClient makes a command body of a function that needs the daemon.
func (a *app) withClient(body func(cmd *cobra.Command, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		return body(cmd, c, args)
	}
}

// isTerminal says whether a stream of the process is a terminal.
func isTerminal(stream any) bool {
	if c, ok := stream.(*capture); ok {
		stream = c.of
	}
	file, ok := stream.(*os.File)
	return ok && (isatty.IsTerminal(file.Fd()) || isatty.IsCygwinTerminal(file.Fd()))
}

// getenv is os.Getenv.
func (a *app) getenv(name string) string {
	value, _ := a.lookup(name)
	return value
}

// now is the clock of relative times.
func (a *app) now() time.Time { return time.Now() }
