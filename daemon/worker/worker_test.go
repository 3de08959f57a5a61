package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/runtime/instance"
)

const (
	report     = "REPORT RequestId: %s\tDuration: N ms\tBilled Duration: N ms\tMemory Size: 128 MB\tMax Memory Used: 42 MB"
	withInit   = "\tInit Duration: N ms"
	phases     = "\tQueue: N ms\tNetwork: N ms\tCreate: N ms\tStart: N ms\tInit: N ms\tHandler: N ms"
	startLine  = "lfx|%[1]s|2|START RequestId: %[1]s Version: 3"
	endLine    = "lfx|%[1]s|2|END RequestId: %[1]s"
	initReport = "INIT_REPORT Init Duration: N ms\tPhase: %s\tStatus: %s"
)

// story is the log of one invocation with a line that the function printed in between; rest is how its
// REPORT ends.
func story(id, rest string, printed ...string) []string {
	out := []string{fmt.Sprintf(startLine, id)}
	out = append(out, printed...)
	return append(out, fmt.Sprintf(endLine, id), "lfx|"+id+"|2|"+fmt.Sprintf(report, id)+rest)
}

func (w *world) wantLines(want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.lines()); diff != "" {
		w.t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestInvocationsAndTheirLog(t *testing.T) {
	var got event
	w := newWorld(t, func(r *runtime) {
		r.print("init\n")
		r.serve(func(e event) string {
			got = e
			r.print("line of " + e.id + "\n")
			r.print("no line end of " + e.id)
			return `"` + e.id + `"`
		})
	})
	wk := w.worker()
	for _, id := range []string{"first", "second"} {
		if out := text(wk.Invoke(request(id))); out != `"`+id+`"||` {
			t.Errorf("%s: %s", id, out)
		}
		w.await("idle", w.idle)
	}
	w.wantLines(append(append([]string{"out||0|init"},
		story("first", withInit+phases+"\t", "out|first|2|line of first", "out|first|2|no line end of first")...),
		story("second", "\t", "out|second|2|line of second", "out|second|2|no line end of second")...)...)
	if got.payload != `{"n":1}` {
		t.Errorf("payload %q", got.payload)
	}
	for k, want := range map[string]string{
		"Lambda-Runtime-Invoked-Function-Arn": "arn", "Lambda-Runtime-Trace-Id": "Root=1", "Lambda-Runtime-Client-Context": "{}",
	} {
		if got.header.Get(k) != want {
			t.Errorf("%s = %q, want %q", k, got.header.Get(k), want)
		}
	}
	in := w.creator.instance(t)
	if diff := cmp.Diff([]float64{0.5}, in.cores); diff != "" {
		t.Errorf("CPU limits (-want +got):\n%s", diff)
	}
	if in.spec.Image != "localhost/hello@sha256:1" || strings.Join(in.spec.Args, " ") != "/e h" || in.spec.MemoryMB != 128 || in.spec.TmpMB != 64 {
		t.Errorf("spec %+v", in.spec)
	}
	if info := wk.Info(); info.ID != in.spec.ID || info.Address != "10.1.2.3" || info.Started.IsZero() {
		t.Errorf("info %+v", info)
	}
}

func TestBothStreamsAreAttributed(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		r.printErr("early\n")
		r.serve(func(e event) string {
			r.printErr("problem\n")
			return "1"
		})
	})
	wk := w.worker()
	wk.Invoke(request("a"))
	w.await("idle", w.idle)
	w.wantLines(append([]string{"err||0|early"}, story("a", withInit+phases+"\t", "err|a|2|problem")...)...)
}

func TestHandlerErrorIsAnAnswerAndTheInstanceGoesOn(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		e, _ := r.next()
		r.fail(e.id, "Function.Some", `{"errorMessage":"no"}`)
		r.serve(func(event) string { return "2" })
	})
	wk := w.worker()
	if got := text(wk.Invoke(request("a"))); got != `{"errorMessage":"no"}|Unhandled|Function.Some` {
		t.Errorf("got %s", got)
	}
	w.await("idle", w.idle)
	if got := text(wk.Invoke(request("b"))); got != "2||" {
		t.Errorf("got %s", got)
	}
	w.await("idle", w.idle)
	w.wantLines(append(story("a", withInit+phases+"\t"), story("b", "\t")...)...)
}

