package logs

import (
	"fmt"
	"strconv"
	"sync"
	"time"
)

// The platform's lines, as Lambda writes them in the text log format: without the line end, tabs and
// trailing tabs included.

// Status is how an invocation or an init ended.
type Status string

const (
	// StatusSuccess also stands for a handler that raised: its REPORT looks alike.
	StatusSuccess Status = ""
	StatusTimeout Status = "timeout"
	StatusError   Status = "error"
)

// Phase says in which phase an init ran.
type Phase string

const (
	PhaseInit   Phase = "init"
	PhaseInvoke Phase = "invoke" // the retry inside the first invocation
)

// Start is the first line of an invocation. version is what the client invoked, "$LATEST" or a number.
func Start(requestID, version string) string {
	return "START RequestId: " + requestID + " Version: " + version
}

// End follows the last line that the function wrote.
func End(requestID string) string { return "END RequestId: " + requestID }

// ReportFields is what a REPORT line says.
type ReportFields struct {
	RequestID string
	// Duration of the invocation; of a timeout no more than Timeout is shown.
	Duration time.Duration
	// Timeout is the configured one.
	Timeout time.Duration
	// Init is set for the first invocation of an instance, except when init ran inside it.
	Init *time.Duration
	// MemoryMB is the limit and MaxMemoryMB the peak, which is shown as at most the limit.
	MemoryMB, MaxMemoryMB int
	Status                Status
	// ErrorType belongs to StatusError, for example "Runtime.ExitError".
	ErrorType string
	// Phases say where the time of a cold call went; they are fields of our own behind those of AWS, and only
	// the first invocation of an instance has them.
	Phases []PhaseTime
}

// PhaseTime is one phase of a cold call for REPORT; Name as it stands there, for example "Queue".
type PhaseTime struct {
	Name string
	Took time.Duration
}

// Report is the last line of an invocation. Billed is the sum of the two durations as they are
// shown, rounded up to whole milliseconds.
func Report(f ReportFields) string {
	duration := f.Duration
	if f.Status == StatusTimeout && f.Timeout > 0 {
		duration = min(duration, f.Timeout)
	}
	billed := hundredths(duration)
	if f.Init != nil {
		billed += hundredths(*f.Init)
	}
	b := make([]byte, 0, 256)
	b = append(append(b, "REPORT RequestId: "...), f.RequestID...)
	b = appendMilliseconds(append(b, "\tDuration: "...), duration)
	b = strconv.AppendInt(append(b, "\tBilled Duration: "...), (billed+99)/100, 10)
	b = strconv.AppendInt(append(b, " ms\tMemory Size: "...), int64(f.MemoryMB), 10)
	b = strconv.AppendInt(append(b, " MB\tMax Memory Used: "...), int64(min(f.MaxMemoryMB, f.MemoryMB)), 10)
	b = append(b, " MB"...)
	if f.Init != nil {
		b = appendMilliseconds(append(b, "\tInit Duration: "...), *f.Init)
	}
	if f.Status != StatusSuccess {
		b = append(b, status(f.Status, f.ErrorType)...)
	}
	for _, p := range f.Phases {
		b = appendMilliseconds(append(append(append(b, '\t'), p.Name...), ": "...), p.Took)
	}
	if f.Status == StatusSuccess {
		b = append(b, '\t')
	}
	return string(b)
}

// InitReport is the line about an init that failed or took too long; a healthy one has none.
func InitReport(duration time.Duration, phase Phase, s Status, errorType string) string {
	return fields("INIT_REPORT Init Duration: "+milliseconds(duration), "Phase: "+string(phase)) + status(s, errorType)
}

func status(s Status, errorType string) string {
	line := "\tStatus: " + string(s)
	if s == StatusError && errorType != "" {
		line += "\tError Type: " + errorType
	}
	return line
}

// Crash is the pair of lines before END when the runtime ended by itself: reason is for example
// "Runtime exited with error: exit status 1", errorType "Runtime.ExitError".
func Crash(requestID, reason, errorType string) [2]string {
	return [2]string{"RequestId: " + requestID + " Error: " + reason, errorType}
}

// DroppedLines is the platform's line in place of output that was thrown away because why.
func DroppedLines(lines, bytes int64, why string) string {
	return fmt.Sprintf("lfxd dropped %d lines (%d bytes) here: %s", lines, bytes, why)
}

// hundredths rounds to hundredths of a millisecond, the precision of the lines. Negative is zero.
func hundredths(d time.Duration) int64 {
	return int64(max(d, 0).Round(10*time.Microsecond) / (10 * time.Microsecond))
}

func milliseconds(d time.Duration) string { return string(appendMilliseconds(nil, d)) }

func appendMilliseconds(b []byte, d time.Duration) []byte {
	h := hundredths(d)
	b = append(strconv.AppendInt(b, h/100, 10), '.')
	return append(append(b, byte('0'+h%100/10), byte('0'+h%10)), " ms"...)
}

// TailLimit is how much of an invocation's log X-Amz-Log-Result carries, before base64.
const TailLimit = 4096

// Tail keeps the last TailLimit bytes of one invocation's lines, START to REPORT. Its zero value is
// empty. Safe for concurrent use: stdout and stderr are captured side by side.
type Tail struct {
	mu  sync.Mutex
	buf []byte
}

// Add appends one line, without its line end.
func (t *Tail) Add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if over := len(line) + 1 - TailLimit; over > 0 {
		line = line[over:]
	}
	if len(t.buf) > 2*TailLimit {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-TailLimit:]...)
	}
	t.buf = append(append(t.buf, line...), '\n')
}

// Bytes returns a copy of what is kept. The first line may be cut.
func (t *Tail) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.buf[max(0, len(t.buf)-TailLimit):]...)
}
