package logs

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"lfx.dev/lfxd/daemon/function"
)

const segmentSuffix = ".ndjson"

// maxComponent is the longest file name that a part of a key may become; file systems allow 255 bytes.
const maxComponent = 200

// component maps one part of a key to one file name: letters, digits, "_" and "-" stay, everything
// else is percent-encoded, so the result is never "." or ".." and holds no slash. Only overlong
// names are not reversible.
func component(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	name := b.String()
	switch {
	case name == "":
		return "%"
	case len(name) > maxComponent:
		h := fnv.New64a()
		h.Write([]byte(s))
		return fmt.Sprintf("%s%%%016x", name[:maxComponent], h.Sum64())
	}
	return name
}

// uncomponent is the inverse; ok is false for what component does not make.
func uncomponent(name string) (s string, ok bool) {
	s, err := url.PathUnescape(name)
	return s, err == nil && component(s) == name
}

func folder(k function.Key) string {
	return path.Join(component(k.Project), component(k.Environment.Name), component(k.Function))
}

// segment is one file of a function's log.
type segment struct {
	number int64
	size   int64 // what was written whole; anything after it is torn
}

// disk is the part of one function's log that lies in files.
type disk struct {
	root *os.Root
	dir  string

	mu       sync.Mutex // held across I/O, by the writer and by the start of a query; never by Append
	loaded   bool
	segments []segment
}

func (d *disk) name(n int64) string { return path.Join(d.dir, fmt.Sprintf("%016d", n)+segmentSuffix) }

// loadLocked finds the segments that are there, once.
func (d *disk) loadLocked() error {
	if d.loaded {
		return nil
	}
	entries, err := fs.ReadDir(d.root.FS(), d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var segments []segment
	for _, e := range entries {
		var n int64
		if _, err := fmt.Sscanf(e.Name(), "%016d"+segmentSuffix, &n); err != nil || path.Base(d.name(n)) != e.Name() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		segments = append(segments, segment{n, info.Size()})
	}
	slices.SortFunc(segments, func(a, b segment) int { return int(a.number - b.number) })
	d.segments, d.loaded = segments, true
	return nil
}

// write appends the lines, each with its line end, begins a new segment when the last one is full
// and deletes the oldest ones over the bound. On an error nothing counts as written.
func (d *disk) write(data []byte, segmentBytes, maxBytes int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.loadLocked(); err != nil {
		return err
	}
	if err := d.expireLocked(maxBytes - int64(len(data))); err != nil {
		return err
	}
	if n := len(d.segments); n == 0 || d.segments[n-1].size+int64(len(data)) > segmentBytes {
		next := int64(1)
		if n > 0 {
			next = d.segments[n-1].number + 1
		}
		d.segments = append(d.segments, segment{number: next})
	}
	last := &d.segments[len(d.segments)-1]
	if err := d.appendTo(last, data); err != nil {
		return err
	}
	last.size += int64(len(data))
	return nil
}

// appendTo writes at the end of what counts, over anything torn.
func (d *disk) appendTo(s *segment, data []byte) (err error) {
	if err := d.root.MkdirAll(d.dir, 0o750); err != nil {
		return err
	}
	f, err := d.root.OpenFile(d.name(s.number), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < s.size { // somebody else truncated or replaced it
		s.size = info.Size()
	}
	if s.size, err = lineEnd(f, s.size); err != nil {
		return err
	}
	if info.Size() > s.size {
		if err := f.Truncate(s.size); err != nil {
			return err
		}
	}
	_, err = f.WriteAt(data, s.size)
	if err != nil {
		_ = f.Truncate(s.size)
	}
	return err
}

// lineEnd returns the end of the last whole line at or before size.
func lineEnd(f io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, 4096)
	for end := size; end > 0; {
		n := min(int64(len(buf)), end)
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return end - n + int64(i) + 1, nil
		}
		end -= n
	}
	return 0, nil
}

// expireLocked deletes the oldest segments until at most limit bytes are left.
func (d *disk) expireLocked(limit int64) error {
	var total int64
	for _, s := range d.segments {
		total += s.size
	}
	for len(d.segments) > 0 && total > limit {
		oldest := d.segments[0]
		if err := d.root.Remove(d.name(oldest.number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		total -= oldest.size
		d.segments = slices.Delete(d.segments, 0, 1)
	}
	return nil
}

// snapshot returns the segments as they are now.
func (d *disk) snapshot() ([]segment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.loadLocked(); err != nil {
		return nil, err
	}
	return slices.Clone(d.segments), nil
}

// read calls f with the entries of a segment until f returns false. A segment that was deleted
// meanwhile is empty; lines that do not decode are skipped.
func (d *disk) read(s segment, f func(Entry) bool) (more bool, err error) {
	file, err := d.root.Open(d.name(s.number))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	defer file.Close()
	lines := bufio.NewReaderSize(io.LimitReader(file, s.size), 64<<10)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return true, nil
		} else if err != nil {
			return false, err
		}
		var e Entry
		if json.Unmarshal(line, &e) != nil {
			continue
		}
		if !f(e) {
			return false, nil
		}
	}
}
