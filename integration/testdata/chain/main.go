// Command chain is a function that calls others through the endpoint that it finds in its environment, as its event
// says, and tells what it saw. Its image is stamped with a file, so that an answer shows which build gave it.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// event says what to do, in this order.
type event struct {
	Sleep int      `json:"sleep"` // milliseconds
	Calls []call   `json:"calls"` // one after the other
	All   bool     `json:"all"`   // all calls at once instead
	Env   string   `json:"env"`   // a variable to return
	Fail  string   `json:"fail"`  // fail when the stamp is this
	Slow  string   `json:"slow"`  // take 150 ms when the stamp is this
	Exit  *int     `json:"exit"`  // end the process with this code
	Burn  bool     `json:"burn"`  // keep a core busy from now on, also between events
	Print []string `json:"print"`
}

// call is a call to another function.
type call struct {
	To        string `json:"to"`
	Qualifier string `json:"qualifier"`
	Event     event  `json:"event"`
}

// seen is what a function tells; what became of its calls is in Calls, in their order.
type seen struct {
	Function string `json:"function"`
	Version  string `json:"version"`
	Stamp    string `json:"stamp"`
	Instance string `json:"instance"`
	N        int    `json:"n"` // how many events this process has had
	Env      string `json:"env,omitempty"`
	Calls    []told `json:"calls,omitempty"`
}

// told is the answer to one call.
type told struct {
	To       string          `json:"to"`
	Status   int             `json:"status"`
	Error    string          `json:"error,omitempty"` // X-Amz-Function-Error, or why there is no answer
	Release  string          `json:"release"`         // X-Lfx-Release
	Executed string          `json:"executed"`        // X-Amz-Executed-Version
	Answer   json.RawMessage `json:"answer,omitempty"`
}

var (
	runtime = "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/"
	stamp   = read("/stamp")
	client  = &http.Client{}
)

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

func main() {
	if e := os.Getenv("INIT_FAILS"); e != "" {
		fmt.Fprintln(os.Stderr, e)
		os.Exit(1)
	}
	if ms, err := time.ParseDuration(os.Getenv("INIT_TAKES")); err == nil {
		time.Sleep(ms)
	}
	for n := 1; ; n++ {
		id, payload, err := next()
		if err != nil {
			fmt.Fprintln(os.Stderr, "next:", err)
			os.Exit(2)
		}
		if err := answer(id, payload, n); err != nil {
			fmt.Fprintln(os.Stderr, "answer:", err)
			os.Exit(3)
		}
	}
}

func next() (id string, payload []byte, err error) {
	resp, err := client.Get(runtime + "invocation/next")
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	payload, err = io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, payload)
	}
	return resp.Header.Get("Lambda-Runtime-Aws-Request-Id"), payload, err
}

func answer(id string, payload []byte, n int) error {
	var e event
	if len(payload) > 0 {
		if err := json.Unmarshal(payload, &e); err != nil {
			return report(id, "error", map[string]string{"errorType": "BadEvent", "errorMessage": err.Error()})
		}
	}
	s := seen{
		Function: os.Getenv("AWS_LAMBDA_FUNCTION_NAME"), Version: os.Getenv("AWS_LAMBDA_FUNCTION_VERSION"), Stamp: stamp, Instance: read("/proc/sys/kernel/hostname"), N: n,
	}
	for _, line := range e.Print {
		fmt.Println(line)
	}
	time.Sleep(time.Duration(e.Sleep) * time.Millisecond)
	if e.Slow == stamp {
		time.Sleep(150 * time.Millisecond)
	}
	s.Calls = make([]told, len(e.Calls))
	var wg sync.WaitGroup
	for i, c := range e.Calls {
		if !e.All {
			s.Calls[i] = c.make()
			continue
		}
		wg.Add(1)
		go func() { defer wg.Done(); s.Calls[i] = c.make() }()
	}
	wg.Wait()
	if e.Env != "" {
		s.Env = os.Getenv(e.Env)
	}
	if e.Burn {
		go func() {
			for {
			}
		}()
	}
	if e.Exit != nil {
		os.Exit(*e.Exit)
	}
	if e.Fail != "" && e.Fail == stamp {
		return report(id, "error", map[string]string{"errorType": "Stamped", "errorMessage": "stamped " + stamp})
	}
	return report(id, "response", s)
}

func report(id, kind string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	resp, err := client.Post(runtime+"invocation/"+id+"/"+kind, "application/json", bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("%s of %s: %s", kind, id, resp.Status)
	}
	return nil
}

// make calls the function.
func (c call) make() told {
	t := told{To: c.To}
	b, err := json.Marshal(c.Event)
	if err != nil {
		t.Error = err.Error()
		return t
	}
	url := os.Getenv("AWS_ENDPOINT_URL_LAMBDA") + "/2015-03-31/functions/" + c.To + "/invocations"
	if c.Qualifier != "" {
		url += "?Qualifier=" + c.Qualifier
	}
	resp, err := client.Post(url, "application/json", bytes.NewReader(b))
	if err != nil {
		t.Error = err.Error()
		return t
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error = err.Error()
		return t
	}
	t.Status, t.Error = resp.StatusCode, resp.Header.Get("X-Amz-Function-Error")
	t.Release, t.Executed = resp.Header.Get("X-Lfx-Release"), resp.Header.Get("X-Amz-Executed-Version")
	if json.Valid(body) {
		t.Answer = body
	} else {
		t.Error = fmt.Sprintf("not JSON: %.200s", body)
	}
	return t
}
