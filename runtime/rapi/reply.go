package rapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"lfx.dev/lfxd/internal/http1"
)

// reply is a small answer to the runtime. The wire form is made once; an answer that is not
// constant is made where it is needed, off the hot path.
type reply struct {
	status      int
	contentType string
	body        string
	// wire is the whole HTTP/1.1 response of a connection that stays open, wireClose of one that
	// is closed afterwards.
	wire, wireClose []byte
}

var (
	replyAccepted = jsonReply(http.StatusAccepted, `{"status":"OK"}`+"\n")
	replyPong     = newReply(http.StatusOK, "text/plain; charset=utf-8", "pong")

	replyInvalidID   = errorReply(http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
	replyLate        = errorReply(http.StatusGone, "Runtime.InvokeTimeout", "The invocation has ended without this answer")
	replyTooManyIdle = errorReply(http.StatusBadRequest, "Runtime.TooManyIdleRuntimes", "As many calls of next wait already as the instance runs invocations at once")
	replyTooLarge    = errorReply(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", MaxPayload))
	replyTruncated   = errorReply(http.StatusBadRequest, "TruncatedHTTPRequest", "HTTP request detected as truncated")
	replyInvalidMode = errorReply(http.StatusBadRequest, "InvalidFunctionResponseMode", "Invalid function response mode")
	replyNotFound    = errorReply(http.StatusNotFound, "NotFound", "The Runtime API has no such path")
	replyMethod      = errorReply(http.StatusMethodNotAllowed, "MethodNotAllowed", "The Runtime API path does not have this method")
	replyBusy        = errorReply(http.StatusServiceUnavailable, "TooManyConnections", "Too many connections of this instance are in use")

	replyRegistrationClosed = errorReply(http.StatusForbidden, "Extension.RegistrationClosed", "Extension registration closed already")
	replyNoExtensionID      = errorReply(http.StatusForbidden, "Extension.MissingExtensionIdentifier", "Missing Lambda-Extension-Identifier header")
	replyBadExtensionID     = errorReply(http.StatusForbidden, "Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier")
	replyNoTelemetry        = jsonReply(http.StatusAccepted, `{"errorType":"Telemetry.NotSupported","errorMessage":"Telemetry API is not supported"}`)
	replyNoLogs             = jsonReply(http.StatusAccepted, `{"errorType":"Logs.NotSupported","errorMessage":"Logs API is not supported"}`)
)

// newReply builds both wire forms.
func newReply(status int, contentType, body string) *reply {
	r := &reply{status: status, contentType: contentType, body: body}
	head := fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n", status, http.StatusText(status), contentType, len(body))
	r.wire = []byte(head + "\r\n" + body)
	r.wireClose = []byte(head + "Connection: close\r\n\r\n" + body)
	return r
}

func jsonReply(status int, body string) *reply { return newReply(status, "application/json", body) }

// errorReply is an error of the Runtime API: {"errorMessage":…,"errorType":…} and a newline.
func errorReply(status int, errorType, message string) *reply {
	body, err := json.Marshal(struct {
		ErrorMessage string `json:"errorMessage"`
		ErrorType    string `json:"errorType"`
	}{message, errorType})
	if err != nil {
		panic(err) // two strings always marshal
	}
	return jsonReply(status, string(body)+"\n")
}

// transitionReply refuses the move from one state to another.
func transitionReply(from, to state) *reply {
	return errorReply(http.StatusForbidden, "InvalidStateTransition",
		fmt.Sprintf("State transition from %s to %s failed for runtime. Error: State transition is not allowed", from, to))
}

// extensionReply answers an Extensions API call other than register. No extension is ever
// registered, so every identifier is missing, malformed or unknown.
func extensionReply(id string) *reply {
	switch {
	case id == "":
		return replyNoExtensionID
	case !isUUID(id):
		return replyBadExtensionID
	}
	return errorReply(http.StatusForbidden, "Extension.UnknownExtensionIdentifier", "Unknown extension "+id)
}

// isUUID reports whether s has the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if http1.HexValue(c) < 0 {
				return false
			}
		}
	}
	return true
}

// simple answers the routes that need neither the state nor a body; nil for the others.
func simple(r route, extensionID string) *reply {
	switch r {
	case routePing:
		return replyPong
	case routeRegister:
		return replyRegistrationClosed
	case routeExtension:
		return extensionReply(extensionID)
	case routeTelemetry:
		return replyNoTelemetry
	case routeLogs:
		return replyNoLogs
	case routeNotFound:
		return replyNotFound
	case routeMethod:
		return replyMethod
	}
	return nil
}

// tooLargeBody is what the client gets for an answer above MaxPayload; errorMessage comes first here.
var tooLargeBody = fmt.Sprintf(`{"errorMessage":"Response payload size exceeded maximum allowed payload size (%d bytes).","errorType":"Function.ResponseSizeTooLarge"}`, MaxPayload)

// platformError is what the client gets when the platform ends an invocation; errorType comes first.
func platformError(errorType, requestID, detail string) []byte {
	body, err := json.Marshal(struct {
		ErrorType    string `json:"errorType"`
		ErrorMessage string `json:"errorMessage"`
	}{errorType, "RequestId: " + requestID + " Error: " + detail})
	if err != nil {
		panic(err) // two strings always marshal
	}
	return body
}

// emptyEvent is the event when the client sent no payload.
const emptyEvent = "{}"

// appendEvent appends the head of the answer to next: status, headers and the empty line.
// A header whose value is empty is left out; control characters in a value become spaces, so that no
// value can end its line.
func appendEvent(b []byte, inv *Invocation) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nContent-Type: "...)
	b = appendValue(b, inv.contentType())
	b = append(b, "\r\nLambda-Runtime-Aws-Request-Id: "...)
	b = appendValue(b, inv.RequestID)
	b = append(b, "\r\nLambda-Runtime-Deadline-Ms: "...)
	b = strconv.AppendInt(b, inv.Deadline.UnixMilli(), 10)
	b = appendHeader(b, "\r\nLambda-Runtime-Invoked-Function-Arn: ", inv.FunctionARN)
	b = appendHeader(b, "\r\nLambda-Runtime-Trace-Id: ", inv.TraceID)
	b = appendHeader(b, "\r\nLambda-Runtime-Client-Context: ", inv.ClientContext)
	b = appendHeader(b, "\r\nLambda-Runtime-Cognito-Identity: ", inv.CognitoIdentity)
	b = appendHeader(b, "\r\nLambda-Runtime-Aws-Tenant-Id: ", inv.TenantID)
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(inv.event())), 10)
	return append(b, "\r\n\r\n"...)
}

func appendHeader(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendValue(append(b, name...), value)
}

// appendValue appends a header value with control characters replaced by spaces.
func appendValue(b []byte, v string) []byte {
	start := len(b)
	b = append(b, v...)
	for i, c := range b[start:] {
		if c < 0x20 || c == 0x7f {
			b[start+i] = ' '
		}
	}
	return b
}
