package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// In what follows an environment without a name is the default one, and one without a project is that of
// the only project of the host; where there are several the error is api.CodeConflict and its details
// name them. Lists return all that match.

// Traffic says for each environment who gets its requests.
func (c *Client) Traffic(ctx context.Context, env function.Environment) ([]api.Traffic, error) {
	var out []api.Traffic
	return out, c.get(ctx, callTimeout, api.PathTraffic, environmentQuery(env), &out)
}

// SetTraffic gives a release a share of the requests, as the canary. It blocks until the release is warm;
// only ctx bounds it.
func (c *Client) SetTraffic(ctx context.Context, in api.TrafficRequest) (*api.Traffic, error) {
	return sent[api.Traffic](ctx, c, http.MethodPut, api.PathTraffic, in)
}

// Promote makes the canary the active release. Only ctx bounds it.
func (c *Client) Promote(ctx context.Context, in api.ReleaseRequest) (*api.Traffic, error) {
	return sent[api.Traffic](ctx, c, http.MethodPost, api.PathPromotions, in)
}

// Abort takes all requests away from the canary. Only ctx bounds it.
func (c *Client) Abort(ctx context.Context, in api.ReleaseRequest) (*api.Traffic, error) {
	return sent[api.Traffic](ctx, c, http.MethodPost, api.PathAborts, in)
}

// Diff says what differs between two releases; from 0 is the active one.
func (c *Client) Diff(ctx context.Context, env function.Environment, from, to int) (*api.ReleaseDiff, error) {
	q := environmentQuery(env)
	if from != 0 {
		q.Set("from", strconv.Itoa(from))
	}
	q.Set("to", strconv.Itoa(to))
	var out api.ReleaseDiff
	if err := c.get(ctx, callTimeout, api.PathDiff, q, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Aliases returns the aliases of a function, or of all functions and environments when fn is empty.
func (c *Client) Aliases(ctx context.Context, env function.Environment, fn string) ([]api.Alias, error) {
	q := environmentQuery(env)
	if fn != "" {
		q.Set("function", fn)
	}
	var out []api.Alias
	return out, c.get(ctx, callTimeout, api.PathAliases, q, &out)
}

// SetAlias makes an alias or points it elsewhere.
func (c *Client) SetAlias(ctx context.Context, in api.Alias) (*api.Alias, error) {
	return sent[api.Alias](ctx, c, http.MethodPut, api.PathAliases, in)
}

// DeleteAlias removes an alias of a function, or of the environment when fn is empty, and returns what it was.
func (c *Client) DeleteAlias(ctx context.Context, env function.Environment, fn, name string) (*api.Alias, error) {
	q := environmentQuery(env)
	if fn != "" {
		q.Set("function", fn)
	}
	q.Set("name", name)
	var out api.Alias
	if err := c.call(ctx, http.MethodDelete, api.PathAliases, q, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Environments returns the environments.
func (c *Client) Environments(ctx context.Context, env function.Environment) ([]api.EnvironmentInfo, error) {
	var out []api.EnvironmentInfo
	return out, c.get(ctx, callTimeout, api.PathEnvironments, environmentQuery(env), &out)
}

// RemoveEnvironment removes an environment with all that belongs to it; both its names are needed. It
// blocks until that is done; only ctx bounds it.
func (c *Client) RemoveEnvironment(ctx context.Context, env function.Environment) (*api.EnvironmentInfo, error) {
	var out api.EnvironmentInfo
	if err := c.call(ctx, http.MethodDelete, api.PathEnvironments, environmentQuery(env), &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Record returns what the daemon remembers of one invocation; api.CodeNotFound when nothing (any more).
func (c *Client) Record(ctx context.Context, requestID string) (*api.Record, error) {
	var out api.Record
	if err := c.get(ctx, callTimeout, api.PathRecords+"/"+url.PathEscape(requestID), nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Metrics copies the daemon's figures, in Prometheus' text format, to w.
func (c *Client) Metrics(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, api.PathMetrics, nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return c.transportError(ctx, err)
	}
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("write the figures: %w", err)
	}
	return nil
}

// sent makes one call with a JSON body.
func sent[T any](ctx context.Context, c *Client, method, path string, in any) (*T, error) {
	var out T
	if err := c.send(ctx, method, path, in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
