package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/buildkit/source"
	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/manifest"
)

// deployFlags are the flags of `lfxctl deploy`.
type deployFlags struct {
	env                 string
	plan, noCache, wait bool
	progress            progressMode
	output              *outputFlag
}

func (a *app) deployCommand() *cobra.Command {
	flags := deployFlags{progress: progressAuto}
	cmd := &cobra.Command{
		Use:   "deploy [DIR]",
		Short: "Build and release a project",
		Long: `Deploy builds every function of the project in DIR (default: the current directory), makes one release of them
and switches traffic to it. The project is what lfx.yaml says; without one, each sub-folder with a Dockerfile is a
function. Functions that did not change keep their version; when none did, nothing happens.

A deploy that fails or is interrupted leaves the running release untouched. Ctrl-C cancels and waits until the
build stopped; a second one quits at once. The result goes to standard output, progress to standard error.`,
		Example: `  lfxctl deploy
  lfxctl deploy contrib/examples --env staging
  lfxctl deploy --plan                  # show what would change, do nothing
  lfxctl deploy --wait --progress plain -o json`,
		Args: args(0, 1, ""),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			return a.deploy(cmd.Context(), c, strings.Join(args, ""), &flags)
		}),
	}
	cmd.Flags().StringVar(&flags.env, "env", function.DefaultEnvironment, "the environment to deploy to")
	cmd.Flags().BoolVar(&flags.plan, "plan", false, "build and show what would change, but do nothing")
	cmd.Flags().BoolVar(&flags.noCache, "no-cache", false, "build without the cache")
	cmd.Flags().BoolVar(&flags.wait, "wait", false, "wait for another deploy of the same environment instead of failing")
	cmd.Flags().Var(&flags.progress, "progress", "how to show the build: auto, plain or tty")
	_ = cmd.RegisterFlagCompletionFunc("progress", cobra.FixedCompletions([]string{"auto", "plain", "tty"}, cobra.ShellCompDirectiveNoFileComp))
	flags.output = addOutputFlag(cmd)
	return cmd
}

func (a *app) deploy(ctx context.Context, c *client.Client, dir string, flags *deployFlags) error {
	if flags.progress == progressTTY && !isTerminal(a.stderr) {
		return usagef("--progress tty needs a terminal on standard error: use plain")
	}
	project, err := a.loadProject(dir, flags.env)
	if err != nil {
		return err
	}
	for _, w := range project.Warnings {
		fmt.Fprintf(a.stderr, "warning: %s\n", w)
	}
	sessionID, closeSession, err := offer(ctx, c, project)
	if err != nil {
		return err
	}
	defer closeSession()
	result, err := a.runDeploy(ctx, c, api.DeployRequest{
		Environment: project.Environment,
		Functions:   project.Specs,
		Source:      function.Source{Dir: project.Dir, Revision: revision(ctx, project.Dir)},
		SessionID:   sessionID,
		Plan:        flags.plan,
		NoCache:     flags.noCache,
		Wait:        flags.wait,
	}, flags.progress)
	if err != nil {
		return err
	}
	if *flags.output == outputJSON {
		return a.printJSON(result)
	}
	a.printDeploy(result)
	return nil
}

// offer serves the build contexts of the project on a BuildKit session. The session outlives ctx,
// so that a cancelled deploy can end in order; closing it ends it. A project without build contexts
// needs no session.
func offer(ctx context.Context, c *client.Client, p *manifest.Project) (id string, closeSession func(), err error) {
	dirs := contexts(p.Dir, p.Specs)
	if len(dirs) == 0 {
		return "", func() {}, nil
	}
	return source.Offer(context.WithoutCancel(ctx), source.Options{
		Dial: c.Dial, Path: api.PathSession, Host: c.Authority(), Dirs: dirs,
	})
}

// runDeploy makes the call and shows its progress.
func (a *app) runDeploy(ctx context.Context, c *client.Client, req api.DeployRequest, mode progressMode) (*api.DeployResult, error) {
	p := newProgress(a, mode)
	defer p.close()
	stop := context.AfterFunc(ctx, func() { p.step("canceling: waiting for the build to stop (Ctrl-C again quits)") })
	defer stop()
	return c.Deploy(ctx, req, p.event)
}

// printDeploy shows what a deploy did.
func (a *app) printDeploy(r *api.DeployResult) {
	if len(r.Functions) > 0 {
		t := &table{head: []string{"FUNCTION", "VERSION", "CHANGE", "ENDPOINT"}}
		for _, f := range r.Functions {
			t.add(text("%s", f.Name), text("%s", number(f.Version)), cell{f.Change, changeColour(f.Change)}, text("%s", endpointOf(f, r.Endpoints)))
		}
		a.print(t)
	}
	for _, e := range r.Endpoints {
		if !slices.ContainsFunc(r.Functions, func(f api.DeployFunction) bool { return endpointOf(f, r.Endpoints) == e }) {
			fmt.Fprintf(a.stdout, "also %s\n", e)
		}
	}
	fmt.Fprintln(a.stdout, deploySummary(r))
}

// deploySummary is the last line: "release 3 active (1 of 3 functions changed)".
func deploySummary(r *api.DeployResult) string {
	changed, removed, total := 0, 0, 0
	for _, f := range r.Functions {
		switch f.Change {
		case "removed":
			removed++
			continue
		case "unchanged":
		default:
			changed++
		}
		total++
	}
	what := fmt.Sprintf("%d of %s changed", changed, count(total, "function"))
	if removed > 0 {
		what += fmt.Sprintf(", %d removed", removed)
	}
	env := ""
	if r.Release.Environment.Name != function.DefaultEnvironment && r.Release.Environment.Name != "" {
		env = " of " + r.Release.Environment.String()
	}
	switch {
	case r.Unchanged && r.Release.Number == 0:
		return "nothing would change" + env
	case r.Unchanged:
		return fmt.Sprintf("nothing changed: release %d%s stays active", r.Release.Number, env)
	case r.Plan && r.Release.Number == 0:
		return fmt.Sprintf("plan: a deploy would make a release%s (%s); nothing was done", env, what)
	case r.Plan:
		return fmt.Sprintf("plan: a deploy would make release %d%s (%s); nothing was done", r.Release.Number, env, what)
	}
	return fmt.Sprintf("release %d%s active (%s)", r.Release.Number, env, what)
}

func changeColour(change string) colour {
	switch change {
	case "created", "updated":
		return green
	case "removed":
		return red
	case "unchanged":
		return dim
	}
	return plain
}

// endpointOf finds a function's URL among the endpoints, which are for people: by its own port
// first, then by its name in the path.
func endpointOf(f api.DeployFunction, endpoints []string) string {
	byName := ""
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil {
			continue
		}
		if f.Port != 0 && u.Port() == strconv.Itoa(f.Port) {
			return e
		}
		if byName == "" && strings.Contains(u.Path+"/", "/functions/"+f.Name+"/") {
			byName = e
		}
	}
	return byName
}
