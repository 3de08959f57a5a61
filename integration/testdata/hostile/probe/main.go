// Command probe is a function that misbehaves as its event says. It speaks the Runtime API byte by byte, so that
// it can break every rule of it. MODE in its environment misbehaves before the first event.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// event says what to do.
type event struct {
	Do    string   `json:"do"`
	Kind  string   `json:"kind"`
	N     int      `json:"n"`
	MS    int      `json:"ms"`
	Paths []string `json:"paths"`
}

func (e event) span() time.Duration { return time.Duration(e.MS) * time.Millisecond }

// notes are what the runtime saw of its own misbehaviour; "recall" returns and forgets them.
var notes []string

func note(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }

func main() {
	if len(os.Args) > 1 {
		child(os.Args[1:])
		return
	}
	a := dial()
	before(a, os.Getenv("MODE"))
	last := ""
	for {
		a = loop(a, &last)
	}
}

// loop takes one event; it returns the connection for the next one.
func loop(a *api, last *string) *api {
	id, payload, err := a.next()
	if err != nil {
		a.close()
		time.Sleep(10 * time.Millisecond)
		return dial()
	}
	var e event
	_ = json.Unmarshal(payload, &e) // an empty event does nothing
	if misbehave, ok := protocol[e.Do]; ok {
		a = misbehave(a, id, *last, e)
		*last = id
		return a
	}
	*last = id
	var result any
	if f, ok := actions[e.Do]; ok {
		result = f(e)
	} else {
		result = "no " + e.Do
	}
	body, err := json.Marshal(result)
	if err != nil {
		body = []byte(`"` + err.Error() + `"`)
	}
	a.respond(id, body)
	return a
}

// api is one connection to the Runtime API.
type api struct {
	conn net.Conn
	r    *bufio.Reader
}

