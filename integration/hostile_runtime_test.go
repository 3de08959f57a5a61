//go:build integration && faults

package integration

import (
	"bytes"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRuntimeThatBreaksTheProtocol: whatever a runtime posts, there is exactly one outcome, it is Lambda's, and
// the next event is served.
func TestRuntimeThatBreaksTheProtocol(t *testing.T) {
	h := newHostile(t, "protocol", "f timeout: 2s; concurrency: {max: 1}", "first timeout: 5s; environment: {MODE: answers-first}",
		"twofold timeout: 5s; environment: {MODE: init-error-twice}", "never timeout: 1s; environment: {MODE: never-next}")
	for _, c := range []struct {
		do, body, failure string
		notes             []string // nil: the instance is replaced
		ms                int
	}{
		{do: "twice", body: `"first"`, notes: []string{"first: 202", "second: 403 InvalidStateTransition", "error: 403 InvalidStateTransition", "init error: 403 InvalidStateTransition"}},
		{do: "old-and-forged", body: `"own"`, notes: []string{"old: 400 InvalidRequestID", "forged: 400 InvalidRequestID", "none: 404 NotFound", "path: 400 InvalidRequestID", "own: 202"}},
		{do: "next-twice-busy", body: `"once"`, notes: []string{"same event: true <nil>", "answer: 202"}},
		{do: "next-twice-idle", body: `"done"`, notes: []string{`older next: 403 {"errorMessage":"State transition from Ready to Ready failed for runtime. Error: State transition is not allowed","errorType":"InvalidStateTransition"}`}},
		{do: "big", failure: tooLarge, notes: []string{"big: 413 RequestEntityTooLarge"}},
		{do: "endless", failure: tooLarge, notes: []string{"ended: true"}},
		{do: "garbage", body: `"fine"`, notes: slices.Repeat([]string{"garbage: true"}, 5)},
		{do: "many-connections", body: "*", notes: []string{}},
		{do: "bad-mode", failure: `{"errorType":"Runtime.InvalidResponseModeHeader","errorMessage":"RequestId: ID Error: Invalid function response mode"}`},
		{do: "truncated", failure: `{"errorType":"Runtime.TruncatedResponse","errorMessage":"RequestId: ID Error: HTTP request detected as truncated"}`, notes: []string{}},
		{do: "trickle", failure: timedOut(2)},
		{do: "late", ms: 2300, failure: timedOut(2)},
		{do: "hang", failure: timedOut(2)},
	} {
		t.Run(c.do, func(t *testing.T) {
			var before, after string
			tell(t, "f", probeEvent{Do: "host"}, &before)
			var notes []string
			tell(t, "f", probeEvent{Do: "recall"}, &notes)
			if c.failure != "" {
				fails(t, "f", probeEvent{Do: c.do, MS: c.ms}, c.failure)
			} else if a := post(t, invokeURL("f"), probeEvent{Do: c.do}.String()); a.status != 200 || a.header.Get("X-Amz-Function-Error") != "" || c.body != "*" && a.body != c.body {
				t.Errorf("status %d, body %s, want %s", a.status, a.body, c.body)
			}
			if c.do == "next-twice-idle" {
				time.Sleep(200 * time.Millisecond) // nothing tells outside that the second next has come
			}
			tell(t, "f", probeEvent{Do: "recall"}, &notes)
			tell(t, "f", probeEvent{Do: "host"}, &after)
			if slices.Equal(notes, []string{"raced"}) {
				t.Skip("the event came before the second next")
			}
			if replaced := before != after; replaced != (c.notes == nil) {
				t.Errorf("instance replaced: %v", replaced)
			}
			if c.notes != nil && !cmp.Equal(append([]string{}, notes...), c.notes) {
				t.Errorf("the runtime saw %.500q, want %q", notes, c.notes)
			}
			h.calm(t)
		})
	}
	t.Run("at the deadline", func(t *testing.T) {
		a := post(t, invokeURL("f"), probeEvent{Do: "late", MS: 1995}.String())
		if id := a.header.Get("x-amzn-RequestId"); a.body != `"late"` && a.body != string(bytes.ReplaceAll([]byte(timedOut(2)), []byte("ID"), []byte(id))) {
			t.Errorf("got %s", a.body)
		}
		var n int
		if tell(t, "f", probeEvent{Do: "echo", N: 3}, &n); n != 3 {
			t.Errorf("the event after it got %d", n)
		}
	})
	t.Run("before next", func(t *testing.T) {
		var notes []string
		tell(t, "first", probeEvent{Do: "recall"}, &notes)
		if want := []string{"response: 400 InvalidRequestID", "error: 400 InvalidRequestID", "empty id: 404 NotFound"}; !cmp.Equal(notes, want) {
			t.Errorf("the runtime saw %q, want %q", notes, want)
		}
	})
	t.Run("init error twice", func(t *testing.T) { fails(t, "twofold", probeEvent{}, `{"errorType":"A","errorMessage":"first"}`) })
	t.Run("never next", func(t *testing.T) { fails(t, "never", probeEvent{}, timedOut(1)) })
	h.calm(t)
}

// TestRuntimeThatEnds: exit codes and signals arrive as on Lambda, and processes that were left behind do
// not outlive the instance.
func TestRuntimeThatEnds(t *testing.T) {
	h := newHostile(t, "ends", "f timeout: 5s; concurrency: {max: 1}", "loop timeout: 5s; concurrency: {min: 1, max: 1}; environment: {MODE: exit-idle}")
	for _, c := range []struct {
		e    probeEvent
		want string
	}{
		{probeEvent{Do: "exit", N: 0}, exitError("without providing a reason")},
		{probeEvent{Do: "exit", N: 3}, exitError("with error: exit status 3")},
		{probeEvent{Do: "exit", N: 137}, exitError("with error: exit status 137")},
		{probeEvent{Do: "exit", N: 255}, exitError("with error: exit status 255")},
		{probeEvent{Do: "signal", N: 9}, exitError("with error: signal: killed")},
		{probeEvent{Do: "signal", N: 15}, exitError("with error: signal: terminated")},
		{probeEvent{Do: "signal", N: 1}, exitError("with error: signal: hangup")},
	} {
		t.Run(c.e.String(), func(t *testing.T) { fails(t, "f", c.e, c.want) })
	}
	t.Run("leaves daemons and zombies", func(t *testing.T) {
		var answer string
		tell(t, "f", probeEvent{Do: "leave"}, &answer)
		var n int
		tell(t, "f", probeEvent{Do: "processes"}, &n)
		in := instances(t, "f")
		if len(in) != 1 || n < 4 {
			t.Fatalf("%d instances, %d processes inside: the daemons did not stay", len(in), n)
		}
		pids := instancePIDs(t, in[0].ID)
		fails(t, "f", probeEvent{Do: "exit", N: 1}, exitError("with error: exit status 1"))
		if err := poll(10*time.Second, func() error { return gone(in[0].ID, pids) }); err != nil {
			t.Error(err)
		}
	})
	t.Run("ends whenever it is idle", func(t *testing.T) {
		count := func() int {
			log, err := os.ReadFile(d.log)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, line := range bytes.Split(log, []byte("\n")) {
				if bytes.Contains(line, []byte("instance ends")) && bytes.Contains(line, []byte("ends/default/loop")) {
					n++
				}
			}
			return n
		}
		before := count()
		time.Sleep(4 * time.Second) // what is measured is what happens in this time
		if n := count() - before; n > 8 {
			t.Errorf("%d instances ended within 4 s: restarts are not held back", n)
		}
	})
	h.calm(t)
}
