// Package metrics counts: what functions are asked, how long it takes, and what instances and deploys
// come to. It writes all of it in Prometheus' text format, with the State of the daemon at that moment.
//
// The counters are our own and not a client library's, because of the warm path: an invocation finds its
// series by the pointer of its version, adds to a few atomic integers and is done; there is neither a
// lock that functions share, nor a hash over label values, nor an allocation. The library's vectors
// need one of the first two for each call. What is left is the text format, in write.go.
//
// Labels are bounded: they name functions, versions and releases that the store knows, and words of our
// own. Prune drops the series of those that are gone. docs/metrics.md lists every family; a test holds
// it together with families.go.
package metrics

import (
	"sync"
	"sync/atomic"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// Registry holds the counters. The zero value is not ready: use New. All methods may be called from
// any goroutine.
type Registry struct {
	started time.Time

	// versions finds the series of a version by its pointer, which its pool keeps; several pointers
	// may mean one version.
	versions sync.Map // *function.Version → *versionSeries

	// mu guards the making and the removal of series, not the counting.
	mu        sync.Mutex
	byNumber  map[versionKey]*versionSeries
	functions map[function.Key]*functionSeries

	unresolved sync.Map // code of a refusal → *atomic.Int64
	deploys    [deployResults]atomic.Int64
	deployTime *histogram
	builds     [buildResults]atomic.Int64
	buildTime  *histogram
}

type versionKey struct {
	function.Key
	number int
}

// versionSeries counts for one version.
type versionSeries struct {
	versionKey
	function *functionSeries
	releases atomic.Pointer[[]*releaseSeries] // few; copied under Registry.mu when one is added
}

// releaseSeries counts for one version as part of one release.
type releaseSeries struct {
	number   int
	results  [invocation.Results]atomic.Int64
	duration *histogram
}

// functionSeries counts for one function, across its versions.
type functionSeries struct {
	key function.Key

	added, wait                 *histogram
	cold                        atomic.Int64
	requestBytes, responseBytes atomic.Int64
	throttles                   counters

	starts, startFails atomic.Int64
	start              *histogram
	ends               counters

	mu     sync.Mutex
	phases map[string]*histogram
}

// counters are counts by one of a few words of our own.
type counters struct {
	mu sync.Mutex
	n  map[string]int64
}

func (c *counters) add(word string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int64{}
	}
	c.n[word]++
}

// DeployResult says what a deploy came to.
type DeployResult uint8

// Results of a deploy.
const (
	DeployReleased  DeployResult = iota // a release was recorded, and activated unless it was not to be
	DeployUnchanged                     // nothing differed
	DeployPlanned                       // only a plan was asked for
	DeployFailed
	DeployCancelled
	deployResults
)

var deployNames = [deployResults]string{"released", "unchanged", "planned", "failed", "cancelled"}

// BuildResult says what a build came to.
type BuildResult uint8

// Results of a build.
const (
	BuildOK BuildResult = iota
	BuildFailed
	BuildCancelled
	buildResults
)

var buildNames = [buildResults]string{"ok", "failed", "cancelled"}

// New makes a registry.
func New() *Registry {
	return &Registry{
		started: time.Now(), byNumber: map[versionKey]*versionSeries{}, functions: map[function.Key]*functionSeries{},
		deployTime: newHistogram(deployBuckets), buildTime: newHistogram(deployBuckets),
	}
}

var _ invocation.Observer = (*Registry)(nil)

// Observe implements invocation.Observer.
func (r *Registry) Observe(c invocation.Call) {
	if c.Version == nil {
		r.refused(c.ErrorType)
		return
	}
	v := r.version(c.Version)
	rel := v.release(r, c.Release)
	rel.results[c.Result].Add(1)
	f := v.function
	f.requestBytes.Add(int64(c.Trace.RequestBytes))
	f.responseBytes.Add(int64(c.Trace.ResponseBytes))
	if c.Result == invocation.Throttled {
		f.throttles.add(c.Reason)
	}
	if !c.Trace.Queued.IsZero() {
		f.wait.observe(c.Queue())
	}
	if c.Ran() {
		took := c.FunctionTime()
		rel.duration.observe(took)
		f.added.observe(max(c.Total()-took, 0))
	}
	if c.Trace.Cold {
		f.cold.Add(1)
	}
}

