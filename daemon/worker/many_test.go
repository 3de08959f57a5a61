package worker

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/runtime/instance"
)

// crowdWorld runs n loops of f in an instance for up to four invocations at once.
func crowdWorld(t *testing.T, n int, f func(*runtime, event) string) *world {
	t.Helper()
	w := newWorld(t, func(r *runtime) {
		var loops sync.WaitGroup
		for range n {
			loops.Go(func() { r.serve(func(e event) string { return f(r, e) }) })
		}
		loops.Wait()
	})
	w.version.Config.Concurrency.PerInstance = 4
	return w
}

// of returns the lines of one request, or of none.
func (w *world) of(id string) (out []string) {
	for _, line := range w.lines() {
		if strings.Split(line, "|")[1] == id {
			out = append(out, line)
		}
	}
	return out
}

// places waits until the pool was told of n next calls.
func (w *world) places(n int) {
	w.t.Helper()
	for range n {
		w.await("idle", w.idle)
	}
}

func TestSeveralAtOnce(t *testing.T) {
	var all sync.WaitGroup
	all.Add(4)
	w := crowdWorld(t, 4, func(r *runtime, e event) string {
		r.print("text of " + e.id + "\n" + `{"requestId":"` + e.id + `","message":"m"}` + "\n" + `{"requestId":"other"}` + "\n")
		all.Done()
		all.Wait() // answers when all four run
		return `"` + e.id + `"`
	})
	wk := w.worker()
	w.places(3)
	ids := []string{"a", "b", "c", "d"}
	done := map[string]*completion{}
	for i, id := range ids {
		if id == "d" { // with a goroutine that waits
			c := newCompletion(t)
			req := request(id)
			req.Tail = true
			go func() { c.Ended(wk.Invoke(req)) }() // ends with the invocation
			done[id] = c
			continue
		}
		done[id] = begin(t, wk, request(id))
		if i == 0 && !wk.(pool.Beginner).Begin(request(id), failing{t}) {
			t.Error("an event of the same request was not refused at once")
		}
	}
	for _, id := range ids {
		out := done[id].wait()
		if text(out) != `"`+id+`"||` {
			t.Errorf("%s: %s", id, text(out))
		}
		if id == "d" && !strings.Contains(string(out.LogTail), "REPORT RequestId: d") {
			t.Errorf("log tail %q", out.LogTail)
		}
	}
	w.places(4)
	wk.Close("spindown") // drains what was printed
	w.ended()
	for i, id := range ids {
		rest := "\t"
		if i == 0 {
			rest = withInit + phases + "\t"
		}
		lines := w.of(id)
		named := "out|" + id + `|2|{"requestId":"` + id + `","message":"m"}`
		if !slices.Contains(lines, named) {
			t.Errorf("the line that names %s is missing in %q", id, lines)
		}
		lines = slices.DeleteFunc(lines, func(l string) bool { return l == named })
		if diff := cmp.Diff(story(id, rest), lines); diff != "" {
			t.Errorf("log of %s (-want +got):\n%s", id, diff)
		}
	}
	if got := len(w.of("")); got != 8 { // the text lines, and those that name a request that is not the instance's
		t.Errorf("%d lines belong to no request, want 8: %q", got, w.of(""))
	}
}

// failing is a pool.Done that takes nil only.
type failing struct{ t *testing.T }

func (f failing) Ended(out *invocation.Outcome) {
	if out != nil {
		f.t.Errorf("an outcome: %s", text(out))
	}
}

func TestTimeoutOfOneOfSeveral(t *testing.T) {
	w := crowdWorld(t, 2, func(r *runtime, e event) string {
		if e.id == "slow" {
			r.wait()
		}
		return "1"
	})
	w.version.Config.Timeout = time.Second
	wk := w.worker()
	w.places(1)
	slow := begin(t, wk, request("slow"))
	if got := text(begin(t, wk, request("quick")).wait()); got != "1||" {
		t.Errorf("quick: %s", got)
	}
	w.places(1)
	const want = `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: slow Error: Task timed out after 1.00 seconds"}|Unhandled|Sandbox.Timedout`
	if got := text(slow.wait()); got != want {
		t.Errorf("slow: %s", got)
	}
	if got := text(begin(t, wk, request("after")).wait()); got != "1||" { // the instance goes on
		t.Errorf("after: %s", got)
	}
	w.places(1)
	if len(w.dying) != 0 {
		t.Error("the instance ends")
	}
	w.until("the REPORT of slow", func() bool { // END and REPORT follow the answer
		lines := w.of("slow")
		return strings.Contains(lines[len(lines)-1], "\tStatus: timeout\t")
	})
}

// TestInstanceWithoutPlacesIsReplaced: code that runs on after its timeout has taken the last place.
func TestInstanceWithoutPlacesIsReplaced(t *testing.T) {
	w := crowdWorld(t, 2, func(r *runtime, e event) string { r.wait(); return "" })
	w.version.Config.Timeout = time.Second
	wk := w.worker()
	w.places(1)
	a, b := begin(t, wk, request("a")), begin(t, wk, request("b"))
	for _, c := range []*completion{a, b} {
		if got := c.wait(); got.Result != invocation.TimedOut {
			t.Errorf("got %s", text(got))
		}
	}
	w.ended()
}

