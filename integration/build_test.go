//go:build integration

package integration

import (
	"net"
	"strings"
	"testing"
)

// reachScript is run by a build step: it says for each target whether a connection came about.
const reachScript = `
import socket, sys
for name, host, port in [("control api", "10.202.0.1", 9000), ("host port", "10.202.0.1", 2222), ("functions' gateway", "10.201.0.1", 2222),
                         ("loopback of the host", "127.0.0.1", 2222), ("metadata", "169.254.169.254", 80), ("lan", "192.168.77.1", 80)]:
    try:
        socket.create_connection((host, port), 1).close()
        print("REACHED", name)
    except OSError as e:
        print("blocked", name, type(e).__name__)
try:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
    s.sendto(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01", ("10.202.0.1", 53))
    print("dns answers", s.recv(512)[:2] == b"\x12\x34")
except OSError as e:
    print("dns silent", e)
`

// TestBuildStepsAreFencedIn: a step reaches neither the daemon, nor the host, nor private networks;
// only the forwarder on its gateway answers.
func TestBuildStepsAreFencedIn(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:2222") // would answer on every address of the host
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test is over
	p := newProject(t, with(
		map[string]string{
			"lfx.yaml":        manifest("fence", "f timeout: 3s"),
			"f/Dockerfile":    "FROM public.ecr.aws/lambda/python:3.11\nCOPY reach.py app.py ${LAMBDA_TASK_ROOT}/\nRUN python3 reach.py > reached.txt; ls -l /dev/otel-grpc.sock >> reached.txt 2>&1; true\nCMD [\"app.handler\"]\n",
			"f/reach.py":      reachScript,
			"f/app.py":        "def handler(event, context): return open('/var/task/reached.txt').read()\n",
			"f/.dockerignore": "*.md\n",
		},
	))
	p.deploy()
	got := post(t, invokeURL("f"), "").body
	if strings.Contains(got, "REACHED") || strings.Count(got, "blocked") != 6 {
		t.Errorf("a build step reached something: %s", got)
	}
	if !strings.Contains(got, "dns answers True") {
		t.Errorf("the forwarder does not answer build steps: %s", got)
	}
	if !strings.Contains(got, "No such file or directory") {
		t.Errorf("buildkitd's trace socket is in build steps: %s", got)
	}
}
