package metrics

// kind is a type of Prometheus' text format.
type kind string

const (
	counter kind = "counter"
	gauge   kind = "gauge"
	hist    kind = "histogram"
)

// family is one metric with all its label values.
type family struct {
	name   string
	kind   kind
	labels []string
	// help is a sentence for people, as in docs/metrics.md.
	help string
}

// Labels that name a function, and beyond.
var (
	ofEnvironment = []string{"project", "environment"}
	ofFunction    = []string{"project", "environment", "function"}
	ofVersion     = []string{"project", "environment", "function", "version"}
	ofRelease     = []string{"project", "environment", "release"}
)

func with(labels []string, more ...string) []string {
	return append(labels[:len(labels):len(labels)], more...)
}

// Families in the order in which they are written.
var (
	requests         = &family{"lfx_requests_total", counter, with(ofVersion, "release", "outcome"), "Calls of Invoke by what became of them: ok, error, timeout, crash, throttled, refused, unavailable or gone (the client left while the request waited). Nested calls count too."}
	unresolved       = &family{"lfx_requests_unresolved_total", counter, []string{"error"}, "Calls that were refused before they came to a version, by AWS's error code."}
	requestSize      = &family{"lfx_request_bytes_total", counter, ofFunction, "Bytes of the payloads of requests."}
	responseSize     = &family{"lfx_response_bytes_total", counter, ofFunction, "Bytes of the payloads of answers of functions."}
	duration         = &family{"lfx_function_duration_seconds", hist, with(ofVersion, "release"), "Time from the event's hand-over to the function's answer, as its REPORT line has it."}
	added            = &family{"lfx_added_latency_seconds", hist, ofFunction, "What lfxd and its queues added: the time from acceptance to the answer, without the function's own."}
	queueWait        = &family{"lfx_queue_wait_seconds", hist, ofFunction, "How long requests waited for an instance, its start included. Those that found an idle one are not in it."}
	throttles        = &family{"lfx_throttles_total", counter, with(ofFunction, "reason"), "Calls that were answered with 429, by AWS's reason."}
	coldStarts       = &family{"lfx_cold_starts_total", counter, ofFunction, "Invocations that were the first of their instance."}
	starts           = &family{"lfx_instance_starts_total", counter, with(ofFunction, "result"), "Starts of instances by result: ok or failed. One whose initialisation was repeated inside an invocation is one start."}
	startTime        = &family{"lfx_instance_start_seconds", hist, ofFunction, "How long a start took until the runtime asked for its first event."}
	startPhases      = &family{"lfx_instance_start_phase_seconds", hist, with(ofFunction, "phase"), "The phases of starts: turn (waiting for its turn), files, container, create, network, check, start and init; of a start that took a spare: ahead (what was done before), start and init."}
	ends             = &family{"lfx_instance_ends_total", counter, with(ofFunction, "reason"), "Instances that take no more work, by reason: idle (no work for too long), room (evicted for others), memory (the budget is nearly used up, or the host is short), release (no release needs the version) or failed (exited, timed out or reset)."}
	instances        = &family{"lfx_instances", gauge, with(ofVersion, "state"), "Instances now, by state: spare (created ahead, has run no code of the function), starting, busy, idle, frozen (idle and stopped) or stopping."}
	sandboxes        = &family{"lfx_sandboxes", gauge, nil, "Sandboxes that stand ready for the next instance of any function (functions.sandboxes_ahead)."}
	queueLength      = &family{"lfx_queue_length", gauge, ofVersion, "Requests that wait for an instance now."}
	memoryBudget     = &family{"lfx_memory_budget_bytes", gauge, nil, "What all instances together may use (functions.memory_budget); 0 without a bound."}
	memoryUsed       = &family{"lfx_memory_used_bytes", gauge, nil, "What they use, as last read; 0 where it cannot be read."}
	memoryReserved   = &family{"lfx_memory_reserved_bytes", gauge, nil, "The sum of their limits."}
	memoryReservable = &family{"lfx_memory_reservable_bytes", gauge, nil, "What the sum of their limits may be (memory_budget × memory_overcommit); 0 without a bound."}
	active           = &family{"lfx_release_active", gauge, ofEnvironment, "The number of the active release; 0 when none is."}
	traffic          = &family{"lfx_release_traffic_percent", gauge, with(ofRelease, "status"), "The share of requests that a release gets; that of a canary has status canary."}
	inFlight         = &family{"lfx_release_requests_in_flight", gauge, ofRelease, "Requests that are bound to a release now, at any depth of nested calls."}
	roots            = &family{"lfx_release_root_requests_total", counter, ofRelease, "Requests that no other invocation made and that ran what a live release has: what a canary is judged by."}
	rootErrors       = &family{"lfx_release_root_errors_total", counter, ofRelease, "Those of them that ended in an error of the function or of the platform."}
	rootLatency      = &family{"lfx_release_latency_seconds", hist, ofRelease, "How long they took, the wait for an instance included. The sum is up to 7 % too large, because it is made from buckets."}
	deploys          = &family{"lfx_deploys_total", counter, []string{"result"}, "Deploys and rollbacks by result: released, unchanged, planned, failed or cancelled."}
	deployTime       = &family{"lfx_deploy_seconds", hist, nil, "How long deploys and rollbacks took, their builds included."}
	builds           = &family{"lfx_builds_total", counter, []string{"result"}, "Builds of functions by result: ok (also from the cache), failed or cancelled."}
	buildTime        = &family{"lfx_build_seconds", hist, nil, "How long builds took."}
	buildInfo        = &family{"lfx_build_info", gauge, []string{"version", "go"}, "Always 1; the labels say which lfxd this is."}
	goroutines       = &family{"go_goroutines", gauge, nil, "Goroutines of lfxd."}
	heapBytes        = &family{"go_memstats_heap_alloc_bytes", gauge, nil, "Memory of objects on lfxd's heap."}
	gcCycles         = &family{"go_gc_cycles_total", counter, nil, "Garbage collections of lfxd."}
	cpuSeconds       = &family{"process_cpu_seconds_total", counter, nil, "CPU time of lfxd itself, user and system."}
	residentSize     = &family{"process_resident_memory_bytes", gauge, nil, "Memory of lfxd itself."}
	openFiles        = &family{"process_open_fds", gauge, nil, "Open file descriptors of lfxd."}
	startedAt        = &family{"process_start_time_seconds", gauge, nil, "When lfxd was started, in seconds since 1970."}
)

var families = []*family{
	requests, unresolved, requestSize, responseSize, duration, added, queueWait, throttles, coldStarts,
	starts, startTime, startPhases, ends, instances, sandboxes, queueLength, memoryBudget, memoryUsed, memoryReserved, memoryReservable,
	active, traffic, inFlight, roots, rootErrors, rootLatency, deploys, deployTime, builds, buildTime,
	buildInfo, goroutines, heapBytes, gcCycles, cpuSeconds, residentSize, openFiles, startedAt,
}
