package gateway

import (
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// slowBody gives one piece at each interval, and honours the read deadline as a connection does.
type slowBody struct {
	every    time.Duration
	piece    int
	left     int
	deadline time.Time
}

func (s *slowBody) Read(b []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	if wait := time.Until(s.deadline); !s.deadline.IsZero() && wait < s.every {
		time.Sleep(wait)
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(s.every)
	n := min(s.piece, s.left, len(b))
	s.left -= n
	return n, nil
}

func (s *slowBody) SetReadDeadline(t time.Time) error { s.deadline = t; return nil }

func TestPaceOfABody(t *testing.T) {
	for name, tt := range map[string]struct {
		body slowBody
		want error
		took time.Duration
	}{
		"fast":                       {slowBody{every: time.Millisecond, piece: 1 << 10, left: 1 << 20}, nil, 1024 * time.Millisecond},
		"slow but above the rate":    {slowBody{every: 9 * time.Second, piece: 10 << 10, left: 100 << 10}, nil, 90 * time.Second},
		"silent":                     {slowBody{every: 11 * time.Second, piece: 1 << 20, left: 1 << 20}, os.ErrDeadlineExceeded, 10 * time.Second},
		"one byte every nine second": {slowBody{every: 9 * time.Second, piece: 1, left: 1000}, errTooSlow, 36 * time.Second},
		"slow but over in the grace": {slowBody{every: 9 * time.Second, piece: 1, left: 3}, nil, 27 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				_, err := io.ReadFull(&pacedReader{body: &tt.body}, make([]byte, tt.body.left))
				if !errors.Is(err, tt.want) {
					t.Errorf("err = %v, want %v", err, tt.want)
				}
				if took := time.Since(start); took != tt.took {
					t.Errorf("it took %s, want %s", took, tt.took)
				}
				if !tt.body.deadline.IsZero() && err == nil {
					t.Error("a deadline was left on the connection")
				}
			})
		})
	}
}
