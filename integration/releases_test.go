//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/google/go-cmp/cmp"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// small are the settings of functions that a test needs many of.
const small = " timeout: 20s; memory: 128MiB; cpu: 0.5; concurrency: {min: 1, max: 20}"

// rollback runs `lfxctl rollback` with those arguments; it must succeed.
func (c *chain) rollback(args ...string) deployResult {
	c.t.Helper()
	stdout, stderr, code := lfxctl(append([]string{"rollback", "--project", c.name, "-o", "json"}, args...)...)
	var res deployResult
	if err := json.Unmarshal([]byte(stdout), &res); code != 0 || err != nil {
		c.t.Fatalf("lfxctl rollback %v: exit %d, %v\n%s%s", args, code, err, stdout, stderr)
	}
	return res
}

// cli runs lfxctl and returns what it printed on both streams; its exit status must be that.
func cli(t *testing.T, code int, args ...string) string {
	t.Helper()
	stdout, stderr, got := lfxctl(args...)
	if got != code {
		t.Errorf("lfxctl %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, code, stdout, stderr)
	}
	return stdout + stderr
}

// bound starts a call that lasts and waits until it runs. wait returns its answer, which must be a good one. name may
// have a query.
func bound(t *testing.T, env function.Environment, name string, e event, headers ...string) (wait func() reply) {
	t.Helper()
	type end struct {
		reply
		err error
	}
	done := make(chan end, 1)
	go func() {
		r, err := tryAsk(name, e, headers...)
		done <- end{r, err}
	}()
	base, _, _ := strings.Cut(name, "?")
	awaitInstances(t, env, base, func(all []api.InstanceInfo) error {
		if !slices.ContainsFunc(all, func(i api.InstanceInfo) bool { return i.State == "busy" }) {
			return fmt.Errorf("%s does not run yet: %+v", name, all)
		}
		return nil
	})
	return func() reply {
		t.Helper()
		e := <-done
		if e.err != nil {
			t.Error(e.err)
		}
		return e.reply
	}
}

// statuses are those of an environment's releases, by number.
func statuses(t *testing.T, env function.Environment) map[int]string {
	t.Helper()
	out := map[int]string{}
	for n, r := range releases(t, env) {
		out[n] = r.Status
	}
	return out
}

// awaitStatuses waits until the releases stand like that.
func awaitStatuses(t *testing.T, env function.Environment, want map[int]string) {
	t.Helper()
	if err := poll(20*time.Second, func() error {
		if diff := cmp.Diff(want, statuses(t, env)); diff != "" {
			return fmt.Errorf("releases (-want +got):\n%s", diff)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// oneRelease checks that a whole chain of calls was answered by one release, whose stamps are those.
func oneRelease(t *testing.T, r reply, release string, stamps map[string]string) {
	t.Helper()
	if r.release() != release {
		t.Errorf("release %q answered, want %s", r.release(), release)
	}
	var walk func(s seen)
	walk = func(s seen) {
		if s.Stamp != stamps[s.Function] {
			t.Errorf("%s is stamped %q in a chain of release %s, want %q", s.Function, s.Stamp, release, stamps[s.Function])
		}
		for _, c := range s.Calls {
			if c.Release != release {
				t.Errorf("%s called %s and release %q answered, want %s: %.200s", s.Function, c.To, c.Release, release, c.Answer)
			}
			walk(c.got(t))
		}
	}
	walk(r.seen)
}

// TestRollback: back and forth without a build; what is under way finishes on its release, at any depth.
func TestRollback(t *testing.T) {
	c := newChain(t, "rollback", "front"+small, "middle"+small, "leaf"+small)
	env := c.environment()
	deep := event{Calls: []callStep{{To: "middle", Event: event{Sleep: 100, Calls: []callStep{{To: "leaf"}}}}}}
	c.deploy()
	c.stamp("2", "front", "leaf") // middle is shared
	c.deploy()
	one, two := map[string]string{"front": "1", "middle": "1", "leaf": "1"}, map[string]string{"front": "2", "middle": "1", "leaf": "2"}
	oneRelease(t, ask(t, "front", deep), "2", two)
	long := deep
	long.Sleep = 5000
	wait := bound(t, env, "front", long)
	if res := c.rollback(); res.Release.Number != 1 || res.Release.Versions["leaf"] != 1 {
		t.Errorf("rolled back to %+v", res.Release)
	}
	for range 5 {
		oneRelease(t, ask(t, "front", deep), "1", one)
	}
	if got := statuses(t, env); got[1] != api.StateActive || got[2] != api.StateDraining {
		t.Errorf("while a request of release 2 runs: %v", got)
	}
	oneRelease(t, wait(), "2", two)
	awaitStatuses(t, env, map[int]string{1: api.StateActive, 2: api.StateKept})
	awaitInstances(t, env, "leaf", func(all []api.InstanceInfo) error {
		if len(all) != 1 || all[0].Version != 1 {
			return fmt.Errorf("want one instance of leaf:1: %+v", all)
		}
		return nil
	})
	c.rollback() // the one before is 2 now
	oneRelease(t, ask(t, "front", deep), "2", two)
	if out := cli(t, 2, "rollback", "2", "--project", c.name); !strings.Contains(out, "active") {
		t.Errorf("rolling back to the active release: %s", out)
	}
	if out := cli(t, 1, "rollback", "7", "--project", c.name); !strings.Contains(out, "7") {
		t.Errorf("rolling back to no release: %s", out)
	}
	if res := c.deploy(); !res.Unchanged || res.Release.Number != 2 {
		t.Errorf("a deploy of what is active: release %d, unchanged %v", res.Release.Number, res.Unchanged)
	}
	c.stamp("1")
	if res := c.deploy(); res.Release.Number != 3 || !cmp.Equal(res.Release.Versions, map[string]int{"front": 1, "middle": 1, "leaf": 1}) {
		t.Errorf("a deploy of what release 1 was: %+v", res.Release)
	}
}

// TestRollbackSurvivesRestarts: what is active is what was switched to last.
func TestRollbackSurvivesRestarts(t *testing.T) {
	c := newChain(t, "remember", "f"+small)
	c.deploy()
	c.stamp("2")
	c.deploy()
	c.rollback()
	for _, how := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := d.signal(how); err != nil {
			t.Fatal(err)
		}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		oneRelease(t, ask(t, "f", event{}), "1", map[string]string{"f": "1"})
	}
	c.rollback()
	oneRelease(t, ask(t, "f", event{}), "2", map[string]string{"f": "2"})
}

// TestRemovedFunctionIsReachedByItsRelease: a request of the release before the removal still calls what is gone.
func TestRemovedFunctionIsReachedByItsRelease(t *testing.T) {
	c := newChain(t, "removed", "front"+small, "leaf timeout: 10s; memory: 128MiB; cpu: 0.5")
	c.deploy()
	call := event{Sleep: 5000, Calls: []callStep{{To: "leaf"}}}
	wait := bound(t, c.environment(), "front", call)
	c.functions = c.functions[:1]
	c.setManifest("")
	c.stamp("2")
	c.deploy()
	if a := post(t, invokeURL("leaf"), ""); a.status != 404 {
		t.Errorf("what was removed answers %d %s", a.status, a.body)
	}
	oneRelease(t, wait(), "1", map[string]string{"front": "1", "leaf": "1"})
	after := ask(t, "front", event{Calls: []callStep{{To: "leaf"}}})
	if got := after.Calls[0]; after.Stamp != "2" || got.Status != 404 {
		t.Errorf("release 2 calls what it does not have: %+v", got)
	}
	awaitInstances(t, c.environment(), "leaf", func(all []api.InstanceInfo) error {
		if len(all) > 0 {
			return fmt.Errorf("instances of what was removed: %+v", all)
		}
		return nil
	})
}

// TestReleaseThatIsNotActivated: it is there for those who name it, calls included, and for a rollback.
func TestReleaseThatIsNotActivated(t *testing.T) {
	c := newChain(t, "inactive", "front"+small, "leaf"+small)
	env := c.environment()
	c.deploy()
	c.stamp("2")
	res := c.deploy("--no-activate")
	if res.Release.Number != 2 {
		t.Fatalf("release %d", res.Release.Number)
	}
	call := event{Calls: []callStep{{To: "leaf"}}}
	for range 3 {
		oneRelease(t, ask(t, "front", call), "1", map[string]string{"front": "1", "leaf": "1"})
		oneRelease(t, ask(t, "front?Qualifier=r2", call), "2", map[string]string{"front": "2", "leaf": "2"})
	}
	if got := statuses(t, env); got[1] != api.StateActive || got[2] != api.StateKept {
		t.Errorf("releases: %v", got)
	}
	if out := cli(t, 2, "deploy", c.dir, "--no-activate", "--canary", "10%"); !strings.Contains(out, "canary") {
		t.Errorf("both flags: %s", out)
	}
	c.rollback("2")
	oneRelease(t, ask(t, "front", call), "2", map[string]string{"front": "2", "leaf": "2"})
}

// draws asks n times and counts which release answered; every chain must be of one release.
func draws(t *testing.T, n int, name string, e event, stamps map[string]map[string]string) map[string]int {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	count := map[string]int{}
	slots := make(chan struct{}, 4)
	for range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			r, err := tryAsk(name, e)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			count[r.release()]++
			oneRelease(t, r, r.release(), stamps[r.release()])
		})
	}
	wg.Wait()
	return count
}

// traffic is who gets the requests of an environment.
func traffic(t *testing.T, env function.Environment) api.Traffic {
	t.Helper()
	var all []api.Traffic
	if err := control("GET", api.PathTraffic, of(env), nil, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 {
		t.Fatalf("traffic of %s: %+v", env, all)
	}
	return all[0]
}

// TestCanary: a share of the root requests, each with all of its calls; then more, all, none.
func TestCanary(t *testing.T) {
	c := newChain(t, "canary", "front"+small, "shared"+small, "leaf"+small)
	env := c.environment()
	c.deploy()
	c.stamp("2", "front", "leaf")
	if res := c.deploy("--canary", "25%"); res.Release.Number != 2 {
		t.Fatalf("release %d", res.Release.Number)
	}
	stamps := map[string]map[string]string{
		"1": {"front": "1", "shared": "1", "leaf": "1"}, "2": {"front": "2", "shared": "1", "leaf": "2"}, "3": {"front": "3", "shared": "3", "leaf": "3"},
	}
	call := event{Calls: []callStep{{To: "shared", Event: event{Calls: []callStep{{To: "leaf"}}}}}}
	const n = 240
	got := draws(t, n, "front", call, stamps)
	if got["1"]+got["2"] != n || got["2"] < n/8 || got["2"] > n*2/5 { // 60 expected; beyond 5 sigma on both sides
		t.Errorf("with 25 %% for release 2: %v", got)
	}
	if s := statuses(t, env); s[1] != api.StateActive || s[2] != api.StateCanary {
		t.Errorf("releases: %v", s)
	}
	if r := releases(t, env); r[1].Percent != 75 || r[2].Percent != 25 || r[2].Requests == 0 {
		t.Errorf("shares %v and %v, %d requests of the canary", r[1].Percent, r[2].Percent, r[2].Requests)
	}
	for _, pinned := range []string{"r1", "r2"} { // whoever names a release does not draw
		for range 4 {
			oneRelease(t, ask(t, "front?Qualifier="+pinned, call), pinned[1:], stamps[pinned[1:]])
		}
	}
	if out := cli(t, 1, "deploy", c.dir, "--wait"); !strings.Contains(out, "promote") || !strings.Contains(out, "abort") {
		t.Errorf("a deploy beside a canary: %s", out)
	}
	if out := cli(t, 0, "traffic", "set", "2=99.99%", "--project", c.name); !strings.Contains(out, "99.99") {
		t.Errorf("traffic set printed %s", out)
	}
	if got := draws(t, 30, "front", call, stamps); got["2"] < 28 {
		t.Errorf("with 99.99 %% for release 2: %v", got)
	}
	t.Run("restart", func(t *testing.T) {
		if err := d.signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		if now := traffic(t, env); now.Active != 1 || now.Canary == nil || now.Canary.Release != 2 || now.Canary.Percent != 99.99 {
			t.Errorf("after the restart: %+v", now)
		}
		if got := draws(t, 30, "front", call, stamps); got["2"] < 28 {
			t.Errorf("after the restart: %v", got)
		}
	})
	cli(t, 0, "promote", "--project", c.name)
	if got := draws(t, 20, "front", call, stamps); got["2"] != 20 {
		t.Errorf("after the promotion: %v", got)
	}
	awaitStatuses(t, env, map[int]string{1: api.StateKept, 2: api.StateActive})
	c.stamp("3")
	c.deploy("--canary", "50%")
	wait := bound(t, env, "front?Qualifier=r3", event{Sleep: 4000, Calls: call.Calls})
	cli(t, 0, "abort", "--project", c.name)
	if got := draws(t, 20, "front", call, stamps); got["2"] != 20 {
		t.Errorf("after the abort: %v", got)
	}
	oneRelease(t, wait(), "3", stamps["3"]) // what ran on the canary is finished there
	awaitStatuses(t, env, map[int]string{1: api.StateKept, 2: api.StateActive, 3: api.StateKept})
	awaitInstances(t, env, "", func(all []api.InstanceInfo) error {
		for _, i := range all {
			if i.Version == 3 {
				return fmt.Errorf("an instance of the aborted canary is left: %+v", i)
			}
		}
		return nil
	})
	var actions []string
	for _, d := range traffic(t, env).Decisions {
		actions = append(actions, fmt.Sprintf("%d %s by %s", d.Release, d.Action, d.By))
	}
	if want := []string{"2 started by user", "2 share by user", "2 promoted by user", "3 started by user", "3 aborted by user"}; !slices.Equal(actions, want) {
		t.Errorf("decisions %q, want %q", actions, want)
	}
	if out := cli(t, 1, "promote", "--project", c.name); !strings.Contains(out, "canary") {
		t.Errorf("promoting nothing: %s", out)
	}
}

// TestJudge: lfxd promotes a canary that is as good, and aborts one that fails, by itself and with its figures.
func TestJudge(t *testing.T) {
	c := newChain(t, "judged", "f timeout: 20s; memory: 128MiB; cpu: 0.5; concurrency: {min: 2, max: 20}")
	env := c.environment()
	c.setManifest("canary: {after: 10s, min_requests: 20, max_error_rate: 0.05, max_p99_ratio: 1000}\n")
	c.deploy()
	// Calls go on the whole time; those of the stamp "bad" fail.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			a, err := try(http.DefaultClient, "POST", invokeURL("f"), event{Fail: "bad"}.String())
			if err != nil || a.status != 200 || a.header.Get("X-Amz-Function-Error") != "" && !strings.Contains(a.body, "stamped bad") {
				t.Errorf("status %d, %s, %v", a.status, a.body, err)
			}
		}
	})
	defer func() { close(stop); wg.Wait() }()
	await := func(release int, action string) api.Decision {
		t.Helper()
		var found api.Decision
		if err := poll(60*time.Second, func() error {
			now := traffic(t, env)
			if now.Canary == nil && len(now.Decisions) > 0 {
				found = now.Decisions[len(now.Decisions)-1]
				if found.Release == release && found.Action == action {
					return nil
				}
				return final{fmt.Errorf("the canary ended otherwise: %+v", now)}
			}
			return fmt.Errorf("no decision yet: %+v", now)
		}); err != nil {
			t.Fatal(err)
		}
		if found.By != "judge" || found.Canary == nil || found.Active == nil || found.Canary.Requests < 20 || found.Active.Requests == 0 || found.Reason == "" {
			t.Errorf("the decision has %+v, canary %+v, active %+v", found, found.Canary, found.Active)
		}
		return found
	}
	c.stamp("good")
	c.deploy("--canary", "50%", "--auto")
	if d := await(2, "promoted"); d.Canary != nil && d.Canary.Errors != 0 {
		t.Errorf("figures of the good one: %+v", d.Canary)
	}
	if s := statuses(t, env); s[2] != api.StateActive {
		t.Errorf("after the promotion: %v", s)
	}
	c.stamp("bad")
	c.deploy("--canary", "50%", "--auto")
	if d := await(3, "aborted"); d.Canary != nil && d.Canary.ErrorRate < 0.9 {
		t.Errorf("figures of the bad one: %+v", d.Canary)
	}
	if r := ask(t, "f", event{Fail: "bad"}); r.Stamp != "good" {
		t.Errorf("after the abort: %+v", r.seen)
	}
	if out := cli(t, 0, "traffic", "--project", c.name); !strings.Contains(out, "aborted") || !strings.Contains(out, "judge") {
		t.Errorf("lfxctl traffic shows\n%s", out)
	}
}

