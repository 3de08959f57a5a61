package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/runtime/instance"
)

// keep runs the starter's loop with a; the function returned ends it and waits.
func (w *world) keep(a Ahead) (stop func()) {
	w.t.Helper()
	w.opts.Ahead = a
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // stop waits for it
		defer close(done)
		w.Run(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	w.t.Cleanup(stop)
	return stop
}

// oneVersion routes to the world's version and has one spare of it.
func (w *world) oneVersion() Ahead {
	v := w.version
	return Ahead{Spares: 1, MaxSpares: 4, Routed: func() []*function.Version { return []*function.Version{v} }}
}

// until polls.
func (w *world) until(what string, f func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: not within twenty seconds", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// spare waits for the world's one spare and returns its instance.
func (w *world) spare() *fakeInstance {
	w.t.Helper()
	w.until("a spare", func() bool { return len(w.Spares()) == 1 })
	return w.creator.instance(w.t)
}

func TestSpareIsTaken(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(e event) string { return e.id }) })
	stop := w.keep(w.oneVersion())
	in := w.spare()
	select {
	case <-in.word:
		t.Fatal("the spare was begun although nobody wants it")
	default:
	}
	wk := w.worker()
	stop() // no other spare is made meanwhile
	if wk.ID() != in.spec.ID {
		t.Errorf("the start made %s and did not take the spare %s", wk.ID(), in.spec.ID)
	}
	if out := wk.Invoke(request("r-1")); text(out) != "r-1||" {
		t.Errorf("outcome %s", text(out))
	}
	p := wk.Info().Phases
	if p["ahead"] < time.Hour || p["create"] != 0 || p["init"] == 0 || p["handler"] == 0 {
		t.Errorf("phases %v: want ahead of the spare, init and handler", p)
	}
	wk.Close("spindown")
	w.ended()
}

func TestSpareIsMadeAgainAndDropped(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	routed := []*function.Version{w.version}
	var mu sync.Mutex
	a := w.oneVersion()
	a.Routed = func() []*function.Version {
		mu.Lock()
		defer mu.Unlock()
		return routed
	}
	w.keep(a)
	first := w.spare()
	w.worker()
	w.until("another spare", func() bool { s := w.Spares(); return len(s) == 1 && s[0].ID != first.spec.ID })
	mu.Lock()
	routed = nil
	mu.Unlock()
	w.until("no spare of a version that is not routed", func() bool { return len(w.Spares()) == 0 })
}

func TestDeadSpareIsNotHandedOut(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	w.keep(w.oneVersion())
	in := w.spare()
	in.Kill()
	wk := w.worker()
	if wk.ID() == in.spec.ID {
		t.Error("the spare had died and was handed out")
	}
	w.until("its removal", func() bool { in.mu.Lock(); defer in.mu.Unlock(); return in.destroyed == 1 })
}

func TestSpareOfAnotherVersionIsLeft(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	stop := w.keep(w.oneVersion())
	in := w.spare()
	other := *w.version
	other.Number++
	w.version = &other
	if wk := w.worker(); wk.ID() == in.spec.ID {
		t.Error("a start of version 4 took the spare of version 3")
	}
	stop()
}

// TestSparesGiveWay: a start that finds no address gets that of a spare.
func TestSparesGiveWay(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	stop := w.keep(w.oneVersion())
	in := w.spare()
	other := *w.version
	other.Number++
	w.version = &other
	w.creator.mu.Lock()
	w.creator.fail = []error{fmt.Errorf("every address is in use: %w", errdefs.ErrResourceExhausted)}
	w.creator.mu.Unlock()
	w.worker()
	if in.mu.Lock(); in.destroyed != 1 {
		t.Errorf("the spare was destroyed %d times", in.destroyed)
	}
	in.mu.Unlock()
	stop()
	w.creator.mu.Lock()
	w.creator.fail = []error{errdefs.ErrResourceExhausted, errdefs.ErrResourceExhausted}
	w.creator.mu.Unlock()
	if _, err := w.start(nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("without a spare: %v", err)
	}
}

