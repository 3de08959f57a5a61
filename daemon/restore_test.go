package daemon

import (
	"net"
	"strconv"
	"strings"
	"testing"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/store"
)

// TestTakenPortDoesNotKeepAReleaseDown: after a restart a foreign program on a function's port costs
// that port, not the functions.
func TestTakenPortDoesNotKeepAReleaseDown(t *testing.T) {
	w := newWorld(t)
	free, busy := freePort(t), freePort(t)
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(busy)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing is left to do
	rel := w.record(withPorts(shop, "1", map[string]int{"a": free, "b": busy}, "a", "b"))
	if err := w.store.Activate(t.Context(), shop, rel.Number); err != nil {
		t.Fatal(err)
	}
	c, taken, err := w.releaser.Restore(rel, versionsOf(w.store.View(), &rel))
	if err != nil {
		t.Fatal(err)
	}
	if taken == nil || !strings.Contains(taken.Error(), strconv.Itoa(busy)) {
		t.Errorf("the port that is missing: %v", taken)
	}
	c.Activate()
	w.wantPort(free, "function", "shop/a:1 r1")
	ref, err := function.ParseRef("b", "")
	if err != nil {
		t.Fatal(err)
	}
	route, err := w.resolver.Resolve(t.Context(), gateway.Target{Ref: ref})
	if err != nil {
		t.Fatalf("the function whose port is taken: %v", err)
	}
	route.Close()
	l.Close() //nolint:errcheck // as above
	w.release(withPorts(shop, "2", map[string]int{"b": busy}, "b"))
	w.wantPort(busy, "function", "shop/b:2 r2")
	w.wantClosed(free)
}

// TestCallOfADrainedReleaseGoesToTheActiveOne: an instance of an unchanged function outlives the
// release that started it, and its calls outside of an invocation still carry that release.
func TestCallOfADrainedReleaseGoesToTheActiveOne(t *testing.T) {
	w := newWorld(t)
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{fn("same", "a"), fn("other", "b")}})
	route, err := w.pools.Bind(shop, "same")
	if err != nil {
		t.Fatal(err)
	}
	req := &invocation.Request{ID: "1"}
	if _, err := route.Invoke(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	route.Close()
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{fn("same", "a"), fn("other", "c")}})
	scope := inside(shop)
	scope.Caller = req.Binding
	for _, name := range []string{"same", "other"} {
		ref, err := function.ParseRef(name, "")
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"same": "shop/same:1 r2", "other": "shop/other:2 r2"}[name]
		if got := w.resolved(gateway.Target{Scope: scope, Ref: ref}); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
