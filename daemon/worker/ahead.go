package worker

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/runtime/instance"
)

// What is made before there is a request: networks, which any version can use, and spares, which are instances of one version that
// wait for the word to start its runtime. One loop makes both, one at a time and behind the starts that somebody
// waits for. A spare is watched like any instance: one that ends is removed and never handed out. Spares go when their
// version is routed no more, when memory is short, and when the daemon stops. They stay while containerd is away: taking one does not
// need it, which makes them worth the more then.

// Networks makes networks ahead; *instance.Manager is one. Its terms are those of that.
type Networks interface {
	NetworksAhead() int
	MakeNetwork(ctx context.Context) error
	DropNetworks(ctx context.Context) error
}

// Ahead says what is made before there is a request. The zero value makes nothing.
type Ahead struct {
	// Networks is how many networks stand ready; Maker makes them.
	Networks int
	Maker    Networks
	// Spares is how many spares every routed version has, MaxSpares the most on the host.
	Spares    int
	MaxSpares int
	// Routed lists the versions that a request may be routed to now.
	Routed func() []*function.Version
	// Room says whether the host has memory for spares; nil means always. When it has none they are dropped.
	Room func() bool
}

const (
	// lookInterval is how often the loop compares what stands with what should.
	lookInterval = time.Second
	// staleAfter is how long a version was not asked for before its spare may give way to that of another.
	staleAfter = 10 * time.Minute
	// firstRetry and lastRetry bound the wait after something could not be made.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// pressurePause is how long nothing is made after DropSpares.
	pressurePause = 30 * time.Second
)

// spareKey names a version.
type spareKey struct {
	function.Key
	number int
}

func keyOf(v *function.Version) spareKey { return spareKey{v.Key, v.Number} }

// spares are the instances that wait.
type spares struct {
	kick chan struct{} // holds one: look again

	mu     sync.Mutex // guards what follows
	ready  map[spareKey][]*Worker
	wanted map[spareKey]time.Time // when a start was last asked for
	trials map[spareKey]trial     // of what could not be made; the zero key is that of networks
	paused time.Time              // nothing is made before
	closed bool
}

// trial is what is known of something that could not be made.
type trial struct {
	at   time.Time     // when to try again
	wait time.Duration // what was waited
}

func newSpares() *spares {
	return &spares{
		kick: make(chan struct{}, 1), ready: map[spareKey][]*Worker{}, wanted: map[spareKey]time.Time{}, trials: map[spareKey]trial{},
		closed: true, // until Run
	}
}

// look makes the loop compare again.
func (p *spares) look() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// take returns the newest spare of a version, which is nobody else's from then on; nil when there is none.
func (p *spares) take(v *function.Version) *Worker {
	k := keyOf(v)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.wanted[k] = time.Now()
	p.look()
	all := p.ready[k]
	if len(all) == 0 {
		return nil
	}
	w := all[len(all)-1]
	p.removeLocked(w)
	return w
}

// put makes w a spare; false when there are to be none any more.
func (p *spares) put(w *Worker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	k := keyOf(w.version)
	p.ready[k] = append(p.ready[k], w)
	return true
}

// remove takes a spare out; false when somebody else did before.
func (p *spares) remove(w *Worker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.removeLocked(w)
}

func (p *spares) removeLocked(w *Worker) bool {
	k := keyOf(w.version)
	i := slices.Index(p.ready[k], w)
	if i < 0 {
		return false
	}
	if p.ready[k] = slices.Delete(p.ready[k], i, i+1); len(p.ready[k]) == 0 {
		delete(p.ready, k)
	}
	close(w.taken)
	return true
}

// all lists the spares, oldest first.
func (p *spares) all() []*Worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*Worker
	for _, ws := range p.ready {
		out = append(out, ws...)
	}
	slices.SortFunc(out, func(a, b *Worker) int { return a.made.Compare(b.made) })
	return out
}

// failed notes that something could not be made, and reports whether that is new; made that it could.
func (p *spares) failed(k spareKey) (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.trials[k]
	first = t.wait == 0
	t.wait = min(max(2*t.wait, firstRetry), lastRetry)
	t.at = time.Now().Add(t.wait)
	p.trials[k] = t
	return first
}

func (p *spares) made(k spareKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.trials, k)
}

// may says whether something may be tried now.
func (p *spares) mayLocked(k spareKey, now time.Time) bool {
	return now.After(p.paused) && !now.Before(p.trials[k].at)
}

