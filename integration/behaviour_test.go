//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

func functionEnvironment(project string) function.Environment {
	return function.Environment{Project: project, Name: function.DefaultEnvironment}
}

// manifest is an lfx.yaml of Python functions, each "name extra: setting; extra: setting". Timeouts
// are stretched on slow machines.
func manifest(project string, functions ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "project: %s\nfunctions:\n", project)
	for _, f := range functions {
		name, extra, _ := strings.Cut(f, " ")
		fmt.Fprintf(&b, "  %s:\n    build: ./%s\n", name, name)
		for _, kv := range strings.Split(extra, ";") {
			kv = strings.TrimSpace(kv)
			var seconds int
			if _, err := fmt.Sscanf(kv, "timeout: %ds", &seconds); err == nil {
				kv = fmt.Sprintf("timeout: %ds", slow(seconds))
			}
			if kv != "" {
				fmt.Fprintf(&b, "    %s\n", kv)
			}
		}
	}
	return b.String()
}

func TestChangedHandlerAnswersAfterTheNextDeploy(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("change", "a timeout: 5s", "b timeout: 5s")},
		python("a", "def handler(event, context): return 'one'\n"),
		python("b", "def handler(event, context): return 'same'\n"),
	))
	p.deploy()
	if got := post(t, invokeURL("a"), "").body; got != `"one"` {
		t.Fatalf("first answer %s", got)
	}
	write(t, filepath.Join(p.dir, "a/app.py"), "def handler(event, context): return 'two'\n")
	plan := p.deploy("--plan")
	if !plan.Plan || plan.Release.Number != 2 {
		t.Errorf("plan: %+v", plan)
	}
	if got := post(t, invokeURL("a"), "").body; got != `"one"` {
		t.Errorf("after --plan: %s", got)
	}
	res := p.deploy()
	if res.Release.Number != 2 || res.Release.Versions["a"] != 2 || res.Release.Versions["b"] != 1 {
		t.Errorf("release %d with %v, want 2 with a:2 and b:1", res.Release.Number, res.Release.Versions)
	}
	if got := post(t, invokeURL("a"), ""); got.body != `"two"` || got.header.Get("X-Lfx-Release") != "2" {
		t.Errorf("after the deploy: %s of release %s", got.body, got.header.Get("X-Lfx-Release"))
	}
	if got := post(t, invokeURL("a")+"?Qualifier=1", "").body; got != `"one"` {
		t.Errorf("version 1: %s", got)
	}
	if got := post(t, invokeURL("a")+"?Qualifier=r1", "").body; got != `"one"` {
		t.Errorf("release 1: %s", got)
	}
}

// errorCode is a handler with every way to fail.
const errorCode = `
import ctypes, json, os, signal, sys, time
def handler(event, context):
    how = event.get("how")
    print("before", how)
    if how == "raise": raise ValueError("no good")
    if how == "sleep": time.sleep(60)
    if how == "exit0": os._exit(0)
    if how == "exit3": os._exit(3)
    if how == "exit139": os._exit(139)
    if how == "segv": ctypes.string_at(0)
    if how == "abort": os.abort()
    if how == "big": return "x" * (7 << 20)
    if how == "oom":
        hog = []
        while True: hog.append(bytearray(16 << 20))
    if how == "none": return None
    if how == "environ": return dict(os.environ)
    if how == "context": return {"arn": context.invoked_function_arn, "left": context.get_remaining_time_in_millis(), "v": context.function_version, "mem": context.memory_limit_in_mb}
    return event
`

