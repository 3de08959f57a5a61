// Package worker makes instances that answer invocations: it joins an instance (the container, its
// limits and its network), the Runtime API that the instance polls, and the function's log.
//
// A Starter implements pool.Starter, a Worker pool.Worker. The worker owns the init phase with its
// limit, the clock of each invocation, the platform's log lines and the payloads of platform errors.
package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/semaphore"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/logs"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/runtime/instance"
	"lfx.dev/lfxd/runtime/rapi"
)

// Instance is what a worker needs of an instance. Terms and errors are those of *instance.Instance.
type Instance interface {
	Address() netip.Addr
	Phases() instance.Phases
	Stdout() *os.File
	Stderr() *os.File
	SetCores(cores float64) error
	PeakMemory() uint64
	MemoryBytes() uint64
	Freeze(ctx context.Context) error
	Thaw() error
	Exited() <-chan struct{}
	Exit() instance.Exit
	Begin() error
	Kill() error
	Destroy(ctx context.Context) error
}

// Creator makes instances.
type Creator interface {
	// NewID returns the ID of an instance of an image that is made now: Create with it must follow.
	NewID(image string) string
	Create(ctx context.Context, spec instance.Spec) (Instance, error)
}

// Options are the settings of a Starter.
type Options struct {
	Instances Creator
	Logs      *logs.Store
	Region    string
	// InitTimeout bounds an ordinary init phase (AWS: 10 s).
	InitTimeout time.Duration
	// CreateTimeout bounds the making of an instance up to its start.
	CreateTimeout time.Duration
	// LambdaAPI serves the Lambda API as the instance sees it; caller tells which invocation is in
	// progress and which release it is bound to.
	LambdaAPI func(env function.Environment, caller func() invocation.Caller) http.Handler
	// Ahead is what Run makes before there is a request.
	Ahead Ahead
	// Starts and Removals bound how many instances are made and removed at a time; the others wait their turn. They are
	// counted apart, so that neither waits for the other. Default 4 and 2.
	Starts, Removals int64
	Log              *slog.Logger
}

// Starter makes workers.
type Starter struct {
	opts     Options
	group    sync.WaitGroup
	starts   *semaphore.Weighted // first in, first out
	removals *semaphore.Weighted
	// removeIn bounds each removal with its turn: destroyTimeout, less in tests.
	removeIn time.Duration
	spares   *spares
	calm     calm

	mu  sync.Mutex
	ids map[string]struct{} // of instances that were begun and are not removed
}

var (
	_ pool.Starter  = (*Starter)(nil)
	_ pool.Worker   = (*Worker)(nil)
	_ pool.Beginner = (*Worker)(nil)
	_ pool.Freezer  = (*Worker)(nil)
	_ pool.Meter    = (*Worker)(nil)
	_ Instance      = (*instance.Instance)(nil)
)

// NewStarter makes a Starter.
func NewStarter(opts Options) *Starter {
	opts.Starts, opts.Removals = cmp.Or(opts.Starts, 4), cmp.Or(opts.Removals, 2)
	return &Starter{
		opts: opts, ids: map[string]struct{}{}, spares: newSpares(), removeIn: destroyTimeout,
		starts: semaphore.NewWeighted(opts.Starts), removals: semaphore.NewWeighted(opts.Removals),
	}
}

// IDs lists the instances that were begun and are not removed yet.
func (s *Starter) IDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.ids))
}

func (s *Starter) note(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[id] = struct{}{}
}

func (s *Starter) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

// Wait blocks until every goroutine of every worker has ended; call it after the pools are closed.
func (s *Starter) Wait() { s.group.Wait() }

// Worker is one instance with its Runtime API and its log.
type Worker struct {
	s       *Starter
	version *function.Version
	origin  invocation.Binding // the release that started the instance
	events  pool.Events
	inst    Instance
	api     *rapi.Server
	out     []*logs.Capture
	id      string
	started time.Time
	queued  time.Duration // what the start waited for its turn
	initDur time.Duration
	handler atomic.Int64 // how long the first invocation took, in nanoseconds
	// Of a spare, and of what was one.
	held     bool
	listener net.Listener
	made     time.Time
	begin    time.Duration            // what it took to say the word
	taken    chan struct{}            // closed when it is a spare no more
	phases   map[string]time.Duration // of the start, for records; not modified once it is there
	// inside is the request whose invocation the init ran in, if it did: its time is that invocation's.
	inside *invocation.Request
	begun  time.Time // when that invocation began

	// gate is held from the start of an invocation until its answer is known, by whichever goroutine
	// carries it; nothing but the runtime and the clock is waited for with it.
	gate    sync.Mutex
	cur     atomic.Pointer[run]
	count   int         // invocations so far; guarded by gate
	clock   *time.Timer // runs tick when the newest invocation is due; guarded by gate
	number  string      // of the version, for the log
	dieOnce sync.Once
	crowd   *crowd // when the instance runs several invocations at once, else nil
}

// run is one invocation in progress. All but done and answered is written before it is published, or
// under gate.
type run struct {
	w        *Worker
	req      *invocation.Request
	inv      rapi.Invocation
	out      invocation.Outcome
	start    time.Time
	duration time.Duration
	first    bool
	status   logs.Status
	errType  string
	detail   string // the crash line, without "RequestId: …"
	done     atomic.Bool
	tail     *logs.Tail
	// completion takes the outcome of Begin, ended the end of an invocation that Invoke waits for.
	completion pool.Done
	ended      chan ending
	// due is when tick has to look: the deadline, and after the answer when the runtime must be back.
	// In nanoseconds after start.
	due atomic.Int64
	// answered says that the runtime is on its way back to next.
	answered atomic.Bool
	clock    *time.Timer // where several run at once; guarded by crowd.mu
}

// ending is how the Runtime API says that an invocation ended.
type ending struct {
	res *rapi.Result
	err error
}

// Start implements pool.Starter.
func (s *Starter) Start(ctx context.Context, req pool.StartRequest) (pool.Worker, error) {
	s.calm.begin()
	defer s.calm.end()
	begun := time.Now()
	w := s.takeSpare(req, begun)
	if w == nil {
		w = s.newWorker(req.Version)
		w.assign(req, begun)
		if err := s.make(ctx, w); err != nil {
			return nil, fmt.Errorf("start an instance of %s: %w", w.version, err)
		}
	}
	if err := w.initialise(ctx, req); err != nil {
		w.abandon(err)
		return nil, err
	}
	w.phases = w.Info().Phases
	w.drain() // what init has printed does not belong to the first invocation
	w.cur.Store(nil)
	s.group.Go(w.watch)
	if w.crowd != nil {
		if n := w.crowd.start(); n > 0 {
			s.group.Go(func() { // the pool takes them as soon as it has the worker
				for range n {
					w.events.Idle()
				}
			})
		}
	}
	return w, nil
}

func (s *Starter) newWorker(v *function.Version) *Worker {
	w := &Worker{s: s, version: v, number: strconv.Itoa(v.Number)}
	if n := v.Config.Concurrency.AtOnce(); n > 1 {
		w.crowd = newCrowd(n)
	}
	return w
}

// assign says what the worker is started for. begun is when that was asked.
func (w *Worker) assign(req pool.StartRequest, begun time.Time) {
	w.origin, w.events = req.Binding, req.Events
	if req.Phase == pool.PhaseInvoke {
		w.inside, w.begun = req.For, begun
		w.cur.Store(&run{w: w, req: req.For, start: w.begun}) // init output belongs to the request
	}
}

// takeSpare returns a spare of the version that was told to start, or nil.
func (s *Starter) takeSpare(req pool.StartRequest, begun time.Time) *Worker {
	for {
		w := s.spares.take(req.Version)
		if w == nil {
			return nil
		}
		w.assign(req, begun)
		err := w.wake()
		if err == nil {
			return w
		}
		s.opts.Log.Debug("spare instance cannot be used", "instance", w.id, "error", err)
		s.group.Go(w.destroy)
	}
}

