package image

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// Lease keeps the images with those names, as they are now and with their snapshots, until Unlease:
// also when the names go or point elsewhere. A lease that exists gets them in addition; its labels
// stay as they are. Labels must be dev.lfx.*.
//
// When it fails, a lease that it made is gone again.
func (s *Store) Lease(ctx context.Context, id string, labels map[string]string, names ...string) (err error) {
	if err := checkLabels(labels); err != nil {
		return err
	}
	lease, err := s.leases.Create(ctx, leases.WithID(id), leases.WithLabels(labels))
	switch {
	case errdefs.IsAlreadyExists(err):
		lease = leases.Lease{ID: id}
	case err != nil:
		return fmt.Errorf("make lease %s: %w", id, err)
	default:
		defer func() {
			if err != nil {
				undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoFor)
				defer cancel()
				_ = s.Unlease(undo, id)
			}
		}()
	}
	for _, name := range names {
		if err := s.addToLease(ctx, lease, name); err != nil {
			return fmt.Errorf("keep image %s by lease %s: %w", name, id, err)
		}
	}
	return nil
}

// addToLease ties a manifest to the lease; its labels lead to everything else.
func (s *Store) addToLease(ctx context.Context, lease leases.Lease, name string) error {
	img, err := s.images.Get(ctx, name)
	if err != nil {
		return err
	}
	return s.leases.AddResource(ctx, lease, leases.Resource{ID: img.Target.Digest.String(), Type: "content"})
}

// Unlease ends a lease. One that is not there is no error.
func (s *Store) Unlease(ctx context.Context, id string) error {
	if err := s.leases.Delete(ctx, leases.Lease{ID: id}); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("end lease %s: %w", id, err)
	}
	return nil
}

// Leases returns the labels of the leases that carry all those labels, by id. Call it with at least
// one label: other parts of the engine hold leases in the same namespace.
func (s *Store) Leases(ctx context.Context, labels map[string]string) (map[string]map[string]string, error) {
	if len(labels) == 0 {
		return nil, fmt.Errorf("leases are listed by label: %w", errdefs.ErrInvalidArgument)
	}
	all, err := s.leases.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	out := map[string]map[string]string{}
	for _, l := range all {
		if carries(l.Labels, labels) {
			out[l.ID] = ours(l.Labels)
		}
	}
	return out, nil
}
