package daemon

import (
	"runtime/debug"
	"runtime/metrics"
	"time"

	"lfx.dev/lfxd/internal/procs"
)

const (
	// heapInterval is how long lfxd must have made so little garbage that Go did not collect it.
	heapInterval = 5 * time.Second
	// heapSlack is how much it may hold then beyond what is in use, in bytes.
	heapSlack = 8 << 20
)

// heapState is what Go's runtime says about the heap; reading it stops nothing.
type heapState struct {
	cycles uint64 // collections since the start
	live   uint64 // bytes that the last collection left
	held   uint64 // bytes of memory for objects, used or not
}

func readHeap() heapState {
	s := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
	}
	metrics.Read(s)
	return heapState{cycles: s[0].Value.Uint64(), live: s[1].Value.Uint64(), held: s[2].Value.Uint64() + s[3].Value.Uint64() + s[4].Value.Uint64()}
}

// idle says that the heap is much larger than it needs to be and was not collected since before. floor is what was held after memory was
// given back last: what is left then, between objects that live, cannot be given back.
func (s heapState) idle(before heapState, floor uint64) bool {
	return s.cycles == before.cycles && s.held > max(s.live, floor)+heapSlack
}

// returnMemory gives back what a deploy or many starts have left on the heap. By itself Go collects nothing for two minutes when
// there is little to do, and it keeps room for as much again.
func (d *Daemon) returnMemory() {
	tick := time.NewTicker(heapInterval)
	defer tick.Stop()
	before, floor := readHeap(), uint64(0)
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		now := readHeap()
		if now.idle(before, floor) {
			done := procs.Boost() // calls do not wait for it
			debug.FreeOSMemory()
			debug.FreeOSMemory() // a sync.Pool lets go of its content with the second collection
			done()
			now = readHeap()
			floor = now.held
		}
		before = now
	}
}
