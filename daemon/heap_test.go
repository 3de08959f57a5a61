package daemon

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

func TestHeapIdle(t *testing.T) {
	before := heapState{cycles: 7, live: 10 << 20, held: 20 << 20}
	for name, tc := range map[string]struct {
		now   heapState
		floor uint64
		want  bool
	}{
		"little to give back":     {heapState{7, 10 << 20, 18 << 20}, 0, false},
		"much, and nothing to do": {heapState{7, 10 << 20, 18<<20 + 1}, 0, true},
		"much, but collected":     {heapState{8, 10 << 20, 60 << 20}, 0, false},
		"what cannot be given":    {heapState{7, 10 << 20, 58 << 20}, 50 << 20, false},
		"more than that":          {heapState{7, 10 << 20, 70 << 20}, 50 << 20, true},
	} {
		if got := tc.now.idle(before, tc.floor); got != tc.want {
			t.Errorf("%s: idle = %v, want %v", name, got, tc.want)
		}
	}
}

func TestReturnMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // only returnMemory collects
	runtime.GC()
	garbage := make([]byte, 2*heapSlack)
	for i := range garbage {
		garbage[i] = 1
	}
	runtime.KeepAlive(garbage)
	before := readHeap()
	synctest.Test(t, func(t *testing.T) {
		d := &Daemon{}
		d.ctx, d.cancel = context.WithCancelCause(t.Context())
		d.group.Go(d.returnMemory)
		time.Sleep(2 * heapInterval) // in the bubble's time
		synctest.Wait()
		d.cancel(nil)
		d.group.Wait()
	})
	if after := readHeap(); after.held+heapSlack > before.held {
		t.Errorf("%d KiB are held, %d before", after.held>>10, before.held>>10)
	}
}
