package metrics

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	rt "runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/daemon/function"
	histograms "lfx.dev/lfxd/daemon/histogram"
	"lfx.dev/lfxd/daemon/invocation"
)

// State is what the daemon looks like when its figures are asked for.
type State struct {
	// Version is lfxd's own.
	Version string
	Pools   []Pool
	// Sandboxes is how many stand ready for any function.
	Sandboxes int
	// Memory of all instances in bytes: what they may use and do use, the sum of their limits and what that
	// may be.
	MemoryBudget, MemoryUsed, MemoryReserved, MemoryReservable int64
	// Active has every environment's active release, 0 when it has none.
	Active   map[function.Environment]int
	Releases []Release
}

// Pool is a version with its instances by state and the requests that wait.
type Pool struct {
	function.Key
	Version int
	States  map[string]int
	Queued  int
}

// Release is a release that gets requests or still has some.
type Release struct {
	function.Environment
	Number   int
	Status   string
	Percent  float64
	InFlight int64
	// Roots, RootErrors and Latency are what the judge of canaries reads, since lfxd was started.
	Roots, RootErrors int64
	Latency           histograms.Snapshot
}

// Write writes all figures in Prometheus' text format, version 0.0.4. The error is w's.
func (r *Registry) Write(w io.Writer, st State) error {
	t := &text{w: w}
	r.writeCalls(t)
	r.writeInstances(t, st)
	writeState(t, st)
	r.writeDeploys(t)
	r.writeProcess(t, st)
	return t.flush()
}

// sorted returns the series in the order in which they are written.
func (r *Registry) sorted() (versions []*versionSeries, functions []*functionSeries) {
	r.mu.Lock()
	defer r.mu.Unlock()
	versions = slices.SortedFunc(maps.Values(r.byNumber), func(a, b *versionSeries) int {
		return cmp.Or(compareKeys(a.Key, b.Key), a.number-b.number)
	})
	functions = slices.SortedFunc(maps.Values(r.functions), func(a, b *functionSeries) int { return compareKeys(a.key, b.key) })
	return versions, functions
}

func compareKeys(a, b function.Key) int {
	return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Function, b.Function))
}

func labelsOf(k function.Key, more ...string) []string {
	return append([]string{k.Project, k.Name, k.Function}, more...)
}

// writeCalls writes what is counted for each call.
func (r *Registry) writeCalls(t *text) {
	versions, functions := r.sorted()
	t.begin(requests)
	for _, v := range versions {
		for _, rel := range *v.releases.Load() {
			for i := range rel.results {
				if n := rel.results[i].Load(); n > 0 || invocation.Result(i) == invocation.OK {
					t.integer(n, labelsOf(v.Key, strconv.Itoa(v.number), strconv.Itoa(rel.number), invocation.Result(i).String())...)
				}
			}
		}
	}
	t.begin(unresolved)
	codes := map[string]int64{}
	r.unresolved.Range(func(k, n any) bool { codes[k.(string)] = n.(*atomic.Int64).Load(); return true })
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		t.integer(codes[code], code)
	}
	t.each(requestSize, functions, func(f *functionSeries) int64 { return f.requestBytes.Load() })
	t.each(responseSize, functions, func(f *functionSeries) int64 { return f.responseBytes.Load() })
	t.begin(duration)
	for _, v := range versions {
		for _, rel := range *v.releases.Load() {
			t.histogram(rel.duration, labelsOf(v.Key, strconv.Itoa(v.number), strconv.Itoa(rel.number))...)
		}
	}
	t.begin(added)
	for _, f := range functions {
		t.histogram(f.added, labelsOf(f.key)...)
	}
	t.begin(queueWait)
	for _, f := range functions {
		t.histogram(f.wait, labelsOf(f.key)...)
	}
	t.words(throttles, functions, func(f *functionSeries) *counters { return &f.throttles })
	t.each(coldStarts, functions, func(f *functionSeries) int64 { return f.cold.Load() })
}

