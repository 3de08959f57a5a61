// Package function is the domain: projects, functions, versions and releases, their names and
// their rules. It knows nothing of HTTP, SQLite or containers and imports nothing of ours.
//
// A function is keyed by (project, environment, name). A version is an immutable snapshot of one
// function; a release is an immutable map function → version for a whole project environment and
// the unit of activation. To AWS clients an environment is an account (see Account).
package function

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// DefaultEnvironment is the environment that a deploy without --env goes to.
const DefaultEnvironment = "default"

// Environment names one deployment of a project.
type Environment struct {
	Project string `json:"project"`
	Name    string `json:"environment"`
}

// String returns "project" for the default environment and "project/environment" otherwise.
func (e Environment) String() string {
	if e.Name == DefaultEnvironment {
		return e.Project
	}
	return e.Project + "/" + e.Name
}

// Key names one function of one environment.
type Key struct {
	Environment
	Function string `json:"function"`
}

// String returns "project/function", or "project/environment/function" outside the default environment.
func (k Key) String() string { return k.Environment.String() + "/" + k.Function }

// Config is the function configuration that becomes part of a version. Everything in it belongs to
// the version's identity: a deploy that changes any of it makes a new version.
type Config struct {
	// MemoryMB is the memory limit in MiB, 128 to 10240 (AWS calls the unit MB).
	MemoryMB int `json:"memory_mb"`
	// TmpMB is the size of /tmp in MiB, 64 to 10240; AWS's EphemeralStorage.
	TmpMB int `json:"tmp_mb"`
	// CPU is the share in cores; zero means MemoryMB/1769, as on Lambda.
	CPU float64 `json:"cpu,omitempty"`
	// Timeout bounds one invocation, 1 s to 900 s, whole milliseconds.
	Timeout time.Duration `json:"timeout"`
	// Environment is what the customer sets; reserved names are refused.
	Environment map[string]string `json:"environment,omitempty"`
	// Entrypoint, Command and Workdir replace the image's values when present (nil means absent; an
	// empty list is present, and omitzero keeps the difference in JSON).
	Entrypoint []string `json:"entrypoint,omitzero"`
	Command    []string `json:"command,omitzero"`
	Workdir    string   `json:"workdir,omitempty"`
	// Concurrency bounds the number of instances.
	Concurrency Concurrency `json:"concurrency"`
}

// Concurrency bounds the instances of one function.
type Concurrency struct {
	// Min instances are always warm.
	Min int `json:"min"`
	// Max is a hard cap across all versions of the function; zero means the daemon's default.
	Max int `json:"max"`
	// Stopped is the manifest's max: 0: the function must not run, every call is throttled. Max is zero then.
	Stopped bool `json:"stopped,omitempty"`
	// PerInstance is how many invocations one instance runs at once, 2 to 64, in the runtime's own
	// multi-concurrency mode; zero means one, which is never written as 1.
	PerInstance int `json:"per_instance,omitempty"`
}

// AtOnce is how many invocations one instance may run at a time, at least 1.
func (c Concurrency) AtOnce() int { return max(c.PerInstance, 1) }

// Cores returns the CPU share in cores.
func (c Config) Cores() float64 {
	if c.CPU > 0 {
		return c.CPU
	}
	return float64(c.MemoryMB) / 1769
}

// Image is what the daemon knows about the image of a version.
type Image struct {
	// Name is the reference in containerd's image store, pinned by Digest.
	Name string `json:"name"`
	// Digest is the manifest digest.
	Digest string `json:"digest"`
	// DiffIDs are the uncompressed layer digests.
	DiffIDs []string `json:"diff_ids"`
	// Size is the sum of the compressed layers in bytes.
	Size int64 `json:"size"`
	// Entrypoint, Cmd, Env and Workdir are the only members of the image config that are honoured.
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	Workdir    string   `json:"workdir,omitempty"`
	// BaseName and BaseDigest say what the image was really built on.
	BaseName   string `json:"base_name,omitempty"`
	BaseDigest string `json:"base_digest,omitempty"`
	// Context is the digest of the stored build context; empty for pulled images.
	Context string `json:"context,omitempty"`
	// Build says how the image was built from that context; nil for pulled images, and for versions of before it was
	// recorded.
	Build *Build `json:"build,omitempty"`
}

