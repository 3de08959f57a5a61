package logs

import (
	"strings"
	"testing"
	"time"
)

func ms(f float64) time.Duration { return time.Duration(f * float64(time.Millisecond)) }

func TestPlatformLines(t *testing.T) {
	cold, slow := ms(423.98), ms(516.31)
	crash := Crash("id", "Runtime exited with error: exit status 1", "Runtime.ExitError")
	for _, test := range []struct{ name, got, want string }{
		{"start", Start("id", "$LATEST"), "START RequestId: id Version: $LATEST"},
		{"end", End("id"), "END RequestId: id"},
		{"cold", Report(ReportFields{RequestID: "id", Duration: ms(2.37), Init: &cold, MemoryMB: 1024, MaxMemoryMB: 95}),
			"REPORT RequestId: id\tDuration: 2.37 ms\tBilled Duration: 427 ms\tMemory Size: 1024 MB\tMax Memory Used: 95 MB\tInit Duration: 423.98 ms\t"},
		{"cold with phases", Report(ReportFields{RequestID: "id", Duration: ms(2.37), Init: &cold, MemoryMB: 1024, MaxMemoryMB: 95, Phases: []PhaseTime{{"Queue", ms(430.5)}, {"Handler", ms(2.37)}}}),
			"REPORT RequestId: id\tDuration: 2.37 ms\tBilled Duration: 427 ms\tMemory Size: 1024 MB\tMax Memory Used: 95 MB\tInit Duration: 423.98 ms\tQueue: 430.50 ms\tHandler: 2.37 ms\t"},
		{"cold timeout with phases", Report(ReportFields{RequestID: "id", Duration: ms(3004.2), Timeout: 3 * time.Second, Init: &slow, MemoryMB: 128, MaxMemoryMB: 64, Status: StatusTimeout, Phases: []PhaseTime{{"Queue", ms(1)}}}),
			"REPORT RequestId: id\tDuration: 3000.00 ms\tBilled Duration: 3517 ms\tMemory Size: 128 MB\tMax Memory Used: 64 MB\tInit Duration: 516.31 ms\tStatus: timeout\tQueue: 1.00 ms"},
		{"warm", Report(ReportFields{RequestID: "id", Duration: ms(1.001), MemoryMB: 128, MaxMemoryMB: 95}),
			"REPORT RequestId: id\tDuration: 1.00 ms\tBilled Duration: 1 ms\tMemory Size: 128 MB\tMax Memory Used: 95 MB\t"},
		{"timeout", Report(ReportFields{RequestID: "id", Duration: ms(3004.2), Timeout: 3 * time.Second, MemoryMB: 128, MaxMemoryMB: 64, Status: StatusTimeout}),
			"REPORT RequestId: id\tDuration: 3000.00 ms\tBilled Duration: 3000 ms\tMemory Size: 128 MB\tMax Memory Used: 64 MB\tStatus: timeout"},
		{"cold timeout", Report(ReportFields{RequestID: "id", Duration: ms(3004.2), Timeout: 3 * time.Second, Init: &slow, MemoryMB: 128, MaxMemoryMB: 64, Status: StatusTimeout}),
			"REPORT RequestId: id\tDuration: 3000.00 ms\tBilled Duration: 3517 ms\tMemory Size: 128 MB\tMax Memory Used: 64 MB\tInit Duration: 516.31 ms\tStatus: timeout"},
		{"out of memory", Report(ReportFields{RequestID: "id", Duration: ms(10), MemoryMB: 128, MaxMemoryMB: 140, Status: StatusError, ErrorType: "Runtime.OutOfMemory"}),
			"REPORT RequestId: id\tDuration: 10.00 ms\tBilled Duration: 10 ms\tMemory Size: 128 MB\tMax Memory Used: 128 MB\tStatus: error\tError Type: Runtime.OutOfMemory"},
		{"rounding up", Report(ReportFields{RequestID: "id", Duration: ms(0.995), MemoryMB: 1, MaxMemoryMB: 1}),
			"REPORT RequestId: id\tDuration: 1.00 ms\tBilled Duration: 1 ms\tMemory Size: 1 MB\tMax Memory Used: 1 MB\t"},
		{"init error", InitReport(ms(154.03), PhaseInit, StatusError, "Runtime.ExitError"),
			"INIT_REPORT Init Duration: 154.03 ms\tPhase: init\tStatus: error\tError Type: Runtime.ExitError"},
		{"init retry", InitReport(ms(99.65), PhaseInvoke, StatusError, "Runtime.ExitError"),
			"INIT_REPORT Init Duration: 99.65 ms\tPhase: invoke\tStatus: error\tError Type: Runtime.ExitError"},
		{"init timeout", InitReport(ms(10000.12), PhaseInit, StatusTimeout, ""),
			"INIT_REPORT Init Duration: 10000.12 ms\tPhase: init\tStatus: timeout"},
		{"crash", strings.Join(crash[:], "\n"), "RequestId: id Error: Runtime exited with error: exit status 1\nRuntime.ExitError"},
	} {
		if test.got != test.want {
			t.Errorf("%s:\n got %q\nwant %q", test.name, test.got, test.want)
		}
	}
}

func TestTail(t *testing.T) {
	var tail Tail
	tail.Add("START")
	tail.Add("x")
	if got := string(tail.Bytes()); got != "START\nx\n" {
		t.Errorf("got %q", got)
	}
	var all strings.Builder
	all.WriteString("START\nx\n")
	for _, n := range []int{10, 4000, 100, 5000, 1, 4096, 4095, 3} {
		line := strings.Repeat("z", n) + "!"
		tail.Add(line)
		all.WriteString(line + "\n")
		want := all.String()
		want = want[max(0, len(want)-TailLimit):]
		if got := string(tail.Bytes()); got != want {
			t.Fatalf("after a line of %d bytes: %d bytes kept, want the last %d", n, len(got), len(want))
		}
	}
}
