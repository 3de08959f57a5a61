package worker

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/logs"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/runtime/rapi"
)

// crowd is what a Worker has whose instance runs several invocations at once (concurrency.per_instance): it stands for gate,
// cur, count and clock, which are not used then. Each invocation has a clock of its own and ends alone; a timeout
// is that of one, and the instance goes on.
type crowd struct {
	mu    sync.Mutex // guards what follows; nothing is waited for with it
	runs  map[string]*run
	begun bool // there was an invocation
	// release is that of the newest invocation: of all of them, since the pool is that of one.
	release int
	// early are the next calls that were parked before the pool had the worker; started says that it has it.
	early   int
	started bool
	// lost says that an invocation ended without an answer: its code may still run, so that not even a single
	// invocation in progress is known to be the one that prints and calls.
	lost bool
	// recent are the request IDs that lines may name, the newest at last.
	recent []string
	// check looks whether a runtime whose invocations have all ended came back for more.
	check *time.Timer
	dead  bool
	empty chan struct{} // closed when dead and no invocation is in progress
}

// recentIDs is how many request IDs of an instance are remembered for its lines.
const recentIDs = 128

func newCrowd(limit int) *crowd {
	return &crowd{runs: make(map[string]*run, limit), empty: make(chan struct{})}
}

// start says that the pool has the worker, and returns how many next calls it was not told of.
func (c *crowd) start() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started = true
	return c.early
}

// parked notes a next call and reports whether the pool is to be told.
func (c *crowd) parked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.started {
		c.early++
	}
	return c.started
}

// openOne begins a run; nil when the worker is at its end, or has an invocation of this request.
func (w *Worker) openOne(req *invocation.Request) *run {
	c := w.crowd
	r := &run{w: w, req: req, start: time.Now()}
	c.mu.Lock()
	if c.dead || c.runs[req.ID] != nil {
		c.mu.Unlock()
		return nil
	}
	r.first, c.begun = !c.begun, true
	if req.Binding != nil {
		c.release = req.Binding.ReleaseNumber()
	}
	c.runs[req.ID] = r
	if len(c.recent) >= recentIDs {
		c.recent = slices.Delete(c.recent, 0, len(c.recent)-recentIDs+1)
	}
	c.recent = append(c.recent, req.ID)
	c.mu.Unlock()
	if r.first {
		w.firstEvent(r)
	}
	if w.inside == req { // another one may have come first
		r.start = w.begun
	}
	w.tailFor(r)
	return r
}

// invokeOne is Invoke. nil also means that no next was parked, which the pool believed: the others go on.
func (w *Worker) invokeOne(req *invocation.Request) *invocation.Outcome {
	r := w.openOne(req)
	if r == nil {
		return nil
	}
	r.ended = make(chan ending, 1)
	e := ending{err: rapi.ErrNotDelivered}
	if w.settledOne(r) && w.handOutOne(r) == nil {
		e = <-r.ended
	}
	return w.concludeOne(r, e.res, e.err)
}

// beginOne is Begin.
func (w *Worker) beginOne(req *invocation.Request, done pool.Done) bool {
	if !w.api.Idle() {
		return false
	}
	r := w.openOne(req)
	if r == nil {
		done.Ended(nil)
		return true
	}
	r.completion = done
	if w.handOutOne(r) != nil {
		w.concludeOne(r, nil, rapi.ErrNotDelivered)
	}
	return true
}

// settledOne reports whether a next is parked. Only a runtime without any invocation is waited for, as settled does.
func (w *Worker) settledOne(r *run) bool {
	if w.api.Idle() {
		return true
	}
	if !w.crowd.alone(r) {
		return false
	}
	ctx, cancel := context.WithDeadlineCause(context.Background(), r.start.Add(w.version.Config.Timeout), errTimeout)
	defer cancel()
	err := w.api.WaitIdle(ctx)
	if errors.Is(err, errTimeout) {
		w.die(string(logs.StatusTimeout))
	}
	return err == nil
}

// alone reports whether no invocation but r is in progress; one whose end is being told is not.
func (c *crowd) alone(r *run) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range c.runs {
		if other != r && !other.answered.Load() {
			return false
		}
	}
	return true
}

