package gateway

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// told is what the observer is told of a call beside its outcome.
type told struct {
	done            bool
	scope           Scope
	name, qualifier string
	version         *function.Version // nil until the request is bound
	release         int
}

// failed observes a call that ends without an answer because its handler panicked.
func (c *Call) failed() {
	c.observe(invocation.Call{
		Result: invocation.Unavailable, Status: http.StatusInternalServerError, ErrorType: "ServiceException",
		Detail: "the handler of the request failed; the daemon's log says where",
	})
}

// observeOutcome and observeRefusal are for calls that came to an answer.
func (c *Call) observeOutcome(out *invocation.Outcome) {
	c.req.Trace.ResponseBytes = len(out.Payload)
	c.observe(invocation.Call{Result: out.Result, Status: http.StatusOK, ErrorType: errorType(out)})
}

// maxErrorPayload is how much of a function's error is read for its class, in bytes.
const maxErrorPayload = 64 << 10

// errorType is the class of the function's error: what its runtime said of it or, where that says nothing,
// what the payload has, as clients read it.
func errorType(out *invocation.Outcome) string {
	known := out.ErrorType != "" && out.ErrorType != "Runtime.Unknown" && out.ErrorType != "Function.Unknown"
	if out.Result != invocation.Failed || known || len(out.Payload) > maxErrorPayload {
		return out.ErrorType
	}
	var e struct {
		ErrorType string `json:"errorType"`
	}
	if json.Unmarshal(out.Payload, &e) != nil || e.ErrorType == "" {
		return out.ErrorType
	}
	return e.ErrorType
}

func (c *Call) observeRefusal(e *Error, err error) {
	o := invocation.Call{Result: invocation.Refused, Status: e.Status, ErrorType: e.Code, Reason: e.Reason, Detail: e.Message}
	var throttled *invocation.ThrottledError
	switch {
	case errors.As(err, &throttled):
		o.Result, o.Detail = invocation.Throttled, throttled.Detail
	case e.Status >= http.StatusInternalServerError:
		o.Result, o.Detail = invocation.Unavailable, err.Error()
	}
	c.observe(o)
}

// observe completes what is known of the call and tells the observer, once.
func (c *Call) observe(o invocation.Call) {
	if c.told.done {
		return
	}
	c.told.done = true
	if c.g.opts.Observer == nil {
		return
	}
	o.ID, o.Parent, o.Qualifier = c.id, c.told.scope.Parent, c.told.qualifier
	if v := c.told.version; v != nil {
		o.Version, o.Release, o.Function = v, c.told.release, v.Key
	} else {
		o.Function = named(c.told.scope, c.told.name)
	}
	o.Trace = c.req.Trace
	o.Trace.RequestBytes = len(c.req.Payload)
	o.Ended = time.Now()
	c.g.opts.Observer.Observe(o)
}

// named is the function that a request meant which came to none.
func named(scope Scope, name string) function.Key {
	k := function.Key{Function: name}
	switch {
	case scope.Function != nil:
		k.Environment = scope.Function.Environment
	case scope.Environment != nil:
		k.Environment = *scope.Environment
	}
	return k
}
