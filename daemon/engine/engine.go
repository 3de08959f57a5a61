package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	bkclient "github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"
)

// Engine is a containerd and a buildkitd. Its methods may be called from several goroutines, but
// Start, Close, Detach and Purge one at a time.
type Engine struct {
	cfg        Config
	containerd *child
	buildkitd  *child

	containerdRun string // the constant of that name, but in tests

	cancel context.CancelFunc // ends the goroutines; nil when none run
	group  sync.WaitGroup     // of the goroutines that Start makes
}

// State is what both children do.
type State struct {
	Containerd, Buildkitd ChildState
}

// New checks cfg and fills in its defaults. It touches nothing on the host. A mistake in cfg is
// errdefs.ErrInvalidArgument.
func New(cfg Config) (*Engine, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, containerdRun: containerdRun}
	e.containerd = e.newChild("containerd", func(ctx context.Context) error {
		_, err := e.containerdVersion(ctx)
		return err
	}, func() error {
		return errors.Join(os.Chmod(cfg.socket("containerd"), 0o600), os.Chmod(cfg.socket("containerd-ttrpc"), 0o600))
	})
	e.buildkitd = e.newChild("buildkitd", func(ctx context.Context) error {
		_, err := e.buildkitVersion(ctx)
		return err
	}, func() error {
		// buildkitd always opens a trace collector and mounts it into every build step; it leaves
		// that out when the socket is not there (BuildKit: executor/oci/spec.go).
		if err := os.Remove(cfg.socket("otel")); err != nil && !os.IsNotExist(err) {
			return err
		}
		return os.Chmod(cfg.socket("buildkitd"), 0o600)
	})
	e.buildkitd.before = func(ctx context.Context) {
		if err := e.sweepBuilds(ctx); err != nil {
			cfg.Log.Warn("what interrupted builds left is not all removed", "error", err)
		}
	}
	return e, nil
}

func (e *Engine) newChild(name string, probe func(context.Context) error, ready func() error) *child {
	c := &e.cfg
	env := childEnv(c)
	if name == "buildkitd" { // idle almost always; containerd's environment is that of shims and runc too
		env = append(env, "GOGC=50")
	}
	return &child{
		name: name, bin: filepath.Join(c.BinDir, name), config: c.etc(name + ".toml"), env: env,
		log: c.logFile(name), record: c.record(name), maxLog: c.MaxLogSize, timeout: c.StartTimeout,
		probe: probe, ready: ready, logger: c.Log, state: ChildState{Phase: Stopped},
	}
}

// passedOn are the variables of our own environment that the children get: where to pull through
// and whom to trust. Everything else could move a socket, export traces or confuse systemd.
var passedOn = []string{
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "TZ",
}

// childEnv has BinDir first in PATH, where containerd looks for its shim.
func childEnv(c *Config) []string {
	env := []string{
		"PATH=" + c.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8", "TMPDIR=" + filepath.Join(c.StateDir, "tmp"),
	}
	for _, name := range passedOn {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// Start writes the configuration, starts or adopts both children, and returns when both answer, at
// the latest after three times StartTimeout. On an error nothing that it started runs any more. The
// children are started again when they die until Close, Detach or Purge; ctx bounds Start alone.
func (e *Engine) Start(ctx context.Context) (err error) {
	if e.cancel != nil {
		return fmt.Errorf("the engine is already started: %w", errdefs.ErrFailedPrecondition)
	}
	if err := e.prepare(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			err = errors.Join(err, e.stopChildren(stop))
		}
	}()
	children := []*child{e.containerd, e.buildkitd}
	if e.cfg.NoBuilder {
		children = children[:1]
	}
	for _, c := range children {
		if err := c.start(ctx); err != nil {
			return err
		}
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.cancel = cancel
	for _, c := range children {
		e.group.Go(func() { c.supervise(run) })
	}
	e.group.Go(func() { e.rotateLogs(run) })
	return nil
}

// prepare does what must be there before a child starts: programs that are safe to run,
// directories, configuration, and the cgroup whose limits builds live under.
func (e *Engine) prepare(ctx context.Context) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("the engine must be started by root: run lfxd with sudo: %w", errdefs.ErrPermissionDenied)
	}
	if err := e.cfg.checkBinaries(); err != nil {
		return err
	}
	if err := e.cfg.makeDirs(); err != nil {
		return err
	}
	privileged := hasCapability(unix.CAP_SYS_RESOURCE)
	if !privileged {
		e.cfg.Log.Info("without CAP_SYS_RESOURCE the engine gets no protection from the OOM killer and no higher file limit")
	}
	files, err := e.cfg.writeFiles(privileged)
	if err != nil {
		return err
	}
	if e.containerd.hash, err = hashOf(e.containerd.bin, e.containerd.env, files["containerd.toml"]); err != nil {
		return err
	}
	if e.buildkitd.hash, err = hashOf(e.buildkitd.bin, e.buildkitd.env, files["buildkitd.toml"], files["build.conflist"]); err != nil {
		return err
	}
	v, err := e.binaryVersions(ctx)
	if err != nil {
		return err
	}
	if err := CheckFloors(v); err != nil {
		return err
	}
	if err := e.recordHost(); err != nil {
		return err
	}
	return limitBuilds(&e.cfg)
}