func TestFailuresReachTheClientAsOnLambda(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("failures", "f timeout: 2s; memory: 128MiB; cpu: 1")},
		python("f", errorCode),
	))
	p.deploy()
	for _, c := range []struct{ how, want string }{
		{"exit0", `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: ID Error: Runtime exited without providing a reason"}`},
		{"exit3", `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: ID Error: Runtime exited with error: exit status 3"}`},
		{"exit139", `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: ID Error: Runtime exited with error: exit status 139"}`},
		{"segv", `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: ID Error: Runtime exited with error: signal: segmentation fault"}`},
		{"abort", `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: ID Error: Runtime exited with error: signal: aborted"}`},
		{"sleep", `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: ID Error: Task timed out after ` + fmt.Sprint(slow(2)) + `.00 seconds"}`},
		{"oom", `{"errorType":"Runtime.OutOfMemory","errorMessage":"RequestId: ID Error: Runtime exited with error: signal: killed"}`},
		{"big", `{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}`},
	} {
		t.Run(c.how, func(t *testing.T) {
			a := post(t, invokeURL("f"), `{"how":"`+c.how+`"}`, "X-Amz-Log-Type", "Tail")
			id := a.header.Get("x-amzn-RequestId")
			want := strings.ReplaceAll(c.want, "ID", id)
			if a.status != 200 || a.body != want || a.header.Get("X-Amz-Function-Error") != "Unhandled" {
				t.Errorf("status %d, error %q\n got %.300s\nwant %s", a.status, a.header.Get("X-Amz-Function-Error"), a.body, want)
			}
			log := tail(t, a)
			if !strings.Contains(log, "before "+c.how+"\n") || !strings.Contains(log, "END RequestId: "+id) || !strings.Contains(log, "REPORT RequestId: "+id) {
				t.Errorf("log:\n%s", log)
			}
			if strings.Index(log, "before ") > strings.Index(log, "END ") {
				t.Errorf("the function's line comes after END:\n%s", log)
			}
		})
	}
	t.Run("raise", func(t *testing.T) {
		a := post(t, invokeURL("f"), `{"how":"raise"}`)
		var e struct {
			ErrorMessage, ErrorType, RequestID string
			StackTrace                         []string
		}
		if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.ErrorMessage != "no good" || e.ErrorType != "ValueError" || len(e.StackTrace) == 0 {
			t.Errorf("%s, %v", a.body, err)
		}
	})
	t.Run("null", func(t *testing.T) {
		if a := post(t, invokeURL("f"), `{"how":"none"}`); a.body != "null" {
			t.Errorf("got %s", a.body)
		}
	})
	t.Run("report", func(t *testing.T) {
		log := tail(t, post(t, invokeURL("f"), `{"how":"sleep"}`, "X-Amz-Log-Type", "Tail"))
		re := regexp.MustCompile(`REPORT RequestId: \S+\tDuration: ` + fmt.Sprint(slow(2)) + `000.00 ms\tBilled Duration: \d+ ms\tMemory Size: 128 MB\tMax Memory Used: \d+ MB.*\tStatus: timeout(\tQueue: [^\n]+)?\n`)
		if !re.MatchString(log) {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("environment", func(t *testing.T) {
		a := post(t, invokeURL("f"), `{"how":"environ"}`)
		var env map[string]string
		if err := json.Unmarshal([]byte(a.body), &env); err != nil {
			t.Fatal(err)
		}
		for k, want := range map[string]string{"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_FUNCTION_VERSION": "1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128", "AWS_REGION": "us-east-1", "_HANDLER": "app.handler"} {
			if env[k] != want {
				t.Errorf("%s = %q, want %q", k, env[k], want)
			}
		}
		if _, ok := env["AWS_LAMBDA_MAX_CONCURRENCY"]; ok {
			t.Error("AWS_LAMBDA_MAX_CONCURRENCY is set")
		}
	})
	t.Run("context", func(t *testing.T) {
		a := post(t, invokeURL("f"), `{"how":"context"}`)
		var c struct {
			ARN, V string
			Left   int
			Mem    any
		}
		if err := json.Unmarshal([]byte(a.body), &c); err != nil || !strings.HasSuffix(c.ARN, ":function:f") || c.V != "1" || c.Left < 500 || c.Left > slow(2)*1000 {
			t.Errorf("%s, %v", a.body, err)
		}
	})
}

func tail(t *testing.T, a answer) string {
	t.Helper()
	return decode64(t, a.header.Get("X-Amz-Log-Result"))
}

func TestFailedInitIsTheInvocationsResult(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("inits", "raises timeout: 3s", "hangs timeout: 1s", "exits timeout: 3s", "missing timeout: 3s")},
		python("raises", "raise RuntimeError('not today')\n"),
		python("hangs", "import time\ntime.sleep(600)\n"),
		python("exits", "import os\nprint('bye')\nos._exit(7)\n"),
		map[string]string{"missing/Dockerfile": "FROM public.ecr.aws/lambda/provided:al2023\nENTRYPOINT [\"/nowhere/bootstrap\"]\n"},
	))
	p.deploy()
	for _, c := range []struct{ name, want string }{
		{"raises", `"errorMessage": ?"not today"`},
		{"hangs", `"Sandbox.Timedout","errorMessage":"RequestId: \S+ Error: Task timed out after ` + fmt.Sprint(slow(1)) + `.00 seconds"`},
		{"exits", `"Runtime.ExitError","errorMessage":"RequestId: \S+ Error: Runtime exited with error: exit status 7"`},
		{"missing", `"Runtime.InvalidEntrypoint","errorMessage":"RequestId: \S+ Error: .*no such file`},
	} {
		a := post(t, invokeURL(c.name), "")
		if a.status != 200 || a.header.Get("X-Amz-Function-Error") != "Unhandled" || !regexp.MustCompile(c.want).MatchString(a.body) {
			t.Errorf("%s: status %d, body %s, want %s", c.name, a.status, a.body, c.want)
		}
	}
	logs := func() string {
		stdout, _, _ := lfxctl("logs", "exits")
		return stdout
	}
	if log := logs(); !strings.Contains(log, "Phase: init\tStatus: error\tError Type: Runtime.ExitError") || !strings.Contains(log, "Phase: invoke\tStatus: error\tError Type: Runtime.ExitError") {
		t.Errorf("log of a failing init:\n%s", log)
	}
}

