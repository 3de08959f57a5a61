package rapi

import (
	"sync/atomic"
	"time"
)

// spinLimit bounds the wait for an answer without sleeping.
const spinLimit = 80 * time.Microsecond

// inFlight counts the events of this process that were handed out and are not answered, but for those of instances that run several.
var inFlight atomic.Int64

// spin waits for the answer of an instance whose last one came within spinLimit, without sleeping, when it is the only one that anybody
// waits for. A processor that sleeps needs longer to wake than such a function to answer, in a virtual machine above all:
// its answer is then read at once, by the connection's goroutine as always.
func (s *Server) spin(c *conn) {
	if took := s.took.Load(); took == 0 || took > int64(spinLimit) || inFlight.Load() != 1 {
		return
	}
	c.in.Spin(spinLimit, func() bool { return inFlight.Load() == 1 })
}