// Argv returns the effective entrypoint and command: each present member of the configuration
// replaces the image's value whole; an overridden entrypoint does not drop the image's command
// (AWS Lambda API Reference, ImageConfig).
func (v *Version) Argv() []string {
	entry, cmd := v.Image.Entrypoint, v.Image.Cmd
	if v.Config.Entrypoint != nil {
		entry = v.Config.Entrypoint
	}
	if v.Config.Command != nil {
		cmd = v.Config.Command
	}
	return slices.Concat(entry, cmd)
}

// Workdir returns the effective working directory.
func (v *Version) Workdir() string {
	switch {
	case v.Config.Workdir != "":
		return v.Config.Workdir
	case v.Image.Workdir != "":
		return v.Image.Workdir
	}
	return "/"
}

// Version is an immutable snapshot of one function: image and configuration. Numbered from 1 per function.
type Version struct {
	Key
	Number   int       `json:"version"`
	Image    Image     `json:"image"`
	Config   Config    `json:"config"`
	Identity string    `json:"identity"`
	Created  time.Time `json:"created"`
}

// String returns "project/function:number".
func (v *Version) String() string { return fmt.Sprintf("%s:%d", v.Key, v.Number) }

// ReleaseState says where a release stands. Transitions: recorded → active → superseded;
// recorded → failed; recorded → superseded (kept without being activated). A superseded release may
// become active again (rollback). A recorded or superseded one may become the canary, which is promoted
// (active) or aborted (superseded).
type ReleaseState string

const (
	ReleaseRecorded   ReleaseState = "recorded"
	ReleaseActive     ReleaseState = "active"
	ReleaseCanary     ReleaseState = "canary"
	ReleaseSuperseded ReleaseState = "superseded"
	ReleaseFailed     ReleaseState = "failed"
)

// Release is an immutable map function → version for one environment of a project, numbered from 1
// per environment. The unit of activation, rollback and routing.
type Release struct {
	Environment
	Number int `json:"release"`
	// Versions maps the function name to its version number.
	Versions map[string]int `json:"versions"`
	// Default names the function that answers when a client calls "function".
	Default string `json:"default,omitempty"`
	// Ports maps a function name to the loopback TCP port of its own.
	Ports   map[string]int `json:"ports,omitempty"`
	Source  Source         `json:"source"`
	State   ReleaseState   `json:"state"`
	Created time.Time      `json:"created"`
	// Activated is zero when the release never was active.
	Activated time.Time `json:"activated,omitzero"`
}

// SameRouting reports whether two releases route alike: same versions, default and ports.
func (r *Release) SameRouting(o *Release) bool {
	return r.Default == o.Default && maps.Equal(r.Versions, o.Versions) && maps.Equal(r.Ports, o.Ports)
}

// Source says where the functions came from.
type Source struct {
	// Dir is the project directory on the client's machine; informational.
	Dir string `json:"dir,omitempty"`
	// Revision is the VCS revision, with "-dirty" when the tree was changed.
	Revision string `json:"revision,omitempty"`
}

// Spec is one function as a deploy asks for it: resolved, that is without variables, files or units.
type Spec struct {
	Name string `json:"name"`
	// Build and Image exclude each other.
	Build  *Build `json:"build,omitempty"`
	Image  string `json:"image,omitempty"`
	Config Config `json:"config"`
	// Default marks the function that answers when a client calls "function".
	Default bool `json:"default,omitempty"`
	// Port is the loopback TCP port of its own, 0 for none.
	Port int `json:"port,omitempty"`
}

// Build says how to build a function's image.
type Build struct {
	// Context is the slash-separated folder relative to the project directory.
	Context string `json:"context"`
	// Dockerfile is relative to Context; empty means "Dockerfile".
	Dockerfile string            `json:"dockerfile,omitempty"`
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
}
