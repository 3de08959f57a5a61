//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// chainImage is the Dockerfile of testdata/chain; its stamp tells the builds apart.
const chainImage = "FROM scratch\nCOPY --chmod=0755 chain /chain\nCOPY stamp /stamp\nENTRYPOINT [\"/chain\"]\n"

var chainProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lfx-chain")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // of no further use
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "chain"), "./testdata/chain")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the chain: %w\n%s", err, text)
	}
	data, err := os.ReadFile(filepath.Join(dir, "chain"))
	return string(data), err
})

// chain is a project of functions that call one another as their events say.
type chain struct {
	*project
	name      string
	functions []string // as manifest takes them
}

// newChain makes the project's folder; every function is stamped "1". Nothing is deployed yet.
func newChain(t *testing.T, name string, functions ...string) *chain {
	t.Helper()
	program, err := chainProgram()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range functions {
		f, _, _ = strings.Cut(f, " ")
		files[f+"/Dockerfile"], files[f+"/chain"], files[f+"/stamp"] = chainImage, program, "1"
	}
	c := &chain{project: newProject(t, files), name: name, functions: functions}
	c.setManifest("")
	return c
}

// setManifest writes lfx.yaml with the functions as they are now and more after them.
func (c *chain) setManifest(more string) {
	write(c.t, filepath.Join(c.dir, "lfx.yaml"), manifest(c.name, c.functions...)+more)
}

// stamp changes the sources of functions, of all when none is named.
func (c *chain) stamp(text string, functions ...string) {
	c.t.Helper()
	if len(functions) == 0 {
		for _, f := range c.functions {
			f, _, _ = strings.Cut(f, " ")
			functions = append(functions, f)
		}
	}
	for _, f := range functions {
		write(c.t, filepath.Join(c.dir, f, "stamp"), text)
	}
}

// environment is the project's default one.
func (c *chain) environment() function.Environment { return functionEnvironment(c.name) }

// event is what a function of the chain is told to do; see testdata/chain.
type event struct {
	Sleep int        `json:"sleep,omitempty"`
	Calls []callStep `json:"calls,omitempty"`
	All   bool       `json:"all,omitempty"`
	Env   string     `json:"env,omitempty"`
	Fail  string     `json:"fail,omitempty"`
	Slow  string     `json:"slow,omitempty"`
	Exit  *int       `json:"exit,omitempty"`
	Burn  bool       `json:"burn,omitempty"`
	Print []string   `json:"print,omitempty"`
}

type callStep struct {
	To        string `json:"to"`
	Qualifier string `json:"qualifier,omitempty"`
	Event     event  `json:"event"`
}

func (e event) String() string {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(b)
}

// seen is what a function of the chain answers.
type seen struct {
	Function, Version, Stamp, Instance, Env string
	N                                       int
	Calls                                   []told
}

// told is what became of one call that a function made.
type told struct {
	To, Error, Release, Executed string
	Status                       int
	Answer                       json.RawMessage
}

// got decodes the answer of a call that went well.
func (c told) got(t *testing.T) seen {
	t.Helper()
	var s seen
	if err := json.Unmarshal(c.Answer, &s); err != nil || c.Status != 200 || c.Error != "" {
		t.Errorf("the call of %s: status %d, error %q, %.300s", c.To, c.Status, c.Error, c.Answer)
	}
	return s
}

// reply is an answer of the chain with what its headers say.
type reply struct {
	seen
	answer
}

func (r reply) release() string { return r.header.Get("X-Lfx-Release") }

// ask invokes a function of a chain; it must answer well. function may have a query, as in "f?Qualifier=1".
func ask(t *testing.T, function string, e event, headers ...string) reply {
	t.Helper()
	r, err := tryAsk(function, e, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryAsk(function string, e event, headers ...string) (reply, error) {
	name, query, _ := strings.Cut(function, "?")
	u := invokeURL(name)
	if query != "" {
		u += "?" + query
	}
	a, err := try(http.DefaultClient, "POST", u, e.String(), headers...)
	r := reply{answer: a}
	if err != nil {
		return r, err
	}
	if a.status != 200 || a.header.Get("X-Amz-Function-Error") != "" {
		return r, fmt.Errorf("%s: status %d, error %q: %.300s", function, a.status, a.header.Get("X-Amz-Function-Error"), a.body)
	}
	return r, json.Unmarshal([]byte(a.body), &r.seen)
}

// control calls the control API as it stands on the wire; in and out may be nil. It returns the API's refusal.
func control(method, path string, query url.Values, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequest(method, "http://lfx"+path+"?"+query.Encode(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	c := overSocket("lfxd.sock")
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read below
	if resp.StatusCode/100 != 2 {
		var e struct {
			Error api.Error `json:"error"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
			return fmt.Errorf("%s %s: %s", method, path, resp.Status)
		}
		return &e.Error
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// of is the query that names an environment.
func of(env function.Environment) url.Values {
	return url.Values{"project": {env.Project}, "environment": {env.Name}}
}

// releases lists an environment's releases by number.
func releases(t *testing.T, env function.Environment) map[int]api.ReleaseInfo {
	t.Helper()
	var all []api.ReleaseInfo
	if err := control("GET", api.PathReleases, of(env), nil, &all); err != nil {
		t.Fatal(err)
	}
	out := map[int]api.ReleaseInfo{}
	for _, r := range all {
		out[r.Number] = r
	}
	return out
}

// instancesOf lists the instances of an environment; of one function when it is named.
func instancesOf(env function.Environment, name string) ([]api.InstanceInfo, error) {
	var all []api.InstanceInfo
	err := control("GET", api.PathInstances, nil, nil, &all)
	return slices.DeleteFunc(all, func(i api.InstanceInfo) bool {
		return i.Environment != env || name != "" && i.Key.Function != name
	}), err
}

// await polls until a condition on the instances of an environment holds.
func awaitInstances(t *testing.T, env function.Environment, name string, ok func([]api.InstanceInfo) error) {
	t.Helper()
	err := poll(30*time.Second, func() error {
		all, err := instancesOf(env, name)
		if err == nil {
			err = ok(all)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// killInstance ends every process of an instance, lfx-init too.
func killInstance(id string) error {
	for _, pattern := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		b, err := os.ReadFile(pattern + d.cgroup + "/fn/" + id + "/cgroup.procs")
		if err != nil {
			continue
		}
		for _, pid := range strings.Fields(string(b)) {
			var n int
			if _, err := fmt.Sscan(pid, &n); err != nil {
				return err
			}
			if err := syscall.Kill(n, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("instance %s has no cgroup", id)
}
