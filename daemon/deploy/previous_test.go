package deploy

import "testing"

// What was active before is part of the result: the client says that it drains.
func TestAResultNamesTheReleaseBefore(t *testing.T) {
	w := newWorld(t)
	if got := w.must(w.request()).Previous; got != 0 {
		t.Errorf("the first deploy: got %d, want none", got)
	}
	w.write("a/app", "two")
	if got := w.must(w.request()); got.Previous != 1 || got.Release.Number != 2 {
		t.Errorf("the second one: got %d before %d", got.Previous, got.Release.Number)
	}
	if got := w.must(w.request()); got.Previous != 2 || !got.Unchanged {
		t.Errorf("one that changes nothing: got %d, unchanged %t", got.Previous, got.Unchanged)
	}
}
