package daemon

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/logs"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/daemon/server"
	"lfx.dev/lfxd/daemon/store"
)

// backend is the daemon as the control API sees it.
type backend Daemon

var _ server.Backend = (*backend)(nil)

// Version implements server.Backend. Parts that do not answer are left out.
func (b *backend) Version(ctx context.Context) api.VersionInfo {
	v := api.VersionInfo{Version: b.opts.Version, Go: runtime.Version()}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if c, err := b.client.Version(ctx); err == nil {
		v.Containerd = c.Version
	}
	if i, err := b.builder.Info(ctx); err == nil {
		v.Buildkit = i.Version
	}
	v.Runtime = filepath.Base(b.runtime.Path) + " " + b.runtime.Version
	return v
}

// Deploy implements server.Backend.
func (b *backend) Deploy(ctx context.Context, req api.DeployRequest, event func(api.DeployEvent)) (*api.DeployResult, error) {
	ctx, done := b.untilClose(ctx)
	defer done()
	b.awaitBuilder(ctx)
	begun := time.Now()
	res, err := b.deployer.Deploy(ctx, req, event)
	b.metrics.Deployed(deployResult(ctx, res, err), time.Since(begun))
	if err != nil {
		return nil, err
	}
	if !req.Plan {
		res.Endpoints = b.endpoints(res.Release)
	}
	return res, nil
}

// endpoints lists the URLs that answer for a release, for people.
func (b *backend) endpoints(rel function.Release) []string {
	var out []string
	for name := range rel.Versions {
		if b.cfg.Listen.TCP != "" {
			out = append(out, fmt.Sprintf("http://%s/2015-03-31/functions/%s/invocations", b.cfg.Listen.TCP, name))
		}
		if port := rel.Ports[name]; port != 0 {
			out = append(out, fmt.Sprintf("http://%s:%d/2015-03-31/functions/function/invocations", b.cfg.Listen.FunctionPortAddress, port))
		}
	}
	slices.Sort(out)
	return out
}

// Functions implements server.Backend.
func (b *backend) Functions(filter function.Environment) []api.FunctionSummary {
	view := b.store.View()
	out := []api.FunctionSummary{}
	for _, e := range view.Environments() {
		if !matches(filter, e.Environment) {
			continue
		}
		for _, f := range view.Functions(e.Environment) {
			if rel, v := serving(view, f.Key); v != nil {
				out = append(out, b.summary(e, rel, v))
			}
		}
	}
	slices.SortFunc(out, func(a, b api.FunctionSummary) int {
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Environment.Name, b.Environment.Name), cmp.Compare(a.Key.Function, b.Key.Function))
	})
	return out
}

// serving returns the release that answers for a function, the active one or, when that does not have the function, the
// canary, with the function's version in it; nil when neither has it.
func serving(view *store.Snapshot, key function.Key) (*function.Release, *function.Version) {
	rel := view.ActiveRelease(key.Environment)
	if c := view.Canary(key.Environment); c != nil && rel != nil && rel.Versions[key.Function] == 0 {
		rel = view.Release(key.Environment, c.Release)
	}
	if rel == nil || rel.Versions[key.Function] == 0 {
		return nil, nil
	}
	return rel, view.Version(key, rel.Versions[key.Function])
}

func matches(filter, env function.Environment) bool {
	return (filter.Project == "" || filter.Project == env.Project) && (filter.Name == "" || filter.Name == env.Name)
}

func (b *backend) summary(e *store.Environment, rel *function.Release, v *function.Version) api.FunctionSummary {
	s := api.FunctionSummary{
		Key: v.Key, Version: v.Number, Release: rel.Number, Account: e.Account,
		ARN:      function.ARN(b.cfg.Region, e.Account, v.Function, ""),
		MemoryMB: v.Config.MemoryMB, Timeout: v.Config.Timeout.String(),
		Default: rel.Default == v.Function, Port: rel.Ports[v.Function], Deployed: rel.Activated,
	}
	if rel.State == function.ReleaseCanary { // its ports wait for its promotion
		s.Port = 0
		s.Deployed = rel.Created
	}
	for _, p := range b.pools.Pools() {
		if p.Version().Key == v.Key {
			st := p.Stats()
			s.Instances += st.Instances
			s.InFlight += st.InFlight
		}
	}
	return s
}

