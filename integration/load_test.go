//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/api"
)

// loadProfile is how long and how hard the load is.
type loadProfile struct {
	duration           time.Duration
	rate               int // root requests a second
	deploys, rollbacks int
}

// loadNow is the short one, or with LFX_LOAD=full (make test-load) a minute with 20 deploys and 5 rollbacks.
func loadNow() loadProfile {
	if os.Getenv("LFX_LOAD") == "full" {
		return loadProfile{duration: time.Minute, rate: 10, deploys: 20, rollbacks: 5}
	}
	return loadProfile{duration: 10 * time.Second, rate: 8, deploys: 3, rollbacks: 1}
}

// loaded are the functions; each is warm, small and quick to start.
var loaded = []string{"front", "left", "right", "deep", "leaf"}

// rootEvent makes eight calls in three levels. Some take long enough to see a switch.
func rootEvent(n int) event {
	deep := callStep{To: "deep", Event: event{Calls: []callStep{{To: "leaf"}}}}
	left := callStep{To: "left", Event: event{Calls: []callStep{deep}}}
	right := callStep{To: "right", Event: event{All: true, Calls: []callStep{deep, {To: "leaf"}}}}
	if n%5 == 0 {
		left.Event.Sleep = 300 + rand.IntN(2500)
	}
	return event{All: true, Calls: []callStep{left, right}}
}

// hit is one root request. Its time counts from when it was due, however late it was sent.
type hit struct {
	due  time.Time
	took time.Duration
	answer
	err error
}

// loadRun is a load in progress and what the checker needs to know.
type loadRun struct {
	t *testing.T
	*chain
	profile loadProfile

	mu     sync.Mutex
	hits   []hit
	stamps map[string]map[int]string // function → version → stamp
	routes map[int]map[string]int    // release → function → version
	killed map[string]time.Time      // instance → when
	kills  bool
}

// TestReleasesUnderLoad: a steady open-loop load on functions that call one another while releases are deployed and
// rolled back. Every request is answered, and every chain of calls by one release.
func TestReleasesUnderLoad(t *testing.T) {
	l := newLoad(t, "load")
	l.run(func() { l.deployAndRollBack() })
	l.check()
}

// TestKillsUnderLoad is the same while random instances are killed: what was inside of those fails as the contract
// says, and nothing else.
func TestKillsUnderLoad(t *testing.T) {
	l := newLoad(t, "kills")
	l.kills = true
	l.profile.rate /= 2 // what is killed is started again, and two cores do no more
	l.run(func() { l.deployAndRollBack() }, l.killAround)
	l.check()
	if len(l.killed) == 0 {
		t.Error("nothing was killed")
	}
}

func newLoad(t *testing.T, name string) *loadRun {
	t.Helper()
	var lines []string
	for _, f := range loaded {
		lines = append(lines, f+" timeout: 30s; memory: 128MiB; cpu: 0.5; concurrency: {min: 1, max: 60}")
	}
	l := &loadRun{
		t: t, chain: newChain(t, name, lines...), profile: loadNow(),
		stamps: map[string]map[int]string{}, routes: map[int]map[string]int{}, killed: map[string]time.Time{},
	}
	l.release("first")
	return l
}

// release stamps functions, all when none is named, and deploys.
func (l *loadRun) release(stamp string, functions ...string) {
	l.t.Helper()
	l.stamp(stamp, functions...)
	if len(functions) == 0 {
		functions = loaded
	}
	res, stderr, code := l.tryDeploy()
	if code != 0 {
		l.t.Errorf("deploy of %s: exit %d\n%s", stamp, code, stderr)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.routes[res.Release.Number] = res.Release.Versions
	for _, f := range functions {
		if l.stamps[f] == nil {
			l.stamps[f] = map[int]string{}
		}
		l.stamps[f][res.Release.Versions[f]] = stamp
	}
}

// run sends the load until the actors are done and the time is over, and waits for every answer.
func (l *loadRun) run(main func(), others ...func(stop <-chan struct{})) {
	var actors, calls sync.WaitGroup
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); main() }()
	for _, f := range others {
		actors.Go(func() { f(stop) })
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	begin, interval := time.Now(), time.Second/time.Duration(l.profile.rate)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	finished := false
	for n := 0; !finished || time.Since(begin) < l.profile.duration; n++ {
		due := begin.Add(time.Duration(n) * interval)
		calls.Go(func() {
			a, err := try(client, "POST", invokeURL("front"), rootEvent(n).String())
			l.mu.Lock()
			defer l.mu.Unlock()
			l.hits = append(l.hits, hit{due, time.Since(due), a, err})
		})
		select {
		case <-tick.C:
		case <-done:
			finished = true
			<-tick.C
		}
	}
	close(stop)
	actors.Wait()
	calls.Wait()
}

