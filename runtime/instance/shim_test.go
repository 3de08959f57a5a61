package instance

import (
	"testing"

	"golang.org/x/sys/unix"
)

// withSharedShim returns a manager whose instances share one shim.
func withSharedShim(t *testing.T) *Manager {
	t.Helper()
	m, _ := newManager(t, nil)
	t.Cleanup(func() {
		if err := m.RemoveShims(testContext(t)); err != nil {
			t.Error(err)
		}
		if shims, err := m.shims(); err != nil || shims[shimPrefix+"0"] != 0 {
			t.Errorf("shims after RemoveShims: %v, %v", shims, err)
		}
	})
	if err := m.ShareShims(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	return m
}

func shimsOf(t *testing.T, m *Manager) map[string]int {
	t.Helper()
	shims, err := m.shims()
	if err != nil {
		t.Fatal(err)
	}
	return shims
}

func TestInstancesShareAShim(t *testing.T) {
	m := withSharedShim(t)
	for _, id := range []string{"share-1", "share-2"} {
		i, err := m.Create(testContext(t), probeSpec(id, "sleep"))
		if err != nil {
			t.Fatal(err)
		}
		if shims := shimsOf(t, m); len(shims) != 1 || shims[shimPrefix+"0"] == 0 {
			t.Errorf("shims with %s = %v, want the shared one alone", id, shims)
		}
		if err := i.Destroy(testContext(t)); err != nil {
			t.Error(err)
		}
	}
	before := shimsOf(t, m)
	if err := m.ShareShims(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	if after := shimsOf(t, m); after[shimPrefix+"0"] != before[shimPrefix+"0"] {
		t.Errorf("the shim was replaced although it stood: %v, then %v", before, after)
	}
	if removed, err := m.Reconcile(testContext(t), func(string) bool { return false }); err != nil || len(removed) > 0 {
		t.Errorf("Reconcile removed %v, %v", removed, err)
	}
}

func TestADeadSharedShimIsReplaced(t *testing.T) {
	m := withSharedShim(t)
	pid := shimsOf(t, m)[shimPrefix+"0"]
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	alone := create(t, m, probeSpec("alone", "sleep")) // in a shim of its own, if the shared one was missed already
	if alone.State() != Started {
		t.Errorf("state = %v", alone.State())
	}
	if err := m.ShareShims(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	if again := shimsOf(t, m)[shimPrefix+"0"]; again == 0 || again == pid {
		t.Errorf("the shim was %d and is %d", pid, again)
	}
}

func TestSharedShimsTakeTurns(t *testing.T) {
	var s sharedShims
	if got := s.pick(); got != "" {
		t.Errorf("picked %q of none", got)
	}
	s.add("a")
	s.add("b")
	s.add("a")
	if first, second, third := s.pick(), s.pick(), s.pick(); first == second || first != third {
		t.Errorf("picked %q, %q, %q", first, second, third)
	}
	s.drop("a")
	s.drop("a")
	if got := s.pick(); got != "b" {
		t.Errorf("picked %q after the other was dropped", got)
	}
}
