package instance

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// Each instance has a range of rangeSize host uids (and gids) that no other instance of the host has.
const (
	rangeSize = 65536
	// defaultUIDBase and defaultUIDRanges lie in the part of the uid space that systemd's
	// UIDS-GIDS document leaves unused: 1879048192 to 2147352575.
	defaultUIDBase   = 0x70000000
	defaultUIDRanges = 4094
)

// uidRanges hands out ranges. They are used in turn, so that a range rests as long as possible
// after its instance is gone.
type uidRanges struct {
	base  uint32
	count uint32

	mu   sync.Mutex // guards what follows
	used map[uint32]string
	next uint32
}

func newUIDRanges(base, count uint32) *uidRanges {
	return &uidRanges{base: base, count: count, used: map[uint32]string{}}
}

// take returns the first host uid of a free range.
func (u *uidRanges) take(id string) (uint32, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for range u.count {
		n := u.next
		u.next = (u.next + 1) % u.count
		if _, ok := u.used[n]; !ok {
			u.used[n] = id
			return u.base + n*rangeSize, nil
		}
	}
	return 0, fmt.Errorf("all %d uid ranges are in use: %w", u.count, errdefs.ErrResourceExhausted)
}

// claim marks the range of a recorded instance as used. A first uid that is not ours is ignored: the configuration
// has changed since.
func (u *uidRanges) claim(first uint32, id string) {
	n, ok := u.index(first)
	if !ok {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.used[n] = id
}

// release frees the range if id has it.
func (u *uidRanges) release(first uint32, id string) {
	n, ok := u.index(first)
	if !ok {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.used[n] == id {
		delete(u.used, n)
	}
}

func (u *uidRanges) index(first uint32) (uint32, bool) {
	if first < u.base || (first-u.base)%rangeSize != 0 {
		return 0, false
	}
	n := (first - u.base) / rangeSize
	return n, n < u.count
}
