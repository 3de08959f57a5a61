//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// ownRuntime is a module that speaks the Runtime API itself while it is imported: it answers each event,
// and then does what the event says instead of asking for the next.
const ownRuntime = `
import http.client, json, os, time
def call(method, path, body=None):
    c.request(method, "/2018-06-01/runtime/invocation/" + path, body)
    r = c.getresponse()
    return r.headers, r.read()
c = http.client.HTTPConnection("127.0.0.1", 9001)
while True:
    headers, body = call("GET", "next")
    how = json.loads(body).get("how")
    print("event", how, flush=True)
    call("POST", headers["Lambda-Runtime-Aws-Request-Id"] + "/response", json.dumps(str(os.stat("/tmp").st_ino) + open("/etc/hostname").read().strip() if os.path.exists("/etc/hostname") else os.uname().nodename))
    if how == "hang": time.sleep(600)
    if how == "exit": os._exit(3)
`

// TestRuntimeThatDoesNotComeBack: an instance whose runtime answered and then hangs or exits is
// replaced, and its invocation's log has each platform line once.
func TestRuntimeThatDoesNotComeBack(t *testing.T) {
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("answered", "f timeout: 2s; concurrency: {max: 1}")},
		python("f", ownRuntime),
	))
	p.deploy()
	for _, how := range []string{"stay", "hang", "exit", "stay"} {
		start := time.Now()
		a := post(t, invokeURL("f"), `{"how":"`+how+`"}`)
		if a.status != 200 || a.header.Get("X-Amz-Function-Error") != "" {
			t.Fatalf("%s: status %d, %s", how, a.status, a.body)
		}
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("%s waited %s for an instance", how, took)
		}
		id := a.header.Get("x-amzn-RequestId")
		want := []string{"START RequestId: " + id, "event " + how, "END RequestId: " + id, "REPORT RequestId: " + id}
		var got []string
		err := poll(10*time.Second, func() error {
			out, _, _ := lfxctl("logs", "f", "--since", "10m")
			got = nil
			for line := range strings.Lines(out) {
				for _, w := range want {
					if strings.Contains(line, w) && (w != "event "+how || len(got) == 1) {
						got = append(got, w)
					}
				}
			}
			if len(got) < len(want) {
				return fmt.Errorf("%s: the log has only %q", how, got)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: the log has\n%s\nwant\n%s", how, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}
