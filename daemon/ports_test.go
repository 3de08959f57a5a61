package daemon

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
)

// withPorts is a release of shop whose functions have ports.
func withPorts(env function.Environment, digest string, ports map[string]int, names ...string) store.NewRelease {
	n := store.NewRelease{Environment: env, Ports: ports}
	for _, name := range names {
		n.Functions = append(n.Functions, fn(name, name+digest))
	}
	return n
}

func (w *world) wantPort(port int, name, want string) {
	w.t.Helper()
	if _, got := w.post(port, name); !strings.Contains(got, want) {
		w.t.Errorf("port %d answers %q to %s, want %q", port, got, name, want)
	}
}

// wantClosed waits until nobody listens any more.
func (w *world) wantClosed(port int) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return
		}
		c.Close()
		if time.Now().After(deadline) {
			w.t.Fatalf("port %d is open", port)
		}
	}
}

func TestPortAnswersForItsFunction(t *testing.T) {
	w := newWorld(t)
	p := freePort(t)
	w.release(withPorts(shop, "1", map[string]int{"hello": p}, "hello", "other"))
	w.wantPort(p, "function", "shop/hello:1 r1")
	w.wantPort(p, "hello", "shop/hello:1 r1")
	w.wantPort(p, "other", "Function not found")
	w.release(withPorts(shop, "2", map[string]int{"hello": p}, "hello", "other"))
	w.wantPort(p, "function", "shop/hello:2 r2")
}

func TestPortMovesBetweenFunctions(t *testing.T) {
	w := newWorld(t)
	p, q := freePort(t), freePort(t)
	w.release(withPorts(shop, "1", map[string]int{"a": p, "b": q}, "a", "b"))
	rel := w.record(withPorts(shop, "1", map[string]int{"a": q, "b": p}, "a", "b"))
	c, err := w.prepare(rel)
	if err != nil {
		t.Fatal(err)
	}
	w.wantPort(p, "function", "shop/a:1 r1") // until it is active
	w.wantPort(q, "function", "shop/b:1 r1")
	c.Activate()
	w.wantPort(p, "function", "shop/b:1 r2")
	w.wantPort(q, "function", "shop/a:1 r2")
}

func TestPortOfACandidateIsBoundButAnswersNothing(t *testing.T) {
	w := newWorld(t)
	old, p := freePort(t), freePort(t)
	w.release(withPorts(shop, "1", map[string]int{"a": old}, "a"))
	c, err := w.prepare(w.record(withPorts(shop, "1", map[string]int{"a": p}, "a")))
	if err != nil {
		t.Fatal(err)
	}
	w.wantPort(p, "function", "Function not found")
	w.wantPort(p, "a", "Function not found")
	c.Abort()
	w.wantClosed(p)
	w.wantPort(old, "function", "shop/a:1 r1")
}

func TestPortThatIsDroppedIsFreeAtOnce(t *testing.T) {
	w := newWorld(t)
	p := freePort(t)
	rel := w.record(withPorts(shop, "1", map[string]int{"a": p}, "a"))
	for range 50 {
		c, err := w.prepare(rel)
		if err != nil {
			t.Fatal(err)
		}
		c.Abort()
	}
	w.wantClosed(p)
}

func TestPortOfAFunctionThatLostItCloses(t *testing.T) {
	w := newWorld(t)
	p := freePort(t)
	w.release(withPorts(shop, "1", map[string]int{"a": p}, "a"))
	w.release(withPorts(shop, "1", nil, "a", "b"))
	w.wantClosed(p)
}

func TestDeactivatedEnvironmentGivesItsPortsBack(t *testing.T) {
	w := newWorld(t)
	p := freePort(t)
	w.release(withPorts(shop, "1", map[string]int{"a": p}, "a"))
	w.releaser.Deactivate(shop)
	w.wantClosed(p)
	w.releaser.Deactivate(shop) // once more is harmless
	w.release(withPorts(staging, "1", map[string]int{"a": freePort(t)}, "a"))
}

func TestTakenPortsAreRefusedWhole(t *testing.T) {
	w := newWorld(t)
	foreign, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	taken, free, mine := foreign.Addr().(*net.TCPAddr).Port, freePort(t), freePort(t)
	w.release(withPorts(shop, "1", map[string]int{"a": mine}, "a"))

	rel := w.record(withPorts(staging, "1", map[string]int{"a": free, "b": taken}, "a", "b"))
	_, err = w.prepare(rel)
	want := fmt.Sprintf("port %d of function b is in use by another program on 127.0.0.1: stop it or choose another port", taken)
	if err == nil || err.Error() != want {
		t.Errorf("err = %v, want %s", err, want)
	}
	w.wantClosed(free) // what was claimed before is given back

	rel.Ports = map[string]int{"a": mine} // the store refuses this before; two deploys may race
	_, err = w.prepare(rel)
	want = fmt.Sprintf("port %d of function a belongs to shop: choose another port", mine)
	if err == nil || err.Error() != want {
		t.Errorf("err = %v, want %s", err, want)
	}
	w.wantPort(mine, "function", "shop/a:1 r1")
}

func TestPortsAreGivenBackWhenThePoolsRefuse(t *testing.T) {
	w := newWorld(t)
	p := freePort(t)
	rel := w.record(withPorts(shop, "1", map[string]int{"a": p}, "a"))
	w.pools.Close(t.Context())
	if _, err := w.prepare(rel); err == nil {
		t.Fatal("a closed daemon prepares a release")
	}
	w.wantClosed(p)
}

func TestWarmFailureNamesTheFunction(t *testing.T) {
	w := newWorld(t)
	n := withPorts(shop, "1", nil, "a")
	n.Functions[0].Config.Concurrency.Min = 1
	w.starter.failing["a"] = errors.New("no room")
	c, err := w.prepare(w.record(n))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Warm(t.Context()); err == nil || err.Error() != "function a, version 1, does not start: no room" {
		t.Errorf("err = %v", err)
	}
	c.Abort()
	if n := len(w.pools.Pools()); n != 0 {
		t.Errorf("%d pools are left", n)
	}
}
