package daemon

import (
	"context"
	"fmt"
	"io"
	"time"

	bkclient "github.com/moby/buildkit/client"

	"lfx.dev/lfxd/buildkit"
	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/deploy"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/metrics"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/daemon/records"
)

// observer is told of every call: it is counted and recorded.
type observer struct {
	metrics *metrics.Registry
	records *records.Store
}

var (
	_ invocation.Observer = observer{}
	_ pool.Observer       = (*metrics.Registry)(nil)
	_ deploy.Builder      = countedBuilder{}
)

// Observe implements invocation.Observer.
func (o observer) Observe(c invocation.Call) {
	o.metrics.Observe(c)
	o.records.Observe(c)
}

// countedBuilder counts the builds of deploys.
type countedBuilder struct {
	deploy.Builder
	metrics *metrics.Registry
}

// Build implements deploy.Builder.
func (b countedBuilder) Build(ctx context.Context, req buildkit.Request, progress func(*bkclient.SolveStatus)) (buildkit.Result, error) {
	begun := time.Now()
	res, err := b.Builder.Build(ctx, req, progress)
	result := metrics.BuildOK
	switch {
	case err != nil && ctx.Err() != nil:
		result = metrics.BuildCancelled
	case err != nil:
		result = metrics.BuildFailed
	}
	b.metrics.Built(result, time.Since(begun))
	return res, err
}

// deployResult says what a deploy or a rollback came to.
func deployResult(ctx context.Context, res *api.DeployResult, err error) metrics.DeployResult {
	switch {
	case err != nil && ctx.Err() != nil:
		return metrics.DeployCancelled
	case err != nil:
		return metrics.DeployFailed
	case res.Plan:
		return metrics.DeployPlanned
	case res.Unchanged:
		return metrics.DeployUnchanged
	}
	return metrics.DeployReleased
}

// Record implements server.Backend.
func (b *backend) Record(id string) (*api.Record, error) {
	if rec := b.records.Get(id); rec != nil {
		return rec, nil
	}
	if b.cfg.Records.Max == 0 {
		return nil, &api.Error{Code: api.CodeNotFound, Message: "lfxd keeps no records: set max under [records] in its configuration"}
	}
	return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf(
		"there is no record of the request %s: it has not ended yet, or it is not among the newest %d since lfxd was started (records.max)", id, b.cfg.Records.Max)}
}

// Metrics implements server.Backend.
func (b *backend) Metrics(w io.Writer) error {
	(*Daemon)(b).pruneFigures()
	return b.metrics.Write(w, b.figures())
}

// figures is what the daemon looks like now.
func (b *backend) figures() metrics.State {
	st := metrics.State{Version: b.opts.Version, Active: map[function.Environment]int{}}
	if b.instances != nil {
		st.Sandboxes = b.instances.NetworksAhead()
	}
	m := b.pools.Memory()
	st.MemoryBudget, st.MemoryUsed = m.Budget<<20, m.Used<<20
	st.MemoryReserved, st.MemoryReservable = m.Reserved<<20, m.Reservable<<20
	type version struct {
		function.Key
		number int
	}
	spares := map[version]int{}
	for _, sp := range b.starter.Spares() {
		spares[version{sp.Version.Key, sp.Version.Number}]++
	}
	of := map[version]int{} // a version has a pool for each release where its instances run several invocations at once
	for _, p := range b.pools.Pools() {
		v := version{p.Version().Key, p.Version().Number}
		states, queued := p.States()
		if i, ok := of[v]; ok {
			for name, n := range states {
				st.Pools[i].States[name] += n
			}
			st.Pools[i].Queued += queued
			continue
		}
		of[v] = len(st.Pools)
		states["spare"] = spares[v]
		st.Pools = append(st.Pools, metrics.Pool{Key: v.Key, Version: v.number, States: states, Queued: queued})
	}
	view := b.store.View()
	for _, e := range view.Environments() {
		st.Active[e.Environment] = 0
		if rel := view.ActiveRelease(e.Environment); rel != nil {
			st.Active[e.Environment] = rel.Number
		}
	}
	for _, r := range b.Releases(function.Environment{}) {
		switch r.Status {
		case api.StateActive, api.StateCanary, api.StateDraining:
			n := b.pools.Counters(r.Environment, r.Number)
			st.Releases = append(st.Releases, metrics.Release{
				Environment: r.Environment, Number: r.Number, Status: r.Status, Percent: r.Percent, InFlight: r.InFlight,
				Roots: n.Roots, RootErrors: n.RootErrors, Latency: n.Latency,
			})
		}
	}
	return st
}

// pruneFigures drops the figures of versions and releases that are forgotten.
func (d *Daemon) pruneFigures() {
	view := d.store.View()
	d.metrics.Prune(
		func(k function.Key, number int) bool { return view.Version(k, number) != nil },
		func(e function.Environment, number int) bool { return view.Release(e, number) != nil },
	)
}