// deployAndRollBack spreads the profile's deploys and rollbacks over its time, in random order.
func (l *loadRun) deployAndRollBack() {
	steps := append(slices.Repeat([]string{"deploy"}, l.profile.deploys), slices.Repeat([]string{"rollback"}, l.profile.rollbacks)...)
	rand.Shuffle(len(steps)-1, func(i, j int) { steps[i+1], steps[j+1] = steps[j+1], steps[i+1] }) // the first is a deploy
	begin := time.Now()
	for i, step := range steps {
		due := begin.Add(l.profile.duration * time.Duration(2*i+1) / time.Duration(2*len(steps)))
		<-time.After(time.Until(due))
		switch {
		case step == "rollback":
			if _, stderr, code := lfxctl("rollback", "--project", l.name); code != 0 {
				l.t.Errorf("rollback: exit %d\n%s", code, stderr)
			}
		case i%2 == 0:
			l.release(fmt.Sprintf("all-%d", i))
		default:
			first := rand.IntN(len(loaded))
			l.release(fmt.Sprintf("two-%d", i), loaded[first], loaded[(first+1+rand.IntN(len(loaded)-1))%len(loaded)])
		}
	}
}

// killAround kills a random instance every now and then.
func (l *loadRun) killAround(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
		all, err := instancesOf(l.environment(), "")
		if err != nil {
			l.t.Error(err)
			return
		}
		all = slices.DeleteFunc(all, func(i api.InstanceInfo) bool { return i.State == "stopping" || i.State == "starting" })
		if len(all) == 0 {
			continue
		}
		id := all[rand.IntN(len(all))].ID
		l.mu.Lock()
		l.killed[id] = time.Now()
		l.mu.Unlock()
		if err := killInstance(id); err != nil { // it ended by itself
			l.t.Logf("kill %s: %v", id, err)
			l.mu.Lock()
			delete(l.killed, id)
			l.mu.Unlock()
		}
	}
}

// check judges every answer, and what is left.
func (l *loadRun) check() {
	t := l.t
	t.Helper()
	byRelease, failed, spanned := map[string]int{}, 0, 0
	var times []time.Duration
	for _, h := range l.hits {
		times = append(times, h.took)
		err := h.err
		if err == nil {
			err = l.judge(told{
				To: "front", Status: h.status, Error: h.header.Get("X-Amz-Function-Error"), Release: h.header.Get("X-Lfx-Release"),
				Executed: h.header.Get("X-Amz-Executed-Version"), Answer: json.RawMessage(h.body),
			}, h.header.Get("X-Lfx-Release"))
		}
		var inside killedError
		switch {
		case l.kills && errors.As(err, &inside):
			failed++
		case err != nil:
			t.Errorf("a request that was due at %s and took %s: %v", h.due.Format("15:04:05.000"), h.took, err)
		default:
			byRelease[h.header.Get("X-Lfx-Release")]++
			if h.took > 300*time.Millisecond {
				spanned++
			}
		}
	}
	slices.Sort(times)
	t.Logf("%d events of 8 calls: p50 %s, p99 %s, longest %s; by release %v; %d took long; %d instances were killed, and %d events had a call inside one",
		len(times), times[len(times)/2], times[len(times)*99/100], times[len(times)-1], byRelease, spanned, len(l.killed), failed)
	if want := l.profile.rate * int(l.profile.duration/time.Second); len(times) < want {
		t.Errorf("%d requests were sent, want %d", len(times), want)
	}
	if len(byRelease) < 2 {
		t.Errorf("only releases %v answered: nothing was switched under load", slices.Collect(maps.Keys(byRelease)))
	}
	l.oldOnesGone()
}

