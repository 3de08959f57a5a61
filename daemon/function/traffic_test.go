package function

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestParseShare(t *testing.T) {
	for percent, want := range map[float64]int{ // 0 is refused
		10: 1000, 0.01: 1, 99.99: 9999, 33.33: 3333, 0.07: 7, 12.5: 1250,
		0: 0, -1: 0, 100: 0, 0.001: 0, 12.345: 0, 1e300: 0, math.Inf(1): 0, math.NaN(): 0,
	} {
		got, err := ParseShare(percent)
		if got != want || (err == nil) != (want > 0) || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v %%: %d, %v, want %d", percent, got, err, want)
		}
		if want > 0 && math.Abs(Percent(got)-percent) > 1e-9 {
			t.Errorf("%v %% comes back as %v %%", percent, Percent(got))
		}
	}
}

func TestValidateAlias(t *testing.T) {
	for name, fine := range map[string]bool{
		"prod": true, "live": true, "a-b_C9": true, "1a": true, "r": true, "rc1": true, "r1a": true, "-": true, strings.Repeat("a", 128): true,
		"": false, "7": false, "007": false, "$LATEST": false, "r7": false, "r0": false, "r007": false, "a b": false, "a:b": false, "ä": false, "a.b": false,
		strings.Repeat("a", 129): false,
	} {
		err := ValidateAlias(name)
		if (err == nil) != fine || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// FuzzAlias: what may be called an alias is read as one in every form of a reference.
func FuzzAlias(f *testing.F) {
	for _, s := range []string{"prod", "7", "r7", "r", "$LATEST", "a-b", "0", "r0", "R7", "ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if ValidateAlias(name) != nil {
			return
		}
		for _, parse := range []func() (Ref, error){
			func() (Ref, error) { return ParseRef("f", name) },
			func() (Ref, error) { return ParseRef("arn:aws:lambda:eu-west-1:123456789012:function:f:"+name, "") },
		} {
			ref, err := parse()
			if len(name) > 100 && err != nil {
				continue // the reference as a whole is too long
			}
			if err != nil || ref.Kind != QualifierAlias || ref.Qualifier != name || ref.Name != "f" {
				t.Errorf("%q is read as %+v, %v", name, ref, err)
			}
		}
	})
}

func TestAliasChoosesByWeight(t *testing.T) {
	a := FunctionAlias{Key: Key{Function: "f"}, Name: "x", Version: 2, Extra: 1, Weight: 0.25}
	if a.Choose(0) != 1 || a.Choose(0.249) != 1 || a.Choose(0.25) != 2 || a.Choose(0.999) != 2 {
		t.Error("the weight is not the share of the second version")
	}
	a.Extra = 0
	if a.Choose(0) != 2 {
		t.Error("an alias of one version chooses another")
	}
	for what, bad := range map[string]FunctionAlias{
		"no version": {Name: "x"}, "twice": {Name: "x", Version: 1, Extra: 1, Weight: 0.5}, "weight 0": {Name: "x", Version: 1, Extra: 2},
		"weight 1": {Name: "x", Version: 1, Extra: 2, Weight: 1}, "NaN": {Name: "x", Version: 1, Extra: 2, Weight: math.NaN()}, "negative": {Name: "x", Version: 1, Extra: -2, Weight: 0.5},
	} {
		if err := bad.Validate(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestJudgementValidate(t *testing.T) {
	good := Judgement{After: time.Minute, MinRequests: 1, MaxErrorRate: 0, MaxP99Ratio: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Judgement){
		"after": func(j *Judgement) { j.After = 0 }, "requests": func(j *Judgement) { j.MinRequests = 0 },
		"rate": func(j *Judgement) { j.MaxErrorRate = 1.1 }, "rate NaN": func(j *Judgement) { j.MaxErrorRate = math.NaN() },
		"ratio": func(j *Judgement) { j.MaxP99Ratio = 0.5 }, "ratio NaN": func(j *Judgement) { j.MaxP99Ratio = math.NaN() },
		"ratio infinite": func(j *Judgement) { j.MaxP99Ratio = math.Inf(1) },
	} {
		bad := good
		change(&bad)
		if err := bad.Validate(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