// handOutOne is handOut. The clock is set when the event is on its way, unless the invocation has ended by then.
func (w *Worker) handOutOne(r *run) error {
	w.event(r)
	if err := w.api.Start(&r.inv, r); err != nil {
		return err
	}
	w.crowd.mu.Lock()
	defer w.crowd.mu.Unlock()
	if w.crowd.runs[r.req.ID] == r {
		r.clock = time.AfterFunc(time.Until(r.inv.Deadline), func() { w.api.Cancel(&r.inv, errTimeout) }) // stopped by leave
	}
	return nil
}

// concludeOne is conclude. What the function printed is not waited for: it belongs to no invocation for certain.
func (w *Worker) concludeOne(r *run, res *rapi.Result, err error) *invocation.Outcome {
	out := w.outcome(r, res, err)
	if out != nil {
		r.duration = min(time.Since(r.start), w.version.Config.Timeout)
		if r.first {
			w.handler.Store(int64(r.duration))
		}
		w.note(r)
		if r.tail != nil {
			w.report(r)
			out.LogTail = r.tail.Bytes()
		}
	}
	r.answered.Store(true)
	if r.completion != nil {
		r.completion.Ended(out)
	}
	if out != nil && r.tail == nil {
		w.report(r)
	}
	w.leave(r)
	return out
}

// leave takes an invocation out that has ended. With the last one the runtime must come back for more.
func (w *Worker) leave(r *run) {
	c := w.crowd
	timedOut := r.status == logs.StatusTimeout
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.runs, r.req.ID)
	c.lost = c.lost || timedOut
	if r.clock != nil {
		r.clock.Stop()
	}
	switch {
	case len(c.runs) > 0:
	case c.dead:
		close(c.empty)
	case w.api.Idle():
	case timedOut:
		w.die(string(logs.StatusTimeout)) // every place is taken by code that runs on
	default:
		c.checkAfter(max(w.version.Config.Timeout-time.Since(r.start), 0)+settleTime, w.checkBack)
	}
}

// checkAfter sets the clock of check. mu is held.
func (c *crowd) checkAfter(d time.Duration, f func()) {
	if c.check == nil {
		c.check = time.AfterFunc(d, f) // stopped by end
		return
	}
	c.check.Reset(d)
}

// checkBack replaces an instance whose runtime has answered everything and did not come back for more.
func (w *Worker) checkBack() {
	c := w.crowd
	c.mu.Lock()
	gone := len(c.runs) == 0 && !c.dead && !w.api.Idle()
	c.mu.Unlock()
	if gone {
		w.s.opts.Log.Info("the runtime answered and did not come back; its instance is replaced", "instance", w.id, "function", w.version.Key.String())
		w.die(string(logs.StatusTimeout))
	}
}

// end refuses further invocations and waits for those in progress, which see that the process has ended.
func (c *crowd) end() {
	c.mu.Lock()
	if !c.dead {
		c.dead = true
		if len(c.runs) == 0 {
			close(c.empty)
		}
	}
	if c.check != nil {
		c.check.Stop()
	}
	c.mu.Unlock()
	<-c.empty
}

// caller is whom a call belongs to. The release is that of all invocations in progress, since the pool is that of one release
// then; which of several invocations makes the call is not known.
func (c *crowd) caller(origin invocation.Binding) invocation.Caller {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, r := range c.runs {
		if r.req.Binding == nil {
			continue
		}
		if len(c.runs) == 1 && !c.lost {
			return invocation.Caller{Binding: r.req.Binding, RequestID: id}
		}
		return invocation.Caller{Binding: r.req.Binding}
	}
	return invocation.Caller{Binding: origin}
}

// print stores a line of the function's. It belongs to the request that it names itself, as the runtimes' JSON lines do,
// if this instance has or had it; else to none.
func (w *Worker) print(stream, text string) {
	e := w.entry(stream, text)
	e.Release = w.crowd.releaseNumber(w.origin)
	if len(text) > 0 && text[0] == '{' {
		var line struct {
			RequestID string `json:"requestId"`
		}
		if json.Unmarshal([]byte(text), &line) == nil && line.RequestID != "" && w.crowd.knows(line.RequestID) {
			e.RequestID = line.RequestID
		}
	}
	w.s.opts.Logs.Append(e)
}

// releaseNumber is the release of a line, that of the start before there was an invocation.
func (c *crowd) releaseNumber(origin invocation.Binding) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun || origin == nil {
		return c.release
	}
	return origin.ReleaseNumber()
}

func (c *crowd) knows(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.recent, id)
}