// refused counts a call that came to no version. Codes are those of the gateway's table.
func (r *Registry) refused(code string) {
	n, ok := r.unresolved.Load(code)
	if !ok {
		n, _ = r.unresolved.LoadOrStore(code, new(atomic.Int64))
	}
	n.(*atomic.Int64).Add(1)
}

// Started, StartFailed and Ended count what becomes of instances; they are those of pool.Observer.
func (r *Registry) Started(v *function.Version, took time.Duration, phases map[string]time.Duration) {
	f := r.version(v).function
	f.starts.Add(1)
	f.start.observe(took)
	for name, d := range phases {
		f.phase(name).observe(d)
	}
}

// StartFailed counts a start that gave no instance.
func (r *Registry) StartFailed(v *function.Version) { r.version(v).function.startFails.Add(1) }

// Ended counts an instance that takes no more work.
func (r *Registry) Ended(v *function.Version, reason string) { r.version(v).function.ends.add(reason) }

// Deployed counts a deploy or a rollback that took so long.
func (r *Registry) Deployed(result DeployResult, took time.Duration) {
	r.deploys[result].Add(1)
	r.deployTime.observe(took)
}

// Built counts the build of one function that took so long.
func (r *Registry) Built(result BuildResult, took time.Duration) {
	r.builds[result].Add(1)
	r.buildTime.observe(took)
}

// version finds the series of a version, made when missing.
func (r *Registry) version(v *function.Version) *versionSeries {
	if s, ok := r.versions.Load(v); ok {
		return s.(*versionSeries)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k := versionKey{v.Key, v.Number}
	s := r.byNumber[k]
	if s == nil {
		f := r.functions[v.Key]
		if f == nil {
			f = &functionSeries{
				key: v.Key, added: newHistogram(fineBuckets), wait: newHistogram(fineBuckets), start: newHistogram(fineBuckets),
				phases: map[string]*histogram{},
			}
			r.functions[v.Key] = f
		}
		s = &versionSeries{versionKey: k, function: f}
		s.releases.Store(&[]*releaseSeries{})
		r.byNumber[k] = s
	}
	r.versions.Store(v, s)
	return s
}

// release finds the counters of a version within a release, made when missing.
func (s *versionSeries) release(r *Registry, number int) *releaseSeries {
	if rel := s.find(number); rel != nil {
		return rel
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rel := s.find(number); rel != nil {
		return rel
	}
	rel := &releaseSeries{number: number, duration: newHistogram(coarseBuckets)}
	old := *s.releases.Load()
	next := append(old[:len(old):len(old)], rel)
	s.releases.Store(&next)
	return rel
}

func (s *versionSeries) find(number int) *releaseSeries {
	for _, rel := range *s.releases.Load() {
		if rel.number == number {
			return rel
		}
	}
	return nil
}

func (f *functionSeries) phase(name string) *histogram {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.phases[name]
	if h == nil {
		h = newHistogram(fineBuckets)
		f.phases[name] = h
	}
	return h
}

// Prune drops the series of versions and releases that are gone: version and release say which are
// there. A call that ends later may bring one back; the next Prune drops it again.
func (r *Registry) Prune(version func(k function.Key, number int) bool, release func(e function.Environment, number int) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := map[function.Key]bool{}
	for k, s := range r.byNumber {
		if !version(k.Key, k.number) {
			delete(r.byNumber, k)
			continue
		}
		kept[k.Key] = true
		var next []*releaseSeries
		for _, rel := range *s.releases.Load() {
			if release(k.Environment, rel.number) {
				next = append(next, rel)
			}
		}
		s.releases.Store(&next)
	}
	for k := range r.functions {
		if !kept[k] {
			delete(r.functions, k)
		}
	}
	r.versions.Range(func(v, s any) bool {
		if r.byNumber[s.(*versionSeries).versionKey] != s {
			r.versions.Delete(v)
		}
		return true
	})
}
