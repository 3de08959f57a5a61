package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// LogQuery selects log entries.
type LogQuery struct {
	// Key selects a function; empty members select all.
	function.Key
	// Follow keeps the stream open for entries to come.
	Follow bool
	// Since leaves out older entries; zero leaves out none.
	Since time.Time
	// Limit is the number of latest entries to start with; zero is the daemon's default.
	Limit int
	// RequestID selects the entries of one invocation; empty selects all.
	RequestID string
}

// Logs hands the entries to each, oldest first, until the daemon has sent all; with Follow until
// ctx is done, whose cause it then returns. A daemon that goes away meanwhile is
// errdefs.ErrUnavailable.
func (c *Client) Logs(ctx context.Context, query LogQuery, each func(api.LogEntry)) error {
	resp, err := c.do(ctx, http.MethodGet, api.PathLogs, query.values(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	decoder := json.NewDecoder(resp.Body)
	for {
		var entry api.LogEntry
		switch err := decoder.Decode(&entry); {
		case err == nil:
			each(entry)
		case errors.Is(err, io.EOF) && query.Follow && ctx.Err() == nil:
			return &followEndedError{host: c.host.display}
		case errors.Is(err, io.EOF) && ctx.Err() == nil:
			return nil
		default:
			return c.transportError(ctx, err)
		}
	}
}

func (q LogQuery) values() url.Values {
	v := environmentQuery(q.Environment)
	if q.Function != "" {
		v.Set("function", q.Function)
	}
	if q.Follow {
		v.Set("follow", "1")
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.RequestID != "" {
		v.Set("request_id", q.RequestID)
	}
	return v
}

// followEndedError says that the daemon ended a stream that should have gone on.
type followEndedError struct{ host string }

func (e *followEndedError) Error() string {
	return "lfxd on " + e.host + " ended the log stream: it is stopping or restarting; run the command again to go on"
}

func (e *followEndedError) Unwrap() error { return errdefs.ErrUnavailable }