func dial() *api {
	for {
		c, err := net.Dial("tcp", os.Getenv("AWS_LAMBDA_RUNTIME_API"))
		if err == nil {
			return &api{c, bufio.NewReader(c)}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (a *api) close() { a.conn.Close() }

func (a *api) send(format string, args ...any) error {
	_, err := fmt.Fprintf(a.conn, format, args...)
	return err
}

// reply reads one answer whole.
func (a *api) reply() (status int, header http.Header, body []byte, err error) {
	resp, err := http.ReadResponse(a.r, nil)
	if err != nil {
		return 0, nil, nil, err
	}
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, body, err
}

func (a *api) next() (id string, payload []byte, err error) {
	if err := a.send("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return "", nil, err
	}
	status, h, body, err := a.reply()
	if err == nil && status != 200 {
		err = errors.New("refused")
	}
	return h.Get("Lambda-Runtime-Aws-Request-Id"), body, err
}

// post sends a report with a whole body and returns status and error type of the answer.
func (a *api) post(path, headers string, body []byte) string {
	_ = a.send("POST /2018-06-01/runtime/%s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n", path, headers, len(body))
	// The answer may come, and the connection end, before the body is sent.
	go a.conn.Write(body) //nolint:errcheck // the answer tells
	return a.verdict()
}

func (a *api) verdict() string {
	status, _, body, err := a.reply()
	if err != nil {
		return "broken"
	}
	var e struct {
		ErrorType string `json:"errorType"`
	}
	_ = json.Unmarshal(body, &e) // a success has no type
	if e.ErrorType == "" {
		return fmt.Sprint(status)
	}
	return fmt.Sprintf("%d %s", status, e.ErrorType)
}

func (a *api) respond(id string, body []byte) string {
	return a.post("invocation/"+id+"/response", "", body)
}

// before misbehaves during init.
func before(a *api, mode string) {
	const forged = "8d6f6d5c-0000-4000-8000-000000000000"
	switch mode {
	case "answers-first":
		note("response: %s", a.respond(forged, []byte("1")))
		note("error: %s", a.post("invocation/"+forged+"/error", "", []byte("{}")))
		note("empty id: %s", a.respond("", []byte("1")))
	case "never-next":
		time.Sleep(time.Hour)
	case "exit-idle": // warm for a moment, then gone, again and again
		go func() { time.Sleep(50 * time.Millisecond); os.Exit(0) }()
	case "fork-in-init":
		actions["forks"](event{})
	case "init-error-twice":
		note("first: %s", a.post("init/error", "", []byte(`{"errorType":"A","errorMessage":"first"}`)))
		note("second: %s", a.post("init/error", "", []byte(`{"errorType":"B","errorMessage":"second"}`)))
	}
}

// protocol is what breaks the rules of the Runtime API; each returns the connection to go on with.
var protocol = map[string]func(a *api, id, last string, e event) *api{
	"twice": func(a *api, id, _ string, _ event) *api {
		note("first: %s", a.respond(id, []byte(`"first"`)))
		note("second: %s", a.respond(id, []byte(`"second"`)))
		note("error: %s", a.post("invocation/"+id+"/error", "", []byte(`{}`)))
		note("init error: %s", a.post("init/error", "", []byte(`{}`)))
		return a
	},
	"old-and-forged": func(a *api, id, last string, _ event) *api {
		note("old: %s", a.respond(last, []byte(`"old"`)))
		note("forged: %s", a.respond("8d6f6d5c-1111-4000-8000-000000000000", []byte(`"forged"`)))
		note("none: %s", a.respond("", []byte(`"none"`)))
		note("path: %s", a.respond("..%2f"+id, []byte(`"path"`)))
		note("own: %s", a.respond(id, []byte(`"own"`)))
		return a
	},
	"big": func(a *api, id, _ string, _ event) *api {
		note("big: %s", a.respond(id, make([]byte, 7<<20)))
		a.close()
		return dial()
	},
	"endless": func(a *api, id, _ string, _ event) *api {
		_ = a.send("POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", id)
		chunk := append(append([]byte("100000\r\n"), make([]byte, 1<<20)...), "\r\n"...)
		sent := 0
		for ; sent < 1<<30; sent += 1 << 20 {
			if _, err := a.conn.Write(chunk); err != nil {
				break
			}
		}
		note("ended: %v", sent < 1<<30)
		a.close()
		return dial()
	},
	"trickle": func(a *api, id, _ string, _ event) *api {
		_ = a.send("POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", id)
		for a.send(" ") == nil {
			time.Sleep(50 * time.Millisecond)
		}
		return dial()
	},
	"truncated": func(a *api, id, _ string, _ event) *api {
		_ = a.send("POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nshort", id)
		a.close()
		return dial()
	},
	"bad-mode": func(a *api, id, _ string, _ event) *api {
		note("mode: %s", a.post("invocation/"+id+"/response", "Lambda-Runtime-Function-Response-Mode: Streaming\r\n", []byte("1")))
		return a
	},
	"next-twice-busy": func(a *api, id, _ string, _ event) *api {
		again, _, err := a.next()
		note("same event: %v %v", again == id, err)
		note("answer: %s", a.respond(id, []byte(`"once"`)))
		return a
	},
	"next-twice-idle": func(a *api, id, _ string, _ event) *api {
		a.respond(id, []byte(`"done"`))
		old := dial()
		_ = old.send("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
		go func() {
			status, h, body, _ := old.reply()
			note("older next: %d %s", status, bytes.TrimSpace(body))
			if status == 200 { // the event was quicker than the newer next
				old.respond(h.Get("Lambda-Runtime-Aws-Request-Id"), []byte(`["raced"]`))
				notes = nil
			}
			old.close()
		}()
		time.Sleep(20 * time.Millisecond)
		return a
	},
	"many-connections": func(a *api, id, _ string, _ event) *api {
		var all []*api
		for range 900 {
			c, err := net.DialTimeout("tcp", os.Getenv("AWS_LAMBDA_RUNTIME_API"), 100*time.Millisecond)
			if err != nil {
				break
			}
			all = append(all, &api{conn: c})
			_, _ = c.Write([]byte("GET /2018-06-01/runtime/invocation/next HT"))
		}
		a.respond(id, fmt.Appendf(nil, "%d", len(all)))
		for _, c := range all {
			c.close()
		}
		return a
	},
	"garbage": func(a *api, id, _ string, _ event) *api {
		for _, s := range []string{
			"\x00\x01\x02\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
			"POST /2018-06-01/runtime/invocation/" + id + "/response HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n1",
			"POST /2018-06-01/runtime/invocation/" + id + "/response HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n1",
		} {
			c := dial()
			_ = c.send("%s", s)
			_ = c.conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			status, _, _, err := c.reply()
			note("garbage: %v", status >= 400 || err != nil)
			c.close()
		}
		a.respond(id, []byte(`"fine"`))
		return a
	},
	"exit": func(a *api, id, _ string, e event) *api {
		os.Exit(e.N)
		return nil
	},
	"signal": func(a *api, id, _ string, e event) *api {
		_ = syscall.Kill(syscall.Getpid(), syscall.Signal(e.N))
		time.Sleep(time.Hour)
		return nil
	},
	"hang": func(*api, string, string, event) *api { time.Sleep(time.Hour); return nil },
	// late answers once the time is over, from a child that has left the session
	"late": func(a *api, id, _ string, e event) *api {
		time.Sleep(e.span())
		a.respond(id, []byte(`"late"`))
		return a
	},
}
