package daemon

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
)

// changedFunctions lists the functions whose version differs between two releases, with those that only one has.
// before may be nil: then all are new.
func changedFunctions(before, after *function.Release) []string {
	out := []string{}
	old := map[string]int{}
	if before != nil {
		old = before.Versions
	}
	for name, n := range after.Versions {
		if old[name] != n {
			out = append(out, name)
		}
	}
	for name := range old {
		if after.Versions[name] == 0 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// diffReleases compares two releases function by function.
func diffReleases(view *store.Snapshot, from, to *function.Release) *api.ReleaseDiff {
	d := &api.ReleaseDiff{Environment: to.Environment, From: from.Number, To: to.Number, Functions: []api.FunctionDiff{}}
	names := maps.Clone(from.Versions)
	maps.Copy(names, to.Versions)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		key := function.Key{Environment: to.Environment, Function: name}
		f := api.FunctionDiff{Name: name, From: from.Versions[name], To: to.Versions[name]}
		switch {
		case f.From == 0:
			f.Change = "added"
		case f.To == 0:
			f.Change = "removed"
		default:
			f.Change = "changed"
			f.Image, f.Settings = diffVersions(view.Version(key, f.From), view.Version(key, f.To))
			f.Settings = append(f.Settings, diffRouting(from, to, name)...)
			if f.From == f.To && len(f.Settings) == 0 {
				continue
			}
		}
		d.Functions = append(d.Functions, f)
	}
	return d
}

// diffRouting compares what the releases, not the versions, say about a function.
func diffRouting(from, to *function.Release, name string) []api.SettingDiff {
	number := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	isDefault := func(r *function.Release) string { return strconv.FormatBool(r.Default == name) }
	return differing([]api.SettingDiff{
		{Name: "default", From: isDefault(from), To: isDefault(to)},
		{Name: "port", From: number(from.Ports[name]), To: number(to.Ports[name])},
	})
}

// diffVersions compares two versions of a function. One that is forgotten (of a failed release) compares with nothing.
func diffVersions(from, to *function.Version) (image bool, settings []api.SettingDiff) {
	if from == nil || to == nil || from == to {
		return false, nil
	}
	a, b := &from.Image, &to.Image
	image = !slices.Equal(a.DiffIDs, b.DiffIDs) || !slices.Equal(a.Entrypoint, b.Entrypoint) || !slices.Equal(a.Cmd, b.Cmd) ||
		!slices.Equal(a.Env, b.Env) || a.Workdir != b.Workdir
	before, after := settingsOf(&from.Config), settingsOf(&to.Config)
	for i := range before {
		settings = append(settings, api.SettingDiff{Name: before[i].name, From: before[i].value, To: after[i].value})
	}
	settings = differing(settings)
	return image, append(settings, diffEnvironment(from.Config.Environment, to.Config.Environment)...)
}

type setting struct{ name, value string }

// settingsOf is a configuration in the manifest's words, always in the same order; empty where nothing is set.
func settingsOf(c *function.Config) []setting {
	optional := func(set bool, format string, args ...any) string {
		if !set {
			return ""
		}
		return fmt.Sprintf(format, args...)
	}
	words := func(w []string) string {
		if w == nil {
			return ""
		}
		text, err := json.Marshal(w)
		if err != nil {
			return fmt.Sprint(w) // unreachable: strings encode
		}
		return string(text)
	}
	return []setting{
		{"memory", fmt.Sprintf("%dMiB", c.MemoryMB)},
		{"cpu", optional(c.CPU != 0, "%v", c.CPU)},
		{"tmp", fmt.Sprintf("%dMiB", c.TmpMB)},
		{"timeout", c.Timeout.String()},
		{"concurrency.min", optional(c.Concurrency.Min != 0, "%d", c.Concurrency.Min)},
		{"concurrency.max", optional(c.Concurrency.Max != 0 || c.Concurrency.Stopped, "%d", c.Concurrency.Max)},
		{"concurrency.per_instance", optional(c.Concurrency.PerInstance != 0, "%d", c.Concurrency.PerInstance)},
		{"command", words(c.Command)},
		{"entrypoint", words(c.Entrypoint)},
		{"workdir", c.Workdir},
	}
}

// diffEnvironment compares environment variables without showing their values, which may be secrets.
func diffEnvironment(from, to map[string]string) (out []api.SettingDiff) {
	names := map[string]bool{}
	for _, vars := range []map[string]string{from, to} {
		for name := range vars {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		old, was := from[name]
		value, is := to[name]
		d := api.SettingDiff{Name: "environment." + name}
		switch {
		case was && is && old == value:
			continue
		case was && is:
			d.From, d.To = "set", "set to another value"
		case was:
			d.From = "set"
		default:
			d.To = "set"
		}
		out = append(out, d)
	}
	return out
}

func differing(all []api.SettingDiff) (out []api.SettingDiff) {
	for _, d := range all {
		if d.From != d.To {
			out = append(out, d)
		}
	}
	return out
}
