package api

import (
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// PathRecords tells the story of one invocation: GET /{request-id} → Record. PathMetrics is Prometheus'
// text format; it needs control rights as everything else here.
const (
	PathRecords = Prefix + "/records"
	PathMetrics = "/metrics"
)

// Record is what lfxd remembers of one invocation: `lfxctl why`. Records are kept in memory and bounded;
// old ones give way.
type Record struct {
	RequestID string `json:"request_id"`
	function.Key
	Qualifier string `json:"qualifier,omitempty"`
	Version   int    `json:"version,omitempty"`
	Release   int    `json:"release,omitempty"`
	// Parent is the request whose invocation made this one, when it came from inside an instance.
	Parent string `json:"parent,omitempty"`
	// Instance ran it; empty when none did.
	Instance string    `json:"instance,omitempty"`
	Accepted time.Time `json:"accepted"`
	// Queue is the wait for an instance, its start included; Function is the time from the event's hand-over to
	// the answer; Total is from acceptance to the answer.
	Queue    time.Duration `json:"queue_ns"`
	Function time.Duration `json:"function_ns"`
	Total    time.Duration `json:"total_ns"`
	// Cold says that it was the first invocation of its instance.
	Cold bool `json:"cold,omitempty"`
	// Phases are those of the start of the instance, in microseconds, when Cold.
	Phases map[string]int64 `json:"phases_us,omitempty"`
	// Outcome is "ok", "error" (the function threw), "timeout", "crash", "throttled", "refused", "unavailable",
	// or "gone" (the client left while the request waited).
	Outcome string `json:"outcome"`
	// Status is the HTTP status of the answer; 0 when nobody was there to read one.
	Status    int    `json:"status"`
	ErrorType string `json:"error_type,omitempty"`
	Detail    string `json:"detail,omitempty"`
	// RequestBytes and ResponseBytes are sizes of the payloads.
	RequestBytes  int `json:"request_bytes"`
	ResponseBytes int `json:"response_bytes"`
}
