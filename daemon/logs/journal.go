package logs

import (
	"strconv"

	"github.com/coreos/go-systemd/v22/journal"
)

// Sink is a second place for entries. Send may block; it is called from one goroutine of the
// Store's, never by whoever appends. An error is counted and the entry is gone.
type Sink interface {
	Send(Entry) error
}

// Journal writes entries to systemd's journal with fields to filter by:
//
//	journalctl LFX_FUNCTION=hello LFX_PROJECT=shop
type Journal struct{}

var _ Sink = Journal{}

// NewJournal returns the sink when the journal's socket exists and answers.
func NewJournal() (Journal, bool) { return Journal{}, journal.Enabled() }

// Send writes one entry.
func (Journal) Send(e Entry) error {
	return journal.Send(e.Message, priority(e.Stream), journalFields(e))
}

// priority maps streams to syslog's levels. Functions use stderr for ordinary messages too, so that
// is a notice and no error.
func priority(stream string) journal.Priority {
	if stream == StreamStderr {
		return journal.PriNotice
	}
	return journal.PriInfo
}

func journalFields(e Entry) map[string]string {
	f := map[string]string{
		"SYSLOG_IDENTIFIER": "lfx",
		"LFX_PROJECT":       e.Project,
		"LFX_ENVIRONMENT":   e.Environment.Name,
		"LFX_FUNCTION":      e.Function,
		"LFX_VERSION":       strconv.Itoa(e.Version),
		"LFX_INSTANCE":      e.Instance,
		"LFX_STREAM":        e.Stream,
	}
	if e.Release != 0 {
		f["LFX_RELEASE"] = strconv.Itoa(e.Release)
	}
	if e.RequestID != "" {
		f["LFX_REQUEST_ID"] = e.RequestID
	}
	return f
}
