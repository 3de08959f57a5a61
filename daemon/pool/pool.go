package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/pool/policy"
)

// Worker is one instance as its pool sees it: it runs one invocation at a time, or as many as the runtime has parked next
// calls where its version's concurrency.per_instance is above 1.
type Worker interface {
	ID() string
	// Invoke runs one invocation to its outcome. It never returns before the answer is known or the
	// timeout has passed; nil means that the instance had ended before it got the event, or that it had no next parked for one of several. After it, the worker either calls Events.Idle once it can take another
	// invocation, or Events.Gone once it never will.
	Invoke(req *invocation.Request) *invocation.Outcome
	// Close ends the instance. It returns at once; Events.Gone follows when nothing is left of it.
	Close(reason string)
	// Info describes it for people.
	Info() WorkerInfo
}

// Beginner is a Worker whose invocations need no goroutine that waits for their outcome.
type Beginner interface {
	// Begin is Invoke whose outcome goes to done, which may be before Begin returns. It returns false, and
	// does nothing, when it would have to wait for the runtime, or when the request asks for what
	// only Invoke does.
	Begin(req *invocation.Request, done Done) bool
}

// Done takes the outcome of Beginner.Begin.
type Done interface {
	// Ended is called exactly once, from any goroutine; nil as of Worker.Invoke. It does not block, and calls
	// nothing of the worker.
	Ended(out *invocation.Outcome)
}

// WorkerInfo describes a worker for people.
type WorkerInfo struct {
	ID      string
	Address string
	Started time.Time
	// Phases says where the time of its start went, by the name of the phase.
	Phases map[string]time.Duration
}

// Events are the calls that a worker makes to its pool. They may come from any goroutine and must
// not be made with a lock held that the pool's calls into the worker need.
type Events struct {
	// Idle: the runtime is back in next after an invocation. Where it runs several at once: for every next but the first.
	Idle func()
	// Dying: the worker will not take another invocation (its process ended, or it was reset).
	Dying func()
	// Gone: the instance and all that belonged to it are removed. Called exactly once per started
	// worker, always after Dying.
	Gone func()
}

// InitPhase says why an instance initialises.
type InitPhase string

const (
	// PhaseInit is an ordinary cold start, limited by the init timeout.
	PhaseInit InitPhase = "init"
	// PhaseInvoke is the repeated init inside the first invocation, limited by the function timeout.
	PhaseInvoke InitPhase = "invoke"
)

// StartRequest asks for one instance.
type StartRequest struct {
	Version *function.Version
	// Binding is the release that starts the instance; calls made during init use it.
	Binding invocation.Binding
	Phase   InitPhase
	// For is the request whose invocation the init belongs to in PhaseInvoke, else nil.
	For    *invocation.Request
	Events Events
}

// Starter makes instances. Start blocks until the runtime asked for its first event, or fails. A
// failed Start has removed everything it made, or leaves it to reconciliation; no Event is called. Only
// after an InitError the instance, which is dead, may still be being removed.
type Starter interface {
	Start(ctx context.Context, req StartRequest) (Worker, error)
}

// InitError says that the function's own initialisation failed: a fault of the function, not of the platform.
type InitError struct {
	// Outcome is what the client of an invocation gets that ran into it.
	Outcome *invocation.Outcome
	Detail  string
	// Removed is closed when nothing is left of the instance, or what is left is reconciliation's; until then it takes its
	// room. It is closed in bounded time. Nil means that this is so already.
	Removed <-chan struct{}
}

// Error implements error.
func (e *InitError) Error() string { return "initialisation failed: " + e.Detail }

// errClosed ends the waits of a pool that was closed.
var errClosed = errors.New("the version was removed")

// state of a slot. Transitions: busy ⇄ idle, either → leaving.
type state uint8

const (
	busy state = iota
	idle
	leaving
)

