package instance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// record is what is known about an instance before anything of it exists. It lies on tmpfs: what it describes
// does not outlive a reboot either, and no start waits for a disk.
type record struct {
	ID      string    `json:"id"`
	UID     uint32    `json:"uid"` // first host uid of the range
	Image   string    `json:"image,omitempty"`
	Network bool      `json:"network,omitempty"` // a network may be attached
	Created time.Time `json:"created"`
	// Broken is the error of the last attempt to destroy it, for the operator.
	Broken string `json:"broken,omitempty"`
}

const recordFile = "record.json"

// write replaces the record atomically. Nothing is flushed: see record.
func (r record) write(dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, recordFile+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, recordFile))
}

// readRecords returns what is recorded below dir. A directory without a readable record (the daemon died
// before it was written) yields a record with only its ID.
func readRecords(dir string) ([]record, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []record
	for _, e := range entries {
		if !e.IsDir() || !validID.MatchString(e.Name()) {
			continue
		}
		r, err := readRecord(filepath.Join(dir, e.Name()))
		if err != nil || r.ID != e.Name() {
			r = record{ID: e.Name(), Network: true}
		}
		all = append(all, r)
	}
	return all, nil
}

func readRecord(dir string) (r record, err error) {
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Join(dir, recordFile), err)
	}
	return r, nil
}
