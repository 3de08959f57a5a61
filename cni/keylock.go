package cni

import (
	"context"
	"sync"
)

// keyLock is one lock per id. The zero value is ready.
type keyLock struct {
	mu   sync.Mutex // guards held
	held map[string]*keyEntry
}

type keyEntry struct {
	turn chan struct{} // holds one token: who has it has the lock
	refs int
}

// lock waits for the id's lock until ctx ends and returns its unlock.
func (k *keyLock) lock(ctx context.Context, id string) (unlock func(), err error) {
	e := k.enter(id)
	select {
	case e.turn <- struct{}{}:
		return func() { <-e.turn; k.leave(id, e) }, nil
	case <-ctx.Done():
		k.leave(id, e)
		return nil, context.Cause(ctx)
	}
}

func (k *keyLock) enter(id string) *keyEntry {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held == nil {
		k.held = map[string]*keyEntry{}
	}
	e, ok := k.held[id]
	if !ok {
		e = &keyEntry{turn: make(chan struct{}, 1)}
		k.held[id] = e
	}
	e.refs++
	return e
}

func (k *keyLock) leave(id string, e *keyEntry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.refs--; e.refs == 0 {
		delete(k.held, id)
	}
}