// writeInstances writes what is counted for each instance, and those that live now.
func (r *Registry) writeInstances(t *text, st State) {
	_, functions := r.sorted()
	t.begin(starts)
	for _, f := range functions {
		t.integer(f.startFails.Load(), labelsOf(f.key, "failed")...)
		t.integer(f.starts.Load(), labelsOf(f.key, "ok")...)
	}
	t.begin(startTime)
	for _, f := range functions {
		t.histogram(f.start, labelsOf(f.key)...)
	}
	t.begin(startPhases)
	for _, f := range functions {
		f.mu.Lock()
		phases := maps.Clone(f.phases)
		f.mu.Unlock()
		for _, name := range slices.Sorted(maps.Keys(phases)) {
			t.histogram(phases[name], labelsOf(f.key, name)...)
		}
	}
	t.words(ends, functions, func(f *functionSeries) *counters { return &f.ends })
	pools := slices.SortedFunc(slices.Values(st.Pools), func(a, b Pool) int {
		return cmp.Or(compareKeys(a.Key, b.Key), a.Version-b.Version)
	})
	t.begin(instances)
	for _, p := range pools {
		for _, state := range slices.Sorted(maps.Keys(p.States)) {
			t.integer(int64(p.States[state]), labelsOf(p.Key, strconv.Itoa(p.Version), state)...)
		}
	}
	t.begin(sandboxes)
	t.integer(int64(st.Sandboxes))
	t.begin(queueLength)
	for _, p := range pools {
		t.integer(int64(p.Queued), labelsOf(p.Key, strconv.Itoa(p.Version))...)
	}
}

func writeState(t *text, st State) {
	t.begin(memoryBudget)
	t.integer(st.MemoryBudget)
	t.begin(memoryUsed)
	t.integer(st.MemoryUsed)
	t.begin(memoryReserved)
	t.integer(st.MemoryReserved)
	t.begin(memoryReservable)
	t.integer(st.MemoryReservable)
	t.begin(active)
	compare := func(a, b function.Environment) int {
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Name, b.Name))
	}
	for _, e := range slices.SortedFunc(maps.Keys(st.Active), compare) {
		t.integer(int64(st.Active[e]), e.Project, e.Name)
	}
	releases := slices.SortedFunc(slices.Values(st.Releases), func(a, b Release) int {
		return cmp.Or(compare(a.Environment, b.Environment), a.Number-b.Number)
	})
	t.begin(traffic)
	for _, rel := range releases {
		t.float(rel.Percent, rel.Project, rel.Name, strconv.Itoa(rel.Number), rel.Status)
	}
	t.begin(inFlight)
	for _, rel := range releases {
		t.integer(rel.InFlight, rel.Project, rel.Name, strconv.Itoa(rel.Number))
	}
	t.begin(roots)
	for _, rel := range releases {
		t.integer(rel.Roots, rel.Project, rel.Name, strconv.Itoa(rel.Number))
	}
	t.begin(rootErrors)
	for _, rel := range releases {
		t.integer(rel.RootErrors, rel.Project, rel.Name, strconv.Itoa(rel.Number))
	}
	t.begin(rootLatency)
	for i := range releases {
		rel := &releases[i]
		t.histogram(fromSnapshot(&rel.Latency), rel.Project, rel.Name, strconv.Itoa(rel.Number))
	}
}

func (r *Registry) writeDeploys(t *text) {
	t.begin(deploys)
	for i, name := range deployNames {
		t.integer(r.deploys[i].Load(), name)
	}
	t.begin(deployTime)
	t.histogram(r.deployTime)
	t.begin(builds)
	for i, name := range buildNames {
		t.integer(r.builds[i].Load(), name)
	}
	t.begin(buildTime)
	t.histogram(r.buildTime)
}

// writeProcess writes what lfxd itself uses.
func (r *Registry) writeProcess(t *text, st State) {
	s := []rt.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	rt.Read(s)
	t.begin(buildInfo)
	t.integer(1, st.Version, runtime.Version())
	for i, f := range []*family{goroutines, heapBytes, gcCycles} {
		t.begin(f)
		t.integer(int64(s[i].Value.Uint64())) //nolint:gosec // far below 2⁶³
	}
	var use unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &use) == nil {
		t.begin(cpuSeconds)
		t.float(time.Duration(use.Utime.Nano() + use.Stime.Nano()).Seconds())
	}
	if pages, ok := residentPages(); ok {
		t.begin(residentSize)
		t.integer(pages * int64(os.Getpagesize()))
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		t.begin(openFiles)
		t.integer(int64(len(fds) - 1)) // one is the folder's
	}
	t.begin(startedAt)
	t.float(float64(r.started.UnixMilli()) / 1000)
}

