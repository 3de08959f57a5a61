package logs

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

func wantEntry(t *testing.T, e Entry) string {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestAppendEntry(t *testing.T) {
	full := Entry{
		Time:    time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.FixedZone("", 3600)),
		Key:     function.Key{Environment: function.Environment{Project: "shop", Name: "default"}, Function: "thumb"},
		Version: 7, Release: 3, Instance: "lfx-1", RequestID: "8476a536", Stream: StreamPlatform,
	}
	for _, message := range []string{"", "plain", "a\tb\t", `"quoted" \ <html> & 'x'`, "line\nend\r\x00\x7f", "päth \u2028 \U0001F600", "bad \xff utf-8"} {
		e := full
		e.Message = message
		if got, want := string(appendEntry(nil, &e)), wantEntry(t, e); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	empty := Entry{}
	if got, want := string(appendEntry(nil, &empty)), wantEntry(t, empty); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzAppendEntry(f *testing.F) {
	f.Add("project", "message\t\"x\"", "id", 1)
	f.Fuzz(func(t *testing.T, project, message, id string, release int) {
		e := Entry{Time: time.Unix(int64(release), 0).UTC(), Key: function.Key{Environment: function.Environment{Project: project}}, Release: release, RequestID: id, Message: message}
		if e.Time.Year() < 0 || e.Time.Year() > 9999 {
			return
		}
		if got, want := string(appendEntry(nil, &e)), wantEntry(t, e); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}