// find looks a function up by name, "project/name", "project/environment/name" or ARN.
func (b *backend) find(name string, filter function.Environment) (function.Key, error) {
	view := b.store.View()
	parts := strings.Split(name, "/")
	switch len(parts) {
	case 2:
		filter.Project, name = parts[0], parts[1]
		if filter.Name == "" {
			filter.Name = function.DefaultEnvironment
		}
	case 3:
		filter.Project, filter.Name, name = parts[0], parts[1], parts[2]
	}
	if ref, err := function.ParseRef(name, ""); err == nil && ref.Account != "" {
		name = ref.Name
		e := view.ByAccount(ref.Account)
		if e == nil {
			return function.Key{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no environment has the account %s", ref.Account)}
		}
		filter = e.Environment
	}
	var found []function.Key
	for _, k := range view.ByName(name) {
		if matches(filter, k.Environment) {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return function.Key{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no function %s: lfxctl ls shows all", name)}
	case 1:
		return found[0], nil
	}
	e := &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%s is not unique: name one of them as project/environment/function", name)}
	for _, k := range found {
		e.Details = append(e.Details, fmt.Sprintf("%s/%s/%s", k.Project, k.Environment.Name, k.Function))
	}
	return function.Key{}, e
}

// Function implements server.Backend.
func (b *backend) Function(name string, filter function.Environment) (*api.FunctionDetail, error) {
	key, err := b.find(name, filter)
	if err != nil {
		return nil, err
	}
	view := b.store.View()
	rel, active := serving(view, key)
	if active == nil { // removed in this moment
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no function %s: lfxctl ls shows all", name)}
	}
	d := &api.FunctionDetail{
		FunctionSummary: b.summary(view.Environment(key.Project, key.Environment.Name), rel, active),
		Active:          *active, Running: []api.InstanceInfo{},
	}
	for _, v := range view.Function(key).Versions {
		d.Versions = append(d.Versions, *v)
	}
	for _, in := range b.Instances() {
		if in.Key == key {
			d.Running = append(d.Running, in)
		}
	}
	return d, nil
}

// Remove implements server.Backend.
func (b *backend) Remove(ctx context.Context, name string, filter function.Environment) (*api.RemoveResult, error) {
	key, err := b.find(name, filter)
	if err != nil {
		return nil, err
	}
	return b.deployer.Remove(ctx, key)
}

// Instances implements server.Backend.
func (b *backend) Instances() []api.InstanceInfo {
	out := []api.InstanceInfo{}
	for _, p := range b.pools.Pools() {
		for _, in := range p.Instances() {
			out = append(out, instanceInfo(in))
		}
	}
	for _, sp := range b.starter.Spares() {
		out = append(out, api.InstanceInfo{
			Key: sp.Version.Key, ID: sp.ID, Version: sp.Version.Number, State: "spare", MemoryBytes: int64(sp.MemoryBytes),
			Address: sp.Address.String(), Started: sp.Made, Phases: map[string]int64{"ahead": sp.Ahead.Microseconds()},
		})
	}
	slices.SortFunc(out, func(a, b api.InstanceInfo) int {
		return cmp.Or(cmp.Compare(a.Key.String(), b.Key.String()), a.Started.Compare(b.Started))
	})
	return out
}

func instanceInfo(in pool.Instance) api.InstanceInfo {
	info := api.InstanceInfo{
		Key: in.Version.Key, ID: in.ID, Version: in.Version.Number, State: in.State,
		Release: in.Release, InFlight: in.InFlight, MemoryBytes: in.MemoryBytes,
		Address: in.Address, Started: in.Started, Used: in.Used, Phases: make(map[string]int64, len(in.Phases)),
	}
	for name, d := range in.Phases {
		info.Phases[name] = d.Microseconds()
	}
	return info
}

// Logs implements server.Backend.
func (b *backend) Logs(ctx context.Context, q server.LogQuery, entry func(api.LogEntry) error) error {
	lq := logs.Query{Since: q.Since, Limit: q.Limit, Follow: q.Follow, RequestID: q.RequestID, Key: function.Key{Environment: q.Filter}}
	if q.Name != "" {
		key, err := b.find(q.Name, q.Filter)
		if err != nil {
			return err
		}
		lq.Key = key
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(b.ctx, func() { cancel(context.Cause(b.ctx)) })
	defer stop()
	for e, err := range b.logs.Query(ctx, lq) {
		if err != nil {
			return err
		}
		if err := entry(e); err != nil {
			return err
		}
	}
	return nil
}
