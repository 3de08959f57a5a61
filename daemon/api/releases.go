package api

import (
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// Paths of releases, traffic, aliases and environments. All of them take ?project=&environment= where
// they have no body; lists then hold all that match. Elsewhere an environment that is left out is the default
// one, and a project may be left out where the host has only one; only what removes an environment needs both.
const (
	PathRollbacks    = Prefix + "/rollbacks"    // POST RollbackRequest → stream of DeployEvent, as a deploy
	PathTraffic      = Prefix + "/traffic"      // GET → []Traffic; PUT TrafficRequest → Traffic
	PathPromotions   = Prefix + "/promotions"   // POST ReleaseRequest → Traffic: the canary takes all requests
	PathAborts       = Prefix + "/aborts"       // POST ReleaseRequest → Traffic: the canary takes none
	PathDiff         = Prefix + "/diff"         // GET ?from=&to= → ReleaseDiff; from is the active release when left out
	PathAliases      = Prefix + "/aliases"      // GET ?function= → []Alias, of all functions and environments without it; PUT Alias → Alias; DELETE ?function=&name= → Alias
	PathEnvironments = Prefix + "/environments" // GET → []EnvironmentInfo; DELETE → EnvironmentInfo: removes all of it
)

// States of a release for people; those of function.ReleaseState, with what lfxd knows beyond them.
const (
	StateActive   = "active"
	StateCanary   = "canary"
	StateDraining = "draining" // no longer active, and requests are bound to it
	StateKept     = "kept"     // was active, or was recorded without being activated
	StateFailed   = "failed"
)

// ReleaseInfo is one row of `lfxctl releases`.
type ReleaseInfo struct {
	function.Release
	// Status is one of the State constants.
	Status string `json:"status"`
	// Percent is the share of requests that the release gets; 0 when it gets none.
	Percent float64 `json:"percent"`
	// Changed lists the functions whose version differs from the release before, with those that were
	// added and removed; sorted.
	Changed []string `json:"changed"`
	// InFlight counts the requests that are bound to the release, at any depth.
	InFlight int64 `json:"in_flight"`
	// Requests counts what the release has served since lfxd was started, nested calls included; Errors
	// those that ended in a function error or an error of the platform.
	Requests int64 `json:"requests"`
	Errors   int64 `json:"errors"`
}

// ReleaseRequest names an environment and, where it matters, a release of it.
type ReleaseRequest struct {
	function.Environment
	// Release is optional: a canary of another number is then not touched.
	Release int `json:"release,omitempty"`
}

// RollbackRequest activates an earlier release again.
type RollbackRequest struct {
	function.Environment
	// Release is the number to go back to; 0 is the release that was active before the one that is now.
	Release int `json:"release,omitempty"`
	// Wait waits for a deploy of the same environment instead of answering CodeConflict.
	Wait bool `json:"wait,omitempty"`
}

// TrafficRequest gives a release a share of the requests.
type TrafficRequest struct {
	function.Environment
	Release int `json:"release"`
	// Percent is above 0 and below 100, with at most two decimals.
	Percent float64 `json:"percent"`
}

// Traffic says who gets the requests of an environment.
type Traffic struct {
	function.Environment
	// Active is the number of the active release; 0 when none is.
	Active int     `json:"active"`
	Canary *Canary `json:"canary,omitempty"`
	// Decisions are the newest decisions about canaries, newest last, bounded.
	Decisions []Decision `json:"decisions,omitempty"`
}

// Canary is the release that gets a share of the requests beside the active one.
type Canary struct {
	Release int       `json:"release"`
	Percent float64   `json:"percent"`
	Since   time.Time `json:"since"`
	// Auto is set when lfxd decides by itself.
	Auto *Judgement `json:"auto,omitempty"`
}

// Judgement is how a canary is judged; from the manifest's canary section.
type Judgement = function.Judgement

// Decision is one decision about a canary, with the figures that it was made on.
type Decision = function.Decision

// Figures are what a release did over a stretch of time; only root requests count, not nested calls.
type Figures = function.Figures

// ReleaseDiff answers PathDiff.
type ReleaseDiff struct {
	function.Environment
	From      int            `json:"from"`
	To        int            `json:"to"`
	Functions []FunctionDiff `json:"functions"`
}

// FunctionDiff is one function that differs.
type FunctionDiff struct {
	Name string `json:"name"`
	// Change is "added", "removed" or "changed".
	Change string `json:"change"`
	From   int    `json:"from_version,omitempty"`
	To     int    `json:"to_version,omitempty"`
	// Image is set when the layers or the honoured image configuration differ.
	Image bool `json:"image_changed,omitempty"`
	// Settings lists the settings that differ, in the manifest's words. Values of environment variables
	// are not shown: they may be secrets.
	Settings []SettingDiff `json:"settings,omitempty"`
}

// SettingDiff is one setting that differs; From or To is empty where it is not set.
type SettingDiff struct {
	Name string `json:"name"`
	From string `json:"from"`
	To   string `json:"to"`
}

// Alias is a name for versions of a function, or, when Function is empty, for a release of an environment.
type Alias struct {
	function.Environment
	Function string `json:"function,omitempty"`
	Name     string `json:"name"`
	// Version is what a function's alias points to.
	Version int `json:"version,omitempty"`
	// Weights gives one further version a share between 0 and 1, exclusive, as AWS's RoutingConfig.
	Weights map[int]float64 `json:"weights,omitempty"`
	// Release is what an alias of the environment points to.
	Release int `json:"release,omitempty"`
	// Fixed marks the aliases that lfxd keeps itself: live and previous.
	Fixed bool `json:"fixed,omitempty"`
}

// EnvironmentInfo is one row of `lfxctl env ls`.
type EnvironmentInfo struct {
	function.Environment
	Account   string    `json:"account"`
	Active    int       `json:"active"`
	Functions int       `json:"functions"`
	Instances int       `json:"instances"`
	Deployed  time.Time `json:"deployed,omitzero"`
}
