package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"lfx.dev/lfxd/buildkit"
	"lfx.dev/lfxd/cni"
	"lfx.dev/lfxd/cni/firewall"
	"lfx.dev/lfxd/daemon/engine"
	"lfx.dev/lfxd/daemon/logs"
	"lfx.dev/lfxd/runtime/apparmor"
	"lfx.dev/lfxd/runtime/cgroup"
	"lfx.dev/lfxd/runtime/pressure"
)

// openEngine starts or reaches containerd and buildkitd. With --with-engine both answer when it
// returns; those that systemd or the host runs are reached when they are needed.
func (d *Daemon) openEngine(ctx context.Context) (err error) {
	containerdAddress, buildkitAddress := d.cfg.Engine.ContainerdAddress, d.cfg.Engine.BuildkitAddress
	supervise := d.opts.WithEngine || d.lone
	if supervise && (containerdAddress != "" || buildkitAddress != "") {
		return errors.New("--with-engine starts an engine of our own, but the configuration names one (engine.containerd_address, engine.buildkit_address): use one or the other")
	}
	if containerdAddress == "" {
		c := d.opts.engineConfig()
		c.NoBuilder = d.sweeping
		if d.engine, err = engine.New(c); err != nil {
			return err
		}
		containerdAddress = d.engine.ContainerdAddress()
		buildkitAddress = cmp.Or(buildkitAddress, d.engine.BuildkitAddress())
	}
	if supervise {
		d.onClose(func() { d.close("engine", d.engine.Purge) })
		if err := d.engine.Start(ctx); err != nil {
			return err
		}
	}
	if buildkitAddress == "" {
		buildkitAddress = "unix:///run/buildkit/buildkitd.sock" // where one of the host's own is
	}
	return d.connect(ctx, containerdAddress, buildkitAddress)
}

// connect makes the clients. containerd must answer: without it no function can run.
func (d *Daemon) connect(ctx context.Context, containerdAddress, buildkitAddress string) (err error) {
	containerdAddress = strings.TrimPrefix(containerdAddress, "unix://")
	d.client, err = containerd.New(containerdAddress, containerd.WithDefaultNamespace(d.cfg.Namespace), containerd.WithTimeout(5*time.Second))
	if err != nil {
		return d.noAnswer(containerdAddress, err)
	}
	d.onClose(func() { d.client.Close() }) //nolint:errcheck // nothing is left to do
	if _, err := d.client.Version(ctx); err != nil {
		return d.noAnswer(containerdAddress, err)
	}
	if !strings.Contains(buildkitAddress, "://") {
		buildkitAddress = "unix://" + buildkitAddress
	}
	if d.builder, err = buildkit.New(ctx, buildkitAddress, buildkit.Options{Remedy: d.builderRemedy(), Log: d.log}); err != nil {
		return err
	}
	d.onClose(func() { d.builder.Close() }) //nolint:errcheck // nothing is left to do
	return nil
}

// engineConfig is the same for an engine of ours that we supervise and for one that systemd does.
func (o Options) engineConfig() engine.Config {
	c := engine.Config{
		BinDir: o.Config.LibexecDir, StateDir: filepath.Join(o.Config.StateDir, "engine"), RunDir: filepath.Join(o.Config.RunDir, "engine"),
		Namespace: o.Config.Namespace, BuildBridge: o.Config.Network.BuildBridge, BuildSubnet: o.Config.Network.BuildSubnet,
		CgroupParent: o.Config.CgroupParent, BuildMemory: hostMemory() / 2, Log: o.Log,
		BuildParallel: o.Config.Build.MaxParallel, BuildCache: int64(o.Config.Build.CacheLimit),
	}
	if o.systemdCgroups() {
		c.BuildSlice = buildSlice
	}
	if p, err := netip.ParsePrefix(o.Config.Network.BuildSubnet); err == nil {
		c.DNS = []string{p.Masked().Addr().Next().String()} // our forwarder on the build bridge
	}
	return c
}

// chooseRuntime finds the OCI runtime, and holds every part of the engine against its version floor.
func (d *Daemon) chooseRuntime(ctx context.Context) error {
	root, err := cgroup.Detect()
	if err != nil {
		return err
	}
	d.runtime, err = engine.ChooseRuntime(ctx, engine.RuntimeChoice{
		Configured: d.cfg.Engine.OCIRuntime, BinDir: d.cfg.LibexecDir, Hybrid: root.Hybrid(),
	})
	if err != nil {
		return err
	}
	if d.runtime.Note != "" {
		d.log.Info("using runc", "because", d.runtime.Note)
	}
	v := (*backend)(d).Version(ctx)
	if err := engine.CheckFloors(engine.Versions{Containerd: v.Containerd, BuildKit: v.Buildkit}); err != nil {
		return fmt.Errorf("the engine is too old: %w", err)
	}
	return nil
}

// appArmor loads the profile of instances where AppArmor is on, and returns its name.
func (d *Daemon) appArmor(ctx context.Context) (string, error) {
	if !apparmor.Enabled() {
		return "", nil
	}
	if ok, err := apparmor.Loaded(); err == nil && ok {
		return apparmor.Profile, nil
	}
	if err := apparmor.Load(ctx); err != nil {
		return "", err
	}
	d.log.Info("loaded the AppArmor profile", "profile", apparmor.Profile)
	d.onClose(func() { d.close("AppArmor profile", apparmor.Remove) })
	return apparmor.Profile, nil
}

