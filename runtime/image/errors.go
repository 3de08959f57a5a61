package image

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// Error is an image that cannot be used. Message is what AWS Lambda says in that case; its class
// is not found, permission denied or invalid argument.
type Error struct {
	// Message is the sentence that clients of the Lambda API get.
	Message string
	// Detail says what exactly is wrong; may be empty.
	Detail string

	class error
	cause error
}

// Error returns the message and the detail.
func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Message
	}
	return e.Message + " " + e.Detail
}

// Unwrap returns the class and the cause.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.class}
	}
	return []error{e.class, e.cause}
}

func missing(ref string, cause error) error {
	return &Error{
		Message: fmt.Sprintf("Source image %s does not exist. Provide a valid source image.", ref),
		class:   errdefs.ErrNotFound, cause: cause,
	}
}

func denied(ref string, cause error) error {
	return &Error{
		Message: "Lambda does not have permission to access the ECR image. Check the ECR permissions.",
		Detail:  fmt.Sprintf("The registry refuses %s: log in with docker login or nerdctl login as the user that the daemon runs as.", ref),
		class:   errdefs.ErrPermissionDenied, cause: cause,
	}
}

func unsupported(ref, format string, args ...any) error {
	return &Error{
		Message: fmt.Sprintf("The image manifest, config or layer media type for the source image %s is not supported.", ref),
		Detail:  fmt.Sprintf(format, args...),
		class:   errdefs.ErrInvalidArgument,
	}
}

// remoteError gives a registry's answer its class.
func remoteError(ref string, err error) error {
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	var status remoteerrors.ErrUnexpectedStatus
	refused := errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden)
	switch {
	case refused, errors.Is(err, docker.ErrInvalidAuthorization), errdefs.IsPermissionDenied(err), errdefs.IsUnauthorized(err):
		return denied(ref, err)
	case errdefs.IsNotFound(err):
		return missing(ref, err)
	}
	return fmt.Errorf("pull %s: %w", ref, err)
}