// make makes the worker's instance, in its turn, and starts its runtime.
func (s *Starter) make(ctx context.Context, w *Worker) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*s.opts.CreateTimeout, fmt.Errorf("the host was busy with other starts for %s", 2*s.opts.CreateTimeout))
	defer cancel()
	asked := time.Now()
	if s.starts.Acquire(ctx, 1) != nil {
		return context.Cause(ctx)
	}
	w.queued = time.Since(asked)
	err := s.create(ctx, w)
	s.starts.Release(1)
	if err != nil {
		return err
	}
	w.started = time.Now()
	if err := w.capture(); err != nil {
		w.destroy()
		return err
	}
	return nil
}

// create makes the worker's instance. It tries twice when containerd went away meanwhile: it is started
// again within seconds, and Create waits for it. What the first try left is reconciliation's. When the host has no
// address left, spares give way.
func (s *Starter) create(ctx context.Context, w *Worker) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.opts.CreateTimeout, fmt.Errorf("the instance was not made within %s", s.opts.CreateTimeout))
	defer cancel()
	for again := true; ; {
		w.id = s.opts.Instances.NewID(imageOf(w.version))
		err := s.createOnce(ctx, w)
		if errdefs.IsResourceExhausted(err) && ctx.Err() == nil && s.giveWay() {
			w.api = nil
			continue
		}
		if err == nil || !again || !errdefs.IsUnavailable(err) || ctx.Err() != nil {
			return err
		}
		s.opts.Log.Debug("instance is started again", "instance", w.id, "error", err)
		again, w.api = false, nil
	}
}

// createOnce makes the instance under the worker's ID.
func (s *Starter) createOnce(ctx context.Context, w *Worker) error {
	s.note(w.id)
	inst, err := s.opts.Instances.Create(ctx, w.spec())
	if err != nil {
		w.closeAPI()
		s.forget(w.id)
		return err
	}
	w.inst = inst
	return nil
}

// imageOf names the image of a version by its digest.
func imageOf(v *function.Version) string { return v.Image.Name + "@" + v.Image.Digest }

// spec describes the instance: everything in it comes from the version.
func (w *Worker) spec() instance.Spec {
	v := w.version
	return instance.Spec{
		ID:       w.id,
		Image:    imageOf(v),
		Args:     v.Argv(),
		Env:      environ(v, w.s.opts.Region, logStream(v.Number, time.Now())),
		Dir:      v.Workdir(),
		MemoryMB: v.Config.MemoryMB,
		TmpMB:    v.Config.TmpMB,
		Cores:    v.Config.Cores(),
		Labels: map[string]string{
			"dev.lfx.project": v.Project, "dev.lfx.environment": v.Environment.Name,
			"dev.lfx.function": v.Function, "dev.lfx.version": fmt.Sprint(v.Number),
		},
		Listen: w.listen,
		Hold:   w.held,
	}
}

// listen is called before the instance starts. A spare's listener is kept: nobody calls on it before its word, and what it is
// served for is not known.
func (w *Worker) listen(l net.Listener) error {
	if w.held {
		w.listener = l
	} else {
		w.serve(l)
	}
	return nil
}

// serve serves the Runtime API, and the Lambda API as this instance sees it, on the listener inside the instance's
// network namespace.
func (w *Worker) serve(l net.Listener) {
	srv := rapi.New(rapi.Options{
		Listener: l,
		Fallback: w.s.opts.LambdaAPI(w.version.Environment, w.caller),
		Log:      w.s.opts.Log.With("instance", w.id),
		OnIdle:   w.onIdle,

		Concurrency: w.version.Config.Concurrency.AtOnce(),
	})
	w.api = srv
	w.s.group.Go(func() { // ends with closeAPI
		if err := srv.Serve(); err != nil {
			w.s.opts.Log.Error("the Runtime API ended", "instance", w.id, "error", err)
		}
	})
}

