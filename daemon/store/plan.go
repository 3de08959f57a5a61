package store

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// NewRelease is a release to be numbered and recorded.
type NewRelease struct {
	Environment function.Environment
	Functions   []NewFunction
	// KeepOthers carries over the functions of the active release that are neither in Functions nor
	// in Remove, with their versions and ports, and its default when Default is empty.
	KeepOthers bool
	// Remove names functions that KeepOthers leaves out.
	Remove []string
	// Default and Ports are those of function.Release.
	Default string
	Ports   map[string]int
	Source  function.Source
}

// NewFunction is one function of a NewRelease. A version is made only when the function has none of
// this identity; otherwise the newest one that has it is used, whatever release it was made for, so
// that going back and forth between two states does not number anew.
type NewFunction struct {
	Name     string
	Image    function.Image
	Config   function.Config
	Identity string
	// Fresh makes a version in any case: the image of the one there is has been lost.
	Fresh bool
}

// Recorded is what a NewRelease became, or would become.
type Recorded struct {
	Release function.Release
	// Versions are in the order of NewRelease.Functions. A reused one has its own, earlier image.
	Versions []*function.Version
	// New says for each version whether it was made for this release.
	New []bool
}

// NextRelease says what RecordRelease would record now, and writes nothing.
func (s *Snapshot) NextRelease(n NewRelease) (Recorded, error) {
	p, err := s.plan(n, time.Now().UTC())
	if err != nil {
		return Recorded{}, err
	}
	return p.recorded, nil
}

// plan is a release worked out against a snapshot: the rows to write.
type plan struct {
	env       *Environment // its row as it will be
	functions []*Function  // rows that are new or whose counter moved
	recorded  Recorded
	ids       map[string]int64 // of every function of the release
}

func (s *Snapshot) plan(n NewRelease, now time.Time) (*plan, error) {
	if err := n.validate(); err != nil {
		return nil, err
	}
	envID, functionID := s.nextIDs()
	env := s.all[n.Environment]
	if env == nil {
		env = &Environment{Environment: n.Environment, Account: s.newAccount(n.Environment), Created: now, id: envID, nextRelease: 1}
	}
	p := &plan{ids: make(map[string]int64)}
	p.recorded.Release = function.Release{
		Environment: n.Environment, Number: env.nextRelease, Versions: map[string]int{}, Ports: map[string]int{},
		Default: n.Default, Source: n.Source, State: function.ReleaseRecorded, Created: now,
	}
	for _, nf := range n.Functions {
		f := env.functions[nf.Name]
		if f == nil {
			f = &Function{Key: function.Key{Environment: n.Environment, Function: nf.Name}, Created: now, id: functionID, nextVersion: 1}
			functionID++
		}
		p.add(f, nf, now)
	}
	p.carryOver(env, n)
	maps.Copy(p.recorded.Release.Ports, n.Ports)
	moved := *env
	moved.nextRelease++
	p.env = &moved
	return p, p.check(s)
}

// add gives one function its version.
func (p *plan) add(f *Function, n NewFunction, now time.Time) {
	v := f.withIdentity(n.Identity)
	fresh := v == nil || n.Fresh
	if fresh {
		v = &function.Version{Key: f.Key, Number: f.nextVersion, Image: n.Image, Config: n.Config, Identity: n.Identity, Created: now}
		moved := *f
		moved.nextVersion++
		p.functions = append(p.functions, &moved)
	}
	p.ids[n.Name] = f.id
	p.recorded.Release.Versions[n.Name] = v.Number
	p.recorded.Versions = append(p.recorded.Versions, v)
	p.recorded.New = append(p.recorded.New, fresh)
}

// carryOver takes from the active release what the new one keeps.
func (p *plan) carryOver(env *Environment, n NewRelease) {
	if !n.KeepOthers || env.active == nil {
		return
	}
	r := &p.recorded.Release
	for name, number := range env.active.Versions {
		if _, given := r.Versions[name]; given || slices.Contains(n.Remove, name) {
			continue
		}
		r.Versions[name], p.ids[name] = number, env.functions[name].id
		if port := env.active.Ports[name]; port != 0 {
			r.Ports[name] = port
		}
	}
	if _, kept := r.Versions[env.active.Default]; kept && r.Default == "" {
		r.Default = env.active.Default
	}
}

func (n NewRelease) validate() error {
	if n.Environment.Project == "" || n.Environment.Name == "" {
		return invalid("a release needs a project and an environment")
	}
	seen := make(map[string]bool)
	for _, f := range n.Functions {
		switch {
		case f.Name == "":
			return invalid("a function of %s has no name", n.Environment)
		case f.Identity == "":
			return invalid("function %s has no identity", f.Name)
		case seen[f.Name]:
			return invalid("function %s is named twice", f.Name)
		case slices.Contains(n.Remove, f.Name):
			return invalid("function %s is both deployed and removed", f.Name)
		}
		seen[f.Name] = true
	}
	return nil
}

// check holds the finished map against the rules of a release.
func (p *plan) check(s *Snapshot) error {
	r := &p.recorded.Release
	if len(r.Versions) == 0 {
		return invalid("release %d of %s has no function", r.Number, r.Environment)
	}
	if _, ok := r.Versions[r.Default]; r.Default != "" && !ok {
		return invalid("the default function %s is not part of the release", r.Default)
	}
	taken := make(map[int]string)
	for _, name := range slices.Sorted(maps.Keys(r.Ports)) {
		port := r.Ports[name]
		if _, ok := r.Versions[name]; !ok {
			return invalid("port %d is given to function %s, which is not part of the release", port, name)
		}
		if port < 1 || port > 65535 {
			return invalid("port %d of function %s is not between 1 and 65535", port, name)
		}
		if other := taken[port]; other != "" {
			return invalid("functions %s and %s both ask for port %d", other, name, port)
		}
		taken[port] = name
	}
	return s.portsFree(r)
}

// portsFree says whether no other environment's active release uses a port of r.
func (s *Snapshot) portsFree(r *function.Release) error {
	for name, port := range r.Ports {
		if owner, ok := s.ports[port]; ok && owner.Environment != r.Environment {
			return conflict("port %d of function %s belongs to %s: choose another port", port, name, owner)
		}
	}
	return nil
}

// newAccount returns the account id of a new environment: derived from its name, so that it is the
// same on every host, unless another environment here already has that number; then the next
// candidate in a fixed sequence. It is recorded and never changes.
func (s *Snapshot) newAccount(env function.Environment) string {
	used := make(map[string]bool, len(s.all))
	for _, e := range s.all {
		used[e.Account] = true
	}
	for attempt := 0; ; attempt++ {
		if a := account(env, attempt); !used[a] {
			return a
		}
	}
}

// account is candidate number attempt for the environment's account id. No environment's name holds
// a "#", so the later candidates are nobody's first.
func account(env function.Environment, attempt int) string {
	if attempt > 0 {
		env.Name = fmt.Sprintf("%s#%d", env.Name, attempt)
	}
	return function.Account(env)
}
