package store

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Errors that a caller acts on. Everything else carries a class of containerd/errdefs:
// ErrInvalidArgument, ErrNotFound, ErrConflict (another deploy runs, a port is taken) and
// ErrFailedPrecondition (the release's state does not allow it).
var (
	// ErrLocked says that another daemon uses the state; lfxd exits with status 75.
	ErrLocked = errors.New("the state is in use by another lfxd")
	// ErrDamaged says that the state on disk is not what was committed; lfxd does not start.
	ErrDamaged = errors.New("the state is damaged")
	// ErrFatal says that a write left the disk in an unknown state; the daemon must exit and start again.
	ErrFatal = errors.New("the state could not be written safely")
)

// Primary result codes of SQLite; the low byte of an extended code is the primary one.
const primaryMask = 0xff

// sqliteCode returns the primary result code of err, or -1 when err is not SQLite's.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return -1
	}
	return e.Code() & primaryMask
}

// openError gives an error met while opening its class.
func openError(dir string, err error) error {
	switch sqliteCode(err) {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fmt.Errorf("%w: %s: another process holds state.db", ErrLocked, dir)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR:
		return damaged(dir, "state.db does not read as a database of lfxd (%v)", err)
	}
	return fmt.Errorf("open state in %s: %w", dir, err)
}

// damaged is ErrDamaged with what was found and what to do.
func damaged(dir, format string, args ...any) error {
	return fmt.Errorf("%w: %s in %s: restore state.db from a backup and write the word \"accept\" into state.rev, "+
		"or move the directory away and deploy again", ErrDamaged, fmt.Sprintf(format, args...), dir)
}

// damagedRow is ErrDamaged for rows that do not go together.
func damagedRow(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// writeError classes an error of SQLite's. A full disk and a statement that it refuses are rolled
// back whole; after anything else (an fsync that failed, a page that does not read) nobody knows.
func writeError(err error) error {
	switch sqliteCode(err) {
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("write state: the disk is full: %w", errors.Join(errdefs.ErrResourceExhausted, err))
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE:
		return fmt.Errorf("write state: %w", errors.Join(errdefs.ErrInternal, err))
	}
	return fmt.Errorf("write state: %w: %w", ErrFatal, err)
}

// statementError classes an error met before the commit, which is then rolled back. An error that is
// not SQLite's is returned as it is.
func statementError(err error) error {
	if sqliteCode(err) < 0 {
		return err
	}
	return writeError(err)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func notFound(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrNotFound)...)
}

func conflict(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrConflict)...)
}

func precondition(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