// TestAliases: of functions, with weights, as AWS's clients use them; and of environments.
func TestAliases(t *testing.T) {
	c := newChain(t, "aliased", "f"+small, "g"+small)
	env := c.environment()
	c.deploy()
	c.stamp("2")
	c.deploy()
	c.stamp("3", "f")
	c.deploy()
	cli(t, 0, "alias", "set", "f", "prod=1", "--project", c.name)
	cli(t, 0, "alias", "set", "f", "mixed=1,2:50%", "--project", c.name)
	cli(t, 0, "alias", "set", "stable=r2", "--project", c.name)
	for qualifier, want := range map[string][3]string{ // stamp, version, release
		"prod": {"1", "1", ""}, "stable": {"2", "2", "2"}, "live": {"3", "3", "3"}, "previous": {"2", "2", "2"}, "$LATEST": {"3", "3", "3"}, "r1": {"1", "1", "1"},
	} {
		r := ask(t, "f?Qualifier="+url.QueryEscape(qualifier), event{Calls: []callStep{{To: "g"}}})
		if r.Stamp != want[0] || r.header.Get("X-Amz-Executed-Version") != want[1] || want[2] != "" && r.release() != want[2] {
			t.Errorf("%s: %+v, version %s of release %s, want %v", qualifier, r.seen, r.header.Get("X-Amz-Executed-Version"), r.release(), want)
		}
		if got := r.Calls[0]; got.Release != r.release() {
			t.Errorf("%s: its call was answered by release %s, itself by %s", qualifier, got.Release, r.release())
		}
	}
	t.Run("weights", func(t *testing.T) {
		count := map[string]int{}
		for range 60 {
			count[ask(t, "f:mixed", event{}).Stamp]++
		}
		if count["1"]+count["2"] != 60 || count["1"] < 10 || count["2"] < 10 {
			t.Errorf("with 50 %% each: %v", count)
		}
	})
	t.Run("boto3", func(t *testing.T) {
		cmd := exec.Command("/usr/bin/python3", "-c", `
import boto3, json
c = boto3.client("lambda", endpoint_url="http://localhost:9000", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
for qualifier, version in (("prod", "1"), ("stable", "2"), ("live", "3"), ("2", "2"), ("$LATEST", "3")):
    r = c.invoke(FunctionName="f", Qualifier=qualifier, Payload=b"{}")
    assert r["ExecutedVersion"] == version and json.load(r["Payload"])["stamp"] == version, (qualifier, r)
r = c.invoke(FunctionName="f:prod", Payload=b"{}")
assert r["ExecutedVersion"] == "1", r
try:
    c.invoke(FunctionName="f", Qualifier="nope")
    raise SystemExit("no error for an unknown alias")
except c.exceptions.ResourceNotFoundException as e:
    assert ":function:f:nope" in str(e), e
print("ok")
`)
		cmd.Env = append(os.Environ(), "PYTHONPATH=")
		if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "ok" {
			t.Errorf("boto3: %v\n%s", err, out)
		}
	})
	t.Run("aws-sdk-go-v2", func(t *testing.T) {
		sdk := lambda.New(lambda.Options{
			BaseEndpoint: aws.String("http://localhost:9000"), Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
		})
		functions, err := d.client.Functions(context.Background(), env)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"f:prod", functions[0].ARN + ":prod", functions[0].Account + ":function:f:prod"} {
			out, err := sdk.Invoke(context.Background(), &lambda.InvokeInput{FunctionName: &name, Payload: []byte("{}")})
			if err != nil || aws.ToString(out.ExecutedVersion) != "1" {
				t.Errorf("%s: %+v, %v", name, out, err)
			}
		}
	})
	t.Run("kept", func(t *testing.T) { // what an alias names outlives the releases that are kept
		for n := 4; n < 16; n++ {
			c.stamp(strconv.Itoa(n), "f")
			c.deploy()
		}
		if r := ask(t, "f?Qualifier=prod", event{}); r.Stamp != "1" {
			t.Errorf("prod: %+v", r.seen)
		}
		if r := ask(t, "g?Qualifier=stable", event{Calls: []callStep{{To: "f"}}}); r.Stamp != "2" || r.release() != "2" || r.Calls[0].got(t).Stamp != "2" {
			t.Errorf("stable: %+v of release %s", r.seen, r.release())
		}
		if a := post(t, invokeURL("f")+"?Qualifier=r3", ""); a.status != 404 {
			t.Errorf("release 3, which nobody names: %d %s", a.status, a.body)
		}
	})
	for _, wrong := range [][]string{{"alias", "set", "live=r1"}, {"alias", "set", "f", "7=1"}, {"alias", "set", "f", "r9=1"}, {"alias", "set", "f", "x=99"}, {"alias", "set", "y=r99"}} {
		if _, _, code := lfxctl(append(wrong, "--project", c.name)...); code == 0 {
			t.Errorf("lfxctl %v succeeded", wrong)
		}
	}
	cli(t, 0, "alias", "rm", "f", "prod", "--project", c.name)
	if a := post(t, invokeURL("f")+"?Qualifier=prod", ""); a.status != 404 {
		t.Errorf("after its removal prod answers %d %s", a.status, a.body)
	}
}

