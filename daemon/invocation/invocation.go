// Package invocation holds what travels between the gateway, the pools and the instances for one
// invocation: the request, its outcome and the ways in which it can be refused. A leaf: gateway and
// pool know each other only through it.
package invocation

import (
	"context"
	"fmt"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// MaxRequestBytes is the limit of a synchronous request's payload (6 MiB).
const MaxRequestBytes = 6 << 20

// Request is one event on its way to an instance.
type Request struct {
	// ID is the request ID: a UUID, the same in the client's reply, the function's context and the logs.
	ID string
	// Payload is the event, never empty ("{}" when the client sent nothing). Not modified.
	Payload []byte
	// FunctionARN is the invoked ARN: with the qualifier as given, or unqualified.
	FunctionARN string
	// TraceID is the X-Ray trace header value.
	TraceID string
	// ClientContext is the decoded JSON of X-Amz-Client-Context; may be empty.
	ClientContext string
	TenantID      string
	// Tail asks for the last 4 KiB of the invocation's log in the outcome.
	Tail bool
	// Binding is the release the request is bound to; calls that the function makes while it
	// handles this request stay on it. Opaque to everyone but the pool.
	Binding Binding
	// Ticket is the pool's: what the request is found by in the queue.
	Ticket any
	// Left is the pool's too: why nobody waits for the request any more, if it was not in the queue when that was told.
	Left error
	// Trace is written by those who handle the request.
	Trace Trace
}

// Binding is a release that a request was bound to when it was accepted.
type Binding interface {
	// ReleaseNumber is the number of the release.
	ReleaseNumber() int
}

// Outcome is what an invocation came to. A function that throws, times out or exits is an outcome,
// not an error.
type Outcome struct {
	// Payload goes to the client byte for byte.
	Payload []byte
	// FunctionError is "" or "Unhandled" (X-Amz-Function-Error).
	FunctionError string
	// ErrorType is the error's class for records and logs, for example "Sandbox.Timedout".
	ErrorType string
	// Result is OK, Failed, TimedOut or Crashed.
	Result Result
	// LogTail is the end of START … REPORT, only when the request asked for it.
	LogTail []byte
	// Free returns Payload's buffer; may be nil. Payload must not be used after it.
	Free func()
}

// Completion is told what became of an invocation that Route.Begin began.
type Completion interface {
	// Complete is called exactly once, from any goroutine, with an outcome or with an error as Route.Invoke
	// returns it. It must not block.
	Complete(out *Outcome, err error)
}

// Route is one resolved target, bound to a release until Close. Close must be called exactly once.
type Route interface {
	Version() *function.Version
	ReleaseNumber() int
	// Invoke waits for an instance, runs the invocation and returns its outcome. ctx ends the wait for
	// an instance; a running invocation is bounded by the function's timeout and is not cut by ctx.
	Invoke(ctx context.Context, req *Request) (*Outcome, error)
	// Begin is Invoke that does not wait, but for the write of a large event: done learns the outcome,
	// which may be before Begin returns. req and its payload must not be changed before.
	Begin(req *Request, done Completion)
	// Leave takes a begun request out of the queue; done is told the cause. It does nothing to a request that
	// runs or has ended, and may be called after Close.
	Leave(req *Request, cause error)
	Close()
}

// ThrottledError says that a request was refused because there was no room (429).
type ThrottledError struct {
	// Reason is one of AWS's reasons, for example "ConcurrentInvocationLimitExceeded".
	Reason string
	// RetryAfter is when to try again.
	RetryAfter time.Duration
	// Detail is for people.
	Detail string
}

// Error implements error.
func (e *ThrottledError) Error() string { return fmt.Sprintf("throttled (%s): %s", e.Reason, e.Detail) }

// UnavailableError says that the platform could not run the invocation; the client may retry.
type UnavailableError struct{ Err error }

// Error implements error.
func (e *UnavailableError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }
