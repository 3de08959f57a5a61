// Package procs keeps lfxd on few processors while it only passes messages on.
//
// A warm invocation is a handful of wakes, each with a few microseconds of work. When a goroutine becomes ready and a processor of the
// Go scheduler is idle, Go wakes a further thread that looks for work (runtime.wakep); here it finds none, and takes a core from the
// client and the function meanwhile. With half of the host's cores (one of two) a call costs less CPU time and less time. What really
// computes asks for all of them while it does: otherwise calls would wait for it, up to 10 ms at a time.
package procs

import (
	"os"
	"runtime"
	"sync"
)

var state struct {
	sync.Mutex
	on        bool
	few, many int
	boosts    int
}

// Few begins to keep the process on half of its processors, one at least. It does nothing when the environment says how many there are to be
// (GOMAXPROCS).
func Few() {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	state.Lock()
	defer state.Unlock()
	if state.on {
		return
	}
	state.many = runtime.GOMAXPROCS(0)
	state.on, state.few = true, max(1, state.many/2)
	setLocked()
}

// Boost gives the process all its processors until done is called, once. It stops the world for some microseconds: it is for work that
// takes milliseconds.
func Boost() (done func()) {
	change(1)
	return sync.OnceFunc(func() { change(-1) })
}

func change(by int) {
	state.Lock()
	defer state.Unlock()
	state.boosts += by
	setLocked()
}

func setLocked() {
	if !state.on {
		return
	}
	want := state.few
	if state.boosts > 0 {
		want = state.many
	}
	if runtime.GOMAXPROCS(0) != want {
		runtime.GOMAXPROCS(want)
	}
}