// slot is a worker with its place in the pool; guarded by Pool.mu unless it says otherwise. worker does not change.
type slot struct {
	worker Worker
	state  state
	used   time.Time
	begun  time.Time // when its start began
	// standsFor is set while an instance that was started ahead of need waits for its first invocation: when the one that it
	// stands for had become idle.
	standsFor time.Time
	// binding is the release of the invocation in progress or the last one, else of the start.
	binding invocation.Binding
	// cold: the instance is frozen, or is being frozen; callOff ends the latter. warmUntil is when it may be tried again.
	cold      bool
	callOff   context.CancelFunc
	warmUntil time.Time
	// frost is held while the instance is frozen or thawed, before Pool.mu.
	frost sync.Mutex
	// thaw belongs to the one who took the slot: it was frozen.
	thaw bool
	// freed is what the instance used when it was evicted, in MiB.
	freed atomic.Int64
	// answered is when the invocation in progress was answered, in Unix nanoseconds, and zero before:
	// the runtime is on its way back to next and will be idle in a moment.
	answered atomic.Int64
	// only is the request that Beginner.Begin runs. Whoever made the slot busy owns it until the outcome is
	// known.
	only begun

	// What follows is used where an instance runs several invocations at once (many.go): how many it runs, how many more
	// it could take, the most that both ever were together, and how many of those that were answered are not back in next.
	running, places, most, owed int
	// ready is when its start was over. open: it is in Pool.open. thawing: who took it thaws it. yields: it takes nothing
	// more and ends with what it runs.
	ready                 time.Time
	open, thawing, yields bool
}

// settleTime is how long an instance may take from its answer to its next request for work before the
// pool stops counting on it.
const settleTime = 20 * time.Millisecond

// waiter is a queued request. The one who takes it out of the queue sends exactly one grant.
type waiter struct {
	// ready takes the grant of one who waits; begun is set for the others.
	ready chan grant
	begun begun
	since time.Time // when it came, where begun is set
	req   *invocation.Request
	// prev, next and taken are guarded by Pool.mu; taken means that somebody will grant.
	prev, next *waiter
	taken      bool
}

// grant ends a wait: with a slot, with an outcome (init failed inside this request), or with an error.
type grant struct {
	slot    *slot
	outcome *invocation.Outcome
	err     error
}

// beginning is a start under way.
type beginning struct {
	since   time.Time
	binding invocation.Binding
	// standsFor is set for a start ahead of need; see slot.
	standsFor time.Time
}

// Pool holds the instances of one version and the requests that wait for one.
type Pool struct {
	version *function.Version
	starter Starter
	limit   *limit // instances of the function, across its versions
	host    *limit // instances of all functions
	memory  *limit // memory of all instances of the host, in MiB
	key     versionKey
	atOnce  int // invocations that an instance may run at once
	opts    Options
	log     *slog.Logger
	ctx     context.Context // ends when the manager closes
	group   *sync.WaitGroup // the manager's: every goroutine of a pool is in it
	workers *sync.WaitGroup // the manager's: every worker that is not gone
	live    atomic.Int32    // instances that start or are not gone
	warming atomic.Int32    // calls of warm in progress: nobody takes instances away meanwhile

	mu       sync.Mutex
	slots    map[*slot]struct{} // every worker that is not gone
	ending   int                // slots that are leaving
	idle     []*slot            // stack: the hottest is last
	open     []*slot            // busy ones that could take more, as idle; see many.go
	parks    int                // the most that an instance was seen to take at once; 0 before
	head     *waiter
	tail     *waiter
	waiting  int                     // waiters in the queue
	starting int                     // len(starts)
	starts   map[*beginning]struct{} // under way
	cost     time.Duration           // what a start takes: a mean
	idleMB   float64                 // what an idle instance holds, as last measured; 0 before
	known    policy.Func             // for opts.Policy
	price    policy.Cost             // as last given to it
	scarcity float64                 // of memory, at the last sweep
	freezing bool                    // a round of freezing is under way
	min      int
	lastErr  error         // of the newest failed start; nil after a good one
	changed  chan struct{} // closed and replaced when slots or lastErr change; nil when nobody listens
	failures int           // failed starts in a row
	retryAt  time.Time     // when a warm start may be tried again
	restAt   time.Time     // until then the instances that live serve the queue: starting fails
	binding  invocation.Binding
	closed   bool
	recheck  bool // startLater is under way
	// expiry runs expire when the oldest waiter of Begin is overdue; expiring says that it is set.
	expiry   *time.Timer
	expiring bool
}

