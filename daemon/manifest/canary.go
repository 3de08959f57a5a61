package manifest

import (
	"fmt"
	"time"
)

// Canary is how lfxd judges a release that gets a share of the requests (lfxctl deploy --canary --auto).
type Canary struct {
	// After is how long it is watched before it is promoted.
	After time.Duration
	// MinRequests is how many requests it must have served by then.
	MinRequests int
	// MaxErrorRate is by how much its rate of errors may be above the active release's, as a fraction:
	// 0.01 is one percentage point.
	MaxErrorRate float64
	// MaxP99Ratio is how many times the active release's p99 its own may be.
	MaxP99Ratio float64
}

// Limits of the canary section.
const (
	MinCanaryAfter    = 10 * time.Second
	MaxCanaryAfter    = 7 * 24 * time.Hour
	MaxCanaryRequests = 1_000_000_000
	MaxCanaryP99Ratio = 1000
)

// DefaultCanary returns what holds where the manifest says nothing.
func DefaultCanary() Canary {
	return Canary{After: 10 * time.Minute, MinRequests: 100, MaxErrorRate: 0.01, MaxP99Ratio: 1.5}
}

var canaryFields = []field[Canary]{
	{"after", (*decoder).canaryAfter},
	{"min_requests", (*decoder).canaryMinRequests},
	{"max_error_rate", (*decoder).canaryMaxErrorRate},
	{"max_p99_ratio", (*decoder).canaryMaxP99Ratio},
}

func (d *decoder) canary(v value, p *projectDecl) {
	object(d, v, canaryFields, &p.canary, nil)
}

func (d *decoder) canaryAfter(v value, c *Canary) {
	t, ok := measure(d, v, "a duration", parseDuration)
	switch {
	case !ok:
	case t < MinCanaryAfter || t > MaxCanaryAfter:
		d.wrong(v, "%s is not between 10s and 168h", t)
	default:
		c.After = t
	}
}

func (d *decoder) canaryMinRequests(v value, c *Canary) {
	n, ok := d.integer(v)
	switch {
	case !ok:
	case n < 1 || n > MaxCanaryRequests:
		d.wrong(v, "%d is not between 1 and %d", n, MaxCanaryRequests)
	default:
		c.MinRequests = n
	}
}

func (d *decoder) canaryMaxErrorRate(v value, c *Canary) {
	if n, ok := measure(d, v, "a fraction", parseBetween(0, 1)); ok {
		c.MaxErrorRate = n
	}
}

func (d *decoder) canaryMaxP99Ratio(v value, c *Canary) {
	if n, ok := measure(d, v, "a ratio", parseBetween(1, MaxCanaryP99Ratio)); ok {
		c.MaxP99Ratio = n
	}
}

// parseBetween reads a decimal number of these bounds, both inclusive.
func parseBetween(least, most float64) func(string) (float64, error) {
	return func(s string) (float64, error) {
		n, ok := parseDecimal(s)
		if !ok || n < least || n > most {
			return 0, fmt.Errorf("%s is not a number between %v and %v", quote(s), least, most)
		}
		return n, nil
	}
}
