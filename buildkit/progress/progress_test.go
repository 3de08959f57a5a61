package progress

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	bkclient "github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
)

func TestDisplay(t *testing.T) {
	ch := make(chan *bkclient.SolveStatus, 1)
	now := time.Now()
	ch <- &bkclient.SolveStatus{Vertexes: []*bkclient.Vertex{{Digest: digest.FromString("x"), Name: "[hello 1/2] RUN x", Started: &now, Completed: &now}}}
	close(ch)
	var out bytes.Buffer
	if err := Display(context.Background(), &out, Auto, ch); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "[hello 1/2] RUN x") {
		t.Errorf("shown: %q", out.String())
	}
}

func TestDisplayEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("interrupted")
	cancel(cause)
	if err := Display(ctx, &bytes.Buffer{}, Plain, make(chan *bkclient.SolveStatus)); err != nil && !errors.Is(err, cause) {
		t.Errorf("Display = %v", err)
	}
	if err := Display(context.Background(), &bytes.Buffer{}, "nonsense", nil); err == nil {
		t.Error("a mode that does not exist was accepted")
	}
	if err := Display(context.Background(), &bytes.Buffer{}, TTY, nil); err == nil {
		t.Error("a buffer passed for a terminal")
	}
}
