package manifest

import (
	"encoding/json"
	"strings"
	"testing"

	"lfx.dev/lfxd/daemon/function"
)

// TestPerInstance: one invocation at a time is the default and leaves no trace, so that versions keep their identity.
func TestPerInstance(t *testing.T) {
	plain := function.Identity(function.Image{}, function.DefaultConfig())
	for _, tc := range []struct {
		value string
		want  int
		says  string
	}{
		{"1", 0, ""},
		{"4", 4, ""},
		{`"${N}"`, 8, ""},
		{"64", 64, ""},
		{"0", 0, "lfx.yaml:4: functions.f.concurrency.per_instance: 0 is out of range: 1 to 64"},
		{"65", 0, "lfx.yaml:4: functions.f.concurrency.per_instance: 65 is out of range: 1 to 64"},
		{"many", 0, "lfx.yaml:4: functions.f.concurrency.per_instance: "},
	} {
		dir := write(t, "x", map[string]string{"lfx.yaml": "project: shop\nfunctions:\n  f:\n    concurrency: {per_instance: " + tc.value + "}\n    image: alpine\n"})
		p, err := Load(dir, Options{Lookup: vars(map[string]string{"N": "8"})})
		if tc.says != "" {
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: %v, want %q", tc.value, err, tc.says)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.value, err)
			continue
		}
		c := p.Specs[0].Config
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if c.Concurrency.PerInstance != tc.want || strings.Contains(string(text), "per_instance") != (tc.want > 1) {
			t.Errorf("%s: %d, %s", tc.value, c.Concurrency.PerInstance, text)
		}
		if same := function.Identity(function.Image{}, c) == plain; same != (tc.want == 0) {
			t.Errorf("%s: the identity of the default is the same: %v", tc.value, same)
		}
	}
}
