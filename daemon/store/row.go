package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// table describes one table for the few statements that we need. Its columns are TEXT or INTEGER
// in STRICT tables, so a value comes back as string or int64; the crc column is not listed.
type table struct {
	name string
	// keys come first in columns and are the primary key.
	keys    int
	columns []string
	// since is the schema version that made the table.
	since int64
}

var (
	metaTable        = table{"meta", 1, []string{"id", "node", "revision", "row_count", "row_sum", "schema_crc"}, 1}
	environmentTable = table{"environments", 1, []string{"id", "project", "name", "account", "next_release", "created"}, 1}
	functionTable    = table{"functions", 1, []string{"id", "environment_id", "name", "next_version", "created"}, 1}
	versionTable     = table{"versions", 2, []string{"function_id", "number", "identity", "image", "config", "created"}, 1}
	releaseTable     = table{"releases", 2, []string{"environment_id", "number", "state", "default_function", "source", "created", "activated"}, 1}
	memberTable      = table{"release_functions", 3, []string{"environment_id", "release", "function_id", "version", "port"}, 1}
	deployTable      = table{"deploys", 1, []string{"id", "project", "environment", "started", "images"}, 1}
	trafficTable     = table{"traffic", 1, []string{"environment_id", "previous", "share", "since", "judgement", "next_decision"}, 2}
	decisionTable    = table{"decisions", 2, []string{"environment_id", "number", "decision"}, 2}
	fnAliasTable     = table{"function_aliases", 2, []string{"function_id", "name", "version", "extra", "weight"}, 2}
	relAliasTable    = table{"release_aliases", 2, []string{"environment_id", "name", "release"}, 2}

	// dataTables are the tables whose rows meta counts.
	dataTables = []table{
		environmentTable, functionTable, versionTable, releaseTable, memberTable, deployTable,
		trafficTable, decisionTable, fnAliasTable, relAliasTable,
	}
)

// checksum is the CRC32C over the table's name and the row's values, each with its kind and length
// so that no two different rows read alike. Values are string or int64.
func (t table) checksum(values []any) int64 {
	buf := make([]byte, 0, 256)
	buf = append(buf, t.name...)
	for _, v := range values {
		switch v := v.(type) {
		case int64:
			buf = append(buf, 0, 'i')
			buf = binary.BigEndian.AppendUint64(buf, uint64(v))
		case string:
			buf = append(buf, 0, 's')
			buf = binary.BigEndian.AppendUint64(buf, uint64(len(v)))
			buf = append(buf, v...)
		default:
			panic(fmt.Sprintf("store: a column of type %T", v))
		}
	}
	return int64(crc32.Checksum(buf, castagnoli))
}

// conn is the one connection, inside or outside a transaction.
type conn struct{ *sql.Conn }

// exec runs one statement. The context is a fresh one on purpose: SQLite's work is local and short,
// and an interrupt in the middle of a commit would leave its outcome unknown.
func (c conn) exec(query string, args ...any) error {
	_, err := c.ExecContext(context.Background(), query, args...)
	return err
}

// number runs a query that answers one integer.
func (c conn) number(query string) (n int64, err error) {
	err = c.QueryRowContext(context.Background(), query).Scan(&n)
	return n, err
}

// put inserts the row or replaces the one with the same key.
func (c conn) put(t table, values ...any) error {
	if len(values) != len(t.columns) {
		panic("store: wrong number of columns for " + t.name)
	}
	var set []string
	for _, col := range append(t.columns[t.keys:], "crc") {
		set = append(set, col+"=excluded."+col)
	}
	query := fmt.Sprintf("INSERT INTO %s (%s, crc) VALUES (?%s) ON CONFLICT (%s) DO UPDATE SET %s",
		t.name, strings.Join(t.columns, ", "), strings.Repeat(", ?", len(t.columns)),
		strings.Join(t.columns[:t.keys], ", "), strings.Join(set, ", "))
	return c.exec(query, append(values[:len(values):len(values)], t.checksum(values))...)
}

// remove deletes the rows whose first columns have these values.
func (c conn) remove(t table, keys ...any) error {
	return c.exec("DELETE FROM "+t.name+" WHERE "+t.where(len(keys)), keys...)
}

func (t table) where(n int) string {
	if n == 0 {
		return "1"
	}
	return strings.Join(t.columns[:n], " = ? AND ") + " = ?"
}

// each calls f with every row whose first columns have these values, in the order of the key, after
// checking the row's checksum. f must not keep the slice.
func (c conn) each(t table, keys []any, f func(row) error) error {
	query := fmt.Sprintf("SELECT %s, crc FROM %s WHERE %s ORDER BY %s", strings.Join(t.columns, ", "), t.name,
		t.where(len(keys)), strings.Join(t.columns[:t.keys], ", "))
	rows, err := c.QueryContext(context.Background(), query, keys...)
	if err != nil {
		return err
	}
	defer rows.Close()
	values := make([]any, len(t.columns)+1)
	into := make([]any, len(values))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		n := len(t.columns)
		if crc, ok := values[n].(int64); !ok || !wellTyped(values[:n]) || crc != t.checksum(values[:n]) {
			return fmt.Errorf("%w: a row of table %s has a wrong checksum", ErrDamaged, t.name)
		}
		if err := f(row(values[:n])); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
	}
	return rows.Err()
}

func wellTyped(values []any) bool {
	for _, v := range values {
		switch v.(type) {
		case int64, string:
		default:
			return false
		}
	}
	return true
}

// row is one row's columns; the checksum has vouched for their types.
type row []any

func (r row) text(i int) string  { return r[i].(string) }
func (r row) number(i int) int64 { return r[i].(int64) }