// next chooses the version that a spare is made for, nil when none is missing: of those that lack one, that which was asked for
// last. With max spares there already, give is the one that gives way for it, if its version was not asked for in a long time.
func (p *spares) next(routed []*function.Version, each, most int) (v *function.Version, give *Worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	total := 0
	for _, ws := range p.ready {
		total += len(ws)
	}
	var lack []*function.Version
	for _, v := range routed {
		if k := keyOf(v); len(p.ready[k]) < eachOf(v, each) && p.mayLocked(k, now) {
			lack = append(lack, v)
		}
	}
	if len(lack) == 0 {
		return nil, nil
	}
	v = slices.MinFunc(lack, func(a, b *function.Version) int {
		return cmp.Or(p.wanted[keyOf(b)].Compare(p.wanted[keyOf(a)]), cmp.Compare(a.Key.String(), b.Key.String()), cmp.Compare(a.Number, b.Number))
	})
	if total < most {
		return v, nil
	}
	give = p.stalestLocked()
	if give == nil || now.Sub(p.usedLocked(give)) < staleAfter || !p.wanted[keyOf(v)].After(p.usedLocked(give)) {
		return nil, nil
	}
	return v, give
}

// eachOf is how many spares a version has: no more than it may have instances.
func eachOf(v *function.Version, each int) int {
	if most := v.Config.Concurrency.Max; most > 0 {
		return min(each, most)
	}
	return each
}

// usedLocked is when the version of a spare was last asked for, at the earliest when the spare was made.
func (p *spares) usedLocked(w *Worker) time.Time {
	if t := p.wanted[keyOf(w.version)]; t.After(w.made) {
		return t
	}
	return w.made
}

// stalestLocked is the spare whose version was not asked for for the longest time.
func (p *spares) stalestLocked() (w *Worker) {
	for _, ws := range p.ready {
		if w == nil || p.usedLocked(ws[0]).Before(p.usedLocked(w)) {
			w = ws[0]
		}
	}
	return w
}