func TestTail(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		r.print("init\n")
		r.serve(func(e event) string {
			if e.id == "long" {
				r.print(strings.Repeat("x", 5000) + "\n")
			}
			r.print("said\n")
			return "1"
		})
	})
	wk := w.worker()
	req := request("a")
	req.Tail = true
	out := wk.Invoke(req)
	w.await("idle", w.idle)
	got := durations.ReplaceAllString(string(out.LogTail), "N ms")
	if want := "START RequestId: a Version: 3\nsaid\nEND RequestId: a\n" + fmt.Sprintf(report, "a") + withInit + phases + "\t\n"; got != want {
		t.Errorf("tail %q, want %q", got, want)
	}
	req = request("long")
	req.Tail = true
	out = wk.Invoke(req)
	w.await("idle", w.idle)
	if len(out.LogTail) != 4096 || !strings.Contains(string(out.LogTail), "x\nsaid\nEND RequestId: long\nREPORT") {
		t.Errorf("a long tail has %d bytes: %q", len(out.LogTail), out.LogTail)
	}
	if out := wk.Invoke(request("b")); out.LogTail != nil {
		t.Errorf("a tail that nobody asked for: %q", out.LogTail)
	}
	w.await("idle", w.idle)
}

func TestTimeoutStopsTheWork(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		r.next()
		r.print("working")
		r.wait()
	})
	w.version.Config.Timeout = 120 * time.Millisecond
	wk := w.worker()
	got := text(wk.Invoke(request("a")))
	if want := `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: a Error: Task timed out after 0.12 seconds"}|Unhandled|Sandbox.Timedout`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	w.ended()
	w.wantLines(story("a", withInit+"\tStatus: timeout"+phases, "out|a|2|working")...)
	if out := wk.Invoke(request("b")); out != nil {
		t.Errorf("a dead worker answers %s", text(out))
	}
}

func TestEndsInMidInvocation(t *testing.T) {
	for name, tt := range map[string]struct {
		exit          instance.Exit
		kind, message string
	}{
		"exit 0":  {instance.Exit{}, "Runtime.ExitError", "Runtime exited without providing a reason"},
		"exit 3":  {instance.Exit{Code: 3}, "Runtime.ExitError", "Runtime exited with error: exit status 3"},
		"139":     {instance.Exit{Code: 139}, "Runtime.ExitError", "Runtime exited with error: exit status 139"},
		"SIGSEGV": {instance.Exit{Code: 139, Signal: syscall.SIGSEGV}, "Runtime.ExitError", "Runtime exited with error: signal: segmentation fault"},
		"SIGABRT": {instance.Exit{Code: 134, Signal: syscall.SIGABRT}, "Runtime.ExitError", "Runtime exited with error: signal: aborted"},
		"OOM":     {instance.Exit{Code: 137, Signal: syscall.SIGKILL, OOM: true}, "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(r *runtime) {
				r.next()
				r.print("last words\n")
				r.exit(tt.exit)
			})
			got := text(w.worker().Invoke(request("a")))
			want := fmt.Sprintf(`{"errorType":"%s","errorMessage":"RequestId: a Error: %s"}|Unhandled|%[1]s`, tt.kind, tt.message)
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			w.ended()
			w.wantLines(story("a", withInit+"\tStatus: error\tError Type: "+tt.kind+phases,
				"out|a|2|last words", "lfx|a|2|RequestId: a Error: "+tt.message, "lfx|a|2|"+tt.kind)...)
		})
	}
}

func TestAnswersThatArePlatformErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		respond func(r *runtime, id string)
		want    string
		goesOn  bool
	}{
		"too large": {func(r *runtime, id string) { r.respond(id, strings.Repeat("x", 7<<20)) },
			`{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}|Unhandled|Function.ResponseSizeTooLarge`, true},
		"bad mode": {func(r *runtime, id string) { r.respond(id, "1", "Lambda-Runtime-Function-Response-Mode", "bogus") },
			`{"errorType":"Runtime.InvalidResponseModeHeader","errorMessage":"RequestId: a Error: Invalid function response mode"}|Unhandled|Runtime.InvalidResponseModeHeader`, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(r *runtime) {
				e, _ := r.next()
				tt.respond(r, e.id)
				r.serve(func(event) string { return "2" })
				r.wait()
			})
			wk := w.worker()
			if got := text(wk.Invoke(request("a"))); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if !tt.goesOn {
				w.ended()
				return
			}
			w.await("idle", w.idle)
			if got := text(wk.Invoke(request("b"))); got != "2||" {
				t.Errorf("the next: %s", got)
			}
			w.await("idle", w.idle)
		})
	}
}

// TestInitThatFails in its own phase: the error carries what the runtime said, and one INIT_REPORT.
func TestInitThatFails(t *testing.T) {
	for name, tt := range map[string]struct {
		script func(*runtime)
		want   string // payload|function error|error type
		detail string
		status string
	}{
		"posted": {func(r *runtime) { r.initError("Function.InitError", `{"errorMessage":"no module"}`); r.wait() },
			`{"errorMessage":"no module"}|Unhandled|Function.InitError`, "Function.InitError: ", "error\tError Type: Function.InitError"},
		"exit": {func(r *runtime) { r.print("bye"); r.exit(instance.Exit{Code: 1}) },
			`{"errorType":"Runtime.ExitError","errorMessage":"RequestId:  Error: Runtime exited with error: exit status 1"}|Unhandled|Runtime.ExitError`,
			"Runtime exited with error: exit status 1", "error\tError Type: Runtime.ExitError"},
		"no such program": {func(r *runtime) {
			r.exit(instance.Exit{Code: 255, ExecError: &instance.ExecError{Kind: instance.InvalidEntrypoint, Msg: "fork/exec /e: no such file or directory"}})
		}, `{"errorType":"Runtime.InvalidEntrypoint","errorMessage":"RequestId:  Error: fork/exec /e: no such file or directory"}|Unhandled|Runtime.InvalidEntrypoint`,
			"Runtime.InvalidEntrypoint: fork/exec /e: no such file or directory", "error\tError Type: Runtime.InvalidEntrypoint"},
		"hangs": {func(r *runtime) { r.print("bye"); r.wait() }, "", "the runtime did not ask for its first event within ", "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.script)
			if tt.status == "timeout" {
				w.opts.InitTimeout = 100 * time.Millisecond
			}
			_, err := w.start(nil)
			var e *pool.InitError
			if !errors.As(err, &e) {
				t.Fatalf("err = %v", err)
			}
			if got := text(e.Outcome); tt.want != "" && got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if !strings.HasPrefix(e.Detail, tt.detail) {
				t.Errorf("detail %q, want %q", e.Detail, tt.detail)
			}
			var want []string
			if name == "exit" || name == "hangs" {
				want = []string{"out||0|bye"}
			}
			w.wantLines(append(want, "lfx||0|"+fmt.Sprintf(initReport, "init", tt.status))...)
			if len(w.dying)+len(w.gone)+len(w.idle) != 0 {
				t.Error("the pool was told of a worker that it never got")
			}
		})
	}
}

