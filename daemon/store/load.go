package store

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// load reads the whole database.
func (c conn) load() (*Snapshot, error) {
	var ids []int64
	err := c.each(environmentTable, nil, func(r row) error {
		ids = append(ids, r.number(0))
		return nil
	})
	if err != nil {
		return nil, err
	}
	all := make(map[function.Environment]*Environment, len(ids))
	for _, id := range ids {
		e, err := c.loadEnvironment(id)
		if err != nil {
			return nil, err
		}
		all[e.Environment] = e
	}
	return c.assemble(all)
}

// reload reads one environment (none when id is zero) and the deploys, and takes the rest from old.
func (c conn) reload(old *Snapshot, id int64) (*Snapshot, error) {
	all := maps.Clone(old.all)
	if id != 0 {
		e, err := c.loadEnvironment(id)
		if err != nil {
			return nil, err
		}
		all[e.Environment] = e
	}
	return c.assemble(all)
}

func (c conn) assemble(all map[function.Environment]*Environment) (*Snapshot, error) {
	m, err := c.meta()
	if err != nil {
		return nil, err
	}
	deploys, err := c.loadDeploys()
	if err != nil {
		return nil, err
	}
	s := &Snapshot{revision: m.revision, node: m.node, all: all, deploys: deploys}
	s.index()
	return s, nil
}

func (c conn) loadEnvironment(id int64) (*Environment, error) {
	e := &Environment{id: id, functions: make(map[string]*Function), aliases: map[string]int{}}
	err := c.each(environmentTable, []any{id}, func(r row) error {
		e.Environment = function.Environment{Project: r.text(1), Name: r.text(2)}
		e.Account, e.nextRelease, e.Created = r.text(3), int(r.number(4)), fromNano(r.number(5))
		return nil
	})
	if err != nil {
		return nil, err
	}
	byID, err := c.loadFunctions(e)
	if err != nil {
		return nil, err
	}
	if err := c.loadReleases(e, byID); err != nil {
		return nil, err
	}
	e.index()
	if err := c.loadTraffic(e); err != nil {
		return nil, err
	}
	return e, e.check()
}

func (c conn) loadFunctions(e *Environment) (map[int64]*Function, error) {
	byID := make(map[int64]*Function)
	err := c.each(functionTable, nil, func(r row) error {
		if r.number(1) != e.id {
			return nil
		}
		f := &Function{
			id: r.number(0), Key: function.Key{Environment: e.Environment, Function: r.text(2)},
			nextVersion: int(r.number(3)), Created: fromNano(r.number(4)),
			aliases: map[string]*function.FunctionAlias{},
		}
		byID[f.id], e.functions[f.Key.Function] = f, f
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, f := range byID {
		if err := c.loadVersions(f); err != nil {
			return nil, err
		}
		if err := c.loadFunctionAliases(f); err != nil {
			return nil, err
		}
	}
	return byID, nil
}

func (c conn) loadVersions(f *Function) error {
	return c.each(versionTable, []any{f.id}, func(r row) error {
		v := &function.Version{Key: f.Key, Number: int(r.number(1)), Identity: r.text(2), Created: fromNano(r.number(5))}
		if err := json.Unmarshal([]byte(r.text(3)), &v.Image); err != nil {
			return fmt.Errorf("image of %s: %w", v, err)
		}
		if err := json.Unmarshal([]byte(r.text(4)), &v.Config); err != nil {
			return fmt.Errorf("configuration of %s: %w", v, err)
		}
		f.Versions = append(f.Versions, v)
		return nil
	})
}

func (c conn) loadReleases(e *Environment, byID map[int64]*Function) error {
	err := c.each(releaseTable, []any{e.id}, func(r row) error {
		rel := &function.Release{
			Environment: e.Environment, Number: int(r.number(1)), State: function.ReleaseState(r.text(2)),
			Default: r.text(3), Versions: map[string]int{}, Ports: map[string]int{},
			Created: fromNano(r.number(5)), Activated: fromNano(r.number(6)),
		}
		e.releases = append(e.releases, rel)
		return json.Unmarshal([]byte(r.text(4)), &rel.Source)
	})
	if err != nil {
		return err
	}
	return c.each(memberTable, []any{e.id}, func(r row) error {
		rel, f := e.release(int(r.number(1))), byID[r.number(2)]
		if rel == nil || f == nil {
			return fmt.Errorf("%w: a release of %s names a function that is gone", ErrDamaged, e)
		}
		rel.Versions[f.Key.Function] = int(r.number(3))
		if port := r.number(4); port != 0 {
			rel.Ports[f.Key.Function] = int(port)
		}
		return nil
	})
}

// check says what SQLite cannot: releases that can be activated have all their versions.
func (e *Environment) check() error {
	for _, r := range e.releases {
		if r.State == function.ReleaseFailed {
			continue // its own versions are forgotten
		}
		for name, n := range r.Versions {
			if f := e.functions[name]; f == nil || f.version(n) == nil {
				return fmt.Errorf("%w: release %d of %s needs %s:%d, which is gone", ErrDamaged, r.Number, e, name, n)
			}
		}
	}
	for name, n := range e.aliases {
		if e.release(n) == nil {
			return damagedRow("alias %s of %s points to release %d, which is gone", name, e, n)
		}
	}
	return nil
}

func (c conn) loadDeploys() (deploys []Deploy, err error) {
	err = c.each(deployTable, nil, func(r row) error {
		d := Deploy{ID: r.text(0), Environment: function.Environment{Project: r.text(1), Name: r.text(2)}, Started: fromNano(r.number(3))}
		deploys = append(deploys, d)
		return json.Unmarshal([]byte(r.text(4)), &deploys[len(deploys)-1].Images)
	})
	return deploys, err
}

// toNano and fromNano keep the zero time as 0.
func toNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// toJSON encodes a domain value; those always encode.
func toJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: encode %T: %v", v, err))
	}
	return string(data)
}