// forget drops what is noted about versions that are not routed, and lists their spares.
func (p *spares) forget(routed []*function.Version) (gone []*Worker) {
	keep := make(map[spareKey]bool, len(routed)+1)
	keep[spareKey{}] = true
	for _, v := range routed {
		keep[keyOf(v)] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, ws := range p.ready {
		if !keep[k] {
			gone = append(gone, ws...)
		}
	}
	for k := range p.wanted {
		if !keep[k] {
			delete(p.wanted, k)
		}
	}
	for k := range p.trials {
		if !keep[k] {
			delete(p.trials, k)
		}
	}
	return gone
}

// open lets Run fill up; close refuses what comes later.
func (p *spares) open(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = !yes
}

// Run makes networks and spares ahead until ctx ends, then removes what nobody has taken. Close the pools after it.
func (s *Starter) Run(ctx context.Context) {
	s.spares.open(true)
	defer s.dropAhead()
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		s.trim()
		job := s.nextJob()
		if job != nil && s.calm.wait(ctx) == nil {
			if job = s.nextJob(); job != nil { // the wait may have been long
				s.do(ctx, job)
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-s.spares.kick:
		case <-tick.C:
		}
	}
}

// job makes one thing ahead.
type job struct {
	key spareKey // of the spare's version, zero for a network
	run func(context.Context) error
}

// nextJob returns what is missing, networks first: they serve every version.
func (s *Starter) nextJob() *job {
	a := s.opts.Ahead
	if a.Maker != nil && a.Maker.NetworksAhead() < a.Networks && s.spares.may(spareKey{}) {
		return &job{run: a.Maker.MakeNetwork}
	}
	if a.Spares == 0 || a.MaxSpares == 0 || a.Routed == nil || a.Room != nil && !a.Room() {
		return nil
	}
	v, give := s.spares.next(a.Routed(), a.Spares, a.MaxSpares)
	if give != nil {
		s.drop(give, "another version is asked for more")
	}
	if v == nil {
		return nil
	}
	return &job{key: keyOf(v), run: func(ctx context.Context) error { return s.makeSpare(ctx, v) }}
}

func (p *spares) may(k spareKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mayLocked(k, time.Now())
}

// do runs a job in its turn with the starts.
func (s *Starter) do(life context.Context, j *job) {
	if s.starts.Acquire(life, 1) != nil {
		return
	}
	defer s.starts.Release(1)
	ctx, cancel := context.WithTimeoutCause(life, s.opts.CreateTimeout, fmt.Errorf("it was not made within %s", s.opts.CreateTimeout))
	defer cancel()
	err := j.run(ctx)
	if err == nil {
		s.spares.made(j.key)
		return
	}
	if life.Err() == nil && s.spares.failed(j.key) {
		s.opts.Log.Warn("what makes the next start quick cannot be made; it is tried again", "function", j.key.Key.String(), "error", err)
	}
}

// makeSpare makes one spare. It does not use up a network made ahead: a start that somebody waits for needs that more.
func (s *Starter) makeSpare(ctx context.Context, v *function.Version) error {
	w := s.newWorker(v)
	w.held, w.taken = true, make(chan struct{})
	w.id = instance.RandomID()
	if err := s.createOnce(ctx, w); err != nil {
		return err
	}
	w.made = time.Now()
	if !s.spares.put(w) {
		w.destroy()
		return nil
	}
	s.group.Go(func() { // ends when the spare ends or is taken
		select {
		case <-w.inst.Exited():
			s.drop(w, "it ended")
			s.spares.look()
		case <-w.taken:
		}
	})
	return nil
}

// drop removes a spare in the background, unless somebody took it.
func (s *Starter) drop(w *Worker, reason string) {
	if !s.spares.remove(w) {
		return
	}
	s.opts.Log.Debug("spare instance goes", "instance", w.id, "function", w.version.Key.String(), "reason", reason)
	s.group.Go(w.destroy)
}

// trim drops spares that should not be there.
func (s *Starter) trim() {
	a := s.opts.Ahead
	if a.Routed == nil {
		return
	}
	for _, w := range s.spares.forget(a.Routed()) {
		s.drop(w, "its version is not routed")
	}
	if a.Room != nil && len(s.spares.all()) > 0 && !a.Room() {
		s.DropSpares("memory is short")
	}
}

// DropSpares removes all spares, and makes none for a while: for when memory is short.
func (s *Starter) DropSpares(reason string) {
	s.spares.mu.Lock()
	s.spares.paused = time.Now().Add(pressurePause)
	s.spares.mu.Unlock()
	for _, w := range s.spares.all() {
		s.drop(w, reason)
	}
}

// giveWay removes the oldest spare, for a start that finds no room for its instance, and makes none for a while; false when
// there is none.
func (s *Starter) giveWay() bool {
	s.spares.mu.Lock()
	s.spares.paused = time.Now().Add(pressurePause)
	s.spares.mu.Unlock()
	for _, w := range s.spares.all() {
		if s.spares.remove(w) {
			w.destroy()
			return true
		}
	}
	return false
}

// dropAhead ends Run.
func (s *Starter) dropAhead() {
	s.spares.open(false)
	for _, w := range s.spares.all() {
		s.drop(w, "the daemon stops")
	}
	if m := s.opts.Ahead.Maker; m != nil {
		ctx, cancel := context.WithTimeout(context.Background(), destroyTimeout)
		defer cancel()
		if err := m.DropNetworks(ctx); err != nil {
			s.opts.Log.Error("sandboxes made ahead were not removed whole; reconciliation goes on with them", "error", err)
		}
	}
}

// Spare is one spare for people.
type Spare struct {
	Version *function.Version
	ID      string
	Address netip.Addr
	// Made is when it was ready.
	Made time.Time
	// MemoryBytes is what it uses, not what it may use, 0 when that is not known.
	MemoryBytes uint64
	// Ahead is how long the making took.
	Ahead time.Duration
}

// Spares lists the spares, oldest first.
func (s *Starter) Spares() []Spare {
	var out []Spare
	for _, w := range s.spares.all() {
		out = append(out, Spare{
			Version: w.version, ID: w.id, Address: w.inst.Address(), Made: w.made,
			MemoryBytes: w.inst.MemoryBytes(), Ahead: w.inst.Phases().Total(),
		})
	}
	return out
}

// wake makes a spare the worker of a start: the Runtime API and the log stand before the word is said.
func (w *Worker) wake() error {
	w.serve(w.listener)
	if err := w.capture(); err != nil {
		return err
	}
	w.started = time.Now()
	err := w.inst.Begin()
	w.begin = time.Since(w.started)
	return err
}

// calm tells when nobody's start is under way, so that what is made ahead does not slow it down.
type calm struct {
	mu      sync.Mutex
	busy    int           // starts from their beginning to the end of their init
	ended   time.Time     // when busy became zero
	changed chan struct{} // closed when busy becomes zero; nil when nobody waits
}

const (
	// calmFor is how long nothing may have started before something is made ahead: a function that has just been started
	// runs its first invocation.
	calmFor = 50 * time.Millisecond
	// calmPatience bounds the wait for calm on a host that always starts something.
	calmPatience = 2 * time.Second
)

func (c *calm) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy++
}

func (c *calm) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy--; c.busy > 0 {
		return
	}
	c.ended = time.Now()
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// rest says how long to wait, or on what.
func (c *calm) rest() (time.Duration, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy == 0 {
		return calmFor - time.Since(c.ended), nil
	}
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return calmPatience, c.changed
}

// wait blocks until it is calm, patience ends, or ctx does, which is its error.
func (c *calm) wait(ctx context.Context) error {
	over := time.NewTimer(calmPatience)
	defer over.Stop()
	for ctx.Err() == nil {
		rest, changed := c.rest()
		if rest <= 0 {
			return nil
		}
		timer := time.NewTimer(rest)
		select {
		case <-ctx.Done():
		case <-over.C:
			timer.Stop()
			return ctx.Err()
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return context.Cause(ctx)
}
