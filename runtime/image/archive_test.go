package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestTally(t *testing.T) {
	dir := tar.Header{Name: "d/", Typeflag: tar.TypeDir}
	file := func(size int64) tar.Header { return tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: size} }
	limits := Limits{Bytes: 3 << 30, Entries: 3}
	for _, c := range []struct {
		name     string
		archives [][]tar.Header
		want     string // "" when it fits
	}{
		{"nothing", [][]tar.Header{{}}, ""},
		{"as many as may be", [][]tar.Header{{dir, dir, file(0)}}, ""},
		{"one too many", [][]tar.Header{{dir, dir, dir, dir}}, "more than 3 files"},
		{"one too many in two layers", [][]tar.Header{{dir, dir}, {dir, dir}}, "more than 3 files"},
		{"as large as may be", [][]tar.Header{{file(1)}, {file(2)}}, ""},
		{"promised, not there", [][]tar.Header{{file(3<<30 + 1)}}, "larger than 3 GiB"},
		{"too large together", [][]tar.Header{{file(1)}, {file(3 << 30)}}, "larger than 3 GiB"},
		{"more than a number holds", [][]tar.Header{{file(1)}, {file(1<<63 - 1)}}, "larger than 3 GiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sum := tally{limits: limits}
			var err error
			for _, headers := range c.archives {
				if err == nil {
					err = sum.read(context.Background(), archiveOf(t, headers))
				}
			}
			var over overError
			if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &over) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	t.Run("no archive", func(t *testing.T) {
		if err := (&tally{limits: limits}).read(context.Background(), strings.NewReader(strings.Repeat("rubbish", 200))); err == nil {
			t.Error("rubbish was counted")
		}
	})
	t.Run("cut", func(t *testing.T) {
		if err := (&tally{limits: limits}).read(context.Background(), io.LimitReader(archiveOf(t, []tar.Header{file(4)}), 513)); err == nil {
			t.Error("half an archive was counted")
		}
	})
	t.Run("no limit", func(t *testing.T) {
		if err := (&tally{limits: Limits{Bytes: 1}}).read(context.Background(), archiveOf(t, []tar.Header{dir, dir, dir, dir, dir})); err != nil {
			t.Error(err)
		}
	})
}

// archiveOf is an archive of members that are as long as they say while that is short; else nothing comes after
// the header.
func archiveOf(t *testing.T, headers []tar.Header) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 1<<20 {
			return &out
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}
