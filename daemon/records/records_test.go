package records

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/invocation"
)

var hello = &function.Version{
	Key: function.Key{Environment: function.Environment{Project: "shop", Name: "default"}, Function: "hello"}, Number: 3,
}

func TestARecordTellsTheStory(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	id, parent := uuid.NewString(), uuid.NewString()
	s := New(10)
	s.Observe(invocation.Call{
		ID: id, Parent: parent, Function: hello.Key, Version: hello, Release: 7, Qualifier: "prod", Result: invocation.TimedOut, Status: 200,
		ErrorType: "Sandbox.Timedout", Detail: "d", Ended: begin.Add(9 * time.Second),
		Trace: invocation.Trace{
			Accepted: begin, Queued: begin.Add(time.Second), Granted: begin.Add(3 * time.Second), Delivered: begin.Add(3 * time.Second),
			Answered: begin.Add(8 * time.Second), Instance: "lfx-1", Cold: true, RequestBytes: 5, ResponseBytes: 6,
			Phases: map[string]time.Duration{"network": 1500 * time.Microsecond, "init": time.Second},
		},
	})
	want := &api.Record{
		RequestID: id, Parent: parent, Key: hello.Key, Qualifier: "prod", Version: 3, Release: 7, Instance: "lfx-1", Accepted: begin,
		Queue: 2 * time.Second, Function: 5 * time.Second, Total: 9 * time.Second, Cold: true,
		Phases:  map[string]int64{"network": 1500, "init": 1_000_000},
		Outcome: "timeout", Status: 200, ErrorType: "Sandbox.Timedout", Detail: "d", RequestBytes: 5, ResponseBytes: 6,
	}
	if diff := cmp.Diff(want, s.Get(id)); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if got := s.Get(strings.ToUpper(id)); got == nil || got.RequestID != id {
		t.Errorf("an id in capitals: %+v", got)
	}
	for _, other := range []string{parent, "", "x", id + "0"} {
		if got := s.Get(other); got != nil {
			t.Errorf("Get(%q) = %+v", other, got)
		}
	}
}

func TestRefusedCallsHaveARecord(t *testing.T) {
	s, id := New(10), uuid.NewString()
	long := strings.Repeat("ü", 1000)
	s.Observe(invocation.Call{
		ID: id, Function: function.Key{Function: long}, Qualifier: long, Result: invocation.Refused, Status: 404, ErrorType: long, Detail: long,
	})
	got := s.Get(id)
	if got == nil || got.Outcome != "refused" || got.Version != 0 || got.Parent != "" || got.Phases != nil {
		t.Fatalf("got %+v", got)
	}
	for what, text := range map[string]struct {
		got string
		n   int
	}{
		"name": {got.Key.Function, maxName}, "qualifier": {got.Qualifier, maxName}, "error type": {got.ErrorType, maxName}, "detail": {got.Detail, maxDetail},
	} {
		if want := long[:text.n]; text.got != want {
			t.Errorf("%s: %d bytes, want %d: %q", what, len(text.got), len(want), text.got)
		}
	}
	if cut := keep("aüü", 2); cut != "a" {
		t.Errorf("half a character is kept: %q", cut)
	}
}

// Text of others is copied: their buffers are used again.
func TestTextIsCopied(t *testing.T) {
	buffer := []byte("mutable mutable")
	text := unsafe.String(&buffer[0], len(buffer))
	s, id := New(10), uuid.NewString()
	s.Observe(invocation.Call{ID: id, Function: function.Key{Function: text}, Qualifier: text, ErrorType: text, Detail: text})
	copy(buffer, "ruined!")
	got := s.Get(id)
	for _, kept := range []string{got.Key.Function, got.Qualifier, got.ErrorType, got.Detail} {
		if kept != "mutable mutable" {
			t.Errorf("kept %q", kept)
		}
	}
}

// TestAgainstAModel compares every lookup with a plain list for each shard, of the newest that fit.
func TestAgainstAModel(t *testing.T) {
	for _, size := range []int{0, 1, 2, 3, 7, 255, 512, 513, 3000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := New(size)
			room := 0
			for i := range s.shards {
				room += len(s.shards[i].ring)
			}
			if room != size {
				t.Fatalf("room for %d records, want %d", room, size)
			}
			kept := make([][]uuid.UUID, len(s.shards)) // by shard, oldest first
			rng := rand.New(rand.NewPCG(1, uint64(size)))
			var all []uuid.UUID
			for range 2*size + 50 {
				var id uuid.UUID
				binary.LittleEndian.PutUint64(id[:], rng.Uint64()&0xff07) // few different heads: long chains
				binary.LittleEndian.PutUint64(id[8:], rng.Uint64())
				s.Observe(invocation.Call{ID: id.String(), Version: hello, Release: int(id[8])})
				all = append(all, id)
				n := int(id[15]) & (len(s.shards) - 1)
				kept[n] = append(kept[n], id)
				if most := len(s.shards[n].ring); len(kept[n]) > most {
					kept[n] = kept[n][1:]
				}
			}
			want := map[uuid.UUID]bool{}
			for _, ids := range kept {
				for _, id := range ids {
					want[id] = true
				}
			}
			for _, id := range all {
				got := s.Get(id.String())
				if (got != nil) != want[id] {
					t.Fatalf("record of %s there: %t, want %t", id, got != nil, want[id])
				}
				if got != nil && (got.RequestID != id.String() || got.Release != int(id[8])) {
					t.Fatalf("the record of %s is %+v", id, got)
				}
			}
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	s := New(4096)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 400 {
				id := uuid.NewString()
				s.Observe(invocation.Call{ID: id, Version: hello, Release: i + 1, Result: invocation.Result(w)})
				if got := s.Get(id); got == nil || got.Release != i+1 || got.Outcome != invocation.Result(w).String() {
					t.Errorf("%s: %+v", id, got)
				}
			}
		})
	}
	wg.Wait()
}

func TestAnOrdinaryCallAllocatesNothing(t *testing.T) {
	s := New(1000)
	c := ordinary()
	if n := testing.AllocsPerRun(100, func() { s.Observe(c) }); n != 0 {
		t.Errorf("%v allocations for one record", n)
	}
}

// The configuration's documentation says how much memory a record takes.
func TestSizeOfARecord(t *testing.T) {
	if n := unsafe.Sizeof(entry{}) + 2*unsafe.Sizeof(int32(0)); n > 300 {
		t.Errorf("a record takes %d bytes, more than the 300 of the documentation", n)
	}
}

func ordinary() invocation.Call {
	begin := time.Now()
	return invocation.Call{
		ID: uuid.NewString(), Parent: uuid.NewString(), Function: hello.Key, Version: hello, Release: 1, Status: 200, Ended: begin.Add(2 * time.Millisecond),
		Trace: invocation.Trace{Accepted: begin, Delivered: begin, Answered: begin.Add(time.Millisecond), Instance: "lfx-0123456789abcdef", RequestBytes: 2, ResponseBytes: 2},
	}
}

func BenchmarkObserve(b *testing.B) {
	s := New(20_000)
	calls := make([]invocation.Call, 1<<15) // more than fit, so that all are different
	for i := range calls {
		calls[i] = ordinary()
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		s.Observe(calls[i&(1<<15-1)])
	}
}
