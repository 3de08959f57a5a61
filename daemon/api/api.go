// Package api holds the wire types of lfxd's own control API (/lfx/v1/…), the paths and the header
// names. It is shared by the daemon's server and by its clients and must build on every platform.
package api

import (
	"encoding/json"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// Paths of the control API. Everything below Prefix needs control rights.
const (
	Prefix        = "/lfx/v1"
	PathVersion   = Prefix + "/version"     // GET → VersionInfo
	PathSession   = Prefix + "/session"     // POST, hijacked: a BuildKit session (h2c upgrade); the session offers directories
	PathDeploys   = Prefix + "/deploys"     // POST DeployRequest → stream of DeployEvent (newline-delimited JSON)
	PathFunctions = Prefix + "/functions"   // GET ?project=&environment= → []FunctionSummary; GET /{name} → FunctionDetail; DELETE /{name} → RemoveResult
	PathReleases  = Prefix + "/releases"    // GET ?project=&environment= → []ReleaseInfo
	PathInstances = Prefix + "/instances"   // GET → []InstanceInfo
	PathLogs      = Prefix + "/logs"        // GET ?function=&project=&environment=&follow=1&since=RFC3339&limit= → stream of LogEntry (newline-delimited JSON)
	PathDoctor    = Prefix + "/doctor"      // GET → DoctorReport
	PathPprof     = Prefix + "/debug/pprof" // GET /{profile}: a profile of lfxd itself, as net/http/pprof names and encodes it
)

// Header names of our own.
const (
	HeaderRelease = "X-Lfx-Release"
)

// Error is the body of every failed control call.
type Error struct {
	// Code is one of the Code constants.
	Code string `json:"code"`
	// Message is one sentence for a person: what, where, and what to do.
	Message string `json:"message"`
	// Details holds one line per problem when there are several.
	Details []string `json:"details,omitempty"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Error codes of the control API.
const (
	CodeInvalid     = "invalid"     // 400: the request is wrong; nothing was changed
	CodeNotFound    = "not_found"   // 404
	CodeConflict    = "conflict"    // 409: another deploy runs, ambiguous name
	CodeForbidden   = "forbidden"   // 403: not on this listener or without these rights
	CodeUnavailable = "unavailable" // 503: containerd, buildkitd or a kernel part is missing
	CodeInternal    = "internal"    // 500
)

// VersionInfo answers PathVersion.
type VersionInfo struct {
	Version    string `json:"version"`
	Go         string `json:"go"`
	Containerd string `json:"containerd,omitempty"`
	Buildkit   string `json:"buildkit,omitempty"`
	// Runtime is the OCI runtime of instances and its version: "runc 1.5.2".
	Runtime string `json:"runtime,omitempty"`
}

// DeployRequest asks for one release of a project. The directories named by the functions' build
// contexts are offered by the BuildKit session SessionID: one filesync directory per distinct
// context, named SourceDirName(context).
type DeployRequest struct {
	function.Environment
	Functions []function.Spec `json:"functions"`
	Source    function.Source `json:"source"`
	SessionID string          `json:"session_id,omitempty"`
	// Plan shows what would change and does nothing; it builds (to know the digests) but records nothing.
	Plan bool `json:"plan,omitempty"`
	// NoCache builds without BuildKit's cache.
	NoCache bool `json:"no_cache,omitempty"`
	// Wait waits for another deploy of the same environment instead of answering CodeConflict.
	Wait bool `json:"wait,omitempty"`
	// NoActivate records the release and routes nothing to it: only its number (qualifier r<N>) reaches it.
	NoActivate bool `json:"no_activate,omitempty"`
	// Canary gives the release this share of the requests, in percent, above 0 and below 100, instead of
	// all of them; 0 activates it.
	Canary float64 `json:"canary,omitempty"`
	// Auto lets lfxd promote or abort the canary by itself; only with Canary.
	Auto *Judgement `json:"auto,omitempty"`
}

// SourceDirName is the name under which a session offers the build context directory.
func SourceDirName(context string) string { return "context:" + context }

// DeployEvent is one line of the answer to a deploy. Exactly one of the members is set. The last
// line has Done or Error; a stream that ends without either was cut off.
type DeployEvent struct {
	// Step is a change of phase, for people: "mirroring 3 folders", "building", "warming hello-go:2".
	Step string `json:"step,omitempty"`
	// Build is a BuildKit client.SolveStatus of all functions together, vertex names prefixed with
	// the function and digests made distinct, so that one display can show it.
	Build json.RawMessage `json:"build,omitempty"`
	// Warning is for people; the deploy goes on.
	Warning string        `json:"warning,omitempty"`
	Done    *DeployResult `json:"done,omitempty"`
	Error   *Error        `json:"error,omitempty"`
}

// DeployResult is what a deploy did, or would do.
type DeployResult struct {
	Release function.Release `json:"release"`
	// Unchanged is set when the deploy changed nothing: no version and no release were made.
	Unchanged bool             `json:"unchanged"`
	Plan      bool             `json:"plan,omitempty"`
	Functions []DeployFunction `json:"functions"`
	// Previous is the release that was active before, which drains now unless it stays the active one; 0 when
	// there was none.
	Previous int `json:"previous,omitempty"`
	// Endpoints are for people: URLs that now answer.
	Endpoints []string `json:"endpoints,omitempty"`
}

// DeployFunction says what became of one function.
type DeployFunction struct {
	Name    string `json:"name"`
	Version int    `json:"version"`
	// Change is "created", "updated", "unchanged" or "removed".
	Change string `json:"change"`
	Digest string `json:"digest"`
	Base   string `json:"base,omitempty"`
	Port   int    `json:"port,omitempty"`
}

// FunctionSummary is one row of `lfxctl ls`.
type FunctionSummary struct {
	function.Key
	Version int `json:"version"`
	Release int `json:"release"`
	// Account is the synthetic 12-digit account id of the environment.
	Account   string    `json:"account"`
	ARN       string    `json:"arn"`
	MemoryMB  int       `json:"memory_mb"`
	Timeout   string    `json:"timeout"`
	Default   bool      `json:"default,omitempty"`
	Port      int       `json:"port,omitempty"`
	Instances int       `json:"instances"`
	InFlight  int       `json:"in_flight"`
	Deployed  time.Time `json:"deployed"`
}

// FunctionDetail answers `lfxctl inspect`.
type FunctionDetail struct {
	FunctionSummary
	Active   function.Version   `json:"active"`
	Versions []function.Version `json:"versions"`
	// Running lists the instances of all versions of the function.
	Running []InstanceInfo `json:"running"`
}

// InstanceInfo is one instance (AWS: execution environment).
type InstanceInfo struct {
	function.Key
	ID      string `json:"id"`
	Version int    `json:"version"`
	// State is "starting", "spare" (created ahead, has run no code of the function), "idle", "frozen" (idle,
	// its processes stopped), "busy" or "stopping".
	State string `json:"state"`
	// Release is the one that the invocation in progress is bound to, else the one that started it.
	Release  int `json:"release,omitempty"`
	InFlight int `json:"in_flight"`
	// MemoryBytes is what its cgroup counts now; 0 when that is not known.
	MemoryBytes int64     `json:"memory_bytes,omitempty"`
	Address     string    `json:"address"`
	Started     time.Time `json:"started"`
	Used        time.Time `json:"used,omitzero"`
	// Phases says in microseconds where the time of its start went: turn (the wait for one), files, container (with the snapshot), create, network,
	// check, start, init, and then handler, its first invocation. Of one that was a spare, only what was left to do
	// is there, and ahead is what was done before.
	Phases map[string]int64 `json:"phases_us,omitempty"`
}

// LogEntry is one line that a function or the platform wrote.
type LogEntry struct {
	Time time.Time `json:"time"`
	function.Key
	Version   int    `json:"version"`
	Release   int    `json:"release,omitempty"`
	Instance  string `json:"instance"`
	RequestID string `json:"request_id,omitempty"`
	// Stream is "stdout", "stderr" or "platform" (START, END, REPORT, INIT_REPORT …).
	Stream  string `json:"stream"`
	Message string `json:"message"`
}

// RemoveResult answers a DELETE: removing a function makes and activates a release without it.
type RemoveResult struct {
	function.Key
	// Release is the release without the function; zero when the environment is empty now.
	Release int `json:"release"`
}

// DoctorReport answers PathDoctor.
type DoctorReport struct {
	Checks []DoctorCheck `json:"checks"`
}

// DoctorCheck is one finding. Status is "ok", "warn" or "fail".
type DoctorCheck struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Detail string `json:"detail"`
	// Remedy says what to do; empty when Status is "ok".
	Remedy string `json:"remedy,omitempty"`
}
