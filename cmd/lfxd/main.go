// Command lfxd runs AWS Lambda container functions on this host, without Docker.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon"
	"lfx.dev/lfxd/daemon/config"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/internal/procs"
)

// version is set at link time.
var version = "dev"

// Exit codes beside 0 and 1. A crash of Go's runtime is 2 as well, so a wrong configuration, which no
// restart heals, has one of its own: lfxd.service tells them apart.
const (
	exitUsage  = 2
	exitConfig = 78 // sysexits: EX_CONFIG
	exitLocked = 75 // another lfxd has the state or the run directory (sysexits: EX_TEMPFAIL)
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	root := rootCommand()
	root.SetArgs(args)
	return report(os.Stderr, root.Execute())
}

// report says what went wrong, if anything did, and returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(w, "lfxd:", err) //nolint:errcheck // nothing is left to say it to
	var usage usageError
	var wrong configError
	switch {
	case errors.Is(err, store.ErrLocked), errors.Is(err, daemon.ErrInUse):
		return exitLocked
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &wrong):
		return exitConfig
	}
	return 1
}

// noArgs is cobra.NoArgs as a mistake on the command line.
func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

// configError is a mistake in the configuration.
type configError struct{ error }

// Unwrap returns the cause.
func (e configError) Unwrap() error { return e.error }

// usageError is a mistake on the command line.
type usageError struct{ error }

// Unwrap returns the cause.
func (e usageError) Unwrap() error { return e.error }

// flags are what the command line sets over the file.
type flags struct {
	config     string
	withEngine bool
	logLevel   string
}

func rootCommand() *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:   "lfxd",
		Short: "Run AWS Lambda container functions on this host, without Docker",
		Example: "  lfxd --with-engine                  # containerd and BuildKit of its own, as children\n" +
			"  lfxd --config /etc/lfxd/config.toml # a containerd and BuildKit that run already\n" +
			"  lfxd down                           # stop it and give everything back",
		Version: version, SilenceErrors: true, SilenceUsage: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), f) },
	}
	root.PersistentFlags().StringVarP(&f.config, "config", "c", "", "configuration file (default "+config.Path+" if it exists)")
	root.PersistentFlags().StringVar(&f.logLevel, "log-level", "", "debug, info, warn or error (default: the configuration's)")
	root.PersistentFlags().BoolVar(&f.withEngine, "with-engine", false, "start containerd and buildkitd as children, with private files")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		&cobra.Command{
			Use: "serve", Short: "Run the daemon (the same as no command)", Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), f) },
		},
		&cobra.Command{
			Use: "down", Short: "Stop the daemon of this configuration and remove everything it left on the host", Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return down(cmd.Context(), f) },
		},
		&cobra.Command{
			Use: "check", Short: "Check the configuration and say nothing if it is right", Args: noArgs,
			RunE: func(*cobra.Command, []string) error { _, err := load(f); return err },
		},
		doctorCommand(&f),
		engineCommand(&f),
	)
	return root
}

// load reads and checks the configuration.
func load(f flags) (*config.Config, error) {
	path := f.config
	if path == "" {
		path = config.Path
	}
	c, err := config.Load(path)
	if f.config == "" && errors.Is(err, fs.ErrNotExist) {
		c, err = config.Default(), nil
	}
	if err != nil {
		return nil, configError{err}
	}
	if f.logLevel != "" {
		if err := c.LogLevel.UnmarshalText([]byte(f.logLevel)); err != nil {
			return nil, usageError{fmt.Errorf("--log-level: %q is none of debug, info, warn and error", f.logLevel)}
		}
	}
	if err := c.Validate(); err != nil {
		return nil, configError{err}
	}
	return c, nil
}

// prepare makes the options of a daemon that may run here.
func prepare(f flags) (daemon.Options, error) {
	c, err := load(f)
	if err != nil {
		return daemon.Options{}, err
	}
	if os.Getuid() != 0 {
		return daemon.Options{}, errors.New("lfxd makes namespaces, cgroups and firewall rules, and must run as root: use sudo or systemd")
	}
	log := newLogger(c.LogLevel)
	routeLogrus(log)
	return daemon.Options{Config: c, WithEngine: f.withEngine, Version: version, Log: log}, nil
}

func serve(ctx context.Context, f flags) error {
	opts, err := prepare(f)
	if err != nil {
		return err
	}
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	procs.Few()
	d, err := daemon.Open(ctx, opts)
	if err != nil {
		return err
	}
	opts.Log.Info("ready", "version", version)
	d.Notify(sd.SdNotifyReady)
	err = d.Run(ctx)
	opts.Log.Info("stopping")
	d.Notify(sd.SdNotifyStopping + "\nSTATUS=stopping: requests that run may finish")
	d.Close()
	return err
}

// down ends a daemon that runs, or opens one without service to remove what a dead one left.
func down(ctx context.Context, f flags) error {
	opts, err := prepare(f)
	if err != nil {
		return err
	}
	if ctx == nil {
		ctx = context.Background()
	}
	return daemon.Down(ctx, opts)
}

// routeLogrus sends what containerd's and BuildKit's libraries log into ours.
func routeLogrus(log *slog.Logger) {
	logrus.SetOutput(discard{})
	logrus.SetLevel(logrus.InfoLevel)
	logrus.AddHook(hook{log})
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

type hook struct{ log *slog.Logger }

// Levels implements logrus.Hook.
func (hook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (h hook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch {
	case e.Level <= logrus.ErrorLevel:
		level = slog.LevelError
	case e.Level == logrus.WarnLevel:
		level = slog.LevelWarn
	}
	attrs := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	h.log.Log(context.Background(), level, e.Message, attrs...)
	return nil
}
