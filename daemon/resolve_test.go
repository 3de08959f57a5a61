package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/store"
)

var (
	shop    = function.Environment{Project: "shop", Name: function.DefaultEnvironment}
	staging = function.Environment{Project: "shop", Name: "staging"}
	blog    = function.Environment{Project: "blog", Name: function.DefaultEnvironment}
)

// deployed is the host that the tests of names use:
//
//	shop          release 1: hello 1, other 1        release 2 (active): hello 2 (default), other 1
//	shop/staging  release 1 (active): hello 1, only 1 (default)
//	blog          release 1 (active): post 1
func deployed(t testing.TB) *world {
	w := newWorld(t)
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{fn("hello", "a"), fn("other", "b")}})
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{fn("hello", "c"), fn("other", "b")}, Default: "hello"})
	w.release(store.NewRelease{Environment: staging, Functions: []store.NewFunction{fn("hello", "a"), fn("only", "d")}, Default: "only"})
	w.release(store.NewRelease{Environment: blog, Functions: []store.NewFunction{fn("post", "e")}})
	return w
}

// resolved says what a target came to: "shop/hello:2 r2", or the error's code and message.
func (w *world) resolved(t gateway.Target) string {
	w.t.Helper()
	route, err := w.resolver.Resolve(w.t.Context(), t)
	if err == nil {
		defer route.Close()
		return fmt.Sprintf("%s r%d", route.Version(), route.ReleaseNumber())
	}
	var aws *function.AWSError
	if errors.As(err, &aws) {
		return aws.Type + ": " + aws.Message
	}
	return err.Error()
}

