package daemon

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/daemon/store"
)

// anyFunction is the name that the emulator's clients use: with no function of that name it means
// the environment's default function.
const anyFunction = "function"

// hostSuffix ends host names that name an environment: staging.shop.localhost, shop.localhost.
const hostSuffix = ".localhost"

// resolver finds the function that a request names, and binds the request to a release.
type resolver struct {
	store  *store.Store
	pools  *pool.Manager
	region string
}

var _ gateway.Resolver = (*resolver)(nil)

// Resolve implements gateway.Resolver. It takes no lock and touches no disk.
func (r *resolver) Resolve(_ context.Context, t gateway.Target) (invocation.Route, error) {
	if err := t.Ref.CheckRegion(r.region); err != nil {
		return nil, err
	}
	view := r.store.View()
	key, err := r.key(view, t)
	if err != nil {
		return nil, err
	}
	b, err := r.bind(view, key, t)
	switch {
	case errors.Is(err, pool.ErrNoRelease), errors.Is(err, pool.ErrNoFunction):
		return nil, r.notFound(view, key, t.Ref)
	case err != nil:
		return nil, &invocation.UnavailableError{Err: err}
	}
	return b, nil
}

// key decides which function is meant.
func (r *resolver) key(view *store.Snapshot, t gateway.Target) (function.Key, error) {
	if t.Function != nil { // a port of its own: "function" is what the emulator's clients say
		if a := t.Ref.Account; a != "" && a != accountOf(view, t.Function.Environment) {
			return function.Key{}, foreignAccount(a)
		}
		if t.Ref.Name == anyFunction || t.Ref.Name == t.Function.Function {
			return *t.Function, nil
		}
		return function.Key{}, r.notFound(view, function.Key{Environment: t.Function.Environment, Function: t.Ref.Name}, t.Ref)
	}
	env, err := r.environment(view, t)
	if err != nil {
		return function.Key{}, err
	}
	if env != nil {
		return inEnvironment(view, *env, t), nil
	}
	return r.bare(view, t.Ref)
}

// environment says which environment the request names; nil when it names none.
func (r *resolver) environment(view *store.Snapshot, t gateway.Target) (*function.Environment, error) {
	if t.Ref.Account != "" {
		e := view.ByAccount(t.Ref.Account)
		if e == nil || (t.Environment != nil && *t.Environment != e.Environment) {
			return nil, foreignAccount(t.Ref.Account)
		}
		return &e.Environment, nil
	}
	if t.Environment != nil {
		return t.Environment, nil
	}
	return hostEnvironment(view, t.Host)
}

func foreignAccount(account string) error {
	return gateway.NewError("AccessDeniedException", fmt.Sprintf(
		"account %s is no environment that can be called from here: lfxctl ls shows the accounts", account))
}

// hostEnvironment reads "staging.shop.localhost" as environment staging of project shop.
func hostEnvironment(view *store.Snapshot, host string) (*function.Environment, error) {
	name, ok := strings.CutSuffix(host, hostSuffix)
	if !ok || name == "" {
		return nil, nil //nolint:nilnil // no environment was named, which is no error
	}
	env := function.Environment{Project: name, Name: function.DefaultEnvironment}
	if e, p, two := strings.Cut(name, "."); two {
		env = function.Environment{Project: p, Name: e}
	}
	if view.Environment(env.Project, env.Name) == nil {
		return nil, gateway.NewError("ResourceNotFoundException", fmt.Sprintf("Environment not found: host name %s names %s, which is not deployed", host, env))
	}
	return &env, nil
}

// inEnvironment applies the rule of the default function, as the caller's release has it.
func inEnvironment(view *store.Snapshot, env function.Environment, t gateway.Target) function.Key {
	name := t.Ref.Name
	if name == anyFunction {
		rel := view.ActiveRelease(env)
		if caller, ok := t.Caller.(*pool.Release); ok && caller != nil {
			record := caller.Record()
			rel = &record
		}
		if rel != nil && rel.Versions[name] == 0 && rel.Default != "" {
			name = rel.Default
		}
	}
	return function.Key{Environment: env, Function: name}
}

