package pool

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/histogram"
	"lfx.dev/lfxd/daemon/invocation"
)

type releaseKey struct {
	function.Environment
	number int
}

// counters are what a release did since the manager was made. They outlive the Release: one that is
// activated again goes on with its own.
type counters struct {
	requests, errors atomic.Int64 // at any depth
	roots, rootErrs  atomic.Int64
	latency          histogram.Histogram // of root requests, the wait for an instance included
}

// end counts a request that ended. One whose client went away before it ran says nothing about the release.
func (c *counters) end(root bool, took time.Duration, outcome *invocation.Outcome, err error) {
	if outcome == nil && errors.Is(err, context.Canceled) {
		return
	}
	failed := err != nil || outcome != nil && outcome.FunctionError != ""
	c.requests.Add(1)
	if failed {
		c.errors.Add(1)
	}
	if !root {
		return
	}
	c.latency.Record(took)
	c.roots.Add(1)
	if failed {
		c.rootErrs.Add(1)
	}
}

// Counters is what a release did since the daemon was started.
type Counters struct {
	// Requests counts those that ended, at any depth; Errors those of them that ended in an error of the
	// function or of the platform.
	Requests, Errors int64
	// Roots and RootErrors count only those that no other invocation made and that ran what the release
	// has; Latency is theirs, the wait for an instance included.
	Roots, RootErrors int64
	Latency           histogram.Snapshot
}

// Counters returns what the release did; zero for one that never lived.
func (m *Manager) Counters(env function.Environment, number int) Counters {
	m.mu.Lock()
	c := m.counters[releaseKey{env, number}]
	m.mu.Unlock()
	if c == nil {
		return Counters{}
	}
	// Errors are read first, so that they are never more than the requests.
	out := Counters{Errors: c.errors.Load(), RootErrors: c.rootErrs.Load()}
	out.Requests, out.Roots, out.Latency = c.requests.Load(), c.roots.Load(), c.latency.Snapshot()
	return out
}

func (m *Manager) countersLocked(k releaseKey) *counters {
	c := m.counters[k]
	if c == nil {
		c = &counters{}
		m.counters[k] = c
	}
	return c
}

// Forget drops the counters of the releases of an environment that keep does not name. Those of live
// releases stay.
func (m *Manager) Forget(env function.Environment, keep func(number int) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := map[*counters]bool{}
	for r := range m.live {
		used[r.counters] = true
	}
	for k, c := range m.counters {
		if k.Environment == env && !used[c] && !keep(k.number) {
			delete(m.counters, k)
		}
	}
}