func TestResolveNames(t *testing.T) {
	w := deployed(t)
	ours, theirs := function.Account(shop), function.Account(staging)
	notFound := func(account, name, qualifier string) string {
		return fmt.Sprintf("ResourceNotFoundException: Function not found: arn:aws:lambda:eu-west-1:%s:function:%s:%s", account, name, qualifier)
	}
	nowhere := function.Account(function.Environment{})
	for name, tt := range map[string]struct {
		name, qualifier, host string
		scope                 gateway.Scope
		want                  string // a prefix
	}{
		"unique name":            {name: "other", want: "shop/other:1 r2"},
		"unique elsewhere":       {name: "post", want: "blog/post:1 r1"},
		"ambiguous":              {name: "hello", want: "InvalidParameterValueException: The name hello is not unique on this host; use the ARN of one of: shop/hello (arn:aws:lambda:eu-west-1:" + ours + ":function:hello), shop/staging/hello ("},
		"unknown":                {name: "nope", want: notFound(nowhere, "nope", "$LATEST")},
		"by host":                {name: "hello", host: "shop.localhost", want: "shop/hello:2 r2"},
		"by environment host":    {name: "hello", host: "staging.shop.localhost", want: "shop/staging/hello:1 r1"},
		"unknown host":           {name: "hello", host: "prod.shop.localhost", want: "ResourceNotFoundException: Environment not found: host name prod.shop.localhost names shop/prod, which is not deployed"},
		"plain localhost":        {name: "other", host: "localhost", want: "shop/other:1 r2"},
		"only the suffix":        {name: "other", host: ".localhost", want: "shop/other:1 r2"},
		"foreign host":           {name: "other", host: "127.0.0.1", want: "shop/other:1 r2"},
		"host, other's function": {name: "post", host: "shop.localhost", want: notFound(ours, "post", "$LATEST")},
		"account":                {name: ours + ":function:hello", want: "shop/hello:2 r2"},
		"account over host":      {name: theirs + ":function:hello", host: "shop.localhost", want: "shop/staging/hello:1 r1"},
		"ARN":                    {name: "arn:aws:lambda:eu-west-1:" + theirs + ":function:hello", want: "shop/staging/hello:1 r1"},
		"ARN, unknown function":  {name: "arn:aws:lambda:eu-west-1:" + theirs + ":function:x:1", want: notFound(theirs, "x", "1")},
		"ARN of nobody":          {name: "arn:aws:lambda:eu-west-1:123456789012:function:hello", want: "AccessDeniedException: account 123456789012 is no environment that can be called from here"},
		"other region":           {name: "arn:aws:lambda:us-east-1:" + ours + ":function:hello", want: "ResourceNotFoundException: Functions from 'us-east-1' are not reachable in this region ('eu-west-1')"},
		"default by host":        {name: "function", host: "shop.localhost", want: "shop/hello:2 r2"},
		"default, none there":    {name: "function", host: "blog.localhost", want: notFound(function.Account(blog), "function", "$LATEST")},
		"default, two on host":   {name: "function", want: "InvalidParameterValueException: The name function is not unique on this host"},
		"latest":                 {name: "other", qualifier: "$LATEST", want: "shop/other:1 r2"},
		"latest, wrong case":     {name: "other", qualifier: "$latest", want: notFound(ours, "other", "$latest")},
		"older version":          {name: ours + ":function:hello:1", want: "shop/hello:1 r2"},
		"unknown version":        {name: ours + ":function:hello", qualifier: "9", want: notFound(ours, "hello", "9")},
		"kept release":           {name: "other", qualifier: "r1", want: "shop/other:1 r1"},
		"kept release, version":  {name: ours + ":function:hello:r1", want: "shop/hello:1 r1"},
		"active release":         {name: ours + ":function:hello:r2", want: "shop/hello:2 r2"},
		"unknown release":        {name: "other", qualifier: "r7", want: notFound(ours, "other", "r7")},
		"unknown alias":          {name: "other", qualifier: "prod", want: notFound(ours, "other", "prod")},
		"name with a dot":        {name: "a.b", want: notFound(nowhere, "a.b", "$LATEST")},

		"port":                  {name: "function", scope: onPort(shop, "hello"), want: "shop/hello:2 r2"},
		"port, its name":        {name: "hello", scope: onPort(staging, "hello"), want: "shop/staging/hello:1 r1"},
		"port, its ARN":         {name: ours + ":function:hello:1", scope: onPort(shop, "hello"), want: "shop/hello:1 r2"},
		"port, another's ARN":   {name: theirs + ":function:hello", scope: onPort(shop, "hello"), want: "AccessDeniedException: account " + theirs},
		"port, other function":  {name: "other", scope: onPort(shop, "hello"), want: notFound(ours, "other", "$LATEST")},
		"port, no owner yet":    {name: "function", scope: onPort(shop, ""), want: notFound(ours, "function", "$LATEST")},
		"instance":              {name: "hello", scope: inside(staging), want: "shop/staging/hello:1 r1"},
		"instance, neighbour":   {name: "post", scope: inside(staging), want: notFound(theirs, "post", "$LATEST")},
		"instance, foreign ARN": {name: ours + ":function:hello", scope: inside(staging), want: "AccessDeniedException: account " + ours},
		"instance, own ARN":     {name: theirs + ":function:hello", scope: inside(staging), want: "shop/staging/hello:1 r1"},
		"instance, default":     {name: "function", scope: inside(staging), want: "shop/staging/only:1 r1"},
		"instance, host":        {name: "hello", host: "shop.localhost", scope: inside(staging), want: "shop/staging/hello:1 r1"},
	} {
		t.Run(name, func(t *testing.T) {
			ref, err := function.ParseRef(tt.name, tt.qualifier)
			if err != nil {
				t.Fatal(err)
			}
			if got := w.resolved(gateway.Target{Scope: tt.scope, Host: tt.host, Ref: ref}); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	if n := w.pools.Active(shop).InFlight() + w.pools.Active(staging).InFlight(); n != 0 {
		t.Errorf("%d requests are bound still", n)
	}
}

func onPort(env function.Environment, name string) gateway.Scope {
	return gateway.Scope{Function: &function.Key{Environment: env, Function: name}}
}

func inside(env function.Environment) gateway.Scope { return gateway.Scope{Environment: &env} }

func TestDefaultOfTheOnlyEnvironmentThatHasOne(t *testing.T) {
	w := newWorld(t)
	w.release(store.NewRelease{Environment: blog, Functions: []store.NewFunction{fn("post", "e")}})
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{fn("hello", "a")}, Default: "hello"})
	ref, _ := function.ParseRef("function", "")
	if got := w.resolved(gateway.Target{Ref: ref}); got != "shop/hello:1 r1" {
		t.Errorf("got %s", got)
	}
	w.release(store.NewRelease{Environment: blog, Functions: []store.NewFunction{fn("function", "f")}})
	if got := w.resolved(gateway.Target{Ref: ref}); got != "blog/function:1 r2" {
		t.Errorf("a function of that name: %s", got)
	}
}

// TestCallsStayOnTheCallersRelease: what a function calls while it works on a request runs on the
// release that the request is bound to, also when another one became active meanwhile.
func TestCallsStayOnTheCallersRelease(t *testing.T) {
	w := newWorld(t)
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{fn("hello", "a"), fn("gone", "b")}, Default: "hello"})
	route, err := w.pools.Bind(shop, "hello")
	if err != nil {
		t.Fatal(err)
	}
	req := &invocation.Request{ID: "1"}
	if _, err := route.Invoke(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{fn("hello", "c"), fn("new", "d")}, Default: "new"})
	scope := inside(shop)
	scope.Caller = req.Binding
	for name, want := range map[string]string{
		"hello": "shop/hello:1 r1", "gone": "shop/gone:1 r1", "function": "shop/hello:1 r1",
		"hello:2": "shop/hello:2 r1", "hello:r2": "shop/hello:2 r2",
		"new": "ResourceNotFoundException: Function not found: arn:aws:lambda:eu-west-1:" + function.Account(shop) + ":function:new:$LATEST",
	} {
		ref, err := function.ParseRef(name, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := w.resolved(gateway.Target{Scope: scope, Ref: ref}); got != want {
			t.Errorf("%s from inside: %s, want %s", name, got, want)
		}
	}
	route.Close()
}

