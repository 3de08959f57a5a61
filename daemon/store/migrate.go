package store

import (
	"context"
	"fmt"
	"hash/crc32"
)

// applicationID is "lfxS" in the header of state.db; file(1) shows it.
const applicationID = 0x6c667853

// migrations[i] brings the schema from user_version i to i+1. Never edit one that was released.
var migrations = []string{`
CREATE TABLE meta (
	id INTEGER PRIMARY KEY CHECK (id = 1), crc INTEGER NOT NULL,
	node TEXT NOT NULL, revision INTEGER NOT NULL,
	row_count INTEGER NOT NULL, row_sum INTEGER NOT NULL, schema_crc INTEGER NOT NULL
) STRICT;
CREATE TABLE environments (
	id INTEGER PRIMARY KEY, crc INTEGER NOT NULL,
	project TEXT NOT NULL, name TEXT NOT NULL, account TEXT NOT NULL UNIQUE,
	next_release INTEGER NOT NULL, created INTEGER NOT NULL,
	UNIQUE (project, name)
) STRICT;
CREATE TABLE functions (
	id INTEGER PRIMARY KEY, crc INTEGER NOT NULL,
	environment_id INTEGER NOT NULL REFERENCES environments (id), name TEXT NOT NULL,
	next_version INTEGER NOT NULL, created INTEGER NOT NULL,
	UNIQUE (environment_id, name)
) STRICT;
CREATE TABLE versions (
	function_id INTEGER NOT NULL REFERENCES functions (id), number INTEGER NOT NULL, crc INTEGER NOT NULL,
	identity TEXT NOT NULL, image TEXT NOT NULL, config TEXT NOT NULL, created INTEGER NOT NULL,
	PRIMARY KEY (function_id, number)
) STRICT;
CREATE TABLE releases (
	environment_id INTEGER NOT NULL REFERENCES environments (id), number INTEGER NOT NULL, crc INTEGER NOT NULL,
	state TEXT NOT NULL CHECK (state IN ('recorded', 'active', 'superseded', 'failed')),
	default_function TEXT NOT NULL, source TEXT NOT NULL, created INTEGER NOT NULL, activated INTEGER NOT NULL,
	PRIMARY KEY (environment_id, number)
) STRICT;
CREATE UNIQUE INDEX one_active_release ON releases (environment_id) WHERE state = 'active';
CREATE TABLE release_functions (
	environment_id INTEGER NOT NULL, release INTEGER NOT NULL,
	function_id INTEGER NOT NULL REFERENCES functions (id), crc INTEGER NOT NULL,
	version INTEGER NOT NULL, port INTEGER NOT NULL,
	PRIMARY KEY (environment_id, release, function_id),
	FOREIGN KEY (environment_id, release) REFERENCES releases (environment_id, number)
) STRICT;
CREATE TABLE deploys (
	id TEXT PRIMARY KEY, crc INTEGER NOT NULL,
	project TEXT NOT NULL, environment TEXT NOT NULL, started INTEGER NOT NULL, images TEXT NOT NULL,
	UNIQUE (project, environment)
) STRICT;
`, `
ALTER TABLE releases RENAME TO releases_1;
ALTER TABLE release_functions RENAME TO release_functions_1;
CREATE TABLE releases (
	environment_id INTEGER NOT NULL REFERENCES environments (id), number INTEGER NOT NULL, crc INTEGER NOT NULL,
	state TEXT NOT NULL CHECK (state IN ('recorded', 'active', 'canary', 'superseded', 'failed')),
	default_function TEXT NOT NULL, source TEXT NOT NULL, created INTEGER NOT NULL, activated INTEGER NOT NULL,
	PRIMARY KEY (environment_id, number)
) STRICT;
INSERT INTO releases SELECT * FROM releases_1;
CREATE TABLE release_functions (
	environment_id INTEGER NOT NULL, release INTEGER NOT NULL,
	function_id INTEGER NOT NULL REFERENCES functions (id), crc INTEGER NOT NULL,
	version INTEGER NOT NULL, port INTEGER NOT NULL,
	PRIMARY KEY (environment_id, release, function_id),
	FOREIGN KEY (environment_id, release) REFERENCES releases (environment_id, number)
) STRICT;
INSERT INTO release_functions SELECT * FROM release_functions_1;
DROP TABLE release_functions_1;
DROP TABLE releases_1;
CREATE UNIQUE INDEX one_active_release ON releases (environment_id) WHERE state = 'active';
CREATE UNIQUE INDEX one_canary_release ON releases (environment_id) WHERE state = 'canary';
CREATE TABLE traffic (
	environment_id INTEGER PRIMARY KEY REFERENCES environments (id), crc INTEGER NOT NULL,
	previous INTEGER NOT NULL, share INTEGER NOT NULL CHECK (share BETWEEN 0 AND 9999), since INTEGER NOT NULL,
	judgement TEXT NOT NULL, next_decision INTEGER NOT NULL
) STRICT;
CREATE TABLE decisions (
	environment_id INTEGER NOT NULL REFERENCES environments (id), number INTEGER NOT NULL, crc INTEGER NOT NULL,
	decision TEXT NOT NULL,
	PRIMARY KEY (environment_id, number)
) STRICT;
CREATE TABLE function_aliases (
	function_id INTEGER NOT NULL REFERENCES functions (id), name TEXT NOT NULL, crc INTEGER NOT NULL,
	version INTEGER NOT NULL, extra INTEGER NOT NULL, weight TEXT NOT NULL,
	PRIMARY KEY (function_id, name)
) STRICT;
CREATE TABLE release_aliases (
	environment_id INTEGER NOT NULL, name TEXT NOT NULL, crc INTEGER NOT NULL,
	release INTEGER NOT NULL,
	PRIMARY KEY (environment_id, name),
	FOREIGN KEY (environment_id, release) REFERENCES releases (environment_id, number)
) STRICT;
`}

