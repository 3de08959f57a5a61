package store

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// Snapshot is the whole state as of one commit. It never changes, so it is read without a lock, and
// everything reached through it must not be modified. Lookups cost no allocation.
type Snapshot struct {
	revision     int64
	node         string
	environments []*Environment // those with a release, sorted by project and name
	all          map[function.Environment]*Environment
	byAccount    map[string]*Environment
	byName       map[string][]function.Key
	ports        map[int]function.Key
	deploys      []Deploy
}

// Environment is one environment with its functions and releases.
type Environment struct {
	function.Environment
	// Account is the synthetic 12-digit AWS account id, unique on this host and kept for good.
	Account string
	Created time.Time

	id          int64
	nextRelease int
	functions   map[string]*Function
	sorted      []*Function // those with a version, by name
	releases    []*function.Release
	active      *function.Release

	canary       *function.Canary
	previous     int // release that was active before
	decisions    []function.Decision
	nextDecision int
	aliases      map[string]int // name → release
}

// Function is one function with the versions that are kept.
type Function struct {
	function.Key
	Created time.Time
	// Versions are in ascending order of their number.
	Versions []*function.Version

	id          int64
	nextVersion int
	aliases     map[string]*function.FunctionAlias
}

// Deploy is the record of a deploy in progress: written before the first effect, so that what a
// crash left behind can be found and undone.
type Deploy struct {
	// ID names everything the deploy makes.
	ID string
	function.Environment
	Started time.Time
	// Images are the temporary names under which images are built.
	Images []string
}

// Revision counts the commits; it only grows.
func (s *Snapshot) Revision() int64 { return s.revision }

// Node is the UUID that this state directory was given when it was made. It marks what belongs to
// this daemon on containerd and survives restarts.
func (s *Snapshot) Node() string { return s.node }

// Environments lists the environments that have a release, sorted by project and name.
func (s *Snapshot) Environments() []*Environment { return s.environments }

// Environment returns the environment, or nil when it has no release.
func (s *Snapshot) Environment(project, name string) *Environment {
	e := s.all[function.Environment{Project: project, Name: name}]
	if e == nil || len(e.releases) == 0 {
		return nil
	}
	return e
}

// ByAccount returns the environment of an AWS account id, or nil.
func (s *Snapshot) ByAccount(account string) *Environment { return s.byAccount[account] }

// Functions lists the functions of the environment that have a version, sorted by name; nil when
// the environment is unknown. Not all of them need to be in the active release.
func (s *Snapshot) Functions(env function.Environment) []*Function {
	if e := s.all[env]; e != nil {
		return e.sorted
	}
	return nil
}

// Function returns the function, or nil when it is unknown or has no version.
func (s *Snapshot) Function(key function.Key) *Function {
	e := s.all[key.Environment]
	if e == nil {
		return nil
	}
	if f := e.functions[key.Function]; f != nil && len(f.Versions) > 0 {
		return f
	}
	return nil
}

// Version returns version number of the function, or nil.
func (s *Snapshot) Version(key function.Key, number int) *function.Version {
	if f := s.Function(key); f != nil {
		return f.version(number)
	}
	return nil
}

// Deployed is Version for one that can be called: it is part of a release that was deployed, or an alias names it.
// One that is only part of releases that are being deployed has no final image yet.
func (s *Snapshot) Deployed(key function.Key, number int) *function.Version {
	if e := s.all[key.Environment]; e != nil && e.deployed(key.Function, number) {
		return e.functions[key.Function].version(number)
	}
	return nil
}

func (f *Function) version(number int) *function.Version {
	i, ok := slices.BinarySearchFunc(f.Versions, number, func(v *function.Version, n int) int { return cmp.Compare(v.Number, n) })
	if !ok {
		return nil
	}
	return f.Versions[i]
}

// withIdentity returns the newest version of that identity, or nil.
func (f *Function) withIdentity(identity string) *function.Version {
	for _, v := range slices.Backward(f.Versions) {
		if v.Identity == identity {
			return v
		}
	}
	return nil
}

// ActiveRelease returns the environment's active release, or nil.
func (s *Snapshot) ActiveRelease(env function.Environment) *function.Release {
	if e := s.all[env]; e != nil {
		return e.active
	}
	return nil
}

// Release returns the environment's release of that number, or nil.
func (s *Snapshot) Release(env function.Environment, number int) *function.Release {
	if e := s.all[env]; e != nil {
		return e.release(number)
	}
	return nil
}

func (e *Environment) release(number int) *function.Release {
	i, ok := slices.BinarySearchFunc(e.releases, number, func(r *function.Release, n int) int { return cmp.Compare(r.Number, n) })
	if !ok {
		return nil
	}
	return e.releases[i]
}

// Releases lists the environment's releases in ascending order.
func (s *Snapshot) Releases(env function.Environment) []*function.Release {
	if e := s.all[env]; e != nil {
		return e.releases
	}
	return nil
}

// ByName lists, across environments, the functions of that name in releases that get requests, active ones
// and canaries, sorted by environment. It is prebuilt: every request with a bare name asks.
func (s *Snapshot) ByName(name string) []function.Key { return s.byName[name] }

// Default returns the function of the environment's active release that answers when a client calls
// "function"; empty when there is none.
func (s *Snapshot) Default(env function.Environment) string {
	if r := s.ActiveRelease(env); r != nil {
		return r.Default
	}
	return ""
}

// Ports maps the TCP ports of active releases to their functions.
func (s *Snapshot) Ports() map[int]function.Key { return s.ports }

// Deploys lists the deploys in progress, sorted by ID.
func (s *Snapshot) Deploys() []Deploy { return s.deploys }

// index fills everything that is derived from all and deploys.
func (s *Snapshot) index() {
	s.byAccount = make(map[string]*Environment)
	s.byName = make(map[string][]function.Key)
	s.ports = make(map[int]function.Key)
	for _, e := range s.all {
		if len(e.releases) > 0 {
			s.environments = append(s.environments, e)
			s.byAccount[e.Account] = e
		}
	}
	slices.SortFunc(s.environments, func(a, b *Environment) int {
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Name, b.Name))
	})
	for _, e := range s.environments {
		if e.active == nil {
			continue
		}
		for name := range e.active.Versions {
			s.byName[name] = append(s.byName[name], function.Key{Environment: e.Environment, Function: name})
		}
		if e.canary != nil {
			for name := range e.release(e.canary.Release).Versions {
				if e.active.Versions[name] == 0 {
					s.byName[name] = append(s.byName[name], function.Key{Environment: e.Environment, Function: name})
				}
			}
		}
		for name, port := range e.active.Ports {
			s.ports[port] = function.Key{Environment: e.Environment, Function: name}
		}
	}
}

// index fills what is derived from functions and releases.
func (e *Environment) index() {
	for _, name := range slices.Sorted(maps.Keys(e.functions)) {
		if f := e.functions[name]; len(f.Versions) > 0 {
			e.sorted = append(e.sorted, f)
		}
	}
	for _, r := range e.releases {
		if r.State == function.ReleaseActive {
			e.active = r
		}
	}
}

// nextIDs returns the next free row ids of environments and functions. Those rows are never deleted.
func (s *Snapshot) nextIDs() (environment, fn int64) {
	for _, e := range s.all {
		environment = max(environment, e.id)
		for _, f := range e.functions {
			fn = max(fn, f.id)
		}
	}
	return environment + 1, fn + 1
}