func TestNoRoomForSpares(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	var mu sync.Mutex
	room := true
	a := w.oneVersion()
	a.Room = func() bool {
		mu.Lock()
		defer mu.Unlock()
		return room
	}
	w.keep(a)
	in := w.spare()
	mu.Lock()
	room = false
	mu.Unlock()
	w.until("the spare gives way", func() bool { in.mu.Lock(); defer in.mu.Unlock(); return in.destroyed == 1 })
	if s := w.Spares(); len(s) != 0 {
		t.Errorf("spares %v", s)
	}
}

// maker makes networks; fail are the errors of the first calls.
type maker struct {
	mu      sync.Mutex
	ready   int
	dropped int
	fail    []error
}

func (m *maker) NetworksAhead() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready
}

func (m *maker) MakeNetwork(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.fail) > 0 {
		var err error
		err, m.fail = m.fail[0], m.fail[1:]
		return err
	}
	m.ready++
	return nil
}

func (m *maker) DropNetworks(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropped, m.ready = m.ready, 0
	return nil
}

func TestNetworksAreMadeAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{fail: []error{errors.New("no address"), errors.New("no address")}}
		s := NewStarter(Options{CreateTimeout: time.Second, Log: slog.New(slog.DiscardHandler), Ahead: Ahead{Networks: 3, Maker: m}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		time.Sleep(500 * time.Millisecond) // of the bubble's clock
		if m.NetworksAhead() != 0 {
			t.Error("it was tried again at once")
		}
		time.Sleep(5 * time.Second)
		if got := m.NetworksAhead(); got != 3 {
			t.Errorf("%d networks, want 3", got)
		}
		cancel()
		<-done
		if m.dropped != 3 || m.ready != 0 {
			t.Errorf("%d dropped, %d left", m.dropped, m.ready)
		}
	})
}

func version(name string, number, most int) *function.Version {
	v := &function.Version{Key: function.Key{Environment: function.Environment{Project: "p", Name: "default"}, Function: name}, Number: number}
	v.Config.Concurrency.Max = most
	return v
}

func TestWhichSpareIsNext(t *testing.T) {
	now := time.Now()
	a, b, c := version("a", 1, 0), version("b", 1, 0), version("c", 1, 1)
	type have struct {
		v    *function.Version
		made time.Duration // ago
	}
	type ago map[*function.Version]time.Duration
	for name, tt := range map[string]struct {
		each, most int
		have       []have
		wanted     ago
		failed     *function.Version
		next, give string
	}{
		"none yet":                        {each: 1, most: 4, next: "a"},
		"wanted last":                     {each: 1, most: 4, wanted: ago{b: time.Hour, c: time.Minute}, next: "c"},
		"those that have one are left":    {each: 1, most: 4, have: []have{{a, 0}, {c, 0}}, next: "b"},
		"all have one":                    {each: 1, most: 4, have: []have{{a, 0}, {b, 0}, {c, 0}}},
		"two each":                        {each: 2, most: 9, have: []have{{a, 0}, {b, 0}, {b, 0}, {c, 0}}, next: "a"},
		"no more than instances":          {each: 2, most: 9, have: []have{{a, 0}, {a, 0}, {b, 0}, {b, 0}, {c, 0}}},
		"what failed waits":               {each: 1, most: 4, failed: a, next: "b"},
		"full":                            {each: 1, most: 2, have: []have{{a, 0}, {b, 0}}, wanted: ago{c: 0}},
		"full of stale ones":              {each: 1, most: 2, have: []have{{a, time.Hour}, {b, 2 * time.Hour}}, wanted: ago{c: 0}, next: "c", give: "b"},
		"stale but used":                  {each: 1, most: 2, have: []have{{a, time.Hour}, {b, 2 * time.Hour}}, wanted: ago{c: 0, b: time.Minute, a: time.Minute}},
		"stale but nobody else is wanted": {each: 1, most: 2, have: []have{{a, time.Hour}, {b, 2 * time.Hour}}, wanted: ago{c: 3 * time.Hour}},
	} {
		p := newSpares()
		for _, h := range tt.have {
			k := keyOf(h.v)
			p.ready[k] = append(p.ready[k], &Worker{version: h.v, made: now.Add(-h.made)})
		}
		for v, d := range tt.wanted {
			p.wanted[keyOf(v)] = now.Add(-d)
		}
		if tt.failed != nil {
			p.failed(keyOf(tt.failed))
		}
		v, give := p.next([]*function.Version{c, b, a}, tt.each, tt.most)
		got, gave := "", ""
		if v != nil {
			got = v.Function
		}
		if give != nil {
			gave = give.version.Function
		}
		if got != tt.next || gave != tt.give {
			t.Errorf("%s: next %q, %q gives way; want %q, %q", name, got, gave, tt.next, tt.give)
		}
	}
}