// runtimeRoot is the OCI runtime's private state directory.
func (d *Daemon) runtimeRoot() string {
	if d.engine != nil {
		return d.engine.RuncRoot()
	}
	return filepath.Join(d.cfg.RunDir, "runc")
}

// limitFunctions sets the wall behind the limits of the instances: what all of them together may use.
// Where systemd makes the cgroups, the slice has it (contrib/systemd/lfx-fn.slice).
func (d *Daemon) limitFunctions() {
	if d.opts.systemdCgroups() {
		return
	}
	functions := filepath.Join(d.cfg.CgroupParent, "fn")
	root, err := cgroup.Detect()
	if err == nil {
		err = root.LimitParent(functions, d.memoryBudget(), hostThreads()*8/10)
	}
	if err != nil {
		d.log.Warn("functions are limited one by one, but not all together", "error", err)
		return
	}
	if err := root.WeighParent(functions, runtime.NumCPU()); err != nil {
		d.log.Warn("all functions together weigh as much as one process, and answer later when others are busy", "error", err)
	}
}

// memoryBudget is what all instances together may use, in bytes: the configured share, at most what the cgroup in which
// they run allows.
func (d *Daemon) memoryBudget() int64 {
	total := hostMemory()
	root, err := cgroup.Detect()
	if err != nil {
		return d.cfg.Functions.MemoryBudget.Of(total)
	}
	least := func(bytes int64, path string) int64 {
		allowed, err := root.MemoryAllowed(path)
		if err != nil || allowed == 0 || allowed > uint64(bytes) {
			return bytes
		}
		return int64(allowed)
	}
	// The cgroup below cgroup_parent has the limit that an earlier run has set: it does not count.
	within := d.cfg.CgroupParent
	if layout, err := d.cgroups(); err == nil && layout.Driven() {
		within = layout.Parent()
	}
	return least(d.cfg.Functions.MemoryBudget.Of(least(total, "/")), within)
}

// memoryUsed reads what all instances use now, in bytes.
func (d *Daemon) memoryUsed() (int64, error) {
	n, err := d.instances.MemoryBytes()
	return int64(n), err
}

// watchMemory ends spares and idle instances when the host becomes short of memory.
func (d *Daemon) watchMemory() {
	pressure.Watch(d.ctx, pressure.Options{Notify: func(source string) {
		d.starter.DropSpares(source)
		d.pools.Relieve(source)
	}, Log: d.log})
}

// hostThreads is how many threads the kernel allows on this host.
func hostThreads() int64 {
	text, err := os.ReadFile("/proc/sys/kernel/threads-max")
	n, err2 := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || err2 != nil {
		return 32 << 10
	}
	return n
}

// removeCgroups removes the empty parents of the instances' cgroups.
func (d *Daemon) removeCgroups() {
	if d.opts.systemdCgroups() {
		return // the slices are systemd's
	}
	root, err := cgroup.Detect()
	if err != nil {
		return // then there are none
	}
	root.RemoveParent(filepath.Join(d.cfg.CgroupParent, "fn"))
	root.RemoveParent(d.cfg.CgroupParent)
}

// networkConfig translates the configuration, which was validated.
func (d *Daemon) networkConfig() (c cni.Config, err error) {
	n := d.cfg.Network
	c = cni.Config{
		Bridge: n.Bridge, BuildBridge: n.BuildBridge, Table: n.Table, MTU: n.MTU,
		BinDir: d.cfg.LibexecDir, RunDir: filepath.Join(d.cfg.RunDir, "net"), Log: d.log,
	}
	if c.Subnet, err = netip.ParsePrefix(n.Subnet); err != nil {
		return c, err
	}
	if c.BuildSubnet, err = netip.ParsePrefix(n.BuildSubnet); err != nil {
		return c, err
	}
	for _, s := range n.DNS {
		up, err := upstream(s)
		if err != nil {
			return c, err
		}
		c.DNSUpstreams = append(c.DNSUpstreams, up)
	}
	for _, s := range n.Allow {
		e, err := firewall.ParseEgress(s)
		if err != nil {
			return c, err
		}
		c.Allow = append(c.Allow, e)
	}
	return c, nil
}

// upstream reads "address" or "address:port".
func upstream(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(s)
}

// gatewayAddr is the functions' gateway, where DNS answers.
func (d *Daemon) gatewayAddr() netip.Addr {
	p, err := netip.ParsePrefix(d.cfg.Network.Subnet)
	if err != nil {
		return netip.Addr{}
	}
	return p.Masked().Addr().Next()
}

func (d *Daemon) contextLimits() buildkit.Limits {
	l := buildkit.DefaultLimits()
	l.Bytes, l.Entries = int64(d.cfg.Build.ContextLimit), d.cfg.Build.ContextEntries
	return l
}

func (d *Daemon) logOptions() logs.Options {
	o := logs.Options{MaxBytesPerFunction: int64(d.cfg.Logs.MaxBytesPerFunction), Log: d.log}
	if d.cfg.Logs.Journald == "off" {
		return o
	}
	journal, ok := logs.NewJournal()
	if ok {
		o.Sink = journal
	} else if d.cfg.Logs.Journald == "on" {
		d.log.Warn("logs.journald is on, but systemd's journal is not answering; functions' output goes to lfxd's own files alone")
	}
	return o
}
