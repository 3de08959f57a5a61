package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

const databaseName = "state.db"

// Store is the open state. Its methods may be called from any goroutine.
type Store struct {
	dir  string
	log  *slog.Logger
	lock *os.File
	db   *sql.DB
	view atomic.Pointer[Snapshot]

	fatal     chan struct{} // closed when fatalErr is set
	mu        sync.Mutex    // serialises writes; guards what follows
	conn      conn
	side      *side
	fatalErr  error
	closed    bool
	afterSeal func() error // tests only: fails a write between its last statement and its commit
}

// Open opens the state in dir, which it makes with mode 0700 when it is missing, brings its schema up to
// date, checks it and loads it. It does not wait: ErrLocked when another process has it. ErrDamaged
// when what is there is not what was committed. The caller must Close the store.
func Open(ctx context.Context, dir string, log *slog.Logger) (_ *Store, err error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	s := &Store{dir: dir, log: log, fatal: make(chan struct{})}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if s.lock, err = acquire(dir); err != nil {
		return nil, err
	}
	m, accepted, err := s.prepare()
	if err != nil {
		return nil, err
	}
	if err := s.connect(ctx); err != nil {
		return nil, openError(dir, err)
	}
	snapshot, err := s.recover(m.node)
	if err != nil {
		return nil, openError(dir, err)
	}
	if err := s.match(snapshot, m, accepted); err != nil {
		return nil, err
	}
	s.view.Store(snapshot)
	return s, nil
}

// acquire takes the lock file. The kernel drops the lock with the process, however it ends.
func acquire(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		owner, _ := io.ReadAll(io.LimitReader(f, 32))
		return nil, fmt.Errorf("%w: %s is locked by process %s: stop that one, or give this one another state_dir",
			ErrLocked, path, strings.TrimSpace(string(owner)))
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid()) // informational
	}
	return f, nil
}

// prepare reads state.rev and makes sure that both files are there. It returns what the database
// must at least hold, and whether the operator vouches for it.
func (s *Store) prepare() (m mark, accepted bool, err error) {
	path := filepath.Join(s.dir, databaseName)
	info, err := os.Stat(path)
	exists := err == nil && info.Size() > 0
	m, state, err := readSide(s.dir)
	switch {
	case err != nil:
		return mark{}, false, fmt.Errorf("read %s: %w", sideName, err)
	case state == sideDamaged:
		return mark{}, false, damaged(s.dir, "%s is unreadable", sideName)
	case state == sideMissing && exists:
		return mark{}, false, damaged(s.dir, "%s is missing", sideName)
	case state == sideValid && m.revision > 0 && !exists:
		return mark{}, false, damaged(s.dir, "%s is gone (revision %d was committed)", databaseName, m.revision)
	case state == sideMissing:
		// The side file is durable before the database exists, so that one alone always means a loss.
		m = mark{node: uuid.NewString()}
		if s.side, err = createSide(s.dir, m); err != nil {
			return mark{}, false, err
		}
	case state == sideAccept:
		m, accepted = mark{node: uuid.NewString()}, true
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // the -wal file gets the same mode
	if err != nil {
		return mark{}, false, fmt.Errorf("create %s: %w", databaseName, err)
	}
	return m, accepted, f.Close()
}

// pragmas are set in this order: the exclusive lock first, so that SQLite keeps the index of the
// write-ahead log in memory and no shared-memory file exists.
var pragmas = []string{
	"busy_timeout(0)", "locking_mode(EXCLUSIVE)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)",
	"trusted_schema(OFF)", "cell_size_check(ON)", "mmap_size(0)", "wal_autocheckpoint(1000)",
}

// connect opens the one connection and takes the database's exclusive lock.
func (s *Store) connect(ctx context.Context) error {
	dsn := url.URL{Scheme: "file", Path: filepath.Join(s.dir, databaseName)}
	dsn.RawQuery = url.Values{"_pragma": pragmas}.Encode()
	var err error
	if s.db, err = sql.Open("sqlite", dsn.String()); err != nil {
		return err
	}
	s.db.SetMaxOpenConns(1)
	c, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	s.conn = conn{c}
	if err := s.conn.exec("BEGIN EXCLUSIVE"); err != nil {
		return err
	}
	return s.conn.exec("COMMIT")
}

// recover checks the database, migrates it and loads it.
func (s *Store) recover(node string) (*Snapshot, error) {
	id, err := s.conn.number("PRAGMA application_id")
	if err != nil {
		return nil, err
	}
	version, err := s.conn.number("PRAGMA user_version")
	if err != nil {
		return nil, err
	}
	if pages, err := s.conn.number("SELECT count(*) FROM sqlite_schema"); err != nil {
		return nil, err
	} else if (pages > 0 || version > 0) && id != applicationID {
		return nil, damaged(s.dir, "%s belongs to another program (application id %#x)", databaseName, id)
	}
	if err := s.quickCheck(); err != nil {
		return nil, err
	}
	if version > 0 {
		if err := s.verify(); err != nil {
			return nil, err
		}
	}
	if _, err := s.conn.migrate(node); err != nil {
		return nil, err
	}
	snapshot, err := s.conn.load()
	if errors.Is(err, ErrDamaged) {
		return nil, damaged(s.dir, "%v", err)
	}
	return snapshot, err
}

// quickCheck lets SQLite check the structure of the file.
func (s *Store) quickCheck() error {
	rows, err := s.conn.QueryContext(context.Background(), "PRAGMA quick_check")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var finding string
		if err := rows.Scan(&finding); err != nil {
			return err
		}
		if finding != "ok" {
			return damaged(s.dir, "%s fails its structure check (%s)", databaseName, finding)
		}
	}
	return rows.Err()
}

