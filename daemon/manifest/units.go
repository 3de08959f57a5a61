package manifest

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// mebibytes are the units of a size, in MiB. AWS's MB is 2^20 bytes, and so is ours.
var mebibytes = map[string]float64{
	"": 1, "m": 1, "mb": 1, "mi": 1, "mib": 1,
	"g": 1024, "gb": 1024, "gi": 1024, "gib": 1024,
}

// parseSize reads a size in whole MiB: "256MiB", "1GiB", "1.5 GB", "512".
func parseSize(s string) (int, error) {
	number, unit := splitUnit(s)
	factor, known := mebibytes[strings.ToLower(unit)]
	n, ok := parseDecimal(number)
	if !known || !ok {
		return 0, fmt.Errorf("%s is not a size: write 256MiB, 1GiB or a number of MiB", quote(s))
	}
	mib := n * factor
	if mib != math.Trunc(mib) {
		return 0, fmt.Errorf("%s is not a whole number of MiB", quote(s))
	}
	if mib > math.MaxInt32 {
		return 0, fmt.Errorf("%s is too large a size", quote(s))
	}
	return int(mib), nil
}

// parseDuration reads a duration: "30s", "1m30s", "1.5s", "30" (seconds).
func parseDuration(s string) (time.Duration, error) {
	wrong := fmt.Errorf("%s is not a duration: write 30s, 1m30s or a number of seconds", quote(s))
	if n, ok := parseDecimal(s); ok {
		if n > 1e9 {
			return 0, fmt.Errorf("%s is too long a duration", quote(s))
		}
		// Through microseconds, so that 0.1 is exact.
		return time.Duration(math.Round(n*1e6)) * time.Microsecond, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || strings.ContainsAny(s, "+-") {
		return 0, wrong
	}
	return d, nil
}

// parseCores reads a CPU share in cores: "0.5", "2", "500m" (thousandths).
func parseCores(s string) (float64, error) {
	number, unit := splitUnit(s)
	n, ok := parseDecimal(number)
	if !ok || unit != "" && unit != "m" {
		return 0, fmt.Errorf("%s is not a CPU share: write 0.5, 2 or 500m", quote(s))
	}
	if unit == "m" {
		n /= 1000
	}
	if n == 0 {
		return 0, fmt.Errorf("%s is no CPU at all: write at least 0.01, or leave the key out for the memory's share", quote(s))
	}
	return n, nil
}

// splitUnit splits "256 MiB" into number and unit.
func splitUnit(s string) (number, unit string) {
	i := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], " ")
}

// parseDecimal reads digits with at most one dot between them. No sign, exponent, hexadecimal,
// underscore, infinity.
func parseDecimal(s string) (float64, bool) {
	if s == "" || len(s) > 20 || s[0] == '.' || s[len(s)-1] == '.' || strings.Trim(s, "0123456789.") != "" {
		return 0, false
	}
	n, err := strconv.ParseFloat(s, 64)
	return n, err == nil
}
