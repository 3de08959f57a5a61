package gateway

import (
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

// begin starts the call's clock.
func (g *Gateway) begin(c *call, scope Scope) {
	c.req.Trace.Accepted = time.Now()
	c.told.scope = scope
}

// end observes a call that ended without an answer: its handler panicked.
func (g *Gateway) end(c *call) {
	if !c.told.done {
		g.observe(c, invocation.Call{
			Result: invocation.Unavailable, Status: http.StatusInternalServerError, ErrorType: "ServiceException",
			Detail: "the handler of the request failed; the daemon's log says where",
		})
	}
}

// observeOutcome and observeRefusal are for calls that came to an answer.
func (g *Gateway) observeOutcome(c *call, out *invocation.Outcome) {
	c.req.Trace.ResponseBytes = len(out.Payload)
	g.observe(c, invocation.Call{Result: out.Result, Status: http.StatusOK, ErrorType: out.ErrorType})
}

func (g *Gateway) observeRefusal(c *call, e *Error, err error) {
	o := invocation.Call{Result: invocation.Refused, Status: e.Status, ErrorType: e.Code, Reason: e.Reason, Detail: e.Message}
	var throttled *invocation.ThrottledError
	switch {
	case errors.As(err, &throttled):
		o.Result, o.Detail = invocation.Throttled, throttled.Detail
	case e.Status >= http.StatusInternalServerError:
		o.Result, o.Detail = invocation.Unavailable, err.Error()
	}
	g.observe(c, o)
}

// observe completes what is known of the call and tells the observer, once.
func (g *Gateway) observe(c *call, o invocation.Call) {
	if c.told.done {
		return
	}
	c.told.done = true
	if g.opts.Observer == nil {
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
	g.opts.Observer.Observe(o)
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
