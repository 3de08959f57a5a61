package daemon

import (
	"io"

	"lfx.dev/lfxd/daemon/api"
)

var errNoRecords = &api.Error{Code: api.CodeInvalid, Message: "this build keeps no records and no metrics"}

// Record implements server.Backend.
func (b *backend) Record(string) (*api.Record, error) { return nil, errNoRecords }

// Metrics implements server.Backend.
func (b *backend) Metrics(io.Writer) error { return errNoRecords }