// migrate brings the schema up to date, one transaction per step, and returns whether the database
// was new. node is the identity that a new database gets.
func (c conn) migrate(node string) (fresh bool, err error) {
	version, err := c.number("PRAGMA user_version")
	if err != nil {
		return false, err
	}
	if version > int64(len(migrations)) {
		return false, fmt.Errorf("the state was written by a newer lfxd (schema %d, this one knows %d): install that version again",
			version, len(migrations))
	}
	for v := version; v < int64(len(migrations)); v++ {
		if err := c.transact(func() error { return c.step(int(v), node) }); err != nil {
			return false, fmt.Errorf("migrate the state to schema %d: %w", v+1, err)
		}
	}
	return version == 0, nil
}

func (c conn) step(v int, node string) error {
	if err := c.exec(migrations[v]); err != nil {
		return err
	}
	if v == 0 {
		if err := c.exec(fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
			return err
		}
		if err := c.put(metaTable, int64(1), node, int64(0), int64(0), int64(0), int64(0)); err != nil {
			return err
		}
	}
	if err := c.exec(fmt.Sprintf("PRAGMA user_version = %d", v+1)); err != nil {
		return err
	}
	return c.seal(false)
}

// transact runs f in one transaction. When f or the commit fails nothing was written, except when
// the error's class is ErrFatal.
func (c conn) transact(f func() error) error {
	if err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return writeError(err)
	}
	err := f()
	if err == nil {
		if err = c.exec("COMMIT"); err == nil {
			return nil
		}
		err = writeError(err)
	}
	// After some errors SQLite has rolled back by itself; then there is nothing left to undo.
	_ = c.exec("ROLLBACK")
	return err
}

// seal ends a transaction: it counts the rows, sums their checksums, and moves the revision on when
// bump is set.
func (c conn) seal(bump bool) error {
	m, err := c.meta()
	if err != nil {
		return err
	}
	if m.rows, m.sum, err = c.count(); err != nil {
		return err
	}
	if m.schema, err = c.schema(); err != nil {
		return err
	}
	if bump {
		m.revision++
	}
	return c.put(metaTable, int64(1), m.node, m.revision, m.rows, m.sum, m.schema)
}

// meta is the one row of table meta.
type meta struct {
	node                        string
	revision, rows, sum, schema int64
}

func (c conn) meta() (m meta, err error) {
	n := 0
	err = c.each(metaTable, nil, func(r row) error {
		m = meta{r.text(1), r.number(2), r.number(3), r.number(4), r.number(5)}
		n++
		return nil
	})
	if err == nil && n != 1 {
		err = fmt.Errorf("%w: table meta has %d rows", ErrDamaged, n)
	}
	return m, err
}

// count returns the number of rows of all data tables and the sum of their checksums.
func (c conn) count() (rows, sum int64, err error) {
	version, err := c.number("PRAGMA user_version")
	if err != nil {
		return 0, 0, err
	}
	for _, t := range dataTables {
		if t.since > version {
			continue // in the middle of a migration
		}
		n, err := c.number("SELECT count(*) FROM " + t.name)
		if err != nil {
			return 0, 0, err
		}
		s, err := c.number("SELECT coalesce(sum(crc), 0) FROM " + t.name)
		if err != nil {
			return 0, 0, err
		}
		rows, sum = rows+n, sum+s
	}
	return rows, sum, nil
}

// schema returns the CRC32C of the schema's text.
func (c conn) schema() (int64, error) {
	var text string
	err := c.QueryRowContext(context.Background(), "SELECT group_concat(type || name || tbl_name || coalesce(sql, ''), ';') "+
		"FROM (SELECT * FROM sqlite_schema ORDER BY type, name)").Scan(&text)
	return int64(crc32.Checksum([]byte(text), castagnoli)), err
}