func TestWarmFunctionThatCannotStartFailsTheDeploy(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("warm", "w concurrency: {min: 2, max: 3}")},
		python("w", "def handler(event, context): return 1\n"),
	))
	p.deploy()
	instances, err := d.client.Instances(context.Background())
	if err != nil || len(instances) != 2 {
		t.Errorf("%d instances after the deploy, want 2: %v", len(instances), err)
	}
	write(t, filepath.Join(p.dir, "w/app.py"), "import nothing_of_that_name\n")
	_, stderr, code := p.tryDeploy()
	if code != 1 || !strings.Contains(stderr, "w") || !strings.Contains(stderr, "nothing_of_that_name") {
		t.Errorf("exit %d:\n%s", code, stderr)
	}
	if got := post(t, invokeURL("w"), ""); got.body != "1" || got.header.Get("X-Lfx-Release") != "1" {
		t.Errorf("after the failed deploy: %s of release %s", got.body, got.header.Get("X-Lfx-Release"))
	}
}

func TestConcurrencyQueuesAndCaps(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("many", "one concurrency: {max: 1}", "four concurrency: {max: 4}; timeout: 10s")},
		python("one", "import os\ndef handler(event, context): return event['n']\n"),
		python("four", "import time, socket\ndef handler(event, context):\n    time.sleep(1)\n    return socket.gethostname()\n"),
	))
	p.deploy()
	var wg sync.WaitGroup
	var mu sync.Mutex
	hosts := map[string]int{}
	for i := range 8 {
		wg.Go(func() {
			if a, err := try(http.DefaultClient, "POST", invokeURL("one"), fmt.Sprintf(`{"n":%d}`, i)); err != nil || a.body != fmt.Sprint(i) {
				t.Errorf("call %d: %+v, %v", i, a, err)
			}
		})
		wg.Go(func() {
			a, err := try(http.DefaultClient, "POST", invokeURL("four"), "")
			if err != nil || a.status != 200 {
				t.Errorf("call %d: %+v, %v", i, a, err)
			}
			mu.Lock()
			hosts[a.body]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(hosts) < 2 || len(hosts) > 4 {
		t.Errorf("calls were served by %v, want 2 to 4 instances", hosts)
	}
	running, err := d.client.Instances(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, in := range running {
		count[in.Key.Function]++
	}
	if count["one"] != 1 || count["four"] > 4 {
		t.Errorf("instances: %v", count)
	}
}

// TestNestedCallsStayOnTheirRelease: a function calls another through the endpoint inside its instance.
func TestNestedCallsStayOnTheirRelease(t *testing.T) {
	caller := `
import json, os, time, urllib.request
def handler(event, context):
    time.sleep(event.get("sleep", 0))
    url = os.environ["AWS_ENDPOINT_URL_LAMBDA"] + "/2015-03-31/functions/callee/invocations"
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST")) as r:
        return {"caller": "VERSION", "callee": json.load(r), "release": r.headers["X-Lfx-Release"]}
`
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("nested", "caller timeout: 20s", "callee timeout: 5s")},
		python("caller", strings.ReplaceAll(caller, "VERSION", "1")),
		python("callee", "def handler(event, context): return '1'\n"),
	))
	p.deploy()
	first := make(chan answer, 1)
	go func() {
		a, _ := try(http.DefaultClient, "POST", invokeURL("caller"), `{"sleep":8}`) // judged below
		first <- a
	}()
	if err := poll(10*time.Second, func() error {
		all, err := d.client.Functions(context.Background(), functionEnvironment("nested"))
		if err == nil && all[1].InFlight == 0 {
			return fmt.Errorf("the caller does not run yet")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(p.dir, "caller/app.py"), strings.ReplaceAll(caller, "VERSION", "2"))
	write(t, filepath.Join(p.dir, "callee/app.py"), "def handler(event, context): return '2'\n")
	p.deploy()
	if got, want := post(t, invokeURL("caller"), "").body, `{"caller": "2", "callee": "2", "release": "2"}`; got != want {
		t.Errorf("new request: %s, want %s", got, want)
	}
	if got, want := (<-first).body, `{"caller": "1", "callee": "1", "release": "1"}`; got != want {
		t.Errorf("request that was in flight during the switch: %s, want %s", got, want)
	}
}

func TestBadInputChangesNothing(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("bad", "ok timeout: 3s")},
		python("ok", "def handler(event, context): return 'ok'\n"),
	))
	p.deploy()
	good := manifest("bad", "ok timeout: 3s")
	for _, c := range []struct {
		name, file, text string
		code             int
		want             []string
	}{
		{"manifest", "lfx.yaml", "project: bad\nfunctions:\n  ok:\n    build: ./ok\n    memory: 12 potatoes\n    timeout: 1h\n    colour: blue\n", 2, []string{"lfx.yaml:5:", "lfx.yaml:6:", "lfx.yaml:7:", "potatoes", "colour"}},
		{"function name", "lfx.yaml", "project: bad\nfunctions:\n  'not ok':\n    build: ./ok\n", 2, []string{"lfx.yaml:3:", "not ok"}},
		{"missing folder", "lfx.yaml", "project: bad\nfunctions:\n  ok:\n    build: ./nowhere\n", 2, []string{"nowhere"}},
		{"reserved variable", "lfx.yaml", "project: bad\nfunctions:\n  ok:\n    build: ./ok\n    environment: {AWS_REGION: x}\n", 2, []string{"AWS_REGION"}},
		{"Dockerfile", "ok/Dockerfile", "FROM public.ecr.aws/lambda/python:3.11\nRUN --security=insecure true\nCOPYY app.py /\n", 2, []string{"Dockerfile:"}},
		{"syntax", "ok/Dockerfile", "# syntax=evil.example/frontend\nFROM public.ecr.aws/lambda/python:3.11\n", 2, []string{"evil.example/frontend"}},
		{"missing file", "ok/Dockerfile", "FROM public.ecr.aws/lambda/python:3.11\nCOPY nothing.py /\n", 1, []string{"nothing.py", "Dockerfile:2"}},
		{"failing step", "ok/Dockerfile", "FROM public.ecr.aws/lambda/python:3.11\nRUN echo some words && exit 4\n", 1, []string{"some words", "Dockerfile:2", "4"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			old, err := os.ReadFile(filepath.Join(p.dir, c.file))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(p.dir, c.file), c.text)
			_, stderr, code := p.tryDeploy()
			write(t, filepath.Join(p.dir, c.file), string(old))
			if code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("no %q in:\n%s", want, stderr)
				}
			}
		})
	}
	write(t, filepath.Join(p.dir, "lfx.yaml"), good)
	if res := p.deploy(); !res.Unchanged || res.Release.Number != 1 {
		t.Errorf("after all that, release %d, unchanged %v", res.Release.Number, res.Unchanged)
	}
	for _, c := range []struct {
		url, body string
		headers   []string
		status    int
		code      string
	}{
		{invokeURL("ok"), "{", nil, 400, "InvalidRequestContentException"},
		{invokeURL("nope"), "{}", nil, 404, "ResourceNotFoundException"},
		{invokeURL("not%20ok"), "{}", nil, 400, "ValidationException"},
		{invokeURL("ok") + "?Qualifier=9", "{}", nil, 404, "ResourceNotFoundException"},
		{invokeURL("arn%3Aaws%3Alambda%3Aus-west-2%3A123456789012%3Afunction%3Aok"), "{}", nil, 404, "ResourceNotFoundException"},
		{invokeURL("123456789012:function:ok"), "{}", nil, 403, "AccessDeniedException"},
		{invokeURL("ok:1") + "?Qualifier=2", "{}", nil, 400, "InvalidParameterValueException"},
		{invokeURL("ok"), "{}", []string{"X-Amz-Invocation-Type", "Sometimes"}, 400, "ValidationException"},
		{invokeURL("ok"), "{}", []string{"X-Amz-Client-Context", "!!"}, 400, "InvalidRequestContentException"},
		{invokeURL("ok"), "{}", []string{"Origin", "http://evil.example"}, 403, "AccessDeniedException"},
		{invokeURL("ok"), "{}", []string{"Host", "evil.example"}, 403, "AccessDeniedException"},
		{"http://localhost:9000/lfx/v1/functions", "", nil, 403, "AccessDeniedException"},
		{"http://localhost:9000/", "", nil, 403, "AccessDeniedException"},
	} {
		a := post(t, c.url, c.body, c.headers...)
		if a.status != c.status || a.header.Get("x-amzn-ErrorType") != c.code {
			t.Errorf("%s %v: status %d %s, want %d %s: %s", c.url, c.headers, a.status, a.header.Get("x-amzn-ErrorType"), c.status, c.code, a.body)
		}
	}
	if a := do(t, overSocket("invoke.sock"), "GET", "http://lfx/lfx/v1/functions", ""); a.status != 403 {
		t.Errorf("the invoke socket answers the control API: %d %s", a.status, a.body)
	}
}

