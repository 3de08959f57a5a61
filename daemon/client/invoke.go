package client

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"

	"lfx.dev/lfxd/daemon/api"
)

// Headers of the Invoke call (AWS Lambda API 2015-03-31, Invoke).
const (
	headerType            = "X-Amz-Invocation-Type"
	headerLogType         = "X-Amz-Log-Type"
	headerLogResult       = "X-Amz-Log-Result"
	headerFunctionError   = "X-Amz-Function-Error"
	headerExecutedVersion = "X-Amz-Executed-Version"
	headerErrorType       = "X-Amzn-Errortype"
	headerRequestID       = "X-Amzn-Requestid"
)

// InvokeType is how a function is called.
type InvokeType string

// Invocation types of the Lambda API.
const (
	RequestResponse InvokeType = "RequestResponse"
	Event           InvokeType = "Event"
	DryRun          InvokeType = "DryRun"
)

// InvokeRequest is one call of a function.
type InvokeRequest struct {
	// Name is a name, a partial ARN or an ARN, as the Lambda API takes it.
	Name string
	// Qualifier is a version, an alias, "r<release>" or empty.
	Qualifier string
	// Payload is the event in JSON; empty becomes {} at the daemon.
	Payload []byte
	// LogTail asks for the last 4 KB of the invocation's log.
	LogTail bool
	// Type defaults to RequestResponse.
	Type InvokeType
}

// InvokeResult is what came of a call that reached its function.
type InvokeResult struct {
	// Status is 200, 202 (Event) or 204 (DryRun).
	Status int
	// Payload is the function's answer, or the description of its error.
	Payload []byte
	// FunctionError is "Unhandled" when the function failed, else empty.
	FunctionError string
	// ExecutedVersion is the version that answered.
	ExecutedVersion string
	// Release is the release that the version was called through; may be empty.
	Release string
	// LogTail is the decoded tail of the log.
	LogTail   []byte
	RequestID string
}

// Invoke calls a function and blocks until it answered. A function that fails is a result, not an
// error; an error is *InvokeError, *ConnectError or the cause of ctx. It never retries.
func (c *Client) Invoke(ctx context.Context, in InvokeRequest) (*InvokeResult, error) {
	req, err := c.invokeRequest(ctx, in)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, invokeError(resp)
	}
	payload, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	out := &InvokeResult{
		Status:          resp.StatusCode,
		Payload:         payload,
		FunctionError:   resp.Header.Get(headerFunctionError),
		ExecutedVersion: resp.Header.Get(headerExecutedVersion),
		Release:         resp.Header.Get(api.HeaderRelease),
		RequestID:       resp.Header.Get(headerRequestID),
	}
	// A tail that is no base64 is not worth losing the answer for.
	out.LogTail, _ = base64.StdEncoding.DecodeString(resp.Header.Get(headerLogResult))
	return out, nil
}

func (c *Client) invokeRequest(ctx context.Context, in InvokeRequest) (*http.Request, error) {
	query := url.Values{}
	if in.Qualifier != "" {
		query.Set("Qualifier", in.Qualifier)
	}
	target := c.url("/2015-03-31/functions/"+url.PathEscape(in.Name)+"/invocations", query)
	// Wrapped, so that net/http sees a body that it cannot send again: an invocation is never
	// repeated on a connection that died under it.
	body := io.NopCloser(bytes.NewReader(in.Payload))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(len(in.Payload))
	if len(in.Payload) == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", "application/json")
	if in.Type != "" {
		req.Header.Set(headerType, string(in.Type))
	}
	if in.LogTail {
		req.Header.Set(headerLogType, "Tail")
	}
	return req, nil
}