// TestKeptReleaseAnswers: a pinned release is served by instances of its own versions, which go when
// nothing is bound to it.
func TestKeptReleaseAnswers(t *testing.T) {
	w := deployed(t)
	ref, err := function.ParseRef(function.Account(shop)+":function:hello:r1", "")
	if err != nil {
		t.Fatal(err)
	}
	route, err := w.resolver.Resolve(t.Context(), gateway.Target{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	out, err := route.Invoke(t.Context(), &invocation.Request{ID: "1"})
	if err != nil || string(out.Payload) != "shop/hello:1 r1" {
		t.Errorf("got %v, %v", out, err)
	}
	before := len(w.pools.Pools())
	route.Close()
	if got := len(w.pools.Pools()); got != before-1 {
		t.Errorf("%d pools after, %d before", got, before)
	}
}

// TestVersionThatIsBeingDeployedIsNotCalled: until its release is deployed its image has a temporary name, under which
// no pool may be made.
func TestVersionThatIsBeingDeployedIsNotCalled(t *testing.T) {
	w := newWorld(t)
	w.release(store.NewRelease{Environment: shop, Functions: []store.NewFunction{fn("hello", "a")}})
	next := w.record(store.NewRelease{Environment: shop, Functions: []store.NewFunction{fn("hello", "b")}})
	ref, err := function.ParseRef("hello:2", "")
	if err != nil {
		t.Fatal(err)
	}
	want := "ResourceNotFoundException: Function not found: arn:aws:lambda:eu-west-1:" + function.Account(shop) + ":function:hello:2"
	if got := w.resolved(gateway.Target{Ref: ref}); got != want {
		t.Errorf("while it is recorded only: %s, want %s", got, want)
	}
	for _, p := range w.pools.Pools() {
		if p.Version().Number == 2 {
			t.Error("it has a pool")
		}
	}
	key := function.Key{Environment: shop, Function: "hello"}
	final := w.store.View().Version(key, 2).Image
	final.Name = "localhost/final"
	if err := w.store.SetImages(t.Context(), shop, []store.VersionImage{{Function: "hello", Number: 2, Image: final}}); err != nil {
		t.Fatal(err)
	}
	if err := w.store.KeepRelease(t.Context(), shop, next.Number); err != nil {
		t.Fatal(err)
	}
	route, err := w.resolver.Resolve(t.Context(), gateway.Target{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	defer route.Close()
	if got := route.Version().Image.Name; got != "localhost/final" {
		t.Errorf("it runs %s", got)
	}
}

// BenchmarkResolve is what a bare name costs a warm invocation.
func BenchmarkResolve(b *testing.B) {
	w := deployed(b)
	ref, _ := function.ParseRef("other", "")
	t := gateway.Target{Ref: ref, Host: "localhost"}
	b.ReportAllocs()
	for b.Loop() {
		r, err := w.resolver.Resolve(b.Context(), t)
		if err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}
