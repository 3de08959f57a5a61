package rapi

import (
	"encoding/json"
	"strings"
)

// normalErrorType returns the error type as Lambda reports it: kept when it is "Runtime." or
// "Function." followed by an upper-case letter and one or more letters, else Function.Unknown for
// whatever begins with "Function." and Runtime.Unknown for the rest, the empty string included.
func normalErrorType(t string) string {
	for _, p := range [...]string{"Runtime.", "Function."} {
		if rest, ok := strings.CutPrefix(t, p); ok && isReason(rest) {
			return t
		}
	}
	if strings.HasPrefix(t, "Function.") {
		return "Function.Unknown"
	}
	return "Runtime.Unknown"
}

// isReason reports whether s is an upper-case letter followed by at least one letter.
func isReason(s string) bool {
	if len(s) < 2 || s[0] < 'A' || s[0] > 'Z' {
		return false
	}
	for i := range len(s) {
		if c := s[i] | 0x20; c < 'a' || c > 'z' {
			return false
		}
	}
	return true
}

// errorCauseType is the content type of an error body that carries X-Ray's errorCause as well.
const errorCauseType = "application/vnd.aws.lambda.error.cause+json"

// errorWithCause is an error body of errorCauseType; what the client gets is the first three.
type errorWithCause struct {
	ErrorMessage json.RawMessage `json:"errorMessage,omitempty"`
	ErrorType    json.RawMessage `json:"errorType,omitempty"`
	StackTrace   json.RawMessage `json:"stackTrace,omitempty"`
}

// stripCause takes errorCause out of an error body. A body that is no JSON object becomes the JSON
// string "Invalid error body" of type application/octet-stream, as in the interface emulator.
func stripCause(body []byte) (stripped []byte, contentType string) {
	var e errorWithCause
	if err := json.Unmarshal(body, &e); err == nil {
		if out, err := json.Marshal(e); err == nil {
			return out, "application/json"
		}
	}
	return []byte(`"Invalid error body"`), "application/octet-stream"
}
