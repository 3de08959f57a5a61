//go:build integration && faults

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/api"
)

// probeImage is the Dockerfile of the probe, a program that misbehaves as its event says.
const probeImage = `FROM public.ecr.aws/lambda/provided:al2023
COPY --chmod=0755 probe probe32 /
COPY --chmod=4755 probe /suid
ENTRYPOINT ["/probe"]
`

var probes struct {
	once        sync.Once
	amd64, i386 string
	err         error
}

// probePrograms builds the probe, once: static, and once more as a 32-bit program.
func probePrograms(t *testing.T) map[string]string {
	t.Helper()
	probes.once.Do(func() {
		dir, err := os.MkdirTemp("", "lfx-probe")
		if err != nil {
			probes.err = err
			return
		}
		defer os.RemoveAll(dir) //nolint:errcheck // of no further use
		for _, b := range []struct {
			pkg, arch string
			into      *string
		}{{"probe", "amd64", &probes.amd64}, {"probe32", "386", &probes.i386}} {
			out := filepath.Join(dir, b.pkg)
			cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/hostile/"+b.pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+b.arch)
			if text, err := cmd.CombinedOutput(); err != nil {
				probes.err = fmt.Errorf("build %s: %w\n%s", b.pkg, err, text)
				return
			}
			data, err := os.ReadFile(out)
			if err != nil {
				probes.err = err
				return
			}
			*b.into = string(data)
		}
	})
	if probes.err != nil {
		t.Fatal(probes.err)
	}
	return map[string]string{"probe": probes.amd64, "probe32": probes.i386}
}

// hostile is a project of probes with a quiet neighbour beside them.
type hostile struct {
	*project
	t *testing.T
}

// newHostile makes and deploys a project of probes, one a line: "name: extra settings"; each has 256 MiB unless
// it says otherwise.
func newHostile(t *testing.T, name string, functions ...string) *hostile {
	t.Helper()
	files := map[string]string{"lfx.yaml": hostileManifest(name, functions...), "probe/Dockerfile": probeImage}
	for program, data := range probePrograms(t) {
		files["probe/"+program] = data
	}
	h := &hostile{project: newProject(t, files), t: t}
	h.deploy()
	return h
}

func hostileManifest(name string, functions ...string) string {
	text := manifest(name, append(functions, "quiet timeout: 10s; memory: 128MiB")...)
	for _, f := range append(functions, "quiet") {
		f, _, _ = strings.Cut(f, " ")
		text = strings.ReplaceAll(text, "build: ./"+f+"\n", "build: ./probe\n")
	}
	return text
}

// probeEvent is what a probe is told to do.
type probeEvent struct {
	Do    string   `json:"do"`
	Kind  string   `json:"kind,omitempty"`
	N     int      `json:"n,omitempty"`
	MS    int      `json:"ms,omitempty"`
	Paths []string `json:"paths,omitempty"`
}

func (e probeEvent) String() string {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(b)
}

// tell makes a probe do something and decodes its answer into out.
func tell(t *testing.T, function string, e probeEvent, out any) {
	t.Helper()
	a := post(t, invokeURL(function), e.String())
	if err := json.Unmarshal([]byte(a.body), out); a.status != 200 || a.header.Get("X-Amz-Function-Error") != "" || err != nil {
		t.Fatalf("%s: status %d, error %q, %v: %.500s", e, a.status, a.header.Get("X-Amz-Function-Error"), err, a.body)
	}
}

// fails makes a probe do something and holds the answer against what Lambda says; ID stands for the
// request ID.
func fails(t *testing.T, function string, e probeEvent, want string) {
	t.Helper()
	a, err := try(http.DefaultClient, "POST", invokeURL(function), e.String())
	if err != nil {
		t.Error(err)
		return
	}
	want = strings.ReplaceAll(want, "ID", a.header.Get("x-amzn-RequestId"))
	if a.status != 200 || a.header.Get("X-Amz-Function-Error") != "Unhandled" || a.body != want {
		t.Errorf("%s: status %d, error %q\n got %.500s\nwant %s", e, a.status, a.header.Get("X-Amz-Function-Error"), a.body, want)
	}
}

// What clients of Lambda get.
const (
	outOfMemory = `{"errorType":"Runtime.OutOfMemory","errorMessage":"RequestId: ID Error: Runtime exited with error: signal: killed"}`
	tooLarge    = `{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}`
)

func timedOut(seconds int) string {
	return fmt.Sprintf(`{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: ID Error: Task timed out after %d.00 seconds"}`, seconds)
}

func exitError(detail string) string {
	return `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: ID Error: Runtime exited ` + detail + `"}`
}

// calm checks that the daemon and the quiet neighbour answer, rightly and soon.
func (h *hostile) calm(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := d.client.Version(ctx); err != nil {
		t.Errorf("the daemon: %v", err)
	}
	c := &http.Client{Timeout: 15 * time.Second}
	if a, err := try(c, "POST", invokeURL("quiet"), `{"do":"echo","n":7}`); err != nil || a.body != "7" {
		t.Errorf("the neighbour: %d %s, %v", a.status, a.body, err)
	}
}

// mustFunctions lists the functions of a project.
func mustFunctions(t *testing.T, project string) []api.FunctionSummary {
	t.Helper()
	all, err := d.client.Functions(context.Background(), functionEnvironment(project))
	if err != nil {
		t.Fatal(err)
	}
	return all
}
