package invocation

import (
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// Trace is what the parts that a request passes write down in it, for the one who observes how it ended.
// Each member has one writer, which writes before it hands the request or its answer on; nobody else
// touches it meanwhile. Times that were not reached are zero.
type Trace struct {
	// Accepted is when the gateway began with the request.
	Accepted time.Time
	// Queued and Granted enclose the wait for an instance, its start included; both are zero when one
	// was idle. Granted is zero, too, when none came.
	Queued, Granted time.Time
	// Delivered and Answered enclose the function's time, that of its REPORT line. An init that ran
	// inside the invocation is part of it.
	Delivered, Answered time.Time
	// Instance ran it; empty when none did.
	Instance string
	// Cold says that it was the first invocation of its instance; then Phases says where the time of the
	// instance's start went. Not modified once it is here.
	Cold   bool
	Phases map[string]time.Duration
	// RequestBytes and ResponseBytes are the sizes of the payloads.
	RequestBytes, ResponseBytes int
}

// Result says what became of a call.
type Result uint8

// Results of a call. The first four are outcomes of an invocation, the others say why there was none.
const (
	OK          Result = iota // the function answered
	Failed                    // the function threw, or its answer was not acceptable
	TimedOut                  // it ran into its timeout
	Crashed                   // its process ended before it answered
	Throttled                 // 429: there was no room
	Refused                   // the request was wrong
	Unavailable               // the platform could not run it
	Gone                      // the client left while the request waited
	Results                   // how many there are
)

var resultNames = [Results]string{"ok", "error", "timeout", "crash", "throttled", "refused", "unavailable", "gone"}

// String returns the result's name in records and figures.
func (r Result) String() string { return resultNames[r] }

// Call is one call of Invoke whose answer is known.
type Call struct {
	// ID is the request id; Parent is that of the invocation that made the call, when it came from inside
	// an instance.
	ID, Parent string
	// Function is who was called, as far as the request and the release say. Its strings may be the client's.
	Function function.Key
	// Qualifier is what the client added to the name.
	Qualifier string
	// Version is nil when the call was refused before it came to one; then Release is 0.
	Version *function.Version
	Release int
	Result  Result
	// Status is the HTTP status of the answer; 0 when nobody is there to read one.
	Status int
	// ErrorType is the class of the function's error, or the code of a refusal as AWS has them.
	ErrorType string
	// Reason is AWS's reason for a throttle.
	Reason string
	// Detail says for people why there was no invocation.
	Detail string
	Trace  Trace
	// Ended is when the answer was known.
	Ended time.Time
}

// Queue is the wait for an instance. An init that ran inside the invocation is not part of it.
func (c *Call) Queue() time.Duration {
	t := &c.Trace
	switch {
	case t.Queued.IsZero():
		return 0
	case !t.Delivered.IsZero() && (t.Granted.IsZero() || t.Delivered.Before(t.Granted)):
		return max(t.Delivered.Sub(t.Queued), 0)
	case !t.Granted.IsZero():
		return max(t.Granted.Sub(t.Queued), 0)
	}
	return max(c.Ended.Sub(t.Queued), 0)
}

// FunctionTime is the time from the event's hand-over to the answer; 0 when no event was handed out.
func (c *Call) FunctionTime() time.Duration { return max(c.Trace.Answered.Sub(c.Trace.Delivered), 0) }

// Total is the time from acceptance to the answer.
func (c *Call) Total() time.Duration { return max(c.Ended.Sub(c.Trace.Accepted), 0) }

// Ran says whether the event was handed to an instance.
func (c *Call) Ran() bool { return !c.Trace.Delivered.IsZero() }

// Observer is told of every call of Invoke exactly once, when its answer is known and not written yet. It must neither
// block nor keep the strings of the call, but for those of Version and Trace.Instance. Called from
// any goroutine.
type Observer interface {
	Observe(c Call)
}

// Caller is who makes a call from inside an instance.
type Caller struct {
	// Binding is the release that the instance's invocation is bound to.
	Binding Binding
	// RequestID is that invocation's; empty when the instance has none.
	RequestID string
}