// TestRuntimeThatDoesNotComeBackIsReplaced: it has answered and asks for no more.
func TestRuntimeThatDoesNotComeBackIsReplaced(t *testing.T) {
	w := newWorld(t, func(r *runtime) {
		e, _ := r.next()
		r.respond(e.id, "1")
		r.wait()
	})
	w.version.Config.Concurrency.PerInstance = 2
	w.version.Config.Timeout = time.Second
	wk := w.worker()
	if got := text(wk.Invoke(request("a"))); got != "1||" {
		t.Errorf("got %s", got)
	}
	w.ended()
}

func TestExitEndsAllOfSeveral(t *testing.T) {
	var all sync.WaitGroup
	all.Add(2)
	w := crowdWorld(t, 2, func(r *runtime, e event) string {
		all.Done()
		all.Wait()
		if e.id == "a" {
			r.exit(instance.Exit{Code: 3})
		}
		r.wait()
		return ""
	})
	wk := w.worker()
	w.places(1)
	a, b := begin(t, wk, request("a")), begin(t, wk, request("b"))
	for id, c := range map[string]*completion{"a": a, "b": b} {
		want := fmt.Sprintf(`{"errorType":"Runtime.ExitError","errorMessage":"RequestId: %s Error: Runtime exited with error: exit status 3"}|Unhandled|Runtime.ExitError`, id)
		if got := text(c.wait()); got != want {
			t.Errorf("%s: %s", id, got)
		}
	}
	w.ended()
	for _, id := range []string{"a", "b"} {
		lines := w.of(id)
		if n := len(lines); n != 5 || !strings.Contains(lines[n-1], "\tStatus: error\tError Type: Runtime.ExitError") {
			t.Errorf("log of %s: %q", id, lines)
		}
	}
	if out := wk.Invoke(request("c")); out != nil {
		t.Errorf("after the end: %s", text(out))
	}
}

// TestPlaceThatIsNotThere: the pool is told at once, and the invocations in progress go on. A runtime without any is waited for.
func TestPlaceThatIsNotThere(t *testing.T) {
	hold := make(chan struct{})
	w := crowdWorld(t, 1, func(r *runtime, e event) string {
		if e.id == "a" {
			<-hold
		}
		return "1"
	})
	wk := w.worker()
	a := begin(t, wk, request("a"))
	if wk.(pool.Beginner).Begin(request("b"), newCompletion(t)) {
		t.Error("Begin took an event for which no next is parked")
	}
	if out := wk.Invoke(request("b")); out != nil {
		t.Errorf("b: %s", text(out))
	}
	close(hold)
	if got := text(a.wait()); got != "1||" {
		t.Errorf("a: %s", got)
	}
	if got := text(wk.Invoke(request("c"))); got != "1||" {
		t.Errorf("c: %s", got)
	}
	if lines := w.of("b"); len(lines) != 0 {
		t.Errorf("log of b: %q", lines)
	}
}

func TestCallsOfSeveralStayOnTheRelease(t *testing.T) {
	called := make(chan struct{})
	w := crowdWorld(t, 2, func(r *runtime, e event) string {
		if e.id == "b" {
			<-called
			return "1"
		}
		resp, err := r.client.Get("http://" + r.addr + "/" + e.id)
		if err != nil {
			t.Error(err)
			return "0"
		}
		resp.Body.Close()
		return "1"
	})
	wk := w.worker()
	w.places(1)
	begin(t, wk, request("alone")).wait()
	if got := <-w.calls; got != "shop /alone r2 alone" {
		t.Errorf("call %q", got)
	}
	w.places(1)
	hold := begin(t, wk, request("b"))
	begin(t, wk, request("a")).wait()
	close(called)
	hold.wait()
	if got := <-w.calls; got != "shop /a r2 " { // the release is known, the caller is not
		t.Errorf("call %q", got)
	}
}

// TestNextCallsBeforeThePoolHasTheWorker: none of them is lost, whenever they come.
func TestNextCallsBeforeThePoolHasTheWorker(t *testing.T) {
	for range 20 {
		w := crowdWorld(t, 4, func(*runtime, event) string { return "1" })
		wk := w.worker()
		w.places(3)
		wk.Close("spindown")
		w.ended()
	}
}

func TestEnvironmentOfSeveralAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	for _, tc := range []struct {
		n    int
		own  map[string]string
		want []string
	}{
		{0, nil, []string{"AWS_LAMBDA_LOG_FORMAT=Text"}},
		{4, nil, []string{"AWS_LAMBDA_LOG_FORMAT=JSON", "AWS_LAMBDA_MAX_CONCURRENCY=4"}},
		{4, map[string]string{"AWS_LAMBDA_LOG_FORMAT": "Text"}, []string{"AWS_LAMBDA_LOG_FORMAT=Text", "AWS_LAMBDA_MAX_CONCURRENCY=4"}},
	} {
		v := *w.version
		v.Image.Env = []string{"AWS_LAMBDA_MAX_CONCURRENCY=9"}
		v.Config.Concurrency.PerInstance, v.Config.Environment = tc.n, tc.own
		var got []string
		for _, kv := range environ(&v, "eu-west-1", "s") {
			if strings.HasPrefix(kv, "AWS_LAMBDA_LOG_FORMAT=") || strings.HasPrefix(kv, "AWS_LAMBDA_MAX_CONCURRENCY=") {
				got = append(got, kv)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%d (-want +got):\n%s", tc.n, diff)
		}
	}
}