// TestInitThatFailsInsideTheInvocation answers the request that it ran for, under the function's timeout.
func TestInitThatFailsInsideTheInvocation(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.print("again"); r.exit(instance.Exit{Code: 1}) })
	req := request("a")
	req.Tail = true
	_, err := w.start(req)
	var e *pool.InitError
	if !errors.As(err, &e) {
		t.Fatalf("err = %v", err)
	}
	if got, want := text(e.Outcome), `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: a Error: Runtime exited with error: exit status 1"}|Unhandled|Runtime.ExitError`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !strings.Contains(string(e.Outcome.LogTail), "END RequestId: a\nREPORT RequestId: a") {
		t.Errorf("tail %q", e.Outcome.LogTail)
	}
	w.wantLines(append([]string{"out|a|2|again", "lfx|a|2|" + fmt.Sprintf(initReport, "invoke", "error\tError Type: Runtime.ExitError")},
		story("a", "\tStatus: error\tError Type: Runtime.ExitError", "lfx|a|2|RequestId: a Error: Runtime exited with error: exit status 1", "lfx|a|2|Runtime.ExitError")...)...)

	w = newWorld(t, func(r *runtime) { r.wait() })
	w.version.Config.Timeout = 100 * time.Millisecond
	_, err = w.start(request("b"))
	if !errors.As(err, &e) || text(e.Outcome) != `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: b Error: Task timed out after 0.10 seconds"}|Unhandled|Sandbox.Timedout` {
		t.Errorf("hanging: %v", err)
	}
	w.wantLines(append([]string{"lfx|b|2|" + fmt.Sprintf(initReport, "invoke", "timeout")}, story("b", "\tStatus: timeout")...)...)
}

// TestFailedInitIsToldBeforeItsInstanceIsRemoved: whoever waits for it need not wait for containerd too, nor for its turn.
func TestFailedInitIsToldBeforeItsInstanceIsRemoved(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.initError("Function.InitError", `{"errorMessage":"no module"}`); r.wait() })
	stuck := make(chan struct{})
	w.creator.stuck = stuck
	told := make(chan error, 1)
	go func() { // ends with the start, which the test waits for
		_, err := w.start(request("a"))
		told <- err
	}()
	var e *pool.InitError
	select {
	case err := <-told:
		if !errors.As(err, &e) || e.Outcome == nil || e.Removed == nil {
			t.Errorf("err = %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the failed init waits for the removal")
	}
	in := w.creator.instance(t)
	select {
	case <-in.exited:
	default:
		t.Error("the instance lives")
	}
	if e != nil {
		select {
		case <-e.Removed:
			t.Error("it is said to be removed")
		default:
		}
		if ids := w.IDs(); len(ids) != 1 {
			t.Errorf("the instances %v are noted while it is removed, want one", ids)
		}
	}
	close(stuck)
	if e != nil {
		w.await("removed", e.Removed)
	}
}

// TestRemovalsThatHangDoNotHoldUpTheOthers: an instance whose turn to be removed does not come is left to reconciliation.
func TestRemovalsThatHangDoNotHoldUpTheOthers(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	w.removeIn = 10 * time.Millisecond
	if err := w.removals.Acquire(t.Context(), w.opts.Removals); err != nil { // they hang
		t.Fatal(err)
	}
	defer w.removals.Release(w.opts.Removals)
	const n = 5
	for range n {
		w.worker().Close("spindown")
	}
	for range n {
		w.await("gone", w.gone)
	}
}

// TestInitThatSucceedsInsideTheInvocation: its time is the invocation's, so there is no Init Duration.
func TestInitThatSucceedsInsideTheInvocation(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		r.print("late init\n")
		r.serve(func(event) string { return "1" })
	})
	req := request("a")
	wk, err := w.start(req)
	if err != nil {
		t.Fatal(err)
	}
	defer wk.Close("spindown")
	if got := text(wk.Invoke(req)); got != "1||" {
		t.Errorf("got %s", got)
	}
	w.await("idle", w.idle)
	w.wantLines(append([]string{"out|a|2|late init"}, story("a", "\t")...)...)
}

// TestDeathBetweenInvocations is told to the pool, and a request that comes in that moment is given back.
func TestDeathBetweenInvocations(t *testing.T) {
	die := make(chan struct{})
	w := newWorld(t, func(r *runtime) {
		e, _ := r.next()
		r.respond(e.id, "1")
		go func() { <-die; r.exit(instance.Exit{Code: 1}) }() // ends with the test
		r.next()
	})
	wk := w.worker()
	wk.Invoke(request("a"))
	w.await("idle", w.idle)
	close(die)
	w.ended()
	if out := wk.Invoke(request("b")); out != nil {
		t.Errorf("got %s", text(out))
	}
	w.wantLines(story("a", withInit+phases+"\t")...)
}

