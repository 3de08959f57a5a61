package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// percent is a share of the requests, above 0 and below 100, with at most two decimals; zero is none.
type percent float64

// parsePercent reads "10%", "10" or "2.5 %".
func parsePercent(s string) (percent, error) {
	text := strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(s), "%"))
	p, err := strconv.ParseFloat(text, 64)
	// The negated comparison catches NaN too.
	if err != nil || !(p > 0 && p < 100) || strings.ContainsAny(text, "xXpPeE_") {
		return 0, fmt.Errorf("%q is no share: write a percentage above 0 and below 100, such as 10%%", s)
	}
	if hundredths := p * 100; math.Abs(hundredths-math.Round(hundredths)) > 1e-6 || math.Round(hundredths) == 0 {
		return 0, fmt.Errorf("%q is too fine: write a percentage with at most two decimals", s)
	}
	return percent(math.Round(p*100) / 100), nil
}

// String implements pflag.Value: "2.5%".
func (p *percent) String() string {
	if *p == 0 {
		return ""
	}
	return share(float64(*p))
}

// Set implements pflag.Value.
func (p *percent) Set(s string) (err error) {
	*p, err = parsePercent(s)
	return err
}

// Type implements pflag.Value.
func (p *percent) Type() string { return "percent" }

// share is a percentage for people: "10%", "2.5%", at most two decimals.
func share(p float64) string {
	return strconv.FormatFloat(math.Round(p*100)/100, 'f', -1, 64) + "%"
}
