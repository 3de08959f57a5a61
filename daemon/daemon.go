// Package daemon assembles lfxd: it opens every part in order, recovers what a crash left, runs until
// it is told to stop, and closes in reverse. It is the only place that knows every part.
//
// Order of Open: state (with its lock) → logs → listeners are bound → network (firewall before
// bridges, then the probe) → engine → instances and reconciliation → pools of the active releases →
// listeners are served. A part that fails closes what was opened before it.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/buildkit"
	"lfx.dev/lfxd/cni"
	"lfx.dev/lfxd/cni/dns"
	"lfx.dev/lfxd/daemon/config"
	"lfx.dev/lfxd/daemon/deploy"
	"lfx.dev/lfxd/daemon/engine"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/logs"
	"lfx.dev/lfxd/daemon/metrics"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/daemon/pool/policy"
	"lfx.dev/lfxd/daemon/records"
	"lfx.dev/lfxd/daemon/server"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/daemon/worker"
	"lfx.dev/lfxd/runtime/image"
	"lfx.dev/lfxd/runtime/instance"
)

// Options say how to run.
type Options struct {
	Config *config.Config
	// WithEngine supervises containerd and buildkitd as children.
	WithEngine bool
	// Version is lfxd's own.
	Version string
	Log     *slog.Logger
}

// Times that bound the daemon's own steps.
const (
	reconcileInterval = 30 * time.Second
	createTimeout     = 30 * time.Second
	warmTimeout       = 5 * time.Minute
	drainTimeout      = 30 * time.Second
	closeTimeout      = 60 * time.Second
	requestsTimeout   = 15 * time.Second // for those that go on when their connections are cut: the undo of deploys
	invokeMargin      = 5 * time.Second
)

// Daemon is the running lfxd.
type Daemon struct {
	opts   Options
	cfg    *config.Config
	log    *slog.Logger
	ctx    context.Context // ends when Close begins
	cancel context.CancelCauseFunc
	group  sync.WaitGroup
	undo   []func()        // what Close does, last first
	drain  context.Context // of Close: until it ends requests may finish

	store       *store.Store
	logs        *logs.Store
	engine      *engine.Engine // nil with an engine of the host's
	lone        bool           // no unit runs our engine now: supervise it for a moment (see Down)
	sweeping    bool           // only to remove leftovers
	client      *containerd.Client
	builder     *buildkit.Client
	sessions    *buildkit.Sessions
	images      *image.Store
	network     *cni.Manager
	instances   *instance.Manager
	starter     *worker.Starter
	pools       *pool.Manager
	metrics     *metrics.Registry
	records     *records.Store
	deployer    *deploy.Deployer
	releaser    *releaser
	gateway     *gateway.Gateway
	server      *server.Server
	bound       []boundListener
	started     time.Time // when requests were first served
	passed      []string  // names of the sockets in RunDir that are systemd's, not ours to remove
	runtime     engine.Runtime
	reconciling sync.Mutex
	untidy      atomic.Bool            // something of a deploy may have to be undone
	breach      atomic.Pointer[string] // why the firewall does not stand, if it does not
	missed      chan struct{}          // an image was missed; see rebuildLoop
}

type boundListener struct {
	net.Listener
	kind server.Kind
}

// Open starts everything and returns when requests are served. On error nothing is left open.
func Open(ctx context.Context, opts Options) (_ *Daemon, err error) {
	d := &Daemon{opts: opts, cfg: opts.Config, log: opts.Log, missed: make(chan struct{}, 1)}
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	for _, step := range []struct {
		what string
		run  func(context.Context) error
	}{
		{"directories", d.openDirs},
		{"state", d.openState},
		{"kernel", d.checkKernel},
		{"listeners", d.bind},
		{"network", d.openNetwork}, // the firewall stands before the build bridge appears
		{"engine", d.openEngine},
		{"instances", d.openInstances},
		{"functions", d.openFunctions},
		{"service", d.serve},
	} {
		start := time.Now()
		if err := step.run(ctx); err != nil {
			return nil, err
		}
		d.log.Debug("opened", "part", step.what, "took", time.Since(start).Round(time.Millisecond))
	}
	return d, nil
}

