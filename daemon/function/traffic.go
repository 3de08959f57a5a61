package function

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// FullShare is all requests of an environment, in the unit of shares: a hundredth of a percent.
const FullShare = 10_000

// ParseShare turns a percentage into a share of FullShare. It is above 0 and below 100 and has at most
// two decimals; anything else is an ErrInvalidArgument.
func ParseShare(percent float64) (int, error) {
	share := math.Round(percent * 100)
	if !(percent > 0 && percent < 100) || share < 1 || math.Abs(share-percent*100) > 1e-6 {
		return 0, invalid("a share of %v %% is not possible: above 0, below 100, at most two decimals", percent)
	}
	return int(share), nil
}

// Percent is a share as a percentage.
func Percent(share int) float64 { return float64(share) / 100 }

// Canary is the release that gets a share of an environment's requests beside the active one.
type Canary struct {
	Release int
	// Share is out of FullShare, exclusive.
	Share int
	Since time.Time
	// Auto is set when lfxd promotes or aborts it by itself.
	Auto *Judgement
}

// Judgement is how a canary is judged; from the manifest's canary section.
type Judgement struct {
	// After is how long the canary is watched, in nanoseconds as JSON (time.Duration).
	After time.Duration `json:"after"`
	// MinRequests is how many requests the canary must have served; below that the time is extended, up
	// to three times After, then it is aborted.
	MinRequests int `json:"min_requests"`
	// MaxErrorRate is by how much the canary's rate of errors may be above the active release's, in
	// points: 0.01 is one percentage point.
	MaxErrorRate float64 `json:"max_error_rate"`
	// MaxP99Ratio is how many times the active release's p99 the canary's may be.
	MaxP99Ratio float64 `json:"max_p99_ratio"`
}

// Validate refuses what no judge can go by.
func (j Judgement) Validate() error {
	switch {
	case j.After <= 0 || j.After > 30*24*time.Hour:
		return invalid("a canary is watched for more than 0 s and at most 720h, not %s", j.After)
	case j.MinRequests < 1:
		return invalid("a canary needs at least 1 request to be judged, not %d", j.MinRequests)
	case !(j.MaxErrorRate >= 0 && j.MaxErrorRate <= 1):
		return invalid("the error rate of a canary is a fraction between 0 and 1, not %v", j.MaxErrorRate)
	case !(j.MaxP99Ratio >= 1) || math.IsInf(j.MaxP99Ratio, 1):
		return invalid("the p99 ratio of a canary is at least 1, not %v", j.MaxP99Ratio)
	}
	return nil
}

// Actions of a Decision.
const (
	CanaryStarted  = "started"
	CanaryShare    = "share"
	CanaryPromoted = "promoted"
	CanaryAborted  = "aborted"
	CanaryExtended = "extended"
)

// Who decides about a canary.
const (
	ByUser  = "user"
	ByJudge = "judge"
)

// Decision is one decision about a canary, with the figures that it was made on.
type Decision struct {
	Time    time.Time `json:"time"`
	Release int       `json:"release"`
	// Action is "started", "share", "promoted", "aborted", "extended".
	Action string `json:"action"`
	// By is "user" or "judge".
	By     string `json:"by"`
	Reason string `json:"reason,omitempty"`
	// Canary and Active are the figures of both since the canary's begin; nil when nobody was judged.
	Canary *Figures `json:"canary_figures,omitempty"`
	Active *Figures `json:"active_figures,omitempty"`
}

// Figures are what a release did over a stretch of time; only root requests count, not nested calls.
type Figures struct {
	Requests  int64   `json:"requests"`
	Errors    int64   `json:"errors"`
	ErrorRate float64 `json:"error_rate"`
	// Samples is how many of the requests P50 and P99 are taken from: those of the canary's warm-up do not count.
	Samples int64         `json:"samples,omitempty"`
	P50     time.Duration `json:"p50"`
	P99     time.Duration `json:"p99"`
}

// Names of the aliases of an environment that lfxd keeps itself.
const (
	AliasLive     = "live"     // the active release
	AliasPrevious = "previous" // the one that was active before it
)

// MaxAliasName is Lambda's limit.
const MaxAliasName = 128

// AliasName is the kind of an alias' name.
const AliasName NameKind = "alias"

// ValidateAlias checks the name of an alias: Lambda's rules, and it may not look like a version or a release.
func ValidateAlias(name string) error {
	refuse := func(rule string) error { return &NameError{AliasName, name, rule} }
	switch {
	case name == "":
		return refuse("is empty")
	case name == Latest:
		return refuse("is Lambda's own: choose another name")
	case len(name) > MaxAliasName:
		return refuse("has " + strconv.Itoa(len(name)) + " characters: at most " + strconv.Itoa(MaxAliasName) + " are allowed")
	}
	if i := indexNot(name, functionChar); i >= 0 {
		return refuse(badChar(name, i) + ": only the letters a-z and A-Z, digits, hyphens and underscores are allowed")
	}
	if allDigits(name) {
		return refuse("looks like a version: choose a name with a letter")
	}
	if rest, ok := strings.CutPrefix(name, "r"); ok && allDigits(rest) {
		return refuse("looks like a release: choose another name")
	}
	return nil
}

// FunctionAlias is a name for a version of a function, or for two with a weight.
type FunctionAlias struct {
	Key
	Name    string
	Version int
	// Extra gets the share Weight, between 0 and 1, of the requests instead of Version; 0 for none.
	Extra  int
	Weight float64
}

// Validate refuses an alias that cannot be, whatever versions there are. ErrInvalidArgument.
func (a FunctionAlias) Validate() error {
	if err := ValidateAlias(a.Name); err != nil {
		return err
	}
	switch {
	case a.Version < 1:
		return invalid("alias %s of %s points to no version", a.Name, a.Key)
	case a.Extra == 0:
		return nil
	case a.Extra < 1:
		return invalid("%d is no version's number", a.Extra)
	case a.Extra == a.Version:
		return invalid("alias %s of %s names version %d twice", a.Name, a.Key, a.Version)
	case !(a.Weight > 0 && a.Weight < 1):
		return invalid("the weight of version %d is between 0 and 1, exclusive, not %v", a.Extra, a.Weight)
	}
	return nil
}

// Choose returns the version for a number drawn between 0, inclusive, and 1, exclusive.
func (a *FunctionAlias) Choose(draw float64) int {
	if a.Extra != 0 && draw < a.Weight {
		return a.Extra
	}
	return a.Version
}

// ReleaseAlias is a name for a release of an environment.
type ReleaseAlias struct {
	Environment
	Name    string
	Release int
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