// TestEnvironments: a second deployment of the same project, apart from the first in everything.
func TestEnvironments(t *testing.T) {
	c := newChain(t, "apart", "front"+small, "leaf"+small)
	staging := function.Environment{Project: c.name, Name: "staging"}
	call := event{Calls: []callStep{{To: "leaf"}}}
	c.deploy()
	c.stamp("s1")
	if res := c.deploy("--env", "staging"); res.Release.Number != 1 || res.Release.Environment != staging {
		t.Fatalf("deployed %+v", res.Release)
	}
	c.stamp("s2")
	c.deploy("--env", "staging")
	var all []api.EnvironmentInfo
	if err := control("GET", api.PathEnvironments, url.Values{"project": {c.name}}, nil, &all); err != nil {
		t.Fatal(err)
	}
	account := map[string]string{}
	for _, e := range all {
		account[e.Name] = e.Account
		if e.Functions != 2 || e.Instances != 2 || e.Account == "" {
			t.Errorf("environment %+v", e)
		}
	}
	if len(account) != 2 || account["default"] == account["staging"] {
		t.Fatalf("accounts: %v", account)
	}
	if a := post(t, invokeURL("front"), call.String()); a.status != 200 || !strings.Contains(a.body, `"stamp":"1"`) {
		// the name is not unique on the host: an answer may name the candidates instead
		if a.status != 404 && a.status != 409 && a.status != 400 || !strings.Contains(a.body, "staging") {
			t.Errorf("the bare name: %d %s", a.status, a.body)
		}
	}
	in := func(env string) []string { return []string{"Host", env + "localhost:9000"} }
	ones, twos := map[string]string{"front": "1", "leaf": "1"}, map[string]string{"front": "s2", "leaf": "s2"}
	for _, a := range []struct {
		function string
		headers  []string
		release  string
		stamps   map[string]string
	}{
		{"front", in("apart."), "1", ones},
		{"front", in("staging.apart."), "2", twos},
		{url.PathEscape(account["default"] + ":function:front"), nil, "1", ones},
		{url.PathEscape(account["staging"] + ":function:front"), nil, "2", twos},
		{url.PathEscape("arn:aws:lambda:us-east-1:" + account["staging"] + ":function:front"), nil, "2", twos},
		{url.PathEscape(account["staging"]+":function:front") + "?Qualifier=r1", nil, "1", map[string]string{"front": "s1", "leaf": "s1"}},
	} {
		r, err := tryAsk(a.function, call, a.headers...)
		if err != nil {
			t.Errorf("%s %v: %v", a.function, a.headers, err)
			continue
		}
		oneRelease(t, r, a.release, a.stamps)
	}
	if _, stderr, code := lfxctl("rollback", "--project", c.name, "--env", "staging"); code != 0 {
		t.Errorf("rollback of staging: %s", stderr)
	}
	oneRelease(t, ask(t, "front", call, in("staging.apart.")...), "1", map[string]string{"front": "s1", "leaf": "s1"})
	oneRelease(t, ask(t, "front", call, in("apart.")...), "1", ones)
	if out := cli(t, 2, "env", "rm", "staging", "--project", c.name); !strings.Contains(out, "--yes") {
		t.Errorf("env rm without --yes: %s", out)
	}
	wait := bound(t, staging, "front", event{Sleep: 2500, Calls: call.Calls}, in("staging.apart.")...)
	cli(t, 0, "env", "rm", "staging", "--project", c.name, "--yes")
	oneRelease(t, wait(), "1", map[string]string{"front": "s1", "leaf": "s1"})
	awaitInstances(t, staging, "", func(all []api.InstanceInfo) error {
		if len(all) > 0 {
			return fmt.Errorf("instances of the environment that was removed: %+v", all)
		}
		return nil
	})
	if err := control("GET", api.PathTraffic, of(staging), nil, &[]api.Traffic{}); err != nil {
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeNotFound {
			t.Error(err)
		}
	}
	oneRelease(t, ask(t, "front", call), "1", ones) // the name is unique again
}