// caller is whom calls made by the function belong to: the invocation in progress with its release,
// else the release that started the instance.
func (w *Worker) caller() invocation.Caller {
	if w.crowd != nil {
		return w.crowd.caller(w.origin)
	}
	if r := w.cur.Load(); r != nil && r.req.Binding != nil {
		return invocation.Caller{Binding: r.req.Binding, RequestID: r.req.ID}
	}
	return invocation.Caller{Binding: w.origin}
}

// capture reads what the function prints.
func (w *Worker) capture() error {
	for _, f := range []struct {
		stream string
		file   *os.File
	}{{logs.StreamStdout, w.inst.Stdout()}, {logs.StreamStderr, w.inst.Stderr()}} {
		c, err := logs.NewCapture(f.file, func(line []byte, more bool) {
			if r := w.cur.Load(); r != nil || w.crowd == nil {
				w.emit(r, f.stream, logs.Message(line, more))
			} else {
				w.print(f.stream, logs.Message(line, more))
			}
		}, logs.CaptureOptions{Dropped: func(lines, bytes int64) {
			w.platform(w.cur.Load(), logs.DroppedLines(lines, bytes, "the function writes too fast"))
		}})
		if err != nil {
			return fmt.Errorf("read the output of %s: %w", w.id, err)
		}
		w.out = append(w.out, c)
	}
	return nil
}

// platform stores one line of the platform's own.
func (w *Worker) platform(r *run, text string) { w.emit(r, logs.StreamPlatform, text) }

// entry makes a line that belongs to no invocation.
func (w *Worker) entry(stream, text string) logs.Entry {
	return logs.Entry{Time: time.Now(), Key: w.version.Key, Version: w.version.Number, Instance: w.id, Stream: stream, Message: text}
}

// emit stores one line under an invocation, or under none.
func (w *Worker) emit(r *run, stream, text string) {
	e := w.entry(stream, text)
	if r != nil {
		e.RequestID = r.req.ID
		if r.req.Binding != nil {
			e.Release = r.req.Binding.ReleaseNumber()
		}
		if r.tail != nil {
			r.tail.Add(text)
		}
	}
	w.s.opts.Logs.Append(e)
}