// onClose notes what undoes a step that succeeded.
func (d *Daemon) onClose(f func()) { d.undo = append(d.undo, f) }

// Close stops accepting, lets requests finish for a while, ends every instance and gives the host
// back what was taken from it. It waits for everything.
func (d *Daemon) Close() {
	if d.server != nil {
		d.server.Stop() // before requests are told of the end: those that come now had better wait for the next lfxd
	}
	d.cancel(errors.New("the daemon is shutting down"))
	var stop context.CancelFunc
	d.drain, stop = context.WithTimeout(context.Background(), drainTimeout)
	defer stop()
	d.group.Wait() // its loops must not look at parts that are being closed
	for i := len(d.undo) - 1; i >= 0; i-- {
		d.undo[i]()
	}
	d.undo = nil
}

// Run blocks until ctx ends or a fault that only a restart can heal.
func (d *Daemon) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.store.Fatal():
		return d.store.Err()
	}
}

func (d *Daemon) openDirs(context.Context) error {
	// The run directory is entered by the members of the sockets' groups; the state only by root, but
	// instances reach their images through it, so it can be traversed.
	for dir, mode := range map[string]os.FileMode{d.cfg.StateDir: 0o711, d.cfg.RunDir: 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("make the directory %s: %w", dir, err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	return nil
}

// openState takes the state and the run directory for this process, in this order: a daemon that
// runs is told from its state, and nothing of it is touched.
func (d *Daemon) openState(ctx context.Context) (err error) {
	if d.store, err = store.Open(ctx, filepath.Join(d.cfg.StateDir, "state"), d.log); err != nil {
		return err
	}
	d.onClose(func() { d.store.Close() }) //nolint:errcheck // every commit is on disk already
	if err := d.claimRunDir(); err != nil {
		return err
	}
	d.onClose(d.removeRunDir)
	d.logs, err = logs.Open(filepath.Join(d.cfg.StateDir, "logs"), d.logOptions())
	if err != nil {
		return err
	}
	d.onClose(func() { d.logs.Close() }) //nolint:errcheck // functions' output is best effort
	return nil
}

// openNetwork installs the firewall, then the bridges, and proves that they hold.
func (d *Daemon) openNetwork(ctx context.Context) (err error) {
	c, err := d.networkConfig()
	if err != nil {
		return err
	}
	c.OnBreach = func(cause error) {
		text := cause.Error()
		d.breach.Store(&text)
		d.log.Error("the firewall was changed by somebody else; functions are cut off until it is restored", "error", cause)
	}
	c.OnRestored = func() {
		d.breach.Store(nil)
		d.log.Info("the firewall is restored")
	}
	if d.network, err = cni.New(c); err != nil {
		return err
	}
	d.onClose(func() { d.close("network", d.network.Teardown) })
	if err := d.network.Setup(ctx); err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	run, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // owned: the undo below waits for it
		defer close(done)
		if err := d.network.Run(run); err != nil {
			d.log.Error("the network is not watched any more", "error", err)
		}
	}()
	d.onClose(func() { stop(); <-done })
	return nil
}

// close runs one step of Close with its own bound.
func (d *Daemon) close(what string, f func(context.Context) error) {
	d.closeWithin(closeTimeout, what, f)
}

func (d *Daemon) closeWithin(timeout time.Duration, what string, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := f(ctx); err != nil {
		d.log.Error("not everything was removed; the next start or `lfxd down` finishes it", "part", what, "error", err)
	}
}

// openInstances removes what a crash left and prepares to make new instances.
func (d *Daemon) openInstances(ctx context.Context) (err error) {
	if err := d.chooseRuntime(ctx); err != nil {
		return err
	}
	profile, err := d.appArmor(ctx)
	if err != nil {
		return err
	}
	cgroups, err := d.cgroups()
	if err != nil {
		return err
	}
	d.instances, err = instance.NewManager(instance.Options{
		Client: d.client, Namespace: d.cfg.Namespace,
		Dir:             filepath.Join(d.cfg.RunDir, "instances"),
		InitPath:        filepath.Join(d.cfg.LibexecDir, "lfx-init"),
		RuntimeBinary:   d.runtime.Path,
		RuntimeRoot:     d.runtimeRoot(),
		Cgroups:         cgroups,
		Network:         attacher{d.network},
		ResolvConf:      func(string, netip.Addr) []byte { return dns.ResolvConf(d.gatewayAddr()) },
		AppArmorProfile: profile,
		Sandboxes:       true,
		Log:             d.log,
	})
	if err != nil {
		return err
	}
	d.onClose(func() {
		d.close("instances", d.reconcile)
		d.close("shims", d.instances.RemoveShims)
		d.instances.Close() //nolint:errcheck // nothing is left to close
		d.removeCgroups()
	})
	d.limitFunctions()
	if err := d.reconcile(ctx); err != nil {
		d.log.Warn("leftovers of an earlier run could not all be removed yet", "error", err)
	}
	return nil
}

// attacher gives instances a network.
type attacher struct{ m *cni.Manager }

// Attach implements instance.Network.
func (a attacher) Attach(ctx context.Context, id, nsPath string) (netip.Addr, error) {
	at, err := a.m.Attach(ctx, id, nsPath)
	return at.IP, err
}

// Detach implements instance.Network.
func (a attacher) Detach(ctx context.Context, id, nsPath string) error {
	return a.m.Detach(ctx, id, nsPath)
}

// reconcile compares the record with the world: instances that no pool knows are destroyed, then
// whatever network they left. The instances of this process are known to their manager.
func (d *Daemon) reconcile(ctx context.Context) error {
	removed, err := d.instances.Reconcile(ctx, func(string) bool { return false })
	if len(removed) > 0 {
		d.log.Info("removed instances that nobody owned", "instances", removed)
	}
	return errors.Join(err, d.network.GC(ctx, d.liveIDs()))
}

// liveIDs lists the instances that this process has made and not yet removed, and the networks that it made ahead.
func (d *Daemon) liveIDs() []string {
	ids := d.instances.IDs()
	if d.starter != nil {
		ids = append(ids, d.starter.IDs()...)
	}
	return ids
}

// openFunctions makes the pools and brings every active release back.
func (d *Daemon) openFunctions(ctx context.Context) error {
	d.shareShims(ctx)
	d.metrics, d.records = metrics.New(), records.New(d.cfg.Records.Max)
	d.images = image.New(d.client, "overlayfs", image.Options{Owner: d.store.View().Node()})
	d.gateway = gateway.New(gateway.Options{
		Resolver: resolverFunc(func(ctx context.Context, t gateway.Target) (invocation.Route, error) {
			return (&resolver{store: d.store, pools: d.pools, region: d.cfg.Region}).Resolve(ctx, t)
		}),
		Region:   d.cfg.Region,
		Account:  func(e function.Environment) string { return accountOf(d.store.View(), e) },
		Overhead: d.cfg.Functions.QueueTimeout.Duration + d.cfg.Functions.InitTimeout.Duration + invokeMargin,
		Observer: observer{d.metrics, d.records},
		Log:      d.log,
	})
	d.starter = worker.NewStarter(worker.Options{
		Instances: creator{d}, Logs: d.logs, Region: d.cfg.Region,
		InitTimeout: d.cfg.Functions.InitTimeout.Duration, CreateTimeout: createTimeout,
		LambdaAPI: func(env function.Environment, caller func() invocation.Caller) http.Handler {
			return server.InstanceHandler(d.gateway, env, caller)
		},
		Ahead: d.ahead(), Starts: int64(2 * runtime.NumCPU()), Removals: int64(runtime.NumCPU()),
		Log: d.log,
	})
	var keep *policy.Policy // nil: until the idle timeout
	if d.cfg.Functions.KeepAlive == "adaptive" {
		keep = policy.New(policy.Defaults())
	}
	d.pools = pool.NewManager(pool.Options{
		Policy:  keep,
		Starter: d.starter, DefaultMax: d.defaultMax, QueueLimit: d.cfg.Functions.QueueLimit,
		QueueTimeout: d.cfg.Functions.QueueTimeout.Duration, IdleTimeout: d.cfg.Functions.IdleTimeout.Duration,
		FreezeAfter: d.cfg.Functions.FreezeAfter.Duration, MaxInstances: int64(d.cfg.Functions.MaxInstances),
		MemoryMB: d.memoryBudget() >> 20, Overcommit: d.cfg.Functions.MemoryOvercommit, MemoryUsed: d.memoryUsed,
		Observer: d.metrics, Log: d.log,
	})
	d.onClose(func() {
		d.pools.Close(d.drain)
		if d.server != nil { // its requests have ended with their instances
			d.closeWithin(requestsTimeout, "requests", d.server.Wait)
		}
		d.starter.Wait()
	})
	if err := d.openServer(); err != nil {
		return err
	}
	d.openDeployer()
	if err := d.deployer.Recover(ctx); err != nil {
		d.untidy.Store(true)
		d.log.Warn("what an interrupted deploy left could not all be undone yet", "error", err)
	}
	return d.restore()
}

// defaultMax is the cap on a function's instances that sets none.
func (d *Daemon) defaultMax(v *function.Version) int {
	return d.cfg.DefaultMax(runtime.NumCPU(), hostMemory(), v.Config.MemoryMB)
}

// hostMemory returns the host's memory in bytes.
func hostMemory() int64 {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 1 << 30
	}
	return int64(si.Totalram) * int64(si.Unit)
}

