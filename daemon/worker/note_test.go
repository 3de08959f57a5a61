package worker

import (
	"errors"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/runtime/instance"
)

func TestRequestsSayWhoRanThemAndHow(t *testing.T) {
	crash := func(r *runtime) { r.next(); r.exit(instance.Exit{Code: 1}) }
	for name, tt := range map[string]struct {
		script func(*runtime)
		inside bool // the init is a repeated one
		want   invocation.Result
	}{
		"ok":                 {script: func(r *runtime) { r.serve(func(event) string { return "1" }) }, want: invocation.OK},
		"error":              {script: func(r *runtime) { e, _ := r.next(); r.fail(e.id, "X", "{}"); r.next() }, want: invocation.Failed},
		"too large":          {script: func(r *runtime) { r.serve(func(event) string { return string(make([]byte, 7<<20)) }) }, want: invocation.Failed},
		"timeout":            {script: func(r *runtime) { r.next(); r.wait() }, want: invocation.TimedOut},
		"crash":              {script: crash, want: invocation.Crashed},
		"ok inside":          {script: func(r *runtime) { r.serve(func(event) string { return "1" }) }, inside: true, want: invocation.OK},
		"init error inside":  {script: func(r *runtime) { r.initError("X", "{}"); r.wait() }, inside: true, want: invocation.Failed},
		"exit inside":        {script: func(r *runtime) { r.exit(instance.Exit{Code: 1}) }, inside: true, want: invocation.Crashed},
		"timeout inside":     {script: func(r *runtime) { r.wait() }, inside: true, want: invocation.TimedOut},
		"crash after inside": {script: crash, inside: true, want: invocation.Crashed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.script)
			if tt.want == invocation.TimedOut {
				w.version.Config.Timeout = 100 * time.Millisecond
			}
			req, before := request("a"), time.Now()
			out := w.outcome(req, tt.inside)
			tr := req.Trace
			if out.Result != tt.want {
				t.Errorf("result %s, want %s", out.Result, tt.want)
			}
			if tr.Instance != w.creator.instance(t).spec.ID || !tr.Cold {
				t.Errorf("instance %q, cold %t", tr.Instance, tr.Cold)
			}
			if tr.Delivered.Before(before) || tr.Answered.Before(tr.Delivered) || tr.Answered.After(time.Now()) {
				t.Errorf("delivered %v, answered %v; begun at %v", tr.Delivered, tr.Answered, before)
			}
			if tr.Phases["init"] <= 0 || tr.Phases["network"] != 4*time.Millisecond {
				t.Errorf("phases %v", tr.Phases)
			}
			if tt.want == invocation.TimedOut && tr.Answered.Sub(tr.Delivered) != w.version.Config.Timeout {
				t.Errorf("the function took %s, which is not its timeout", tr.Answered.Sub(tr.Delivered))
			}
		})
	}
}

func TestSecondInvocationIsNotCold(t *testing.T) {
	w := newWorld(t, func(r *runtime) { r.serve(func(event) string { return "1" }) })
	wk := w.worker()
	for i, want := range []bool{true, false, false} {
		req := request("a")
		wk.Invoke(req)
		w.await("idle", w.idle)
		if req.Trace.Cold != want || (req.Trace.Phases != nil) != want || req.Trace.Instance != wk.ID() {
			t.Errorf("invocation %d: %+v", i, req.Trace)
		}
	}
}

// outcome runs one request on a new instance, which initialises inside it when that is asked for.
func (w *world) outcome(req *invocation.Request, inside bool) *invocation.Outcome {
	w.t.Helper()
	first := req
	if !inside {
		first = nil
	}
	wk, err := w.start(first)
	var failed *pool.InitError
	if errors.As(err, &failed) {
		return failed.Outcome
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { wk.Close("spindown") })
	return wk.Invoke(req)
}
