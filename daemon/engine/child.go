package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	firstBackoff = time.Second
	lastBackoff  = 30 * time.Second
	calm         = 10 * time.Second // a child that ran this long starts over at firstBackoff
	stopGrace    = 10 * time.Second // between SIGTERM and SIGKILL
	adoptTimeout = 5 * time.Second
	stackTimeout = 2 * time.Second // for a program that does not answer to write where it hangs
)

// errSilent is of a program that runs and did not answer before its time or its caller's context was over.
var errSilent = fmt.Errorf("it runs but does not answer: %w", errdefs.ErrUnavailable)

// Phase is where a child is in its life; doc.go draws the moves.
type Phase string

const (
	Stopped  Phase = "stopped"
	Starting Phase = "starting"
	Running  Phase = "running"
	Waiting  Phase = "waiting" // for its next start
)

// ChildState describes one child at one moment.
type ChildState struct {
	Phase     Phase
	PID       int       // 0 unless Starting or Running
	Adopted   bool      // it was running before us
	Since     time.Time // of the current phase
	Restarts  int       // since Start
	LastError string    // why it ended last, or could not be started; empty when it never did
}

// child is one supervised program.
type child struct {
	name    string // of the program, its log and its record
	bin     string
	config  string // path of its configuration file, its only argument
	env     []string
	hash    string // of everything it is started with
	log     string
	record  string
	maxLog  int64
	timeout time.Duration
	probe   func(context.Context) error // nil when it answers
	ready   func() error                // once after each start, when it answers
	before  func(context.Context)       // before each start; nil for nothing
	logger  *slog.Logger

	backoff time.Duration // used by supervise alone

	mu    sync.Mutex // guards the two below
	state ChildState
	proc  *process
}

// hashOf identifies a way to start a program: the program itself, its environment and its configuration.
func hashOf(bin string, env []string, configs ...[]byte) (string, error) {
	info, err := os.Stat(bin)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %d %d\n", bin, info.Size(), info.ModTime().UnixNano())
	for _, e := range env {
		fmt.Fprintf(h, "%q\n", e)
	}
	for _, c := range configs {
		fmt.Fprintf(h, "%d\n", len(c))
		h.Write(c)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (c *child) State() ChildState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *child) set(phase Phase, p *process, change func(*ChildState)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proc = p
	c.state.Phase, c.state.Since, c.state.PID = phase, time.Now(), 0
	if p != nil {
		c.state.PID = p.pid
	}
	if change != nil {
		change(&c.state)
	}
}

func (c *child) process() *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proc
}

// start adopts the child that is already running, or launches it, and waits until it answers.
func (c *child) start(ctx context.Context) error {
	if c.adopt(ctx) {
		return nil
	}
	return c.launch(ctx)
}

// adopt takes over the recorded process if it is still the one we would start and it answers.
func (c *child) adopt(ctx context.Context) bool {
	id, err := readIdentity(c.record)
	if err != nil || id.ConfigHash != c.hash {
		return false
	}
	p, err := adopt(id)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	if err := c.awaitAnswer(ctx, p); err != nil {
		c.logger.Warn("a child of an earlier daemon does not answer, starting it anew", "child", c.name, "pid", p.pid, "error", err)
		p.detach()
		return false
	}
	c.set(Running, p, func(s *ChildState) { s.Adopted = true })
	c.logger.Info("adopted a child of an earlier daemon", "child", c.name, "pid", p.pid)
	return true
}

// launch ends what may run under this configuration, starts the program and waits until it
// answers. On an error nothing of it runs. One that is silent for a third of the time is started once more, and then has all
// of it: containerd has been seen to hang once in some thousand starts, before it listened.
func (c *child) launch(ctx context.Context) error {
	err := c.launchOnce(ctx, c.timeout/3)
	if !errors.Is(err, errSilent) || ctx.Err() != nil {
		return err
	}
	c.logger.Warn("a child does not answer, starting it once more; its log says where it hung", "child", c.name, "after", c.timeout/3, "log", c.log, "error", err)
	return c.launchOnce(ctx, c.timeout)
}

