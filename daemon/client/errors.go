package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/daemon/api"
)

// maxErrorBody bounds what is read of a failed call, in bytes.
const maxErrorBody = 1 << 20

// ErrStreamCut is returned by Deploy when the connection ended before the daemon said how the
// deploy ended.
var ErrStreamCut = errors.New("lfxd went away during the deploy, which took effect whole or not at all: once lfxd is back, `lfxctl releases` shows which release is active, and the same deploy again is safe")

// ErrRollbackCut is returned by Rollback when the connection ended before the daemon said how the
// rollback ended.
var ErrRollbackCut = errors.New("lfxd went away during the rollback, which took effect whole or not at all: once lfxd is back, `lfxctl releases` shows which release is active")

// ConnectError says that the daemon could not be reached. Its text is one sentence with the remedy.
// It is errdefs.ErrPermissionDenied or errdefs.ErrUnavailable besides what it wraps.
type ConnectError struct {
	// Host is the address as Client.Host returns it.
	Host string
	// Socket says whether Host is a Unix socket.
	Socket bool
	// Err is what the system said.
	Err error
}

// Error implements error.
func (e *ConnectError) Error() string {
	switch {
	case e.Socket && errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("%s: you are not in group lfxd: run `sudo usermod -aG lfxd $USER` and log in again, or use sudo", e.Host)
	case e.Socket && (errors.Is(e.Err, fs.ErrNotExist) || errors.Is(e.Err, syscall.ECONNREFUSED)):
		return fmt.Sprintf("lfxd is not answering on %s: start it with `systemctl start lfxd` or `make quickstart`", e.Host)
	case e.Socket:
		return fmt.Sprintf("lfxd is not answering on %s (%v): start it with `systemctl start lfxd` or `make quickstart`", e.Host, e.Err)
	}
	return fmt.Sprintf("lfxd is not answering on %s (%v): check LFX_HOST, and `systemctl status lfxd` on that host", e.Host, e.Err)
}

// Unwrap returns the class and the cause.
func (e *ConnectError) Unwrap() []error {
	if errors.Is(e.Err, fs.ErrPermission) {
		return []error{errdefs.ErrPermissionDenied, e.Err}
	}
	return []error{errdefs.ErrUnavailable, e.Err}
}

func (c *Client) connectError(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return &ConnectError{Host: c.host.display, Socket: c.host.network == "unix", Err: err}
}

// transportError turns a failed round trip into what the caller should read: the cause of its own
// context, an error of ours, or that the daemon went away.
func (c *Client) transportError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			return fmt.Errorf("lfxd on %s did not answer in time: `lfxctl doctor` and the daemon's log say why: %w", c.host.display, cause)
		}
		return cause
	}
	if connect, ok := errors.AsType[*ConnectError](err); ok {
		return connect
	}
	return fmt.Errorf("lfxd on %s closed the connection before it answered: try again, and see the daemon's log: %w: %w", c.host.display, errdefs.ErrUnavailable, err)
}

// InvokeError is an Invoke that did not reach a function's answer: the Lambda API's error envelope.
// errdefs classes: not found, invalid argument, permission denied, resource exhausted (throttled),
// unavailable, else internal.
type InvokeError struct {
	// Status is the HTTP status.
	Status int
	// Type is the AWS error code, such as "ResourceNotFoundException"; may be empty.
	Type string
	// Message is for people.
	Message string
	// Reason says which limit throttled the call; set with TooManyRequestsException only.
	Reason string
	// RetryAfter is how long the daemon asks to wait; zero when it does not.
	RetryAfter time.Duration
	// RequestID finds the call in the logs.
	RequestID string
}

// Error implements error.
func (e *InvokeError) Error() string {
	if e.Type == "" {
		return e.Message
	}
	return e.Message + " (" + e.Type + ")"
}

// Unwrap returns the class.
func (e *InvokeError) Unwrap() error {
	switch {
	case e.Status == http.StatusNotFound:
		return errdefs.ErrNotFound
	case e.Status == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case e.Status == http.StatusTooManyRequests:
		return errdefs.ErrResourceExhausted
	case e.Status == http.StatusConflict:
		return errdefs.ErrConflict
	case e.Status >= 400 && e.Status < 500:
		return errdefs.ErrInvalidArgument
	case e.Status == http.StatusBadGateway, e.Status == http.StatusServiceUnavailable, e.Status == http.StatusGatewayTimeout:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrInternal
}

// envelope is what any failed call may answer: our own api.Error or AWS's, whose key is Message or
// message.
type envelope struct {
	api.Error
	AWSMessage string `json:"Message"`
	Type       string `json:"__type"`
	Reason     string `json:"Reason"`
}

func readEnvelope(resp *http.Response) envelope {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var e envelope
	// encoding/json matches keys without case when no exact one exists, so "message" and "Message"
	// are told apart because both are fields.
	if json.Unmarshal(body, &e) != nil {
		e = envelope{}
	}
	if e.Message == "" {
		e.Message = e.AWSMessage
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("the daemon answered %s", resp.Status)
		if text := strings.TrimSpace(string(body)); text != "" && len(text) < 500 && !strings.HasPrefix(text, "<") {
			e.Message += ": " + text
		}
	}
	return e
}

// apiError reads a failed control call as *api.Error.
func (c *Client) apiError(resp *http.Response) error {
	e := readEnvelope(resp)
	if e.Code == "" {
		e.Code = codeOf(resp.StatusCode)
		if e.Code == api.CodeForbidden && c.host.network == "tcp" {
			e.Message += fmt.Sprintf(" (%s takes no control calls: unset LFX_HOST to use %s)", c.host.display, DefaultSocket)
		}
	}
	return &e.Error
}

// codeOf is the api code of a status whose body had none.
func codeOf(status int) string {
	switch status {
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return api.CodeNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return api.CodeForbidden
	case http.StatusConflict:
		return api.CodeConflict
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return api.CodeUnavailable
	}
	if status >= 400 && status < 500 {
		return api.CodeInvalid
	}
	return api.CodeInternal
}

// invokeError reads a failed Invoke.
func invokeError(resp *http.Response) error {
	e := readEnvelope(resp)
	out := &InvokeError{
		Status:    resp.StatusCode,
		Type:      resp.Header.Get(headerErrorType),
		Message:   e.Message,
		Reason:    e.Reason,
		RequestID: resp.Header.Get(headerRequestID),
	}
	if out.Type == "" {
		out.Type = e.Type
	}
	// The header may carry "Code:namespace-uri".
	out.Type, _, _ = strings.Cut(out.Type, ":")
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
		out.RetryAfter = time.Duration(n) * time.Second
	}
	return out
}
