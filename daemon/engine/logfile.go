package engine

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
)

// openLog opens a child's log for appending. The child writes to the file itself, so that it can go
// on when we are gone; O_APPEND lets rotate empty the file under it.
func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// rotate moves the content of a log that has grown beyond limit bytes to path.1, replacing what
// was there. Lines written between the copy and the truncation are lost.
func rotate(path string, limit int64) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() <= limit {
		return err
	}
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(path+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	// A child that writes faster than this loop runs must not fill the disk with the copy.
	_, err = io.Copy(dst, io.LimitReader(src, 2*limit))
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	return os.Truncate(path, 0)
}

// lastLines returns at most n lines, and 4 KiB, from the end of a log, but nothing before offset from.
func lastLines(path string, from int64, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	if from > end { // rotated meanwhile
		from = 0
	}
	data := make([]byte, min(end-from, 4096))
	if _, err := f.ReadAt(data, end-int64(len(data))); err != nil && err != io.EOF {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