// verify holds the rows and the schema against the checksums that the last commit left.
func (s *Store) verify() error {
	m, err := s.conn.meta()
	if err != nil {
		return s.asDamaged(err)
	}
	rows, sum, err := s.conn.count()
	if err != nil {
		return err
	}
	schema, err := s.conn.schema()
	if err != nil {
		return err
	}
	if rows != m.rows || sum != m.sum || schema != m.schema {
		return damaged(s.dir, "the rows of %s do not add up to what was committed", databaseName)
	}
	return nil
}

func (s *Store) asDamaged(err error) error {
	if errors.Is(err, ErrDamaged) {
		return damaged(s.dir, "%v", err)
	}
	return err
}

// match compares the database with state.rev and opens that for writing.
func (s *Store) match(snapshot *Snapshot, m mark, accepted bool) error {
	found := mark{snapshot.node, snapshot.revision}
	switch {
	case accepted:
		s.log.Warn("state accepted as it is, on the operator's word", "revision", found.revision)
	case found.node != m.node:
		return damaged(s.dir, "%s belongs to another host's state", databaseName)
	case found.revision < m.revision:
		return damaged(s.dir, "%s ends at revision %d, but revision %d was committed", databaseName, found.revision, m.revision)
	case s.side == nil:
		var err error
		if s.side, err = openSide(s.dir); err != nil {
			return fmt.Errorf("open %s: %w", sideName, err)
		}
	}
	if s.side == nil {
		var err error
		s.side, err = createSide(s.dir, found)
		return err
	}
	// The database may be one ahead: a crash between the commit and this file.
	if err := s.side.write(found); err != nil {
		return fmt.Errorf("write %s: %w", sideName, err)
	}
	return nil
}

// Probe goes the way of a write, waiting for the one in progress, and writes nothing. An error means that nothing can be
// written now.
func (s *Store) Probe(ctx context.Context) error {
	return s.write(ctx, func(*Snapshot) (int64, error) { return 0, errUnchanged })
}

// View returns the state as of the last commit.
func (s *Store) View() *Snapshot { return s.view.Load() }

// Fatal is closed when a write left the disk in an unknown state. The daemon must then exit with an
// error and be started again; Err says why.
func (s *Store) Fatal() <-chan struct{} { return s.fatal }

// Err returns the reason for Fatal, or nil.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fatalErr
}

// Close waits for the write in progress and closes the files. The lock goes last.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.release()
}

func (s *Store) release() error {
	var errs []error
	if s.conn.Conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.side != nil {
		errs = append(errs, s.side.close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// write runs one write: f works out and executes the statements against the current snapshot and
// returns the id of the environment it touched, zero for none. What f did is committed, noted in
// state.rev and only then visible. errUnchanged from f means that there is nothing to write.
func (s *Store) write(ctx context.Context, f func(*Snapshot) (environment int64, err error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return precondition("the state is closed")
	case s.fatalErr != nil:
		return s.fatalErr
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	var next *Snapshot
	err := s.conn.transact(func() error {
		id, err := f(s.View())
		if err != nil {
			return err
		}
		if err := s.conn.seal(true); err != nil {
			return statementError(err)
		}
		if next, err = s.conn.reload(s.View(), id); err != nil {
			return statementError(err)
		}
		if s.afterSeal != nil {
			return s.afterSeal()
		}
		return nil
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	if err == nil {
		if serr := s.side.write(mark{next.node, next.revision}); serr != nil {
			err = fmt.Errorf("write %s: %w: %w", sideName, ErrFatal, serr)
		}
	}
	if err != nil {
		return s.failLocked(err)
	}
	s.view.Store(next)
	return nil
}

var errUnchanged = errors.New("nothing to write")

// failLocked notes a fatal error. Readers keep the last good snapshot.
func (s *Store) failLocked(err error) error {
	if errors.Is(err, ErrFatal) {
		s.fatalErr = err
		close(s.fatal)
		s.log.Error("state can no longer be written", "error", err)
	}
	return err
}