// hasCapability says whether this process has a capability in effect.
func hasCapability(number uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	return data[number/32].Effective&(1<<(number%32)) != 0
}

// rotateLogs keeps the children's logs bounded until ctx ends.
func (e *Engine) rotateLogs(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		for _, c := range []*child{e.containerd, e.buildkitd} {
			if err := rotate(c.log, c.maxLog); err != nil {
				e.cfg.Log.Warn("cannot rotate a log", "child", c.name, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ContainerdAddress is the path of containerd's socket.
func (e *Engine) ContainerdAddress() string { return e.cfg.socket("containerd") }

// BuildkitAddress is the address of buildkitd, as BuildKit's client takes it.
func (e *Engine) BuildkitAddress() string { return "unix://" + e.cfg.socket("buildkitd") }

// RuncPath and RuncRoot are what a task's runc options must name (BinaryName and Root), or its
// state lands where a host's own containerd keeps its.
func (e *Engine) RuncPath() string { return filepath.Join(e.cfg.BinDir, "runc") }

// RuncRoot is explained at RuncPath.
func (e *Engine) RuncRoot() string { return e.cfg.runcRoot() }

// State returns what both children do. It never blocks.
func (e *Engine) State() State {
	return State{Containerd: e.containerd.State(), Buildkitd: e.buildkitd.State()}
}

// Wait blocks until Close, Detach or Purge has ended the supervision.
func (e *Engine) Wait() { e.group.Wait() }

// Close ends buildkitd, then containerd, each with SIGTERM and after ten seconds (or when ctx ends)
// with SIGKILL, and returns when they have ended. Containers go on under their shims; the next Start
// finds them. A second Close does nothing.
func (e *Engine) Close(ctx context.Context) error {
	e.endSupervision()
	return e.stopChildren(ctx)
}

// Detach ends the supervision and leaves both children running for a later Start to adopt.
func (e *Engine) Detach() {
	e.endSupervision()
	for _, c := range []*child{e.containerd, e.buildkitd} {
		if p := c.process(); p != nil {
			p.detach()
		}
		c.set(Stopped, nil, nil)
	}
}

func (e *Engine) endSupervision() {
	if e.cancel != nil {
		e.cancel()
		e.cancel = nil
	}
	e.group.Wait()
}

func (e *Engine) stopChildren(ctx context.Context) error {
	return errors.Join(e.buildkitd.stop(ctx), e.containerd.stop(ctx))
}

func (e *Engine) containerdVersion(ctx context.Context) (string, error) {
	if err := dialable(ctx, e.cfg.socket("containerd")); err != nil {
		return "", err
	}
	client, err := containerd.New(e.cfg.socket("containerd"), containerd.WithTimeout(2*time.Second))
	if err != nil {
		return "", err
	}
	defer client.Close()
	v, err := client.Version(ctx)
	return v.Version, err
}

func (e *Engine) buildkitVersion(ctx context.Context) (string, error) {
	if err := dialable(ctx, e.cfg.socket("buildkitd")); err != nil {
		return "", err
	}
	client, err := bkclient.New(ctx, e.BuildkitAddress())
	if err != nil {
		return "", err
	}
	defer client.Close()
	info, err := client.Info(ctx)
	if err != nil {
		return "", err
	}
	return info.BuildkitVersion.Version, nil
}

// dialable says at once whether somebody listens; gRPC clients would wait and try again.
func dialable(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}
