package rapi

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// reach brings a fresh server into a state; the request ID there is "cur".
func (h *harness) reach(st state) {
	h.t.Helper()
	p := h.dial()
	body := func(path string) {
		p.send("POST /2018-06-01/runtime/invocation/cur/" + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
	}
	switch st {
	case stateStarted:
	case stateInitError:
		p.do(rawPost("init/error", "{}"))
	case stateReady:
		p.send(rawNext)
		h.waitIdle()
	default:
		ctx, cancel := newCancel(h.t)
		h.invoke(ctx, event("cur"))
		p.do(rawNext)
		switch st {
		case stateInvocationResponse:
			body("response")
		case stateInvocationErrorResponse:
			body("error")
		case stateResponseSent:
			p.do(rawResponse("cur", "x"))
		case stateAbandoned:
			cancel(errors.New("timeout"))
		}
	}
	until(h.t, st.String(), func() bool { return h.stateIs(st) })
}

// TestEveryStateAndEvent walks all pairs of state and request, over the codec and over net/http.
func TestEveryStateAndEvent(t *testing.T) {
	const (
		ok202   = "202 {\"status\":\"OK\"}\n"
		badID   = "400 {\"errorMessage\":\"Invalid request ID\",\"errorType\":\"InvalidRequestID\"}\n"
		waits   = "waits"
		replay  = `200 {"id":"cur"}`
		refusal = "403 {\"errorMessage\":\"State transition from %s to %s failed for runtime. Error: State transition is not allowed\",\"errorType\":\"InvalidStateTransition\"}\n"
	)
	no := func(from, to state) string { return fmt.Sprintf(refusal, from, to) }
	events := map[string]string{
		"next":           rawNext,
		"response":       rawResponse("cur", "x"),
		"error":          rawError("cur", "x"),
		"response other": rawResponse("other", "x"),
		"error other":    rawError("other", "x"),
		"init/error":     rawPost("init/error", "{}"),
	}
	want := map[state]map[string]string{
		stateStarted:   {"next": waits, "response": badID, "error": badID, "init/error": ok202},
		stateInitError: {"next": no(stateInitError, stateReady), "response": badID, "error": badID, "init/error": no(stateInitError, stateInitError)},
		stateReady:     {"next": waits, "response": badID, "error": badID, "init/error": no(stateReady, stateInitError)},
		stateRunning:   {"next": replay, "response": ok202, "error": ok202, "init/error": no(stateRunning, stateInitError)},
		stateInvocationResponse: {
			"next": no(stateInvocationResponse, stateReady), "init/error": no(stateInvocationResponse, stateInitError),
			"response": no(stateInvocationResponse, stateInvocationResponse), "error": no(stateInvocationResponse, stateInvocationErrorResponse),
		},
		stateInvocationErrorResponse: {
			"next": no(stateInvocationErrorResponse, stateReady), "init/error": no(stateInvocationErrorResponse, stateInitError),
			"response": no(stateInvocationErrorResponse, stateInvocationResponse), "error": no(stateInvocationErrorResponse, stateInvocationErrorResponse),
		},
		stateResponseSent: {
			"next": waits, "init/error": no(stateResponseSent, stateInitError),
			"response": no(stateResponseSent, stateInvocationResponse), "error": no(stateResponseSent, stateInvocationErrorResponse),
		},
		stateAbandoned: {"next": waits, "response": badID, "error": badID, "init/error": no(stateAbandoned, stateInitError)},
	}
	for st := stateStarted; st <= stateAbandoned; st++ {
		for name, raw := range events {
			expect := want[st][strings.TrimSuffix(name, " other")]
			if strings.HasSuffix(name, "other") {
				expect = badID
			}
			for _, via := range []string{"codec", "net/http"} {
				t.Run(fmt.Sprintf("%s/%s/%s", st, name, via), func(t *testing.T) {
					t.Parallel()
					h := start(t, Options{})
					h.reach(st)
					p := h.dial()
					if via == "net/http" {
						raw := strings.Replace(raw, " HTTP/1.1", "?x=1 HTTP/1.1", 1)
						p.send(raw)
					} else {
						p.send(raw)
					}
					if expect == waits {
						h.expectWait(st)
						return
					}
					if got := p.recv(); fmt.Sprintf("%d %s", got.status, got.body) != expect {
						t.Errorf("got %d %s, want %s", got.status, got.body, expect)
					}
				})
			}
		}
	}
}

// expectWait checks that a next which must wait does: parked where an event may come, held elsewhere.
func (h *harness) expectWait(from state) {
	h.t.Helper()
	if from == stateAbandoned {
		if h.Idle() {
			h.t.Error("idle after an abandoned invocation")
		}
		return
	}
	h.waitIdle()
}