// TestExitRightAfterTheAnswer keeps the answer, and the invocation's log is whole.
func TestExitRightAfterTheAnswer(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		e, _ := r.next()
		r.respond(e.id, "1")
		r.print("after\n")
		r.exit(instance.Exit{Code: 1})
	})
	if got := text(w.worker().Invoke(request("a"))); got != "1||" {
		t.Errorf("got %s", got)
	}
	w.ended()
	w.wantLines(story("a", withInit+phases+"\t", "out|a|2|after")...)
}

func TestRuntimeThatAnswersAndDoesNotComeBackIsReplaced(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		e, _ := r.next()
		r.respond(e.id, "1")
		r.wait()
	})
	w.version.Config.Timeout = 100 * time.Millisecond
	if got := text(w.worker().Invoke(request("a"))); got != "1||" {
		t.Errorf("got %s", got)
	}
	w.ended()
	w.wantLines(story("a", withInit+phases+"\t")...)
}

func TestCloseEndsTheInstanceOnce(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	wk := w.worker()
	for range 3 {
		wk.Close("spindown")
	}
	w.ended()
}

// TestCloseInMidInvocation answers it.
func TestCloseInMidInvocation(t *testing.T) {
	begun := make(chan struct{})
	w := newWorld(t, func(r *runtime) { r.next(); close(begun); r.wait() })
	wk := w.worker()
	got := make(chan string, 1)
	go func() { got <- text(wk.Invoke(request("a"))) }() // ends with the instance
	<-begun
	wk.Close("spindown")
	if out := <-got; !strings.Contains(out, "Runtime exited with error: signal: killed") {
		t.Errorf("got %s", out)
	}
	w.ended()
}

func TestCallsBelongToTheRelease(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		call := func() {
			resp, err := r.client.Post("http://"+r.addr+"/2015-03-31/functions/x/invocations", "", nil)
			if err == nil {
				resp.Body.Close()
			}
		}
		call()
		r.serve(func(event) string { call(); return "1" })
	})
	wk := w.worker()
	wk.Invoke(request("a"))
	w.await("idle", w.idle)
	for _, want := range []string{"shop /2015-03-31/functions/x/invocations r1 ", "shop /2015-03-31/functions/x/invocations r2 a"} {
		if got := <-w.calls; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestStartThatIsGivenUp(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.wait() })
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the daemon is shutting down")
	time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	_, err := w.Start(ctx, pool.StartRequest{Version: w.version, Phase: pool.PhaseInit})
	if !errors.Is(err, cause) {
		t.Errorf("err = %v", err)
	}
}

func TestInstanceThatCannotBeMade(t *testing.T) {
	broken := errors.New("no such image")
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	w.creator.fail = []error{broken}
	if _, err := w.start(nil); !errors.Is(err, broken) || err.Error() != "start an instance of shop/hello:3: no such image" {
		t.Errorf("err = %v", err)
	}
	if ids := w.IDs(); len(ids) != 0 {
		t.Errorf("still noted: %v", ids)
	}
	// containerd was away for a moment: another id, because the first is reconciliation's now
	w.creator.fail = []error{errdefs.ErrUnavailable}
	wk := w.worker()
	if got := text(wk.Invoke(request("a"))); got != "1||" {
		t.Errorf("got %s", got)
	}
	w.await("idle", w.idle)
	if n := len(w.creator.ids); n != 3 || w.creator.ids[1] == w.creator.ids[2] || wk.ID() != w.creator.ids[2] {
		t.Errorf("ids %v, worker %s", w.creator.ids, wk.ID())
	}
	w.creator.fail = []error{errdefs.ErrUnavailable, errdefs.ErrUnavailable}
	if _, err := w.start(nil); !errdefs.IsUnavailable(err) {
		t.Errorf("away for longer: %v", err)
	}
}

