package instance

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// State is where an instance is in its life; doc.go has the diagram.
type State uint8

// The states, in order.
const (
	Creating State = iota + 1
	Created
	Started
	Exited
	Removed
)

// String returns the state's name as used in records and logs.
func (s State) String() string {
	switch s {
	case Creating:
		return "creating"
	case Created:
		return "created"
	case Started:
		return "started"
	case Exited:
		return "exited"
	case Removed:
		return "removed"
	}
	return "invalid"
}

// to returns next if an instance may go there from s, else an error of class ErrFailedPrecondition.
func (s State) to(next State) (State, error) {
	ok := false
	switch s {
	case Creating:
		ok = next == Created || next == Exited || next == Removed
	case Created:
		ok = next == Started || next == Exited
	case Started:
		ok = next == Exited
	case Exited:
		ok = next == Removed
	}
	if !ok {
		return s, fmt.Errorf("an instance that is %s cannot become %s: %w", s, next, errdefs.ErrFailedPrecondition)
	}
	return next, nil
}