// TestStartsTakeTurns: only so many instances are made at a time, first come, first served, and removals do not wait for them.
func TestStartsTakeTurns(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	w.Starter = NewStarter(Options{
		Instances: w.creator, Logs: w.logs, InitTimeout: 20 * time.Second, CreateTimeout: 20 * time.Second, LambdaAPI: w.opts.LambdaAPI,
		Log: slog.New(slog.DiscardHandler), Starts: 1, Removals: 1,
	})
	early := w.worker()
	entered, goOn := make(chan string, 10), make(chan struct{})
	w.creator.slow = func(s instance.Spec) { entered <- s.ID; <-goOn }
	got := make(chan pool.Worker, 2)
	for range 2 {
		go func() { // ends with its start
			wk, err := w.start(nil)
			if err != nil {
				t.Error(err)
			}
			got <- wk
		}()
	}
	<-entered
	early.Close("spindown")
	w.await("a removal while a start is under way", w.gone)
	select {
	case id := <-entered:
		t.Errorf("%s is made beside the first", id)
	default:
	}
	goOn <- struct{}{}
	<-entered
	goOn <- struct{}{}
	for range 2 {
		wk := <-got
		defer wk.Close("spindown")
	}
}

func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c calm
		took := func() time.Duration {
			begun := time.Now()
			if err := c.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			return time.Since(begun)
		}
		if got := took(); got != 0 {
			t.Errorf("waited %s for nobody", got)
		}
		c.begin()
		go func() { time.Sleep(time.Second); c.end() }()
		if got := took(); got != time.Second+calmFor {
			t.Errorf("waited %s for a start of a second", got)
		}
		c.begin()
		if got := took(); got != calmPatience {
			t.Errorf("waited %s for a start that does not end", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

// TestSparesUnderWay: starts, spares that die, drops and the end of the loop at the same time. newWorld checks that each
// instance was destroyed once.
func TestSparesUnderWay(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	a := w.oneVersion()
	a.Spares = 3
	stop := w.keep(a)
	var g sync.WaitGroup
	for n := range 4 {
		g.Go(func() {
			for k := range 20 {
				wk, err := w.start(nil)
				var initErr *pool.InitError
				if errors.As(err, &initErr) {
					continue // it was a spare that was killed in the moment of its word
				}
				if err != nil {
					t.Error(err)
					return
				}
				out := wk.Invoke(request(fmt.Sprintf("r-%d-%d", n, k)))
				if out != nil && string(out.Payload) != "1" && out.ErrorType != typeExit {
					t.Errorf("outcome %s", text(out))
				}
				wk.Close("spindown")
			}
		})
	}
	g.Go(func() {
		for range 50 {
			w.DropSpares("test")
			w.creator.mu.Lock()
			made := slices.Clone(w.creator.made)
			w.creator.mu.Unlock()
			for _, in := range made {
				if in.spec.Hold {
					select {
					case <-in.word:
					default:
						in.Kill()
					}
				}
			}
			w.spares.mu.Lock()
			w.spares.paused = time.Time{}
			w.spares.mu.Unlock()
			w.spares.look()
			time.Sleep(time.Millisecond)
		}
	})
	g.Wait()
	stop()
}
