package store

import (
	"errors"
	"log/slog"
	"testing"

	"lfx.dev/lfxd/daemon/function"
)

func TestFailedSyncIsFatal(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	eio := errors.New("input/output error")
	s.side.sync = func() error { return eio }
	n := NewRelease{Environment: function.Environment{Project: "p", Name: "default"}, Functions: []NewFunction{{Name: "a", Identity: "1"}}}
	if _, err := s.RecordRelease(t.Context(), n); !errors.Is(err, ErrFatal) || !errors.Is(err, eio) {
		t.Fatalf("err = %v, want ErrFatal", err)
	}
	select {
	case <-s.Fatal():
	default:
		t.Error("Fatal is not closed")
	}
	if len(s.View().Environments()) != 0 {
		t.Error("a write that was not acknowledged is visible")
	}
	s.side.sync = s.side.f.Sync
	if err := s.BeginDeploy(t.Context(), Deploy{ID: "d", Environment: n.Environment}); !errors.Is(err, ErrFatal) {
		t.Errorf("the next write: %v, want ErrFatal", err)
	}
}

func TestFailureBeforeCommitChangesNothing(t *testing.T) {
	s, err := Open(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	boom := errors.New("boom")
	s.afterSeal = func() error { return boom }
	n := NewRelease{Environment: function.Environment{Project: "p", Name: "default"}, Functions: []NewFunction{{Name: "a", Identity: "1"}}}
	if _, err := s.RecordRelease(t.Context(), n); !errors.Is(err, boom) {
		t.Fatalf("err = %v", err)
	}
	s.afterSeal = nil
	r, err := s.RecordRelease(t.Context(), n)
	if err != nil || r.Release.Number != 1 || r.Versions[0].Number != 1 {
		t.Errorf("the next release = %+v, %v", r.Release, err)
	}
}

func TestAccountsAreUnique(t *testing.T) {
	env := function.Environment{Project: "shop", Name: "default"}
	s := &Snapshot{all: map[function.Environment]*Environment{
		{Project: "x", Name: "y"}: {Account: account(env, 0)},
	}}
	if got := s.newAccount(env); got != account(env, 1) || len(got) != 12 || got[0] == '0' {
		t.Errorf("account = %s, want the second candidate %s", got, account(env, 1))
	}
}

func FuzzDecodeMark(f *testing.F) {
	f.Add(mark{"n", 7}.encode())
	f.Add([]byte("lfx-revision a 1 00000000\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, ok := decodeMark(data)
		if !ok {
			return
		}
		if again, ok := decodeMark(m.encode()); !ok || again != m {
			t.Errorf("%+v reads back as %+v", m, again)
		}
	})
}

func TestNewerSchemaIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.conn.exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler)); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("err = %v, want one about a newer lfxd", err)
	}
}
