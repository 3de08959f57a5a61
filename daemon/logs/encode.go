package logs

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"
)

// appendEntry appends an entry as encoding/json writes it without HTML escapes, with a line end. Every
// invocation makes three entries and more; reflection over them was a twentieth of the daemon's time.
// TestAppendEntry holds it against encoding/json.
func appendEntry(b []byte, e *Entry) []byte {
	b = append(b, `{"time":"`...)
	b = e.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendMember(b, `,"project":`, e.Project)
	b = appendMember(b, `,"environment":`, e.Environment.Name)
	b = appendMember(b, `,"function":`, e.Key.Function)
	b = strconv.AppendInt(append(b, `,"version":`...), int64(e.Version), 10)
	if e.Release != 0 {
		b = strconv.AppendInt(append(b, `,"release":`...), int64(e.Release), 10)
	}
	b = appendMember(b, `,"instance":`, e.Instance)
	if e.RequestID != "" {
		b = appendMember(b, `,"request_id":`, e.RequestID)
	}
	b = appendMember(b, `,"stream":`, e.Stream)
	b = appendMember(b, `,"message":`, e.Message)
	return append(b, "}\n"...)
}

func appendMember(b []byte, name, value string) []byte {
	b = append(append(b, name...), '"')
	start, from := len(b), 0 // value[:from] is in b
	for i := range len(value) {
		c := value[i]
		if plain[c] {
			continue
		}
		b = append(b, value[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\t': // REPORT has them
			b = append(b, '\\', 't')
		default: // encoding/json knows how
			return appendString(b[:start-1], value)
		}
	}
	return append(append(b, value[from:]...), '"')
}

// plain are the bytes that stand for themselves in a JSON string.
var plain = func() (t [256]bool) {
	for c := byte(' '); c <= '~'; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// appendString appends any string.
func appendString(b []byte, value string) []byte {
	buf := bytes.NewBuffer(b)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(value) // a string always encodes
	return bytes.TrimSuffix(buf.Bytes(), []byte{'\n'})
}
