package daemon

import (
	"io"

	"lfx.dev/lfxd/daemon/api"
)

// Record implements server.Backend.
func (b *backend) Record(string) (*api.Record, error) { return nil, errLater }

// Metrics implements server.Backend.
func (b *backend) Metrics(io.Writer) error { return errLater }
