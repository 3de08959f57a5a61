package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// side is state.rev: the last committed revision, outside the database. A bad frame silently ends
// SQLite's write-ahead log, so commits can vanish without an error; this file remembers that they
// were there. Two slots, written in turn, so that a torn write never takes the only copy.
type side struct {
	f    *os.File
	sync func() error // f.Sync; tests make it fail
}

const (
	sideName   = "state.rev"
	slotStride = 4096 // the slots lie in different sectors
	slotMagic  = "lfx-revision"
	acceptWord = "accept"
)

// mark is what a slot says.
type mark struct {
	node     string
	revision int64
}

// encode returns the slot as one line of text that ends with its own checksum.
func (m mark) encode() []byte {
	line := fmt.Sprintf("%s %s %d ", slotMagic, m.node, m.revision)
	return fmt.Appendf(nil, "%s%08x\n", line, crc32.Checksum([]byte(line), castagnoli))
}

// decodeMark returns what the slot says; ok is false when it is torn or damaged.
func decodeMark(slot []byte) (m mark, ok bool) {
	line, _, found := bytes.Cut(slot, []byte("\n"))
	if !found {
		return mark{}, false
	}
	var magic, sum string
	if _, err := fmt.Sscanf(string(line), "%s %s %d %s", &magic, &m.node, &m.revision, &sum); err != nil {
		return mark{}, false
	}
	return m, bytes.Equal(m.encode(), append(line, '\n'))
}

// sideState says what was found in state.rev.
type sideState int

const (
	sideMissing sideState = iota
	sideAccept            // the operator vouches for the database as it is
	sideValid
	sideDamaged
)

// readSide reads state.rev of the directory. The newer of its slots counts.
func readSide(dir string) (mark, sideState, error) {
	data, err := os.ReadFile(filepath.Join(dir, sideName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return mark{}, sideMissing, nil
	case err != nil:
		return mark{}, sideDamaged, err
	case strings.TrimSpace(string(data)) == acceptWord:
		return mark{}, sideAccept, nil
	}
	first, ok := decodeMark(data)
	if len(data) > slotStride {
		if second, ok2 := decodeMark(data[slotStride:]); ok2 && (!ok || second.revision > first.revision) {
			first, ok = second, true
		}
	}
	if !ok {
		return mark{}, sideDamaged, nil
	}
	return first, sideValid, nil
}

// createSide writes a new state.rev with m in both slots and makes it durable, directory included.
func createSide(dir string, m mark) (*side, error) {
	f, err := os.OpenFile(filepath.Join(dir, sideName), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	s := &side{f: f, sync: f.Sync}
	if _, err = f.WriteAt(m.encode(), slotStride); err == nil {
		_, err = f.WriteAt(m.encode(), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("create %s: %w", sideName, err)
	}
	return s, nil
}

// openSide opens an existing state.rev for writing.
func openSide(dir string) (*side, error) {
	f, err := os.OpenFile(filepath.Join(dir, sideName), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &side{f: f, sync: f.Sync}, nil
}

// write records m durably.
func (s *side) write(m mark) error {
	if _, err := s.f.WriteAt(m.encode(), (m.revision%2)*slotStride); err != nil {
		return err
	}
	return s.sync()
}

func (s *side) close() error { return s.f.Close() }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