type resolverFunc func(context.Context, gateway.Target) (invocation.Route, error)

// Resolve implements gateway.Resolver.
func (f resolverFunc) Resolve(ctx context.Context, t gateway.Target) (invocation.Route, error) {
	return f(ctx, t)
}

func (d *Daemon) openServer() (err error) {
	if d.sessions, err = buildkit.NewSessions(); err != nil {
		return err
	}
	d.server = server.New(server.Options{
		Gateway: d.gateway, Backend: (*backend)(d), Sessions: d.sessions, BaseContext: d.ctx,
		AllowedHosts: d.cfg.Listen.AllowedHosts, Log: d.log,
	})
	d.onClose(func() {
		d.server.Shutdown(d.drain)
	})
	d.releaser = newReleaser(d.pools, newPorts(d.cfg.Listen.FunctionPortAddress, d.server))
	return nil
}

func (d *Daemon) openDeployer() {
	d.deployer = deploy.New(deploy.Options{
		Store: d.store, Sessions: d.sessions, Builder: countedBuilder{d.builder, d.metrics}, Images: d.images, Releases: d.releaser,
		Dir: d.cfg.StateDir, RegistryHost: d.registryHost(), BaseImages: d.cfg.BaseImages,
		Keep: d.cfg.Releases.Keep, MaxParallel: d.cfg.Build.MaxParallel, BuildTimeout: d.cfg.Build.Timeout.Duration,
		WarmTimeout: warmTimeout, LogLimit: int64(d.cfg.Build.LogLimit), Limits: d.contextLimits(), Log: d.log,
	})
}

