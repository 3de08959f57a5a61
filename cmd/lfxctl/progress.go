package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	bkclient "github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"lfx.dev/lfxd/buildkit/progress"
	"lfx.dev/lfxd/daemon/api"
)

// progressMode is --progress.
type progressMode string

const (
	progressAuto  progressMode = progress.Auto
	progressPlain progressMode = progress.Plain
	progressTTY   progressMode = progress.TTY
)

// String implements pflag.Value.
func (m *progressMode) String() string { return string(*m) }

// Set implements pflag.Value.
func (m *progressMode) Set(s string) error {
	switch progressMode(s) {
	case progressAuto, progressPlain, progressTTY:
		*m = progressMode(s)
		return nil
	}
	return fmt.Errorf("must be auto, plain or tty")
}

// Type implements pflag.Value.
func (m *progressMode) Type() string { return "mode" }

// deployProgress shows the events of one deploy on standard error. On a terminal there is one
// display for all of it: the steps of the deploy stand in it between the steps of the builds, and
// warnings follow when it is closed. Elsewhere steps and warnings are lines of their own between
// the lines of the builds. Its methods may be called concurrently.
type deployProgress struct {
	out      io.Writer
	terminal bool

	mu       sync.Mutex // guards what follows; never held by the display
	display  *display
	current  *bkclient.Vertex // the step that is shown as running, on a terminal
	steps    int
	open     map[digest.Digest]bool // build steps that started and did not end
	warnings []string               // for when the display is closed
	closed   bool
}

// display is a running progress.Display; its goroutine ends when statuses is closed.
type display struct {
	statuses chan *bkclient.SolveStatus
	finished chan struct{}
}

func newProgress(a *app, mode progressMode) *deployProgress {
	terminal := mode == progressTTY || mode == progressAuto && isTerminal(a.stderr) && a.getenv("TERM") != "dumb"
	p := &deployProgress{out: a.stderr, terminal: terminal, open: map[digest.Digest]bool{}}
	if !terminal {
		p.out = &syncWriter{w: a.stderr}
	}
	return p
}

// event shows one event of the deploy.
func (p *deployProgress) event(e api.DeployEvent) {
	switch {
	case e.Step != "":
		p.step(e.Step)
	case e.Warning != "":
		p.warn(e.Warning)
	case e.Build != nil:
		p.build(e.Build)
	}
}

func (p *deployProgress) step(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	if !p.terminal {
		p.lineLocked("==> " + name)
		return
	}
	p.steps++
	now := time.Now()
	done := p.endStepLocked(now)
	p.current = &bkclient.Vertex{Digest: digest.FromString(fmt.Sprintf("lfxctl step %d", p.steps)), Name: name, Started: &now}
	p.sendLocked(&bkclient.SolveStatus{Vertexes: append(done, p.current)})
}

// endStepLocked returns the running step as a completed one.
func (p *deployProgress) endStepLocked(now time.Time) []*bkclient.Vertex {
	if p.current == nil {
		return nil
	}
	ended := *p.current
	ended.Completed = &now
	p.current = nil
	return []*bkclient.Vertex{&ended}
}

func (p *deployProgress) warn(warning string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		p.warnings = append(p.warnings, warning)
		return
	}
	p.lineLocked("warning: " + warning)
}

// lineLocked prints a line of its own. A display with nothing left to say is closed first, so that the line
// follows what it belongs behind.
func (p *deployProgress) lineLocked(line string) {
	if len(p.open) == 0 {
		p.closeDisplayLocked()
	}
	fmt.Fprintln(p.out, line)
}

// build shows a SolveStatus in JSON; one that a newer daemon writes differently is left out.
func (p *deployProgress) build(raw json.RawMessage) {
	var status bkclient.SolveStatus
	if json.Unmarshal(raw, &status) != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range status.Vertexes {
		if v.Started != nil && v.Completed == nil {
			p.open[v.Digest] = true
		} else {
			delete(p.open, v.Digest)
		}
	}
	p.sendLocked(&status)
}

func (p *deployProgress) sendLocked(status *bkclient.SolveStatus) {
	if p.closed {
		return
	}
	if p.display == nil {
		p.display = p.openDisplay()
	}
	select {
	case p.display.statuses <- status:
	case <-p.display.finished: // it could not be shown; the deploy matters more
	}
}

func (p *deployProgress) openDisplay() *display {
	d := &display{statuses: make(chan *bkclient.SolveStatus), finished: make(chan struct{})}
	mode := progress.Plain
	if p.terminal {
		mode = progress.TTY
	}
	go func() { // ends when closeDisplayLocked closes statuses, which then waits for it
		defer close(d.finished)
		// Not the command's context: a cancelled build is shown to its end.
		if err := progress.Display(context.Background(), p.out, mode, d.statuses); err != nil {
			fmt.Fprintf(p.out, "warning: %v\n", err)
		}
	}()
	return d
}

func (p *deployProgress) closeDisplayLocked() {
	if p.display == nil {
		return
	}
	close(p.display.statuses)
	<-p.display.finished
	p.display = nil
}

// close ends the display and prints what could not be printed beside it. It waits for the display.
func (p *deployProgress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if done := p.endStepLocked(time.Now()); done != nil {
		p.sendLocked(&bkclient.SolveStatus{Vertexes: done})
	}
	p.closed = true
	p.closeDisplayLocked()
	for _, w := range p.warnings {
		fmt.Fprintf(p.out, "warning: %s\n", w)
	}
	p.warnings = nil
}

// syncWriter lets the display and this package write lines to one stream.
type syncWriter struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

// Write implements io.Writer.
func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}
