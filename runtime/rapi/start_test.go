package rapi

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// once is a Completion that takes one end.
type once struct {
	t     testing.TB
	times atomic.Int32
	end   chan ending
}

func newOnce(t testing.TB) *once { return &once{t: t, end: make(chan ending, 2)} }

func (o *once) Answered(res *Result, err error) {
	if o.times.Add(1) > 1 {
		o.t.Error("an invocation has ended twice")
	}
	if (res == nil) == (err == nil) {
		o.t.Errorf("ended with %v and %v", res, err)
	}
	o.end <- ending{res, err}
}

func (o *once) wait() ending {
	o.t.Helper()
	select {
	case e := <-o.end:
		return e
	case <-time.After(10 * time.Second):
		o.t.Fatal("the invocation does not end")
		return ending{}
	}
}

// TestAnswerIsReportedBeforeItIsAccepted: the client's answer does not wait for the runtime.
func TestAnswerIsReportedBeforeItIsAccepted(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	p.send(rawNext)
	h.waitIdle()
	block := make(chan struct{})
	o := &blocking{once: newOnce(t), block: block}
	if err := h.Start(event("a"), o); err != nil {
		t.Fatal(err)
	}
	p.recv()
	p.send(rawResponse("a", "x"))
	if e := o.wait(); e.err != nil || string(e.res.Body) != "x" {
		t.Fatalf("ended with %+v", e)
	}
	if err := p.nc.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if b, err := p.br.Peek(1); err == nil {
		t.Errorf("the runtime has got %q already", b)
	}
	close(block)
	if err := p.nc.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := p.recv(); got.status != 202 {
		t.Errorf("got %+v", got)
	}
}

// blocking reports the end and then blocks, which a real Completion must not.
type blocking struct {
	*once
	block chan struct{}
}

func (b *blocking) Answered(res *Result, err error) {
	b.once.Answered(res, err)
	<-b.block
}

func TestStartIsRefused(t *testing.T) {
	h := start(t, Options{})
	o := newOnce(t)
	if err := h.Start(event("a"), o); err != nil { // waits for the first next
		t.Fatal(err)
	}
	if err := h.Start(event("b"), newOnce(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second one: %v", err)
	}
	gone := errors.New("the process exited")
	h.Fail(gone)
	if e := o.wait(); !errors.Is(e.err, gone) || !errors.Is(e.err, ErrNotDelivered) {
		t.Errorf("ended with %v", e.err)
	}
	if err := h.Start(event("c"), newOnce(t)); !errors.Is(err, gone) || !errors.Is(err, ErrNotDelivered) {
		t.Errorf("after the end: %v", err)
	}
}

// TestCancelOfAnEventThatIsBeingWritten: a runtime that does not read does not hold up Start for ever.
func TestCancelOfAnEventThatIsBeingWritten(t *testing.T) {
	h := start(t, Options{})
	p := h.dial()
	p.send(rawNext)
	h.waitIdle()
	inv := event("a")
	inv.Payload = []byte(`"` + strings.Repeat("x", 32<<20) + `"`)
	o := newOnce(t)
	started := make(chan error, 1)
	go func() { started <- h.Start(inv, o) }() // ends with Cancel
	until(t, "writing", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return inv.flight.writing != nil })
	late := errors.New("too late")
	h.Cancel(inv, late)
	if e := o.wait(); e.err != late { //nolint:errorlint // the value itself
		t.Errorf("ended with %v", e.err)
	}
	select {
	case err := <-started:
		if err != nil {
			t.Errorf("Start: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Start does not return")
	}
	h.Cancel(inv, late) // does nothing
}

// TestOneEndWhateverComesFirst: an answer, Cancel, Fail and Close race.
func TestOneEndWhateverComesFirst(t *testing.T) {
	for i := range 200 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			h := start(t, Options{})
			p := h.dial()
			p.send(rawNext)
			h.waitIdle()
			inv, o := event("a"), newOnce(t)
			if err := h.Start(inv, o); err != nil {
				t.Fatal(err)
			}
			p.recv()
			done := make(chan struct{}, 3)
			for _, f := range []func(){
				func() { p.send(rawResponse("a", "x")) },
				func() { h.Cancel(inv, errors.New("late")) },
				func() { h.Fail(errors.New("exited")) },
			} {
				go func() { f(); done <- struct{}{} }() // ends at once
			}
			o.wait()
			for range 3 {
				<-done
			}
		})
	}
}
