package invocation

import (
	"testing"
	"time"
)

func TestTimesOfACall(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	for name, tt := range map[string]struct {
		trace                 Trace
		ended                 time.Time
		queue, function, call int // seconds
		ran                   bool
	}{
		"idle instance":           {Trace{Accepted: at(0), Delivered: at(1), Answered: at(4)}, at(5), 0, 3, 5, true},
		"waited":                  {Trace{Accepted: at(0), Queued: at(1), Granted: at(3), Delivered: at(4), Answered: at(9)}, at(9), 2, 5, 9, true},
		"refused":                 {Trace{Accepted: at(0)}, at(1), 0, 0, 1, false},
		"waited for nothing":      {Trace{Accepted: at(0), Queued: at(1)}, at(8), 7, 0, 8, false},
		"init inside invocation":  {Trace{Accepted: at(0), Queued: at(1), Granted: at(6), Delivered: at(3), Answered: at(8)}, at(8), 2, 5, 8, true},
		"init fails inside":       {Trace{Accepted: at(0), Queued: at(1), Delivered: at(3), Answered: at(8)}, at(8), 2, 5, 8, true},
		"clock that went back":    {Trace{Accepted: at(9), Queued: at(9), Granted: at(5)}, at(4), 0, 0, 0, false},
		"begun before it waited?": {Trace{Accepted: at(0), Queued: at(5), Granted: at(6), Delivered: at(4), Answered: at(7)}, at(7), 0, 3, 7, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := Call{Trace: tt.trace, Ended: tt.ended}
			got := [3]time.Duration{c.Queue(), c.FunctionTime(), c.Total()}
			want := [3]time.Duration{time.Duration(tt.queue) * time.Second, time.Duration(tt.function) * time.Second, time.Duration(tt.call) * time.Second}
			if got != want || c.Ran() != tt.ran {
				t.Errorf("queue, function, total = %v, ran %t; want %v, %t", got, c.Ran(), want, tt.ran)
			}
		})
	}
}

func TestResultsHaveDifferentNames(t *testing.T) {
	seen := map[string]Result{}
	for r := range Results {
		if other, ok := seen[r.String()]; ok || r.String() == "" {
			t.Errorf("%d and %d are both called %q", other, r, r)
		}
		seen[r.String()] = r
	}
}