// oldOnesGone waits until there are only instances of the active release, and nothing is bound to another.
func (l *loadRun) oldOnesGone() {
	l.t.Helper()
	var active api.ReleaseInfo
	for _, r := range releases(l.t, l.environment()) {
		if r.Status == api.StateActive {
			active = r
		}
	}
	awaitInstances(l.t, l.environment(), "", func(all []api.InstanceInfo) error {
		for _, i := range all {
			if i.Version != active.Versions[i.Key.Function] {
				return fmt.Errorf("an instance of %s:%d is left, %s; release %d has %d", i.Key, i.Version, i.State, active.Number, active.Versions[i.Key.Function])
			}
		}
		return nil
	})
	for _, r := range releases(l.t, l.environment()) {
		if r.InFlight != 0 {
			l.t.Errorf("%d requests are bound to release %d", r.InFlight, r.Number)
		}
	}
}

// killedError is the contract's answer about an instance that was killed.
type killedError struct{ function, instance string }

func (e killedError) Error() string { return "a call inside " + e.instance + " of " + e.function }

// killedBody is what a client gets then.
var killedBody = regexp.MustCompile(`^{"errorType":"Runtime\.ExitError","errorMessage":"RequestId: ([0-9a-f-]{36}) Error: Runtime exited with error: signal: killed"}$`)

// judge checks one call and all below it against the release that the root was bound to. A call inside a killed
// instance is a killedError.
func (l *loadRun) judge(c told, release string) error {
	if m := killedBody.FindStringSubmatch(string(c.Answer)); l.kills && m != nil && c.Error == "Unhandled" && c.Status == http.StatusOK {
		return l.judgeKilled(c.To, m[1])
	}
	if c.Status != http.StatusOK || c.Error != "" {
		return fmt.Errorf("%s: status %d, error %q: %.300s", c.To, c.Status, c.Error, c.Answer)
	}
	number, err := strconv.Atoi(release)
	if err != nil || c.Release != release {
		return fmt.Errorf("%s was answered by release %q, the root by %q", c.To, c.Release, release)
	}
	var s seen
	if err := json.Unmarshal(c.Answer, &s); err != nil {
		return fmt.Errorf("%s: %w: %.300s", c.To, err, c.Answer)
	}
	version := l.routes[number][c.To]
	if want := strconv.Itoa(version); s.Version != want || c.Executed != want || s.Function != c.To || s.Stamp != l.stamps[c.To][version] {
		return fmt.Errorf("%s of release %d: version %s (header %s) stamped %q; want version %d stamped %q", c.To, number, s.Version, c.Executed, s.Stamp, version, l.stamps[c.To][version])
	}
	want := map[string]int{"front": 2, "left": 1, "right": 2, "deep": 1}[c.To]
	if len(s.Calls) != want {
		return fmt.Errorf("%s made %d calls, want %d", c.To, len(s.Calls), want)
	}
	var errs []error
	for _, below := range s.Calls {
		errs = append(errs, l.judge(below, release))
	}
	return worst(errs)
}

// worst is an error that no kill explains, else one that a kill explains, else nil.
func worst(errs []error) error {
	var first error
	for _, err := range errs {
		var inside killedError
		if err != nil && !errors.As(err, &inside) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// judgeKilled looks up which instance a request was in: it must be one that was killed.
func (l *loadRun) judgeKilled(name, id string) error {
	var rec api.Record
	if err := control("GET", api.PathRecords+"/"+id, nil, nil, &rec); err != nil {
		return fmt.Errorf("%s: no record of request %s, which says that it was killed: %w", name, id, err)
	}
	if _, ok := l.killed[rec.Instance]; !ok {
		return fmt.Errorf("%s: request %s says that it was killed, and nobody killed its instance %q", name, id, rec.Instance)
	}
	return killedError{name, rec.Instance}
}