// TestManyInvocations through one worker, with output and tails mixed: every line is where it belongs.
func TestManyInvocations(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		r.serve(func(e event) string {
			r.print("o " + e.id + "\n")
			r.printErr("e " + e.id + "\n")
			return e.id[1:]
		})
	})
	wk := w.worker()
	const n = 200
	for i := range n {
		req := &invocation.Request{ID: fmt.Sprintf("r%d", i), Payload: []byte("1"), Binding: binding(2), Tail: i%3 == 0}
		out := wk.Invoke(req)
		if got := text(out); got != fmt.Sprintf("%d||", i) {
			t.Fatalf("call %d: %s", i, got)
		}
		if out.Free != nil {
			out.Free()
		}
		if req.Tail != (out.LogTail != nil) {
			t.Fatalf("call %d: tail %q", i, out.LogTail)
		}
		w.await("idle", w.idle)
	}
	lines := w.lines()
	if len(lines) != 5*n {
		t.Fatalf("%d lines, want %d", len(lines), 5*n)
	}
	for i := range n {
		id := fmt.Sprintf("r%d", i)
		part := lines[5*i : 5*i+5]
		if part[0] != fmt.Sprintf(startLine, id) || part[3] != fmt.Sprintf(endLine, id) ||
			!strings.Contains(strings.Join(part[1:3], "\n"), "out|"+id+"|2|o "+id) || !strings.Contains(strings.Join(part[1:3], "\n"), "err|"+id+"|2|e "+id) {
			t.Fatalf("log of %s:\n%s", id, strings.Join(part, "\n"))
		}
	}
}

func TestEnvironmentOfTheRuntime(t *testing.T) {
	w := newWorld(t, nil)
	v := *w.version
	v.Image.Env = []string{"PATH=/image", "LANG=C", "AWS_LAMBDA_MAX_CONCURRENCY=5", "AWS_REGION=moon", "MINE=image", "broken"}
	v.Config.Environment = map[string]string{"MINE": "customer", "AWS_ENDPOINT_URL_LAMBDA": "http://else", "EMPTY": ""}
	got := map[string]string{}
	for _, kv := range environ(&v, "eu-west-1", "stream") {
		k, val, _ := strings.Cut(kv, "=")
		if _, twice := got[k]; twice {
			t.Errorf("%s is set twice", k)
		}
		got[k] = val
	}
	for k, want := range map[string]string{
		"PATH": "/image", "LANG": "C", "MINE": "customer", "EMPTY": "", "AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1",
		"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "AWS_LAMBDA_FUNCTION_NAME": "hello", "AWS_LAMBDA_FUNCTION_VERSION": "3",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128", "AWS_ENDPOINT_URL_LAMBDA": "http://else", "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
		"AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/hello", "LAMBDA_TASK_ROOT": "/var/task", "GOMAXPROCS": "1",
	} {
		if v, ok := got[k]; !ok || v != want {
			t.Errorf("%s = %q, want %q", k, v, want)
		}
	}
	for _, k := range []string{"AWS_LAMBDA_MAX_CONCURRENCY", "_HANDLER", "broken"} {
		if v, ok := got[k]; ok {
			t.Errorf("%s = %q is set", k, v)
		}
	}
	for want, change := range map[string]func(*function.Config){
		"":             func(c *function.Config) { c.CPU = 1.5 },
		"GOMAXPROCS=1": func(c *function.Config) { c.CPU = 1 },
		"GOMAXPROCS=4": func(c *function.Config) { c.Environment = map[string]string{"GOMAXPROCS": "4"} },
	} {
		v := *w.version
		change(&v.Config)
		set := slices.DeleteFunc(environ(&v, "eu-west-1", "stream"), func(kv string) bool { return !strings.HasPrefix(kv, "GOMAXPROCS=") })
		if got := strings.Join(set, " "); got != want {
			t.Errorf("%v cores and %v: %q, want %q", v.Config.Cores(), v.Config.Environment, got, want)
		}
	}
}
