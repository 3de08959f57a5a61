package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// Error is a refusal in AWS's error envelope. Its members follow the service model of Lambda: the
// code goes into x-amzn-ErrorType, and the message's key is "message" or "Message" by the code.
type Error struct {
	Status  int
	Code    string
	Message string
	// Reason is only for TooManyRequestsException.
	Reason     string
	RetryAfter time.Duration
}

// Error implements error.
func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Statuses of the error codes that the gateway emits, and whether the body's key is "Message".
var codes = map[string]struct {
	status  int
	capital bool
}{
	"ResourceNotFoundException":       {http.StatusNotFound, true},
	"InvalidParameterValueException":  {http.StatusBadRequest, false},
	"ValidationException":             {http.StatusBadRequest, false},
	"InvalidRequestContentException":  {http.StatusBadRequest, false},
	"RequestTooLargeException":        {http.StatusRequestEntityTooLarge, false},
	"ResourceConflictException":       {http.StatusConflict, false},
	"TooManyRequestsException":        {http.StatusTooManyRequests, false},
	"AccessDeniedException":           {http.StatusForbidden, true},
	"ServiceException":                {http.StatusInternalServerError, true},
	"UnknownOperationException":       {http.StatusNotFound, false},
	"MethodNotAllowedException":       {http.StatusMethodNotAllowed, false},
	"RequestTimeoutException":         {http.StatusRequestTimeout, false},
	"UnsupportedMediaTypeException":   {http.StatusUnsupportedMediaType, false},
	"RequestHeaderTooLargeException":  {http.StatusRequestHeaderFieldsTooLarge, false},
	"ServiceUnavailableException":     {http.StatusServiceUnavailable, true},
	"MissingAuthenticationTokenError": {http.StatusForbidden, false},
}

// NewError makes an error of a known code with the status of the model.
func NewError(code, message string) *Error {
	return &Error{Status: codes[code].status, Code: code, Message: message}
}

// translate is the one place where an error becomes a status.
func translate(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var refused *function.AWSError
	if errors.As(err, &refused) {
		return NewError(refused.Type, refused.Message)
	}
	var throttled *invocation.ThrottledError
	if errors.As(err, &throttled) {
		e = NewError("TooManyRequestsException", "Rate Exceeded.")
		e.Reason, e.RetryAfter = throttled.Reason, throttled.RetryAfter
		return e
	}
	var unavailable *invocation.UnavailableError
	if errors.As(err, &unavailable) {
		e = NewError("ServiceException", "The function could not be started: "+unavailable.Error())
		e.Status = http.StatusServiceUnavailable // the client may retry
		return e
	}
	return NewError("ServiceException", "An internal error occurred. The daemon's log has it under this request id.")
}

// fill makes a the answer that is AWS's error envelope.
func (e *Error) fill(a *Answer) {
	a.set("Content-Type", "application/json")
	a.set("X-Amzn-Errortype", e.Code)
	if e.RetryAfter > 0 {
		a.set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	kind := "User"
	if e.Status >= 500 {
		kind = "Server"
	}
	b := append([]byte(nil), '{')
	if e.Reason != "" {
		b = appendMember(b, "Reason", e.Reason)
		b = append(b, ',')
	}
	if e.Code != "ValidationException" {
		b = appendMember(b, "Type", kind)
		b = append(b, ',')
	}
	key := "message"
	if codes[e.Code].capital {
		key = "Message"
	}
	b = appendMember(b, key, e.Message)
	a.Status, a.Body = e.Status, append(b, '}')
}