// registryHost is the first part of every image name: where this daemon can be reached from the host.
func (d *Daemon) registryHost() string {
	if _, port, err := net.SplitHostPort(d.cfg.Listen.TCP); err == nil {
		return "localhost:" + port
	}
	return "localhost"
}

// restore activates the releases that were active before, and gives the canaries their shares again. A function
// that cannot be warmed now is started by its first request; it does not keep the others down.
func (d *Daemon) restore() error {
	view := d.store.View()
	for _, env := range view.Environments() {
		active := view.ActiveRelease(env.Environment)
		if active == nil || !d.bringBack(view, active, (*candidate).Activate) {
			continue
		}
		if c := view.Canary(env.Environment); c != nil {
			d.bringBack(view, view.Release(env.Environment, c.Release), func(cand *candidate) { cand.Share(c.Share) })
		}
	}
	return nil
}

// bringBack prepares a release, routes to it and warms it in the background; it reports whether it could.
func (d *Daemon) bringBack(view *store.Snapshot, rel *function.Release, route func(*candidate)) bool {
	c, taken, err := d.releaser.Restore(*rel, versionsOf(view, rel))
	if err != nil {
		d.log.Error("the release could not be brought back", "environment", rel.Environment.String(), "release", rel.Number, "error", err)
		return false
	}
	if taken != nil {
		d.log.Error("a function does not answer on its port; free the port and restart lfxd", "environment", rel.Environment.String(), "release", rel.Number, "error", taken)
	}
	route(c)
	d.group.Go(func() {
		if err := c.Warm(d.ctx); err != nil && d.ctx.Err() == nil {
			d.log.Warn("instances that should be warm are not", "environment", rel.Environment.String(), "release", rel.Number, "error", err)
		}
	})
	return true
}

