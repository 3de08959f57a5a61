package main

import (
	"bytes"
	"io"
	"log/slog"
	"os"
)

// newLogger writes text to standard error. Under systemd, which reads that, each line has its priority in front
// (sd-daemon(3)) and no time: the journal has its own.
func newLogger(level slog.Level) *slog.Logger {
	if os.Getenv("JOURNAL_STREAM") == "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(slog.NewTextHandler(priorities{os.Stderr}, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// priorities puts a syslog priority before each line in place of slog's level.
type priorities struct{ w io.Writer }

// Write gets one whole line, as slog's handlers promise.
func (p priorities) Write(line []byte) (int, error) {
	for _, level := range []struct{ slog, syslog string }{
		{"level=ERROR ", "<3>"}, {"level=WARN ", "<4>"}, {"level=INFO ", "<6>"}, {"level=DEBUG ", "<7>"},
	} {
		if rest, ok := bytes.CutPrefix(line, []byte(level.slog)); ok {
			if _, err := p.w.Write(append([]byte(level.syslog), rest...)); err != nil {
				return 0, err
			}
			return len(line), nil
		}
	}
	return p.w.Write(line)
}