// initialise waits until the runtime asks for its first event.
func (w *Worker) initialise(ctx context.Context, req pool.StartRequest) error {
	limit := w.s.opts.InitTimeout
	if req.Phase == pool.PhaseInvoke {
		limit = w.version.Config.Timeout - time.Since(w.begun)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-w.api.Ready():
		w.initDur = time.Since(w.started)
		return nil
	case <-w.api.InitErrored():
		return w.initFailed(req, logs.StatusError)
	case <-w.inst.Exited():
		return w.initFailed(req, logs.StatusError)
	case <-timer.C:
		return w.initFailed(req, logs.StatusTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// abandon removes the instance of a failed init. What the function did is told at once, to a client that may wait for it: its
// instance is dead, and Removed says when nothing is left of it.
func (w *Worker) abandon(err error) {
	var failed *pool.InitError
	if !errors.As(err, &failed) {
		w.destroy()
		return
	}
	removed := make(chan struct{})
	failed.Removed = removed
	w.s.group.Go(func() { // ends with destroy, which is bounded
		defer close(removed)
		w.destroy()
	})
}

// initFailed logs a failed init phase and makes the outcome for the request that it ran for.
func (w *Worker) initFailed(req pool.StartRequest, status logs.Status) error {
	dur := time.Since(w.started)
	w.initDur = dur
	posted := w.api.InitError()
	select {
	case <-w.inst.Exited():
	default:
		w.inst.Kill()
	}
	w.drain()
	out, detail := w.initOutcome(req, status, posted)
	w.platform(w.cur.Load(), logs.InitReport(dur, logs.Phase(req.Phase), status, out.ErrorType))
	if req.For != nil {
		r := w.cur.Load()
		r.status, r.errType, r.duration = status, out.ErrorType, min(time.Since(w.begun), w.version.Config.Timeout)
		r.first, w.phases = true, w.Info().Phases
		w.note(r)
		if posted == nil && status == logs.StatusError {
			r.detail = exitText(w.inst.Exit())
		}
		w.tailFor(r)
		w.platform(r, logs.Start(req.For.ID, w.number))
		w.finish(r)
		if r.tail != nil {
			out.LogTail = r.tail.Bytes()
		}
	}
	return &pool.InitError{Outcome: out, Detail: detail}
}

// initOutcome words a failed init: the runtime's own JSON when it posted one.
func (w *Worker) initOutcome(req pool.StartRequest, status logs.Status, posted *rapi.RuntimeError) (*invocation.Outcome, string) {
	id := ""
	if req.For != nil {
		id = req.For.ID
	}
	switch {
	case posted != nil:
		return &invocation.Outcome{Payload: posted.Body, FunctionError: "Unhandled", ErrorType: posted.Type, Result: invocation.Failed},
			posted.Type + ": " + initText(posted.Body)
	case status == logs.StatusTimeout:
		return timedOut(id, w.version.Config.Timeout), fmt.Sprintf("the runtime did not ask for its first event within %s", time.Since(w.started).Round(time.Millisecond))
	}
	e := w.inst.Exit()
	if e.ExecError != nil {
		return exited(id, e), e.ExecError.Error()
	}
	return exited(id, e), exitText(e)
}

// watch ends the worker when its process ends.
func (w *Worker) watch() {
	<-w.inst.Exited()
	w.api.Fail(errExited)
	w.die("failure")
}

var errExited = errors.New("the runtime exited")

// ID implements pool.Worker.
func (w *Worker) ID() string { return w.id }

// Info implements pool.Worker.
func (w *Worker) Info() pool.WorkerInfo {
	return pool.WorkerInfo{ID: w.id, Address: w.inst.Address().String(), Started: w.started, Phases: w.startPhases()}
}

// startPhases says where the time of the start went, and how long the first invocation took if it is over. Of
// what was a spare the start had to wait for little; what was done before is one sum.
func (w *Worker) startPhases() map[string]time.Duration {
	p := w.inst.Phases()
	phases := map[string]time.Duration{"init": w.initDur}
	if d := w.handler.Load(); d != 0 {
		phases["handler"] = time.Duration(d)
	}
	if w.held {
		phases["start"], phases["ahead"] = w.begin, p.Total()
		return phases
	}
	phases["turn"], phases["files"], phases["container"], phases["create"] = w.queued, p.Files, p.Container, p.Create
	phases["network"], phases["check"], phases["start"] = p.Network, p.Check, p.Start
	return phases
}

// Invoke implements pool.Worker. It returns nil when the process ended before the event was handed
// out: no handler code ran, so another instance may take it.
func (w *Worker) Invoke(req *invocation.Request) *invocation.Outcome {
	if w.crowd != nil {
		return w.invokeOne(req)
	}
	w.gate.Lock()
	r := w.open(req)
	r.ended = make(chan ending, 1)
	w.tailFor(r)
	e := ending{err: rapi.ErrNotDelivered}
	if w.settled(r) && w.handOut(r) == nil {
		e = <-r.ended
	}
	return w.conclude(r, e.res, e.err)
}

// Begin implements pool.Beginner: the goroutine that reads the runtime's answer carries the invocation to
// its end. A log tail is for Invoke, because it waits for what the function printed.
func (w *Worker) Begin(req *invocation.Request, done pool.Done) bool {
	if w.crowd != nil {
		return w.beginOne(req, done)
	}
	if req.Tail || !w.api.Idle() {
		return false
	}
	w.gate.Lock()
	r := w.open(req)
	r.completion = done
	if w.handOut(r) != nil {
		w.conclude(r, nil, rapi.ErrNotDelivered)
	}
	return true
}

// Answered implements rapi.Completion.
func (r *run) Answered(res *rapi.Result, err error) {
	switch {
	case r.ended != nil:
	case r.w.crowd != nil:
		r.w.concludeOne(r, res, err)
		return
	default:
		r.w.conclude(r, res, err)
		return
	}
	r.ended <- ending{res, err}
	// The invoker is next on this processor: its client's answer leaves before the runtime's 202.
	goruntime.Gosched()
}

// open begins a run. gate is held, until conclude.
func (w *Worker) open(req *invocation.Request) *run {
	r := &run{w: w, req: req, start: time.Now(), first: w.count == 0}
	if r.first {
		w.firstEvent(r)
	}
	w.count++
	return r
}

// settled waits until the runtime is in next, at most up to the invocation's deadline; false when it ended
// while it was idle: another instance prints START.
func (w *Worker) settled(r *run) bool {
	if w.api.Idle() {
		return true
	}
	ctx, cancel := context.WithDeadlineCause(context.Background(), r.start.Add(w.version.Config.Timeout), errTimeout)
	defer cancel()
	return w.api.WaitIdle(ctx) == nil
}

// handOut gives the event to the runtime. With an error nothing was handed out, and Answered will not be called.
func (w *Worker) handOut(r *run) error {
	w.cur.Store(r)
	w.event(r)
	r.due.Store(int64(w.version.Config.Timeout))
	w.wakeAt(time.Until(r.inv.Deadline))
	return w.api.Start(&r.inv, r)
}

// event prints START and makes the event.
func (w *Worker) event(r *run) {
	w.platform(r, logs.Start(r.req.ID, w.number))
	r.inv = rapi.Invocation{
		RequestID: r.req.ID, Deadline: r.start.Add(w.version.Config.Timeout), FunctionARN: r.req.FunctionARN, TraceID: r.req.TraceID,
		ClientContext: r.req.ClientContext, TenantID: r.req.TenantID, Payload: r.req.Payload,
	}
}

// wakeAt runs tick after d. gate is held.
func (w *Worker) wakeAt(d time.Duration) {
	if w.clock == nil {
		w.clock = time.AfterFunc(d, w.tick) // stopped by die
		return
	}
	w.clock.Reset(d)
}

// conclude ends an invocation whose end is known: it makes the outcome and gives it to the completion, if
// there is one. gate is released. nil means that the event was not handed out.
func (w *Worker) conclude(r *run, res *rapi.Result, err error) *invocation.Outcome {
	out := w.outcome(r, res, err)
	reason := "failure"
	if out == nil {
		w.cur.Store(nil)
	} else {
		reason = string(r.status)
		w.settleRun(r, out)
	}
	if r.completion != nil {
		r.completion.Ended(out)
	}
	w.gate.Unlock()
	if out == nil || r.status != logs.StatusSuccess {
		w.die(reason)
	}
	return out
}

// settleRun notes what the log needs of an invocation that was answered, and when its runtime has to be
// back. gate is held.
func (w *Worker) settleRun(r *run, out *invocation.Outcome) {
	passed := time.Since(r.start)
	r.duration = min(passed, w.version.Config.Timeout)
	if r.first {
		w.handler.Store(int64(r.duration))
	}
	w.note(r)
	if r.tail != nil || r.status != logs.StatusSuccess {
		w.finish(r)
	}
	if r.tail != nil {
		out.LogTail = r.tail.Bytes()
	}
	if r.status != logs.StatusSuccess {
		return
	}
	if back := passed + settleTime; back > w.version.Config.Timeout {
		r.due.Store(int64(back))
		w.wakeAt(settleTime)
	}
	r.answered.Store(true)
}

// note writes down in the request who ran it and when, as its REPORT line has it. Before the answer is handed on.
func (w *Worker) note(r *run) {
	t := &r.req.Trace
	t.Instance, t.Delivered, t.Answered = w.id, r.start, r.start.Add(r.duration)
	if r.first {
		t.Cold, t.Phases = true, w.phases
	}
}

// reported lists the phases of a cold call for its REPORT line: the wait for the instance, where the time of its
// start went, and the handler. A spare has "Ahead" for what was done before anybody waited.
func (w *Worker) reported(r *run) []logs.PhaseTime {
	out := []logs.PhaseTime{{Name: "Queue", Took: max(r.start.Sub(r.req.Trace.Queued), 0)}}
	if r.req.Trace.Queued.IsZero() {
		out[0].Took = 0 // the instance was started ahead and had no work before
	}
	for _, p := range []struct{ name, phase string }{
		{"Ahead", "ahead"}, {"Network", "network"}, {"Create", "create"}, {"Start", "start"}, {"Init", "init"},
	} {
		if took, ok := w.phases[p.phase]; ok && (took > 0 || p.name != "Ahead") {
			out = append(out, logs.PhaseTime{Name: p.name, Took: took})
		}
	}
	return append(out, logs.PhaseTime{Name: "Handler", Took: r.duration})
}

// settleTime is what a runtime gets to ask for more work after an answer that came just in time.
const settleTime = time.Second

// tick looks at the invocation in progress when it is due. One that was not answered has run into the
// function's timeout; an instance whose runtime has answered and is not back for more is replaced, as Lambda
// resets it.
func (w *Worker) tick() {
	r := w.cur.Load()
	if r == nil || int64(time.Since(r.start)) < r.due.Load() {
		return // an older one's time: the newer one has set the clock
	}
	if !r.answered.Load() {
		w.api.Cancel(&r.inv, errTimeout)
		return
	}
	w.s.opts.Log.Info("the runtime answered and did not come back; its instance is replaced", "instance", w.id, "function", w.version.Key.String(), "request_id", r.req.ID)
	w.die(string(logs.StatusTimeout))
}

// firstEvent lowers the CPU quota from that of the init phase, and starts the clock of an
// invocation whose init ran inside it where it really started.
func (w *Worker) firstEvent(r *run) {
	if err := w.inst.SetCores(w.version.Config.Cores()); err != nil {
		w.s.opts.Log.Error("the CPU limit could not be set", "instance", w.id, "error", err)
	}
	if w.inside == r.req {
		r.start = w.begun
	}
}

// tailFor keeps the log of an invocation whose client asked for it.
func (w *Worker) tailFor(r *run) {
	if r.req.Tail && r.tail == nil {
		r.tail = &logs.Tail{}
	}
}

// outcome says what an invocation came to. nil means that the event was not handed out.
func (w *Worker) outcome(r *run, res *rapi.Result, err error) *invocation.Outcome {
	switch {
	case errors.Is(err, rapi.ErrNotDelivered):
		return nil
	case errors.Is(err, errTimeout):
		r.status, r.errType = logs.StatusTimeout, typeTimeout
		return timedOut(r.req.ID, w.version.Config.Timeout)
	case err != nil:
		return w.crashed(r)
	case res.TooLarge:
		return tooLarge()
	case res.InvalidResponseMode:
		r.status, r.errType = logs.StatusError, typeBadMode
		return unhandled(typeBadMode, fmt.Sprintf("RequestId: %s Error: Invalid function response mode", r.req.ID))
	}
	r.out = invocation.Outcome{Payload: res.Body, Free: res.Free()}
	if res.IsError {
		r.out.FunctionError, r.out.ErrorType, r.out.Result = "Unhandled", res.ErrorType, invocation.Failed
	}
	return &r.out
}

var errTimeout = errors.New("function timeout")

// crashed makes the outcome of an invocation whose process ended before it answered.
func (w *Worker) crashed(r *run) *invocation.Outcome {
	e := w.inst.Exit()
	out := exited(r.req.ID, e)
	r.status, r.errType, r.detail = logs.StatusError, out.ErrorType, exitText(e)
	return out
}

// onIdle is called when the runtime is back in next after an answer: the invocation phase is over.
func (w *Worker) onIdle() {
	if w.crowd != nil {
		if w.crowd.parked() {
			w.events.Idle()
		}
		return
	}
	w.gate.Lock() // the answer may still be on its way out of conclude
	w.finishCurrent()
	w.gate.Unlock()
	w.events.Idle()
}

// finishCurrent ends the log of the invocation that was answered last. gate is held.
func (w *Worker) finishCurrent() {
	if r := w.cur.Load(); r != nil {
		w.finish(r)
	}
}

// finish ends the log of an invocation, once: everything printed so far, then END and REPORT.
func (w *Worker) finish(r *run) {
	if !r.done.CompareAndSwap(false, true) {
		w.cur.CompareAndSwap(r, nil)
		return
	}
	w.drain()
	w.report(r)
	if r.status == logs.StatusSuccess && r.tail == nil {
		w.cur.CompareAndSwap(r, nil)
	}
}

// report prints END and REPORT of an invocation, and before them why it crashed.
func (w *Worker) report(r *run) {
	id := r.req.ID
	if r.detail != "" {
		for _, line := range logs.Crash(id, r.detail, r.errType) {
			w.platform(r, line)
		}
	}
	w.platform(r, logs.End(id))
	f := logs.ReportFields{
		RequestID: id, Duration: r.duration, Timeout: w.version.Config.Timeout, MemoryMB: w.version.Config.MemoryMB,
		MaxMemoryMB: int((w.inst.PeakMemory() + 1<<20 - 1) >> 20), Status: r.status, ErrorType: r.errType,
	}
	if r.first && w.inside != r.req {
		f.Init, f.Phases = &w.initDur, w.reported(r)
	}
	w.platform(r, logs.Report(f))
}

// drain stores everything that is in the pipes now.
func (w *Worker) drain() {
	for _, c := range w.out {
		c.Drain()
	}
}

// Freeze implements pool.Freezer. Its runtime waits in next meanwhile, on a connection that the kernel keeps.
func (w *Worker) Freeze(ctx context.Context) error { return w.inst.Freeze(ctx) }

// Thaw implements pool.Freezer.
func (w *Worker) Thaw() error { return w.inst.Thaw() }

// MemoryBytes implements pool.Meter.
func (w *Worker) MemoryBytes() uint64 { return w.inst.MemoryBytes() }

// Close implements pool.Worker.
func (w *Worker) Close(reason string) { w.die(reason) }

// die takes the worker out of use and removes its instance in the background.
func (w *Worker) die(reason string) {
	w.dieOnce.Do(func() {
		w.s.group.Go(func() {
			w.events.Dying()
			w.s.opts.Log.Debug("instance ends", "instance", w.id, "function", w.version.Key.String(), "reason", reason)
			w.inst.Kill()
			if w.crowd != nil {
				w.crowd.end()
			}
			w.gate.Lock()     // an invocation in progress sees the exit and ends first
			w.finishCurrent() // and one that was answered gets its END here, if the runtime did not come back
			if w.clock != nil {
				w.clock.Stop()
			}
			w.gate.Unlock()
			w.destroy()
			w.events.Gone()
		})
	})
}

// destroyTimeout bounds the removal of one instance and the wait for its turn; reconciliation finishes what is left.
const destroyTimeout = 30 * time.Second

// destroy removes the instance and all that belongs to it, and waits for it. It dies at once; the rest is done in its turn. When
// that does not come in time, since the removals of others hang, Destroy is called all the same: it leaves to reconciliation
// what it cannot do at once.
func (w *Worker) destroy() {
	defer w.s.forget(w.id)
	w.inst.Kill()
	w.closeAPI()
	w.drain()
	for _, c := range w.out {
		c.Close()
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), w.s.removeIn, fmt.Errorf("it was not removed within %s", w.s.removeIn))
	defer cancel()
	if w.s.removals.Acquire(ctx, 1) == nil {
		defer w.s.removals.Release(1)
	}
	if err := w.inst.Destroy(ctx); err != nil {
		w.s.opts.Log.Error("instance was not removed whole; reconciliation goes on with it", "instance", w.id, "error", err)
	}
}

// closeAPI ends the Runtime API and waits for it.
func (w *Worker) closeAPI() {
	if w.api != nil {
		w.api.Close() //nolint:errcheck // the listener is gone either way
	}
}
