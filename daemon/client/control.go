package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// Version returns what the daemon and its engine are. It waits at most 30 s.
func (c *Client) Version(ctx context.Context) (api.VersionInfo, error) {
	var out api.VersionInfo
	return out, c.get(ctx, callTimeout, api.PathVersion, nil, &out)
}

// Functions returns the functions of the active releases, at most 30 s later. An empty project or
// environment name in env means all of them.
func (c *Client) Functions(ctx context.Context, env function.Environment) ([]api.FunctionSummary, error) {
	var out []api.FunctionSummary
	return out, c.get(ctx, callTimeout, api.PathFunctions, environmentQuery(env), &out)
}

// Function returns one function with its versions and instances. A key without project or
// environment is resolved by the daemon, which answers api.CodeConflict when it is ambiguous.
func (c *Client) Function(ctx context.Context, key function.Key) (*api.FunctionDetail, error) {
	var out api.FunctionDetail
	if err := c.get(ctx, callTimeout, functionPath(key), environmentQuery(key.Environment), &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// RemoveFunction makes and activates a release without the function. It blocks until that release
// is active; only ctx bounds it.
func (c *Client) RemoveFunction(ctx context.Context, key function.Key) (api.RemoveResult, error) {
	var out api.RemoveResult
	return out, c.call(ctx, http.MethodDelete, functionPath(key), environmentQuery(key.Environment), &out)
}

// Releases returns the kept releases. An empty project or environment name means all.
func (c *Client) Releases(ctx context.Context, env function.Environment) ([]api.ReleaseInfo, error) {
	var out []api.ReleaseInfo
	return out, c.get(ctx, callTimeout, api.PathReleases, environmentQuery(env), &out)
}

// Instances returns all instances on the host.
func (c *Client) Instances(ctx context.Context) ([]api.InstanceInfo, error) {
	var out []api.InstanceInfo
	return out, c.get(ctx, callTimeout, api.PathInstances, nil, &out)
}

// Doctor lets the daemon check its parts and its host; it takes seconds, two minutes at most.
func (c *Client) Doctor(ctx context.Context) (api.DoctorReport, error) {
	var out api.DoctorReport
	return out, c.get(ctx, doctorTimeout, api.PathDoctor, nil, &out)
}

func functionPath(key function.Key) string {
	return api.PathFunctions + "/" + url.PathEscape(key.Function)
}

func environmentQuery(env function.Environment) url.Values {
	q := url.Values{}
	if env.Project != "" {
		q.Set("project", env.Project)
	}
	if env.Name != "" {
		q.Set("environment", env.Name)
	}
	return q
}

func (c *Client) get(ctx context.Context, timeout time.Duration, path string, query url.Values, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.call(ctx, http.MethodGet, path, query, out)
}

// call makes one call without a body and decodes its JSON answer.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, out any) error {
	return c.exchange(ctx, method, path, query, nil, out)
}

// send makes one call with a JSON body and decodes its JSON answer.
func (c *Client) send(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	return c.exchange(ctx, method, path, nil, body, out)
}

func (c *Client) exchange(ctx context.Context, method, path string, query url.Values, body []byte, out any) error {
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.transportError(ctx, err)
	}
	return nil
}

// do makes one call; no body is nil, any other is JSON. A status other than 2xx is *api.Error. The caller
// closes the body of the answer.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		content = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url(path, query), content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, c.apiError(resp)
	}
	return resp, nil
}
