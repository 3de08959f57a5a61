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

// CanceledError is what Deploy returns when its context ended before the deploy did.
type CanceledError struct {
	// Confirmed says whether the daemon said that it stopped, for which it is given 30 s, or never
	// got the request.
	Confirmed bool
	// Cause is the cause of the context.
	Cause error
}

// Error implements error.
func (e *CanceledError) Error() string {
	if e.Confirmed {
		return "the deploy was canceled; the running release is untouched"
	}
	return "the deploy was canceled, but the daemon did not confirm that it stopped: `lfxctl releases` shows which release is active"
}

// Unwrap returns the cause.
func (e *CanceledError) Unwrap() error { return e.Cause }

// Deploy asks for a release and blocks until it is active. It hands every event but the last to
// each, in order, on the calling goroutine. Errors are *api.Error when the daemon refused or failed,
// ErrStreamCut when the connection ended first, *ConnectError, and *CanceledError.
//
// When ctx ends, Deploy tells the daemon by closing its sending half of the connection, which
// cancels the request there, and goes on reading: so it returns when the daemon really stopped, and
// returns the result when the release had become active already.
func (c *Client) Deploy(ctx context.Context, in api.DeployRequest, each func(api.DeployEvent)) (*api.DeployResult, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode the deploy: %w", err)
	}
	conn, err := c.Dial(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, &CanceledError{Confirmed: true, Cause: context.Cause(ctx)}
	case err != nil:
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { c.cancelConn(conn) })
	defer stop()

	resp, err := c.roundTrip(conn, body)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, &CanceledError{Cause: context.Cause(ctx)}
	case err != nil:
		return nil, ErrStreamCut
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, c.apiError(resp)
	}
	result, err := readDeploy(resp, each)
	if err == nil || ctx.Err() == nil {
		return result, err
	}
	_, confirmed := errors.AsType[*api.Error](err)
	return nil, &CanceledError{Confirmed: confirmed, Cause: context.Cause(ctx)}
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
func (c *Client) roundTrip(conn net.Conn, body []byte) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodPost, c.url(api.PathDeploys, nil), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/x-ndjson")
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("send the deploy: %w", err)
	}
	return http.ReadResponse(bufio.NewReader(conn), req)
}

// readDeploy reads events up to the last one.
func readDeploy(resp *http.Response, each func(api.DeployEvent)) (*api.DeployResult, error) {
	decoder := json.NewDecoder(resp.Body)
	for {
		var event api.DeployEvent
		if err := decoder.Decode(&event); err != nil {
			return nil, ErrStreamCut
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