// limits lists what an instance of the pool needs room in, in the order in which it is taken.
func (p *Pool) limits() [3]*limit { return [3]*limit{p.limit, p.host, p.memory} }

// Version returns the version that the pool runs.
func (p *Pool) Version() *function.Version { return p.version }

// invoke waits for a worker and runs the request on it.
func (p *Pool) invoke(ctx context.Context, req *invocation.Request) (*invocation.Outcome, error) {
	for {
		s, outcome, err := p.acquire(ctx, req)
		if err == nil {
			granted(req)
		}
		if s == nil {
			return outcome, err
		}
		if !p.thawed(s) {
			continue
		}
		outcome = s.worker.Invoke(req)
		if outcome != nil {
			s.answered.Store(time.Now().UnixNano())
		}
		if p.atOnce > 1 {
			p.release(s, outcome != nil && outcome.Result != invocation.TimedOut)
		}
		if outcome != nil {
			return outcome, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// takeIdleLocked takes the hottest idle slot for a request, or returns nil. The caller must thaw it.
func (p *Pool) takeIdleLocked(req *invocation.Request) *slot {
	if p.atOnce > 1 {
		return p.takePlaceLocked(req)
	}
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	s := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	p.tookLocked(s)
	s.takeLocked()
	s.binding = req.Binding
	return s
}

// acquire takes the hottest idle slot, or waits for one.
func (p *Pool) acquire(ctx context.Context, req *invocation.Request) (*slot, *invocation.Outcome, error) {
	if p.stopped() {
		return nil, nil, p.stoppedError()
	}
	p.mu.Lock()
	if s := p.takeIdleLocked(req); s != nil {
		p.mu.Unlock()
		return s, nil, nil
	}
	w := &waiter{ready: make(chan grant, 1), req: req}
	err := p.enqueueLocked(w)
	p.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	return p.wait(ctx, w)
}

// enqueueLocked appends a waiter to the queue, unless the request must be refused.
func (p *Pool) enqueueLocked(w *waiter) error {
	if p.closed {
		return &invocation.UnavailableError{Err: errClosed}
	}
	if err := p.tooLarge(); err != nil {
		return &invocation.UnavailableError{Err: err}
	}
	if p.waiting >= p.opts.QueueLimit {
		return p.throttled(fmt.Sprintf("%d requests wait for %s already", p.opts.QueueLimit, p.version.Key))
	}
	queued(w.req)
	p.pushLocked(w)
	p.startForQueueLocked()
	return nil
}

// wait blocks until the waiter is granted something, its context ends or the queue timeout passes.
func (p *Pool) wait(ctx context.Context, w *waiter) (*slot, *invocation.Outcome, error) {
	timer := time.NewTimer(p.opts.QueueTimeout)
	defer timer.Stop()
	var cause error
	select {
	case g := <-w.ready:
		return g.slot, g.outcome, g.err
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-timer.C:
		cause = p.overdue()
	}
	if !p.cancel(w) { // granted in the same moment: use it, or give it back
		g := <-w.ready
		if g.slot != nil && ctx.Err() != nil {
			p.unused(g.slot)
			return nil, nil, cause
		}
		return g.slot, g.outcome, g.err
	}
	return nil, nil, cause
}

// unused takes back a slot that was granted to a request which went away.
func (p *Pool) unused(s *slot) {
	if p.atOnce > 1 {
		p.giveBack(s)
		return
	}
	p.idleAgain(s)
}

// overdue is why a request waited for too long: all instances are busy, or none could be started.
func (p *Pool) overdue() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.slots) == 0 && p.starting > 0 {
		return &invocation.UnavailableError{Err: fmt.Errorf(
			"the start of an instance of %s takes longer than %s: lfxctl doctor says whether the engine answers", p.version.Key, p.opts.QueueTimeout)}
	}
	return p.throttled(fmt.Sprintf("no instance of %s was free within %s", p.version.Key, p.opts.QueueTimeout))
}

// cancel takes a waiter out of the queue; false means that a grant is on its way.
func (p *Pool) cancel(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cancelLocked(w)
}

func (p *Pool) cancelLocked(w *waiter) bool {
	if w.taken {
		return false
	}
	p.unlinkLocked(w)
	w.taken = true
	if p.waiting == 0 {
		for _, l := range p.limits() {
			l.forget(p)
		}
	}
	return true
}

// unlinkLocked takes a waiter out of the queue.
func (p *Pool) unlinkLocked(w *waiter) {
	if w.prev == nil {
		p.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		p.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
	p.waiting--
}

// tooLarge says that not even one instance fits into the host's budget; nil when it does.
func (p *Pool) tooLarge() error {
	if p.memory.fits(p) {
		return nil
	}
	return fmt.Errorf("%s needs %d MiB, more than all functions together may have: lower its memory, or raise memory_budget under [functions] in the daemon's configuration",
		p.version.Key, p.version.Config.MemoryMB)
}

// AWS's reasons of a throttle: the function's own cap, and what all functions share.
const (
	reasonFunction = "ReservedFunctionConcurrentInvocationLimitExceeded"
	reasonHost     = "ConcurrentInvocationLimitExceeded"
)

// throttled refuses a request. The reason is the function's own maximum when it has one and has reached it, else
// what the host has.
func (p *Pool) throttled(detail string) error {
	reason := reasonHost
	if p.version.Config.Concurrency.Max > 0 && p.limit.full(p) {
		reason = reasonFunction
	}
	return &invocation.ThrottledError{Reason: reason, RetryAfter: time.Second, Detail: detail}
}

// stopped says whether the function must not run.
func (p *Pool) stopped() bool { return p.version.Config.Concurrency.Stopped || p.limit.stopped.Load() }

// stoppedError refuses a request for a function that must not run. It does not say when to try again: somebody has to
// deploy before.
func (p *Pool) stoppedError() error {
	return &invocation.ThrottledError{Reason: reasonFunction, Detail: fmt.Sprintf("%s is stopped: its concurrency.max is 0", p.version.Key)}
}

// pushLocked appends a waiter to the queue.
func (p *Pool) pushLocked(w *waiter) {
	if p.tail == nil {
		p.head = w
	} else {
		p.tail.next, w.prev = w, p.tail
	}
	p.tail = w
	p.waiting++
}

// popLocked takes the oldest waiter that still waits, or nil. The caller must grant it something.
func (p *Pool) popLocked() *waiter {
	w := p.head
	if w == nil {
		return nil
	}
	p.unlinkLocked(w)
	w.taken = true
	return w
}

// startForQueueLocked starts the instances that the queue asks for, as far as there is room.
func (p *Pool) startForQueueLocked() {
	for range p.missingLocked() {
		if !p.startLocked(true) {
			return
		}
		p.missedLocked()
	}
}

// missingLocked counts the waiters that neither a starting instance nor one that has just answered will
// serve.
func (p *Pool) missingLocked() int {
	if p.starting >= p.waiting || len(p.slots) > 0 && time.Now().Before(p.restAt) {
		return 0
	}
	settling := p.settlingLocked()
	if p.atOnce > 1 {
		settling = p.comingLocked()
	}
	if settling > 0 && !p.recheck {
		p.recheck = true
		p.group.Go(p.startLater)
	}
	if p.atOnce > 1 {
		return p.shortLocked(settling)
	}
	return max(0, p.waiting-p.starting-settling)
}

// startNext starts one instance, for the queue or for min; more says that it is not the last one that is
// missing.
func (p *Pool) startNext() (started, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.missingLocked()
	if n > 0 {
		if started = p.startLocked(true); started {
			p.missedLocked()
		}
		return started, started && n > 1
	}
	n = p.missingMinLocked()
	started = n > 0 && p.startLocked(p.warming.Load() > 0)
	return started, started && n > 1
}

// settlingLocked counts the instances that have answered a moment ago and are not idle yet.
func (p *Pool) settlingLocked() (n int) {
	since := time.Now().Add(-settleTime).UnixNano()
	for s := range p.slots {
		if s.state == busy && s.answered.Load() > since {
			n++
		}
	}
	return n
}

// startLater looks again when the instances that were counted on must have come back.
func (p *Pool) startLater() {
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recheck = false
	if p.ctx.Err() == nil {
		p.startForQueueLocked()
	}
}

// startLocked starts one instance in the background, if there is room; it reports whether it did.
// urgent means that somebody waits for it, for whom idle instances of others give way.
func (p *Pool) startLocked(urgent bool) bool { return p.beginLocked(urgent, time.Time{}) }

// beginLocked is startLocked; standsFor is for a start ahead of need, see slot.
func (p *Pool) beginLocked(urgent bool, standsFor time.Time) bool {
	if p.closed {
		return false
	}
	limits := p.limits()
	for i, l := range limits {
		if !l.take(p, urgent) {
			for _, taken := range limits[:i] {
				taken.put(p)
			}
			return false
		}
	}
	b := &beginning{since: time.Now(), binding: p.binding, standsFor: standsFor}
	p.starts[b] = struct{}{}
	p.starting++
	p.live.Add(1)
	p.group.Go(func() { p.start(b) })
	return true
}

// startedLocked ends the book of a start, good or bad.
func (p *Pool) startedLocked(b *beginning) {
	delete(p.starts, b)
	p.starting--
}

// start makes one instance and serves whoever waits longest.
func (p *Pool) start(b *beginning) {
	err := p.startOne(b, PhaseInit, nil)
	answered := false
	var initErr *InitError
	if errors.As(err, &initErr) {
		// The contract: a failed init runs again inside the first invocation, under the function's
		// timeout, and its result is that invocation's result.
		answered = true
		err = p.startForWaiter(b, err)
	}
	if err != nil { // the room of both tries, which was taken once, is given back when nothing is left of either
		initErr.awaitRemoved()
		var again *InitError
		if errors.As(err, &again) {
			again.awaitRemoved()
		}
	}
	p.finishStart(b, err, answered)
}

// awaitRemoved blocks until nothing is left of the instance. e may be nil.
func (e *InitError) awaitRemoved() {
	if e != nil && e.Removed != nil {
		<-e.Removed
	}
}

// startForWaiter repeats the init on behalf of the oldest waiter; without one the first error stands.
func (p *Pool) startForWaiter(b *beginning, first error) error {
	p.mu.Lock()
	w := p.popLocked()
	p.mu.Unlock()
	if w == nil {
		return first
	}
	err := p.startOne(b, PhaseInvoke, w)
	if err == nil {
		return nil
	}
	var initErr *InitError
	if errors.As(err, &initErr) && initErr.Outcome != nil {
		p.grant(w, grant{outcome: initErr.Outcome})
		return err
	}
	p.grant(w, grant{err: &invocation.UnavailableError{Err: err}})
	return err
}

// startOne starts a worker and puts it to use: for the given waiter, else for the oldest one.
func (p *Pool) startOne(b *beginning, phase InitPhase, w *waiter) error {
	s := &slot{state: busy, used: time.Now(), begun: time.Now(), standsFor: b.standsFor}
	ready := make(chan struct{})
	p.mu.Lock()
	req := StartRequest{Version: p.version, Binding: p.binding, Phase: phase, Events: p.events(s, ready)}
	p.mu.Unlock()
	if w != nil {
		req.For = w.req
		req.Binding = w.req.Binding
	}
	s.binding = req.Binding
	worker, err := p.starter.Start(p.ctx, req)
	if err != nil {
		return err
	}
	if w == nil { // idle in a moment: until then nobody must start another one for its waiter
		s.answered.Store(time.Now().UnixNano())
	}
	p.memory.ready(p)
	took := time.Since(s.begun)
	p.mu.Lock()
	s.worker, s.ready = worker, time.Now()
	if w != nil && p.atOnce > 1 { // the first next is for w
		s.running, s.most = 1, 1
	}
	p.slots[s] = struct{}{}
	p.startedLocked(b)
	p.observeStartLocked(took)
	p.failures, p.lastErr, p.restAt = 0, nil, time.Time{}
	closed := p.closed && w == nil
	if closed {
		p.leaveLocked(s)
	}
	p.notifyLocked()
	p.mu.Unlock()
	p.workers.Add(1)
	p.opts.Observer.Started(p.version, took, worker.Info().Phases)
	close(ready)
	switch {
	case w != nil:
		p.grant(w, grant{slot: s})
	case closed:
		p.end(s, EndRelease)
	default:
		p.idleAgain(s)
	}
	return nil
}

// events makes the callbacks of a slot. They wait until the slot is in place.
func (p *Pool) events(s *slot, ready <-chan struct{}) Events {
	return Events{
		Idle:  func() { <-ready; p.idleAgain(s) },
		Dying: func() { <-ready; p.dying(s) },
		Gone:  func() { <-ready; p.gone(s) },
	}
}

// finishStart settles the books after a start that may have failed, and decides what comes next.
// A fault of the function was answered to the request it belongs to. A fault of the platform is
// answered to the oldest request when no instance lives that could serve it; else the queue is left
// to those that live for a while, so that a start that fails at once is not repeated at once.
func (p *Pool) finishStart(b *beginning, err error, answered bool) {
	if err == nil {
		return
	}
	p.mu.Lock()
	p.startedLocked(b)
	p.live.Add(-1)
	p.failures++
	p.lastErr = err
	p.notifyLocked()
	p.retryAt = time.Now().Add(backoff(p.failures))
	var refuse *waiter
	switch {
	case answered:
	case len(p.slots) == 0:
		refuse = p.popLocked()
	default:
		p.restAt = p.retryAt
	}
	p.mu.Unlock()
	p.opts.Observer.StartFailed(p.version)
	for _, l := range p.limits() {
		l.put(p)
	}
	p.offer()
	p.kick()
	if refuse != nil {
		p.grant(refuse, grant{err: &invocation.UnavailableError{Err: err}})
	}
	p.log.Warn("instance did not start", "function", p.version.Key.String(), "version", p.version.Number, "error", logged(err))
}

// logged is what the daemon's log says of a failed start: of a fault of the function only its class,
// because the rest is the function's own text.
func logged(err error) error {
	var initErr *InitError
	if errors.As(err, &initErr) && initErr.Outcome != nil && initErr.Outcome.ErrorType != "" {
		return errors.New("initialisation failed: " + initErr.Outcome.ErrorType)
	}
	return err
}

// offer gives room that became free, or an idle instance, to the pools that want it.
func (p *Pool) offer() {
	for _, l := range p.limits() {
		l.offer(p)
	}
}

// starved says whether a busy instance should give way to another pool.
func (p *Pool) starved() bool {
	return p.warming.Load() == 0 && (p.limit.starved(p) || p.host.starved(p) || p.memory.starved(p))
}

// backoff returns the pause before the next warm start after n failures in a row: 1 s to 1 min.
func backoff(n int) time.Duration {
	return min(time.Second<<min(n-1, 6), time.Minute)
}

// idleAgain hands a free slot to the oldest waiter, or puts it on the idle stack.
func (p *Pool) idleAgain(s *slot) {
	if p.atOnce > 1 {
		p.placeAgain(s)
		return
	}
	now := time.Now()
	p.mu.Lock()
	if s.state == leaving {
		p.mu.Unlock()
		return
	}
	s.used = now
	if p.head != nil && p.starved() {
		p.leaveLocked(s)
		p.mu.Unlock()
		p.end(s, EndRoom)
		return
	}
	if w := p.popLocked(); w != nil {
		s.standsFor = time.Time{}
		s.takeLocked()
		s.binding = w.req.Binding
		p.mu.Unlock()
		p.grant(w, grant{slot: s})
		return
	}
	if p.closed {
		p.leaveLocked(s)
		p.mu.Unlock()
		p.end(s, EndRelease)
		return
	}
	s.state = idle
	p.idle = append(p.idle, s)
	p.mu.Unlock()
	p.offer()
}

// dying takes a slot out of use and replaces it when somebody waits or min asks for it.
func (p *Pool) dying(s *slot) {
	p.mu.Lock()
	unasked := s.state != leaving
	p.leaveLocked(s)
	p.mu.Unlock()
	if unasked {
		p.opts.Observer.Ended(p.version, EndFailed)
	}
}

// leaveLocked marks a slot as leaving and removes it from the idle stack.
func (p *Pool) leaveLocked(s *slot) {
	if s.state == idle {
		p.idle = without(p.idle, s)
	}
	if s.open {
		p.open, s.open = without(p.open, s), false
	}
	if s.callOff != nil {
		s.callOff()
	}
	if s.state != leaving {
		s.state = leaving
		p.ending++
		for _, l := range p.limits() {
			l.leaving(p)
		}
	}
}

// gone forgets a slot whose instance is removed, and starts what is missing.
func (p *Pool) gone(s *slot) {
	p.mu.Lock()
	p.leaveLocked(s)
	delete(p.slots, s)
	p.ending--
	p.live.Add(-1)
	p.notifyLocked()
	p.mu.Unlock()
	for _, l := range p.limits() {
		l.left(p)
	}
	p.memory.gone(s.freed.Load())
	p.offer() // those that wait for the room come before this pool's own min
	p.kick()
	p.workers.Done()
}

// kick starts whatever the queue and min ask for.
func (p *Pool) kick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.startForQueueLocked()
	p.keepMinLocked()
}

// notifyLocked wakes those who wait for a change (warm).
func (p *Pool) notifyLocked() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// warm keeps n instances from now on and blocks until they are ready, a start fails or ctx ends.
// Where they do not fit beside those of the version before, those give way one by one.
func (p *Pool) warm(ctx context.Context, n int) error {
	p.warming.Add(1)
	defer p.warming.Add(-1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.min, p.failures, p.lastErr = n, 0, nil
	p.keepMinLocked()
	for p.aliveLocked() < n && p.lastErr == nil {
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		p.mu.Lock()
		if ctx.Err() != nil {
			return p.warmErrorLocked(context.Cause(ctx))
		}
		p.keepMinLocked()
	}
	return p.lastErr
}

// warmErrorLocked says why instances are missing when the time for them is over.
func (p *Pool) warmErrorLocked(cause error) error {
	if p.starting > 0 || p.closed {
		return cause
	}
	return fmt.Errorf("%w: there is no room for more than %d of %d instances: raise the function's concurrency.max, or memory_budget under [functions] in the daemon's configuration",
		cause, p.aliveLocked(), p.min)
}

// setMin changes how many instances are kept.
func (p *Pool) setMin(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.min = n
}

// keepMinLocked starts instances up to min, unless starts failed just now.
func (p *Pool) keepMinLocked() {
	for range p.missingMinLocked() {
		if !p.startLocked(p.warming.Load() > 0) {
			return
		}
	}
}

// missingMinLocked counts the instances that min asks for, none when starts failed just now.
func (p *Pool) missingMinLocked() int {
	if p.failures > 0 && time.Now().Before(p.retryAt) {
		return 0
	}
	return max(0, p.min-p.starting-p.aliveLocked())
}

// aliveLocked counts the workers that are not leaving.
func (p *Pool) aliveLocked() int { return len(p.slots) - p.ending }

// sweep closes workers that were idle for longer than the timeout, freezes those that are idle for a while, keeps min warm,
// and retries the starts that the queue still needs.
func (p *Pool) sweep(now time.Time, scarcity float64) {
	p.mu.Lock()
	p.scarcity = scarcity
	var old []*slot
	for len(p.idle) > 0 && p.aliveLocked() > p.min && p.overLocked(p.idle[0], now) {
		s := p.idle[0]
		p.gaveUpLocked(s)
		p.leaveLocked(s)
		old = append(old, s)
	}
	p.keepMinLocked()
	p.startForQueueLocked()
	p.prewarmLocked(now)
	p.freezeLocked(now)
	p.mu.Unlock()
	for _, s := range old {
		p.end(s, EndIdle)
	}
}

// close ends the pool: idle workers go now, busy ones after their invocation, waiters are refused.
func (p *Pool) close() {
	p.mu.Lock()
	p.closed = true
	if p.expiry != nil {
		p.expiry.Stop()
	}
	p.min = 0
	old := slices.Clone(p.idle)
	for _, s := range old {
		p.leaveLocked(s)
	}
	for _, s := range slices.Clone(p.open) { // these end with what they run
		p.openLocked(s)
	}
	p.notifyLocked()
	var refused []*waiter
	for w := p.popLocked(); w != nil; w = p.popLocked() {
		refused = append(refused, w)
	}
	p.mu.Unlock()
	for _, l := range p.limits() {
		l.forget(p)
	}
	for _, s := range old {
		p.end(s, EndRelease)
	}
	for _, w := range refused {
		p.grant(w, grant{err: &invocation.UnavailableError{Err: errClosed}})
	}
}

// kill ends every worker now, busy ones too.
func (p *Pool) kill(reason string) {
	p.mu.Lock()
	all := make([]*slot, 0, len(p.slots))
	for s := range p.slots {
		p.leaveLocked(s)
		all = append(all, s)
	}
	p.mu.Unlock()
	for _, s := range all {
		s.worker.Close(reason)
	}
}

// Stats is what a pool looks like now.
type Stats struct {
	Instances, Idle, Busy, Starting, Queued int
	// InFlight counts the invocations in progress; above Busy where an instance runs several.
	InFlight int
}

// Stats counts the pool's instances and waiters.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := Stats{Starting: p.starting, Queued: p.waiting, Instances: len(p.slots) + p.starting}
	for s := range p.slots {
		switch s.state {
		case idle:
			st.Idle++
		case busy:
			st.Busy++
		}
		st.InFlight += p.inFlightLocked(s)
	}
	return st
}

// States of instances for people.
const (
	StateStarting = "starting"
	StateIdle     = "idle"
	StateFrozen   = "frozen" // idle, and its processes are stopped
	StateBusy     = "busy"
	StateStopping = "stopping"
)

// Instance is one instance for people. One that starts has neither ID nor address yet.
type Instance struct {
	WorkerInfo
	Version *function.Version
	State   string
	// Release is the number of the release of the invocation in progress or of the last one, else of the one that started it.
	Release int
	// InFlight counts the invocations in progress.
	InFlight int
	// MemoryBytes is what the instance uses now, zero when that is not known.
	MemoryBytes int64
	Used        time.Time
}

// Instances lists the pool's workers and starts. It reads the memory of each.
func (p *Pool) Instances() []Instance {
	p.mu.Lock()
	out := make([]Instance, 0, len(p.slots)+len(p.starts))
	slots := make([]*slot, 0, len(p.slots))
	for s := range p.slots {
		in := Instance{Version: p.version, State: s.stateName(), Release: releaseNumber(s.binding), Used: s.used}
		in.InFlight = p.inFlightLocked(s)
		out, slots = append(out, in), append(slots, s)
	}
	for b := range p.starts {
		out = append(out, Instance{
			WorkerInfo: WorkerInfo{Started: b.since}, Version: p.version, State: StateStarting, Release: releaseNumber(b.binding),
		})
	}
	p.mu.Unlock()
	for i, s := range slots {
		out[i].WorkerInfo = s.worker.Info()
		out[i].MemoryBytes = s.memory()
	}
	return out
}

// inFlightLocked counts the invocations that a slot runs.
func (p *Pool) inFlightLocked(s *slot) int {
	switch {
	case p.atOnce > 1:
		return s.running
	case s.state == busy:
		return 1
	}
	return 0
}

// stateName is the slot's state for people. Pool.mu is held.
func (s *slot) stateName() string {
	switch {
	case s.state == leaving:
		return StateStopping
	case s.state == busy:
		return StateBusy
	case s.cold && s.callOff == nil:
		return StateFrozen
	}
	return StateIdle
}

// releaseNumber is the number of a release, zero without one.
func releaseNumber(b invocation.Binding) int {
	if b == nil {
		return 0
	}
	return b.ReleaseNumber()
}
