package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
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
	noActivate, auto    bool
	canary              percent
	progress            progressMode
	output              *outputFlag
}

// deployPlan is what a deploy was asked to do with its release; the zero value activates it.
type deployPlan struct {
	noActivate, auto bool
	canary           percent
}

func (f *deployFlags) intent() deployPlan {
	return deployPlan{noActivate: f.noActivate, auto: f.auto, canary: f.canary}
}

// check refuses what contradicts itself.
func (f *deployFlags) check() error {
	switch {
	case f.noActivate && f.canary != 0:
		return usagef("--no-activate and --canary exclude each other: without requests a release is no canary")
	case f.auto && f.noActivate:
		return usagef("--auto and --no-activate exclude each other: there is nothing to judge without requests")
	case f.auto && f.canary == 0:
		return usagef("--auto judges a canary: say its share too, such as --canary 10%%")
	}
	return nil
}

func (a *app) deployCommand() *cobra.Command {
	flags := deployFlags{progress: progressAuto}
	cmd := &cobra.Command{
		Use:   "deploy [DIR]",
		Short: "Build and release a project",
		Long: `Deploy builds every function of the project in DIR (default: the current directory), makes one release of them
and switches traffic to it. The project is what lfx.yaml says; without one, each sub-folder with a Dockerfile is a
function. Functions that did not change keep their version; when none did, nothing happens.

With --canary the release gets only that share of the requests and the active one the rest, until promote, abort or
traffic say otherwise; with --auto lfxd itself promotes or aborts it, as the canary section of lfx.yaml says. With
--no-activate the release is recorded and gets no requests: only the qualifier r<N> reaches it.

A deploy that fails or is interrupted leaves the running release untouched. Ctrl-C cancels and waits until the
build stopped; a second one quits at once. The result goes to standard output, progress to standard error.`,
		Example: `  lfxctl deploy
  lfxctl deploy contrib/examples --env staging
  lfxctl deploy --plan                  # show what would change, do nothing
  lfxctl deploy --canary 10% --auto     # a tenth of the requests, promoted when it does well
  lfxctl deploy --no-activate           # then: lfxctl invoke hello-go --qualifier r8
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
	cmd.Flags().Var(&flags.canary, "canary", "give the release this share of the requests instead of all: 10%")
	cmd.Flags().BoolVar(&flags.auto, "auto", false, "let lfxd promote or abort the canary by its error rate and p99")
	cmd.Flags().BoolVar(&flags.noActivate, "no-activate", false, "record the release, but give it no requests")
	addProgressFlag(cmd, &flags.progress)
	flags.output = addOutputFlag(cmd)
	return cmd
}

func addProgressFlag(cmd *cobra.Command, mode *progressMode) {
	cmd.Flags().Var(mode, "progress", "how to show the progress: auto, plain or tty")
	_ = cmd.RegisterFlagCompletionFunc("progress", cobra.FixedCompletions([]string{"auto", "plain", "tty"}, cobra.ShellCompDirectiveNoFileComp))
}

// checkProgress refuses a display that needs a terminal where there is none.
func (a *app) checkProgress(mode progressMode) error {
	if mode == progressTTY && !isTerminal(a.stderr) {
		return usagef("--progress tty needs a terminal on standard error: use plain")
	}
	return nil
}

func (a *app) deploy(ctx context.Context, c *client.Client, dir string, flags *deployFlags) error {
	if err := errors.Join(flags.check(), a.checkProgress(flags.progress)); err != nil {
		return err
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
	req := api.DeployRequest{
		Environment: project.Environment,
		Functions:   project.Specs,
		Source:      function.Source{Dir: project.Dir, Revision: revision(ctx, project.Dir)},
		SessionID:   sessionID,
		Plan:        flags.plan,
		NoCache:     flags.noCache,
		Wait:        flags.wait,
		NoActivate:  flags.noActivate,
		Canary:      float64(flags.canary),
	}
	if flags.auto {
		req.Auto = judgementOf(project)
	}
	result, err := a.watched(ctx, flags.progress, "canceling: waiting for the build to stop (Ctrl-C again quits)", func(ctx context.Context, event func(api.DeployEvent)) (*api.DeployResult, error) {
		return c.Deploy(ctx, req, event)
	})
	if err != nil {
		return err
	}
	if *flags.output == outputJSON {
		return a.printJSON(result)
	}
	a.printDeploy(result, flags.intent())
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

// judgementOf is how the canary of a project is judged.
func judgementOf(p *manifest.Project) *api.Judgement {
	return &api.Judgement{After: p.Canary.After, MinRequests: p.Canary.MinRequests, MaxErrorRate: p.Canary.MaxErrorRate, MaxP99Ratio: p.Canary.MaxP99Ratio}
}

// watched makes a call that takes its time and shows its progress; canceling is said when ctx ends.
func (a *app) watched(ctx context.Context, mode progressMode, canceling string, call func(context.Context, func(api.DeployEvent)) (*api.DeployResult, error)) (*api.DeployResult, error) {
	p := newProgress(a, mode)
	defer p.close()
	stop := context.AfterFunc(ctx, func() { p.step(canceling) })
	defer stop()
	return call(ctx, p.event)
}

// printDeploy shows what a deploy or a rollback did.
func (a *app) printDeploy(r *api.DeployResult, plan deployPlan) {
	shown := map[string]bool{}
	if len(r.Functions) > 0 {
		t := &table{head: []string{"FUNCTION", "VERSION", "CHANGE", "ENDPOINT"}}
		find := endpointFinder(r.Endpoints)
		for _, f := range r.Functions {
			e := find(f)
			shown[e] = true
			t.add(text("%s", f.Name), text("%s", number(f.Version)), cell{f.Change, changeColour(f.Change)}, text("%s", e))
		}
		a.print(t)
	}
	for _, e := range r.Endpoints {
		if !shown[e] {
			fmt.Fprintf(a.stdout, "also %s\n", e)
		}
	}
	fmt.Fprintln(a.stdout, deploySummary(r, plan))
}

// deploySummary is the last line: "release 3 active (1 of 3 functions changed), release 2 draining".
func deploySummary(r *api.DeployResult, plan deployPlan) string {
	what := changes(r.Functions)
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
	return fmt.Sprintf("release %d%s ", r.Release.Number, env) + plan.outcome(r, what)
}

// outcome is what became of the release.
func (p deployPlan) outcome(r *api.DeployResult, what string) string {
	switch {
	case p.noActivate:
		return fmt.Sprintf("recorded (%s), not active: qualifier r%d reaches it", what, r.Release.Number)
	case p.canary != 0 && p.auto:
		return fmt.Sprintf("gets %s of the requests (%s), release %d the rest; lfxd promotes or aborts it", p.canary.String(), what, r.Previous)
	case p.canary != 0:
		return fmt.Sprintf("gets %s of the requests (%s), release %d the rest: `lfxctl promote` or `lfxctl abort` ends that", p.canary.String(), what, r.Previous)
	case r.Previous != 0 && r.Previous != r.Release.Number:
		return fmt.Sprintf("active (%s), release %d draining", what, r.Previous)
	}
	return fmt.Sprintf("active (%s)", what)
}

// changes is "1 of 3 functions changed, 1 removed".
func changes(functions []api.DeployFunction) string {
	changed, removed, total := 0, 0, 0
	for _, f := range functions {
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
	return what
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

// endpointFinder finds a function's URL among the endpoints, which are for people: by its own port
// first, then by its name in the path.
func endpointFinder(endpoints []string) func(api.DeployFunction) string {
	byPort, byName := map[string]string{}, map[string]string{}
	add := func(m map[string]string, key, endpoint string) {
		if _, ok := m[key]; !ok { // the first one counts
			m[key] = endpoint
		}
	}
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil {
			continue
		}
		add(byPort, u.Port(), e)
		if _, rest, ok := strings.Cut(u.Path, "/functions/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			add(byName, name, e)
		}
	}
	return func(f api.DeployFunction) string {
		if e, ok := byPort[strconv.Itoa(f.Port)]; ok && f.Port != 0 {
			return e
		}
		return byName[f.Name]
	}
}
