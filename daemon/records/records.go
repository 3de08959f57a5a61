// Package records remembers the newest calls of Invoke, one record each, so that the whole story of a
// request can be told by its id.
//
// Records are kept in memory, nothing of them on disk. Their number is bounded, and so is the size of
// each: the memory is taken once. They are spread over shards by their id, each with its lock, its
// ring and its index, so that calls that end at the same moment do not wait for one another.
// Writing one allocates nothing for an ordinary call; text of clients and functions is copied and cut.
package records

import (
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

// Bounds on text in a record, in bytes.
const (
	maxName   = 256 // names, qualifiers and classes of errors
	maxDetail = 512
)

// perShard is how many records make a further shard worth it; maxShards bounds them.
const (
	perShard  = 256
	maxShards = 64
)

// Store holds the records. All methods may be called from any goroutine.
type Store struct {
	shards []shard // their number is a power of two
}

// shard is a ring of entries with a hash table over them: heads[hash] is the newest entry of a chain.
// Places are numbered from 1, so that 0 ends a chain.
type shard struct {
	mu    sync.Mutex
	ring  []entry
	heads []int32 // their number is a power of two
	next  int     // where the next record goes
	_     [64]byte
}

// entry is one record. Ids are kept as 16 bytes, because their text may be somebody's buffer.
type entry struct {
	id, parent              uuid.UUID
	key                     function.Key
	qualifier, instance     string
	errorType, detail       string
	phases                  map[string]time.Duration
	accepted                int64 // Unix nanoseconds
	queue, took, total      time.Duration
	version, release, chain int32
	requestBytes            int32
	responseBytes           int32
	status                  int16
	result                  invocation.Result
	cold, used              bool
}

var _ invocation.Observer = (*Store)(nil)

// New makes a store of the newest n records; of none when n is 0.
func New(n int) *Store {
	shards := 1
	for shards < maxShards && n/(2*shards) >= perShard {
		shards *= 2
	}
	s := &Store{shards: make([]shard, shards)}
	for i := range s.shards {
		size := n / shards
		if i < n%shards {
			size++
		}
		heads := 1
		for heads < size {
			heads *= 2
		}
		s.shards[i].ring, s.shards[i].heads = make([]entry, size), make([]int32, heads)
	}
	return s
}

// shard and hash use different bytes of the id, which is random.
func (s *Store) shard(id uuid.UUID) *shard { return &s.shards[int(id[15])&(len(s.shards)-1)] }

func (sh *shard) head(id uuid.UUID) *int32 {
	h := uint32(id[0]) | uint32(id[1])<<8 | uint32(id[2])<<16 | uint32(id[3])<<24
	return &sh.heads[h&uint32(len(sh.heads)-1)] //nolint:gosec // bounded by the configuration
}

// Observe implements invocation.Observer. A call whose id is no UUID is not recorded: nobody but the
// gateway makes ids.
func (s *Store) Observe(c invocation.Call) {
	id, err := uuid.Parse(c.ID)
	if err != nil {
		return
	}
	sh := s.shard(id)
	if len(sh.ring) == 0 {
		return
	}
	e := entry{
		id: id, key: c.Function, qualifier: keep(c.Qualifier, maxName), instance: c.Trace.Instance,
		errorType: keep(c.ErrorType, maxName), detail: keep(c.Detail, maxDetail), phases: c.Trace.Phases,
		accepted: c.Trace.Accepted.UnixNano(), queue: c.Queue(), took: c.FunctionTime(), total: c.Total(),
		release: int32(c.Release), requestBytes: int32(c.Trace.RequestBytes), responseBytes: int32(c.Trace.ResponseBytes), //nolint:gosec // bounded
		status: int16(c.Status), result: c.Result, cold: c.Trace.Cold, used: true, //nolint:gosec // three digits
	}
	if c.Parent != "" {
		e.parent, _ = uuid.Parse(c.Parent)
	}
	if c.Version != nil {
		e.key, e.version = c.Version.Key, int32(c.Version.Number) //nolint:gosec // counts versions
	} else {
		e.key = function.Key{
			Environment: function.Environment{Project: keep(e.key.Project, maxName), Name: keep(e.key.Name, maxName)},
			Function:    keep(e.key.Function, maxName),
		}
	}
	sh.put(&e)
}

// keep copies at most n bytes of a text, whole characters.
func keep(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return strings.Clone(s)
}

func (sh *shard) put(e *entry) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	at := &sh.ring[sh.next]
	place := int32(sh.next + 1) //nolint:gosec // bounded by the configuration
	if at.used {
		p := sh.head(at.id)
		for *p != place {
			p = &sh.ring[*p-1].chain
		}
		*p = at.chain
	}
	h := sh.head(e.id)
	e.chain = *h
	*at, *h = *e, place
	sh.next = (sh.next + 1) % len(sh.ring)
}

// Get returns the record of a request, or nil when there is none: the request has not ended yet, or its record gave
// way to newer ones, or lfxd was started after it.
func (s *Store) Get(requestID string) *api.Record {
	id, err := uuid.Parse(requestID)
	if err != nil {
		return nil
	}
	e, ok := s.shard(id).get(id)
	if !ok {
		return nil
	}
	rec := &api.Record{
		RequestID: id.String(), Key: e.key, Qualifier: e.qualifier, Version: int(e.version), Release: int(e.release),
		Instance: e.instance, Accepted: time.Unix(0, e.accepted).UTC(), Queue: e.queue, Function: e.took, Total: e.total,
		Cold: e.cold, Outcome: e.result.String(), Status: int(e.status), ErrorType: e.errorType, Detail: e.detail,
		RequestBytes: int(e.requestBytes), ResponseBytes: int(e.responseBytes),
	}
	if e.parent != uuid.Nil {
		rec.Parent = e.parent.String()
	}
	if e.cold && len(e.phases) > 0 {
		rec.Phases = make(map[string]int64, len(e.phases))
		for name, d := range e.phases {
			rec.Phases[name] = d.Microseconds()
		}
	}
	return rec
}

func (sh *shard) get(id uuid.UUID) (entry, bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for place := *sh.head(id); place != 0; place = sh.ring[place-1].chain {
		if e := &sh.ring[place-1]; e.id == id {
			return *e, true
		}
	}
	return entry{}, false
}