func (c *child) launchOnce(ctx context.Context, timeout time.Duration) (err error) {
	if err := endCommands(ctx, filepath.Base(c.bin), c.config, stopGrace); err != nil {
		return fmt.Errorf("end the earlier %s: %w", c.name, err)
	}
	if c.before != nil {
		c.before(ctx)
	}
	log, err := openLog(c.log)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", c.name, err)
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", c.name, err)
	}
	p, err := launch(c.bin, []string{"--config", c.config}, c.env, log)
	if err != nil {
		return err
	}
	c.set(Starting, p, func(s *ChildState) { s.Adopted = false })
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop(context.WithoutCancel(ctx), stopGrace))
			c.set(Stopped, nil, func(s *ChildState) { s.LastError = err.Error() })
		}
	}()
	if err := c.remember(p); err != nil {
		return err
	}
	raiseFileLimit(p.pid)
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := c.awaitAnswer(limited, p); err != nil {
		err = fmt.Errorf("%s did not start: %w; the end of %s:\n%s", c.name, err, c.log, lastLines(c.log, from, 5))
		if errors.Is(err, errSilent) && ctx.Err() == nil { // else somebody wants it to end
			p.dump(stackTimeout)
		}
		return err
	}
	c.set(Running, p, nil)
	c.logger.Info("started a child", "child", c.name, "pid", p.pid)
	return nil
}

// remember records the process, so that a daemon after us finds it.
func (c *child) remember(p *process) error {
	id, err := identify(p.pid)
	if err != nil {
		return fmt.Errorf("%s ended at once; the end of %s:\n%s", c.name, c.log, lastLines(c.log, 0, 5))
	}
	id.ConfigHash = c.hash
	if err := id.write(c.record); err != nil {
		return fmt.Errorf("record %s: %w", c.name, err)
	}
	return nil
}

// awaitAnswer polls the probe until it succeeds, the process ends or ctx does.
func (c *child) awaitAnswer(ctx context.Context, p *process) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		probe, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := c.probe(probe)
		cancel()
		if err == nil {
			return c.ready()
		}
		if last == nil || ctx.Err() == nil { // the end of ctx says nothing about the child
			last = err
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %s", p.exit)
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", errSilent, last)
		case <-tick.C:
		}
	}
}

// supervise starts the child again whenever it ends, until ctx ends. It owns backoff.
func (c *child) supervise(ctx context.Context) {
	for ctx.Err() == nil {
		p := c.process()
		if p != nil {
			since := c.State().Since
			select {
			case <-ctx.Done():
				return
			case <-p.done:
			}
			p.detach()
			if time.Since(since) > calm {
				c.backoff = 0
			}
			c.set(Waiting, nil, func(s *ChildState) { s.LastError = p.exit })
		}
		c.backoff = min(max(2*c.backoff, firstBackoff), lastBackoff)
		c.logger.Error("a child ended, starting it again", "child", c.name, "error", c.State().LastError, "delay", c.backoff)
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.backoff):
		}
		c.mu.Lock()
		c.state.Restarts++
		c.mu.Unlock()
		if err := c.launch(ctx); err != nil && ctx.Err() == nil {
			c.set(Waiting, nil, func(s *ChildState) { s.LastError = err.Error() })
		}
	}
}

// stop ends the child and forgets it. It must not run beside supervise.
func (c *child) stop(ctx context.Context) error {
	p := c.process()
	c.set(Stopped, nil, nil)
	if p != nil {
		if err := p.stop(ctx, stopGrace); err != nil {
			return fmt.Errorf("stop %s: %w", c.name, err)
		}
	}
	// Those that a record names or that nobody recorded: a daemon killed between start and record.
	if err := endCommands(ctx, filepath.Base(c.bin), c.config, stopGrace); err != nil {
		return fmt.Errorf("stop %s: %w", c.name, err)
	}
	if err := os.Remove(c.record); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// raiseFileLimit lets a child open as many files as this host lets us allow; less is no error.
func raiseFileLimit(pid int) {
	var have unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &have) != nil {
		return
	}
	want := unix.Rlimit{Cur: max(have.Max, 1<<20), Max: max(have.Max, 1<<20)}
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, &want, nil) != nil {
		unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: have.Max, Max: have.Max}, nil)
	}
}
