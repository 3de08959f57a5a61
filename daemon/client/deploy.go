package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"lfx.dev/lfxd/daemon/api"
)

// CanceledError is what Deploy and Rollback return when their context ended before they did.
type CanceledError struct {
	// What was canceled: "deploy" or "rollback".
	What string
	// Confirmed says whether the daemon said that it stopped, for which it is given 30 s, or never
	// got the request.
	Confirmed bool
	// Cause is the cause of the context.
	Cause error
}

// Error implements error.
func (e *CanceledError) Error() string {
	if e.Confirmed {
		return "the " + e.What + " was canceled; the running release is untouched"
	}
	return "the " + e.What + " was canceled, but the daemon did not confirm that it stopped: `lfxctl releases` shows which release is active"
}

// Unwrap returns the cause.
func (e *CanceledError) Unwrap() error { return e.Cause }

// stream is a call whose answer is a stream of events that ends with a result.
type stream struct {
	what string // for people
	path string
	cut  error // the connection ended before the last event
}

var (
	deployStream   = stream{"deploy", api.PathDeploys, ErrStreamCut}
	rollbackStream = stream{"rollback", api.PathRollbacks, ErrRollbackCut}
)

// Deploy asks for a release and blocks until it is active. It hands every event but the last to
// each, in order, on the calling goroutine. Errors are *api.Error when the daemon refused or failed,
// ErrStreamCut when the connection ended first, *ConnectError, and *CanceledError.
//
// When ctx ends, Deploy tells the daemon by closing its sending half of the connection, which
// cancels the request there, and goes on reading: so it returns when the daemon really stopped, and
// returns the result when the release had become active already.
func (c *Client) Deploy(ctx context.Context, in api.DeployRequest, each func(api.DeployEvent)) (*api.DeployResult, error) {
	return c.stream(ctx, deployStream, in, each)
}

// Rollback activates an earlier release again and blocks until it is active. Events, errors and the end
// of ctx are as Deploy's, with ErrRollbackCut for ErrStreamCut.
func (c *Client) Rollback(ctx context.Context, in api.RollbackRequest, each func(api.DeployEvent)) (*api.DeployResult, error) {
	return c.stream(ctx, rollbackStream, in, each)
}

func (c *Client) stream(ctx context.Context, s stream, in any, each func(api.DeployEvent)) (*api.DeployResult, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode the %s: %w", s.what, err)
	}
	conn, err := c.Dial(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, &CanceledError{What: s.what, Confirmed: true, Cause: context.Cause(ctx)}
	case err != nil:
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { c.cancelConn(conn) })
	defer stop()

	resp, err := c.roundTrip(conn, s, body)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, &CanceledError{What: s.what, Cause: context.Cause(ctx)}
	case err != nil:
		return nil, s.cut
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, c.apiError(resp)
	}
	result, err := readDeploy(resp, each)
	switch {
	case err == nil:
		return result, nil
	case ctx.Err() != nil:
		_, confirmed := errors.AsType[*api.Error](err)
		return nil, &CanceledError{What: s.what, Confirmed: confirmed, Cause: context.Cause(ctx)}
	case errors.Is(err, errCut):
		return nil, s.cut
	}
	return nil, err
}

// cancelConn ends the sending half and bounds what is left of the receiving one.
func (c *Client) cancelConn(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(c.cancelWait))
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		conn.Close()
	}
}

// roundTrip writes the request on conn and reads the head of the answer. net/http's transport would
// close the whole connection on cancellation, so this one is made by hand.
func (c *Client) roundTrip(conn net.Conn, s stream, body []byte) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodPost, c.url(s.path, nil), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/x-ndjson")
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("send the %s: %w", s.what, err)
	}
	return http.ReadResponse(bufio.NewReader(conn), req)
}

// errCut says that a stream ended before its last event.
var errCut = errors.New("the stream was cut")

// readDeploy reads events up to the last one.
func readDeploy(resp *http.Response, each func(api.DeployEvent)) (*api.DeployResult, error) {
	decoder := json.NewDecoder(resp.Body)
	for {
		var event api.DeployEvent
		if err := decoder.Decode(&event); err != nil {
			return nil, errCut
		}
		switch {
		case event.Done != nil:
			return event.Done, nil
		case event.Error != nil:
			return nil, event.Error
		case each != nil:
			each(event)
		}
	}
}
