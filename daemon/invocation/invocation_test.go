package invocation

import (
	"errors"
	"fmt"
	"testing"
)

func TestErrorsAreFoundThroughOthers(t *testing.T) {
	cause := errors.New("containerd is not answering")
	err := fmt.Errorf("shop/hello: %w", &UnavailableError{Err: cause})
	var unavailable *UnavailableError
	if !errors.As(err, &unavailable) || !errors.Is(err, cause) || unavailable.Error() != cause.Error() {
		t.Errorf("got %v", err)
	}
	var throttled *ThrottledError
	err = fmt.Errorf("shop/hello: %w", &ThrottledError{Reason: "ConcurrentInvocationLimitExceeded", Detail: "the queue is full"})
	if !errors.As(err, &throttled) || throttled.Error() != "throttled (ConcurrentInvocationLimitExceeded): the queue is full" {
		t.Errorf("got %v", err)
	}
}
