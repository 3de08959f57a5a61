package procs

import (
	"runtime"
	"testing"
)

func TestFewAndBoost(t *testing.T) {
	before := runtime.GOMAXPROCS(6)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	is := func(want int, when string) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("%s: %d processors, want %d", when, got, want)
		}
	}
	first := Boost()
	is(6, "before Few")
	t.Setenv("GOMAXPROCS", "6")
	Few()
	first()
	is(6, "with an environment that says so")
	t.Setenv("GOMAXPROCS", "")
	Few()
	Few()
	is(3, "Few")
	first, second := Boost(), Boost()
	is(6, "two boosts")
	first()
	first()
	is(6, "one boost")
	second()
	is(3, "no boost")
}