// residentPages reads the second number of /proc/self/statm.
func residentPages() (int64, bool) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(fields[1]), 10, 64)
	return n, err == nil
}

// text writes the format. The first error of w ends it.
type text struct {
	w   io.Writer
	b   []byte
	f   *family
	err error
}

// flushAt is how many bytes are written at once.
const flushAt = 32 << 10

func (t *text) flush() error {
	if t.err == nil && len(t.b) > 0 {
		_, t.err = t.w.Write(t.b)
	}
	t.b = t.b[:0]
	return t.err
}

// begin starts a family; the samples that follow are its.
func (t *text) begin(f *family) {
	t.f = f
	t.b = fmt.Appendf(t.b, "# HELP %s %s\n# TYPE %s %s\n", f.name, escapeHelp.Replace(f.help), f.name, f.kind)
}

var (
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

func (t *text) integer(v int64, values ...string) {
	t.name("", values, "")
	t.b = strconv.AppendInt(t.b, v, 10)
	t.end()
}

func (t *text) float(v float64, values ...string) {
	t.name("", values, "")
	t.b = strconv.AppendFloat(t.b, v, 'g', -1, 64)
	t.end()
}

// name appends the name of a sample with its labels; le is a histogram's bound.
func (t *text) name(suffix string, values []string, le string) {
	if len(values) != len(t.f.labels) {
		panic(fmt.Sprintf("%s has the labels %v, not %v", t.f.name, t.f.labels, values))
	}
	t.b = append(append(t.b, t.f.name...), suffix...)
	sep := byte('{')
	label := func(name, value string) {
		t.b = append(append(append(t.b, sep), name...), `="`...)
		t.b = append(append(t.b, escapeLabel.Replace(value)...), '"')
		sep = ','
	}
	for i, v := range values {
		label(t.f.labels[i], v)
	}
	if le != "" {
		label("le", le)
	}
	if sep == ',' {
		t.b = append(t.b, '}')
	}
	t.b = append(t.b, ' ')
}

func (t *text) end() {
	t.b = append(t.b, '\n')
	if len(t.b) >= flushAt {
		t.flush() //nolint:errcheck // kept, and returned at the end
	}
}

// histogram writes one histogram. Its count is the sum of the buckets, so that both always agree.
func (t *text) histogram(h *histogram, values ...string) {
	var n int64
	for i := range h.counts {
		n += h.counts[i].Load()
		le := "+Inf"
		if i < len(h.bounds) {
			le = strconv.FormatFloat(h.bounds[i].Seconds(), 'g', -1, 64)
		}
		t.name("_bucket", values, le)
		t.b = strconv.AppendInt(t.b, n, 10)
		t.end()
	}
	t.name("_sum", values, "")
	t.b = strconv.AppendFloat(t.b, time.Duration(h.sum.Load()).Seconds(), 'g', -1, 64)
	t.end()
	t.name("_count", values, "")
	t.b = strconv.AppendInt(t.b, n, 10)
	t.end()
}

// each writes one number for each function.
func (t *text) each(f *family, functions []*functionSeries, n func(*functionSeries) int64) {
	t.begin(f)
	for _, s := range functions {
		t.integer(n(s), labelsOf(s.key)...)
	}
}

// words writes counts by word for each function.
func (t *text) words(f *family, functions []*functionSeries, c func(*functionSeries) *counters) {
	t.begin(f)
	for _, s := range functions {
		cs := c(s)
		cs.mu.Lock()
		n := maps.Clone(cs.n)
		cs.mu.Unlock()
		for _, word := range slices.Sorted(maps.Keys(n)) {
			t.integer(n[word], labelsOf(s.key, word)...)
		}
	}
}