// bare finds a name that is unique on the host: among the functions that get requests, and if there is none among
// those that the qualifier can mean.
func (r *resolver) bare(view *store.Snapshot, ref function.Ref) (function.Key, error) {
	found := view.ByName(ref.Name)
	if len(found) == 0 && ref.Name == anyFunction {
		found = defaults(view)
	}
	if len(found) == 0 {
		found = qualified(view, ref)
	}
	switch len(found) {
	case 0:
		return function.Key{}, r.notFound(view, function.Key{Function: ref.Name}, ref)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, k := range found {
		arn := function.ARN(r.region, accountOf(view, k.Environment), k.Function, "")
		names = append(names, fmt.Sprintf("%s (%s)", k, arn))
	}
	return function.Key{}, gateway.NewError("InvalidParameterValueException", fmt.Sprintf(
		"The name %s is not unique on this host; use the ARN of one of: %s", ref.Name, strings.Join(names, ", ")))
}

// qualified lists the functions of the name, in all environments, that have what the qualifier names: no release that
// gets requests needs to have them.
func qualified(view *store.Snapshot, ref function.Ref) (out []function.Key) {
	for _, e := range view.Environments() {
		key := function.Key{Environment: e.Environment, Function: ref.Name}
		number, found := 0, false
		switch ref.Kind {
		case function.QualifierRelease:
			number = ref.Number
		case function.QualifierVersion:
			found = view.Deployed(key, ref.Number) != nil
		case function.QualifierAlias:
			found = view.FunctionAlias(key, ref.Qualifier) != nil
			number = view.ReleaseAlias(e.Environment, ref.Qualifier)
		}
		if rel := view.Release(e.Environment, number); found || callable(rel) && rel.Versions[ref.Name] != 0 {
			out = append(out, key)
		}
	}
	return out
}

// callable says whether requests may name the release, which may be nil.
func callable(rel *function.Release) bool {
	return rel != nil && rel.State != function.ReleaseFailed && rel.State != function.ReleaseRecorded
}

// defaults lists the default functions of all environments.
func defaults(view *store.Snapshot) []function.Key {
	var out []function.Key
	for _, e := range view.Environments() {
		if name := view.Default(e.Environment); name != "" {
			out = append(out, function.Key{Environment: e.Environment, Function: name})
		}
	}
	return out
}

func accountOf(view *store.Snapshot, env function.Environment) string {
	if e := view.Environment(env.Project, env.Name); e != nil {
		return e.Account
	}
	return function.Account(env)
}

func (r *resolver) notFound(view *store.Snapshot, key function.Key, ref function.Ref) error {
	account := ref.Account
	if account == "" {
		account = accountOf(view, key.Environment)
	}
	qualifier := ref.Qualifier
	if qualifier == "" {
		qualifier = function.Latest
	}
	return function.NotFound(r.region, account, ref.Name, qualifier)
}

// bind binds the request to its caller's release, to the one it asked for, or to one that is routed to. An alias
// of the function comes before one of the environment.
func (r *resolver) bind(view *store.Snapshot, key function.Key, t gateway.Target) (*pool.Bound, error) {
	switch t.Ref.Kind {
	case function.QualifierRelease:
		return r.bindRelease(view, key, t.Ref.Number, t.Caller == nil)
	case function.QualifierVersion:
		return r.bindVersion(view, key, t.Ref.Number, t.Caller)
	case function.QualifierAlias:
		if a := view.FunctionAlias(key, t.Ref.Qualifier); a != nil {
			return r.bindVersion(view, key, a.Choose(rand.Float64()), t.Caller)
		}
		if number := view.ReleaseAlias(key.Environment, t.Ref.Qualifier); number != 0 {
			return r.bindRelease(view, key, number, t.Caller == nil)
		}
		return nil, pool.ErrNoFunction
	}
	return r.bindCurrent(key, t.Caller)
}

// bindVersion binds to a version by number, whatever release it is part of; what it calls stays on the release that
// the request is bound to, which need not have the function.
func (r *resolver) bindVersion(view *store.Snapshot, key function.Key, number int, caller invocation.Binding) (*pool.Bound, error) {
	v := view.Deployed(key, number)
	if v == nil {
		return nil, pool.ErrNoFunction
	}
	b, err := r.bindCurrent(key, caller)
	if errors.Is(err, pool.ErrNoFunction) {
		b, err = r.bindAny(view, key.Environment, caller)
	}
	if errors.Is(err, pool.ErrNoRelease) { // nothing is active yet: the newest release that has it
		for _, rel := range slices.Backward(view.Releases(key.Environment)) {
			if callable(rel) && rel.Versions[key.Function] == number {
				return r.bindRelease(view, key, rel.Number, false)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	b.At(v)
	return b, nil
}

// bindAny is bindCurrent for a request to no function of the release in particular.
func (r *resolver) bindAny(view *store.Snapshot, env function.Environment, caller invocation.Binding) (*pool.Bound, error) {
	if rel, ok := caller.(*pool.Release); ok && rel != nil {
		for name := range rel.Record().Versions {
			if b, err := rel.Bind(name); !errors.Is(err, pool.ErrNoRelease) {
				return b, err
			}
			break // it has drained: as in bindCurrent
		}
	}
	if active := view.ActiveRelease(env); active != nil {
		for name := range active.Versions {
			return r.pools.Bind(env, name)
		}
	}
	return nil, pool.ErrNoRelease
}

func (r *resolver) bindCurrent(key function.Key, caller invocation.Binding) (*pool.Bound, error) {
	if rel, ok := caller.(*pool.Release); ok && rel != nil {
		b, err := rel.Bind(key.Function)
		if !errors.Is(err, pool.ErrNoRelease) {
			return b, err
		}
		// An instance that a later release shares calls while it has no invocation, and the release that
		// started it is gone: the active one is the only one that can be meant.
	}
	return r.pools.Bind(key.Environment, key.Function)
}

// bindRelease binds to a release by number: the active one, the canary, or one that is kept. root says that no other
// invocation made the request.
func (r *resolver) bindRelease(view *store.Snapshot, key function.Key, number int, root bool) (*pool.Bound, error) {
	rel := view.Release(key.Environment, number)
	if !callable(rel) {
		return nil, pool.ErrNoRelease
	}
	b, err := r.pools.BindNumber(key.Environment, number, key.Function, root)
	if !errors.Is(err, pool.ErrNoRelease) {
		return b, err
	}
	if b, err = r.pools.BindKept(*rel, versionsOf(view, rel), key.Function); err != nil {
		return nil, err
	}
	if r.store.View().Release(key.Environment, number) == nil { // forgotten in this moment, before it lived
		b.Close()
		return nil, pool.ErrNoRelease
	}
	return b, nil
}

// versionsOf looks up the versions of a release.
func versionsOf(view *store.Snapshot, rel *function.Release) map[string]*function.Version {
	out := make(map[string]*function.Version, len(rel.Versions))
	for name, n := range rel.Versions {
		if v := view.Version(function.Key{Environment: rel.Environment, Function: name}, n); v != nil {
			out[name] = v
		}
	}
	return out
}
