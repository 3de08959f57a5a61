package gateway

import (
	"errors"
	"time"
)

// Limits on a request body's progress: each read within bodyIdle, and after bodyGrace at least
// bodyRate bytes a second on average. An idle limit alone does not stop a sender of one byte every
// nine seconds.
const (
	bodyIdle  = 10 * time.Second
	bodyGrace = 30 * time.Second
	bodyRate  = 1 << 10
)

var errTooSlow = errors.New("the sender is too slow")

// pacedReader reads a body under the limits above.
type pacedReader struct {
	body  Body
	start time.Time
	n     int64
}

// Read implements io.Reader.
func (p *pacedReader) Read(b []byte) (int, error) {
	now := time.Now()
	if p.start.IsZero() {
		p.start = now
	}
	if age := now.Sub(p.start); age > bodyGrace && p.n < int64(age/time.Second)*bodyRate {
		return 0, errTooSlow
	}
	p.body.SetReadDeadline(now.Add(bodyIdle)) //nolint:errcheck // not every writer has one
	n, err := p.body.Read(b)
	p.n += int64(n)
	if err != nil || n > 0 {
		p.body.SetReadDeadline(time.Time{}) //nolint:errcheck // as above
	}
	return n, err
}
