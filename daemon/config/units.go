package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span, written as Go does: "90s", "1m30s", "10m". It is a struct so that a bare
// number, whose unit nobody can know, is refused.
type Duration struct{ time.Duration }

// UnmarshalText reads "90s".
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration; write it as 90s, 10m or 1h30m", text)
	}
	d.Duration = v
	return nil
}

// MarshalText writes the shortest form: "10m", not "10m0s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string {
	s := d.Duration.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Size is a number of bytes, written "256MiB", "20GB" or "4096".
type Size int64

// units in the order in which String tries them.
var units = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

// UnmarshalText reads "256MiB". A space before the unit is fine, a fraction too ("1.5GiB").
func (s *Size) UnmarshalText(text []byte) error {
	v, err := parseSize(string(text))
	if err != nil {
		return err
	}
	*s = Size(v)
	return nil
}

func parseSize(text string) (int64, error) {
	number, factor := strings.TrimSpace(text), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, factor = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v >= 0) || v*float64(factor) > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q is not a size; write it as 256MiB, 20GB or a number of bytes", text)
	}
	return int64(v * float64(factor)), nil
}

// MarshalText writes the largest binary unit that divides the size, else the bytes.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	for _, u := range units[:4] {
		if s > 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// Bytes returns the size as a plain number.
func (s Size) Bytes() int64 { return int64(s) }

// Budget is an amount of memory: a share of the host's ("80%") or a Size ("6GiB").
type Budget struct {
	// Percent is set for a share, Bytes otherwise.
	Percent float64
	Bytes   int64
}

// UnmarshalText reads "80%" or "6GiB".
func (b *Budget) UnmarshalText(text []byte) error {
	if number, ok := strings.CutSuffix(strings.TrimSpace(string(text)), "%"); ok {
		v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(v >= 0 && v <= 100) {
			return fmt.Errorf("%q is not a share; write it as 80%% or as a size such as 6GiB", text)
		}
		*b = Budget{Percent: v}
		return nil
	}
	v, err := parseSize(string(text))
	if err != nil {
		return fmt.Errorf("%q is neither a share such as 80%% nor a size such as 6GiB", text)
	}
	*b = Budget{Bytes: v}
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (b Budget) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

func (b Budget) String() string {
	if b.Bytes == 0 {
		return strconv.FormatFloat(b.Percent, 'f', -1, 64) + "%"
	}
	return Size(b.Bytes).String()
}

// Of returns the budget in bytes on a host with that much memory.
func (b Budget) Of(total int64) int64 {
	if b.Bytes > 0 {
		return min(b.Bytes, total)
	}
	return int64(float64(total) * b.Percent / 100)
}
