package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"lfx.dev/lfxd/cni/firewall"
)

// record is what outlives the process about one attachment: written without an address before CNI
// ADD, completed after.
type record struct {
	ID      string     `json:"id"`
	Network string     `json:"network"`
	NetNS   string     `json:"netns"`
	IP      netip.Addr `json:"ip,omitzero"`
	MAC     string     `json:"mac,omitempty"`
	Veth    string     `json:"veth,omitempty"`
}

// pin is the firewall's part of a completed record.
func (r record) pin() (firewall.Pin, bool) {
	mac, err := net.ParseMAC(r.MAC)
	if err != nil || !r.IP.Is4() || r.Veth == "" {
		return firewall.Pin{}, false
	}
	return firewall.Pin{IP: r.IP, MAC: mac, Port: r.Veth}, true
}

func (m *Manager) recordFile(id string) string { return filepath.Join(m.conf.recordDir(), id+".json") }

// writeRecord replaces the record in one step, so that a reader sees the old or the new one.
func (m *Manager) writeRecord(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record attachment %s: %w", r.ID, err)
	}
	if err := writeFileAtomic(m.recordFile(r.ID), data); err != nil {
		return fmt.Errorf("record attachment %s: %w", r.ID, err)
	}
	return nil
}

// writeFileAtomic needs no fsync: the directory is on a tmpfs and what it describes ends with the kernel.
func writeFileAtomic(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// readRecord returns a record with nothing but its id when there is none or it cannot be read.
func (m *Manager) readRecord(id string) record {
	r := record{ID: id}
	data, err := os.ReadFile(m.recordFile(id))
	if err == nil && json.Unmarshal(data, &r) != nil {
		m.conf.Log.Warn("attachment record is unreadable", "attachment", id)
		r = record{}
	}
	r.ID = id
	return r
}

// removeUnfinished removes records that a crash kept from getting their name. Call it while nothing writes any.
func (m *Manager) removeUnfinished() error {
	left, err := filepath.Glob(filepath.Join(m.conf.recordDir(), "*.tmp"))
	for _, name := range left {
		err = errors.Join(err, ignoreMissing(os.Remove(name)))
	}
	return err
}

func (m *Manager) removeRecord(id string) error {
	return ignoreMissing(os.Remove(m.recordFile(id)))
}

// recordedIDs lists the ids with a record.
func (m *Manager) recordedIDs() ([]string, error) {
	entries, err := os.ReadDir(m.conf.recordDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attachment records: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && validID.MatchString(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