// TestDaemonRestart: a restart, planned or not, brings all functions back without rebuilding.
func TestDaemonRestart(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("restart", "r concurrency: {min: 1}; port: 9005")},
		python("r", "def handler(event, context): return 'here'\n"),
	))
	p.deploy()
	for _, how := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(how.String(), func(t *testing.T) {
			if err := d.signal(how); err != nil {
				t.Fatal(err)
			}
			if err := d.start(); err != nil {
				t.Fatal(err)
			}
			for _, url := range []string{invokeURL("r"), "http://localhost:9005/2015-03-31/functions/function/invocations"} {
				if a := post(t, url, ""); a.body != `"here"` || a.header.Get("X-Lfx-Release") != "1" {
					t.Errorf("%s after the restart: %d %s", url, a.status, a.body)
				}
			}
			if err := poll(30*time.Second, func() error { // what the old process left is gone
				now, err := d.look()
				if err == nil && (len(now.Instances) != 1 || len(now.Shims) != 0 || len(now.Cgroups) == 0 || len(now.Addresses) != 1) {
					err = fmt.Errorf("want one instance: %+v", now)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	if res := p.deploy(); !res.Unchanged {
		t.Errorf("a deploy after the restarts changed something: %+v", res)
	}
}

func TestLogsAreFollowedLive(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("talk", "talker timeout: 5s")},
		python("talker", "import sys\ndef handler(event, context):\n    print('out', event['n'])\n    print('err', event['n'], file=sys.stderr)\n"),
	))
	p.deploy()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://lfx/lfx/v1/logs?function=talker&follow=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	post(t, invokeURL("talker"), `{"n":1}`)
	resp, err := overSocket("lfxd.sock").Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // cancelled
	post(t, invokeURL("talker"), `{"n":2}`)
	var seen strings.Builder
	buf := make([]byte, 4096)
	// The two streams are read side by side: a line of one may overtake a line of the other.
	for !strings.Contains(seen.String(), "err 2") || !strings.Contains(seen.String(), "out 2") {
		n, err := resp.Body.Read(buf)
		seen.Write(buf[:n])
		if err == io.EOF || err != nil {
			t.Fatalf("the stream ended: %v after\n%s", err, seen.String())
		}
	}
	for _, want := range []string{"out 1", "err 1", "out 2", `"stream":"stdout"`, `"stream":"stderr"`, `"stream":"platform"`} {
		if !strings.Contains(seen.String(), want) {
			t.Errorf("no %s in\n%s", want, seen.String())
		}
	}
}

// TestInsideTheSandbox looks at an instance from within.
func TestInsideTheSandbox(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("sandbox", "s timeout: 15s; memory: 256MiB; tmp: 64MiB")},
		python("s", `
import os, socket, errno
def trial(f):
    try:
        return str(f())
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))
    except Exception as e:
        return type(e).__name__ + ": " + str(e)
def write(path):
    with open(path, "w") as f: f.write("x")
    return "written"
def reach(host, port):
    s = socket.create_connection((host, port), 2); s.close(); return "reached"
def status(key):
    return [l.split()[1] for l in open("/proc/self/status") if l.startswith(key + ":")][0]
def fill():
    with open("/tmp/big", "wb") as f:
        for i in range(80): f.write(b"x" * (1 << 20)); f.flush()
    return "filled"
def handler(event, context):
    r = {
        "uid": os.getuid(), "caps": status("CapEff"), "nnp": status("NoNewPrivs"), "seccomp": status("Seccomp"),
        "root": trial(lambda: write("/x")), "task": trial(lambda: write("/var/task/x")), "tmp": trial(lambda: write("/tmp/x")),
        "packet": trial(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)), "alg": trial(lambda: socket.socket(38, socket.SOCK_SEQPACKET)),
        "ipv6": trial(lambda: reach("::1", 9000)), "gateway api": trial(lambda: reach("10.201.0.1", 9000)), "gateway ssh": trial(lambda: reach("10.201.0.1", 22)),
        "metadata": trial(lambda: reach("169.254.169.254", 80)), "own api": trial(lambda: reach("127.0.0.1", 9001)),
        "sandbox": trial(lambda: socket.gethostbyname("sandbox.localdomain")), "kcore": trial(lambda: open("/proc/kcore").read(1)),
        "host": open("/etc/hostname").read() if os.path.exists("/etc/hostname") else "",
        "tmp full": trial(fill),
    }
    os.remove("/tmp/big")
    return r
`),
	))
	p.deploy()
	a := post(t, invokeURL("s"), "")
	var got map[string]any
	if err := json.Unmarshal([]byte(a.body), &got); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
	for key, want := range map[string]string{
		"uid": "1000", "caps": "0000000000000000", "nnp": "1", "seccomp": "2", "root": "EROFS", "task": "EROFS", "tmp": "written",
		"own api": "reached", "sandbox": "127.0.0.1", "tmp full": "ENOSPC",
	} {
		if fmt.Sprint(got[key]) != want {
			t.Errorf("%s: %v, want %s", key, got[key], want)
		}
	}
	for _, key := range []string{"packet", "alg", "ipv6", "gateway api", "gateway ssh", "metadata"} {
		if s := fmt.Sprint(got[key]); strings.Contains(s, "reached") || strings.Contains(s, "socket.socket") {
			t.Errorf("%s: %s", key, s)
		}
	}
}
