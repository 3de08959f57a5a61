package worker

import (
	"encoding/json"
	"fmt"
	"syscall"
	"time"

	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/runtime/instance"
)

// Error types of the platform, as clients of Lambda know them.
const (
	typeTimeout     = "Sandbox.Timedout"
	typeExit        = "Runtime.ExitError"
	typeOOM         = "Runtime.OutOfMemory"
	typeTooLarge    = "Function.ResponseSizeTooLarge"
	typeBadMode     = "Runtime.InvalidResponseModeHeader"
	maxResponseText = "Response payload size exceeded maximum allowed payload size (6291556 bytes)."
)

// unhandled makes the outcome of a failed invocation. Key order is the contract's.
func unhandled(errorType, message string) *invocation.Outcome {
	b, _ := json.Marshal(struct { //nolint:errchkjson // strings always marshal
		ErrorType    string `json:"errorType"`
		ErrorMessage string `json:"errorMessage"`
	}{errorType, message})
	return &invocation.Outcome{Payload: b, FunctionError: "Unhandled", ErrorType: errorType, Result: invocation.Failed}
}

// timedOut is the outcome of an invocation that ran into the function's timeout.
func timedOut(id string, timeout time.Duration) *invocation.Outcome {
	out := unhandled(typeTimeout, fmt.Sprintf("RequestId: %s Error: Task timed out after %.2f seconds", id, timeout.Seconds()))
	out.Result = invocation.TimedOut
	return out
}

// tooLarge is the outcome of an answer above the limit; this one has errorMessage first.
func tooLarge() *invocation.Outcome {
	b, _ := json.Marshal(struct { //nolint:errchkjson // strings always marshal
		ErrorMessage string `json:"errorMessage"`
		ErrorType    string `json:"errorType"`
	}{maxResponseText, typeTooLarge})
	return &invocation.Outcome{Payload: b, FunctionError: "Unhandled", ErrorType: typeTooLarge, Result: invocation.Failed}
}

// exited is the outcome of an invocation whose process ended.
func exited(id string, e instance.Exit) *invocation.Outcome {
	errorType, text := typeExit, exitText(e)
	switch {
	case e.ExecError != nil:
		errorType, text = string(e.ExecError.Kind), e.ExecError.Msg
	case e.OOM:
		errorType = typeOOM
	}
	out := unhandled(errorType, fmt.Sprintf("RequestId: %s Error: %s", id, text))
	out.Result = invocation.Crashed
	return out
}

// exitText words an exit as Lambda does, in Go's wording of signals.
func exitText(e instance.Exit) string {
	switch {
	case e.OOM:
		return "Runtime exited with error: signal: killed"
	case e.Signal != 0:
		return "Runtime exited with error: signal: " + signalText(e.Signal)
	case e.Code == 0:
		return "Runtime exited without providing a reason"
	}
	return fmt.Sprintf("Runtime exited with error: exit status %d", e.Code)
}

func signalText(s syscall.Signal) string { return s.String() }

// initText is what a person reads of an init error that the runtime posted: its class and message, or
// the body as it is when it has none.
func initText(body []byte) string {
	var e struct{ ErrorType, ErrorMessage string }
	if json.Unmarshal(body, &e) != nil || e.ErrorMessage == "" {
		return string(body)
	}
	if e.ErrorType == "" {
		return e.ErrorMessage
	}
	return e.ErrorType + ": " + e.ErrorMessage
}