// serve opens the doors and starts the loops.
func (d *Daemon) serve(context.Context) error {
	for _, l := range d.bound {
		if _, err := d.server.Serve(l.Listener, l.kind, nil); err != nil {
			return err
		}
		d.log.Info("listening", "address", l.Addr().String())
	}
	d.started = time.Now()
	d.group.Go(d.reconcileLoop)
	d.group.Go(d.followEngine)
	d.group.Go(d.rebuildLoop)
	d.group.Go(func() { d.starter.Run(d.ctx) })
	d.group.Go(d.watchdog)
	d.group.Go(d.runJudge)
	d.group.Go(d.watchMemory)
	d.group.Go(d.returnMemory)
	return nil
}

func (d *Daemon) reconcileLoop() {
	tick := time.NewTicker(reconcileInterval)
	defer tick.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		d.reconcileNow()
		d.forgetUnused()
		d.pruneFigures()
	}
}

// reconcileNow is called by the loop and when containerd is back; one goes after the other.
func (d *Daemon) reconcileNow() {
	d.reconciling.Lock()
	defer d.reconciling.Unlock()
	ctx, cancel := context.WithTimeout(d.ctx, reconcileInterval)
	defer cancel()
	if err := d.reconcile(ctx); err != nil && d.ctx.Err() == nil {
		d.log.Warn("reconciliation", "error", err)
		d.untidy.Store(true) // the engine is away: deploys may not have cleaned up either
	} else if err == nil && d.untidy.Swap(false) {
		d.tidy(ctx)
	}
	d.shareShims(ctx)
	if d.engine != nil {
		d.engine.Tidy()
	}
}

// forgetUnused forgets old releases that have drained since the deploy that superseded them.
func (d *Daemon) forgetUnused() {
	ctx, cancel := context.WithTimeout(d.ctx, reconcileInterval)
	defer cancel()
	d.deployer.ForgetUnused(ctx)
}

// shareShims keeps the shims standing that instances share. Without them an instance starts more slowly, in one of its own.
func (d *Daemon) shareShims(ctx context.Context) {
	if err := d.instances.ShareShims(ctx, min(max(runtime.NumCPU()/2, 2), 4)); err != nil && d.ctx.Err() == nil {
		d.log.Warn("instances get shims of their own", "error", err)
	}
}

// tidy undoes what deploys left while the engine was away.
func (d *Daemon) tidy(ctx context.Context) {
	if err := d.deployer.Tidy(ctx); err != nil && d.ctx.Err() == nil {
		d.untidy.Store(true)
		d.log.Warn("what deploys left is not all removed yet", "error", err)
	}
}
