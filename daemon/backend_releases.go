package daemon

import (
	"context"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// Releases implements server.Backend.
func (b *backend) Releases(filter function.Environment) []api.ReleaseInfo {
	view := b.store.View()
	out := []api.ReleaseInfo{}
	for _, e := range view.Environments() {
		if !matches(filter, e.Environment) {
			continue
		}
		for _, r := range view.Releases(e.Environment) {
			out = append(out, api.ReleaseInfo{Release: *r})
		}
	}
	return out
}

var errLater = &api.Error{Code: api.CodeInvalid, Message: "not in this build"}

// Rollback implements server.Backend.
func (b *backend) Rollback(context.Context, api.RollbackRequest, func(api.DeployEvent)) (*api.DeployResult, error) {
	return nil, errLater
}

// Traffic implements server.Backend.
func (b *backend) Traffic(function.Environment) []api.Traffic { return nil }

// SetTraffic implements server.Backend.
func (b *backend) SetTraffic(context.Context, api.TrafficRequest) (*api.Traffic, error) {
	return nil, errLater
}

// Promote implements server.Backend.
func (b *backend) Promote(context.Context, api.ReleaseRequest) (*api.Traffic, error) {
	return nil, errLater
}

// Abort implements server.Backend.
func (b *backend) Abort(context.Context, api.ReleaseRequest) (*api.Traffic, error) {
	return nil, errLater
}

// Diff implements server.Backend.
func (b *backend) Diff(function.Environment, int, int) (*api.ReleaseDiff, error) {
	return nil, errLater
}

// Aliases implements server.Backend.
func (b *backend) Aliases(function.Environment, string) ([]api.Alias, error) { return nil, errLater }

// SetAlias implements server.Backend.
func (b *backend) SetAlias(context.Context, api.Alias) (*api.Alias, error) { return nil, errLater }

// DeleteAlias implements server.Backend.
func (b *backend) DeleteAlias(context.Context, function.Environment, string, string) (*api.Alias, error) {
	return nil, errLater
}

// Environments implements server.Backend.
func (b *backend) Environments(function.Environment) []api.EnvironmentInfo { return nil }

// RemoveEnvironment implements server.Backend.
func (b *backend) RemoveEnvironment(context.Context, function.Environment) (*api.EnvironmentInfo, error) {
	return nil, errLater
}
