package buildkit

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	bkclient "github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
)

// tailLines is how much of a failing step's output an error carries.
const tailLines = 20

// stderrLines is how many of them are kept for standard error, which BuildKit reads apart from
// standard output and may deliver early.
const stderrLines = 5

// stderr is the stream of a log that is standard error.
const stderr = 2

// maxTail bounds what is remembered of one step's output, in bytes.
const maxTail = 16 << 10

// recorder passes the statuses of one build on, in a form that many builds can share one display,
// and remembers what an error will want to quote.
type recorder struct {
	id    string
	limit int64
	send  func(*bkclient.SolveStatus)

	mu     sync.Mutex // guards what follows
	logged int64
	full   bool
	names  map[digest.Digest]string
	tails  map[digest.Digest][]byte
	errs   map[digest.Digest][]byte // standard error alone
	failed digest.Digest
	reason string
}

func newRecorder(id string, limit int64, send func(*bkclient.SolveStatus)) *recorder {
	if send == nil {
		send = func(*bkclient.SolveStatus) {}
	}
	return &recorder{id: id, limit: limit, send: send, names: map[digest.Digest]string{}, tails: map[digest.Digest][]byte{}, errs: map[digest.Digest][]byte{}}
}

// status takes one status from BuildKit. The caller gives it away.
func (r *recorder) status(s *bkclient.SolveStatus) {
	r.mu.Lock()
	for _, v := range s.Vertexes {
		r.names[v.Digest] = v.Name
		if v.Error != "" && !strings.Contains(v.Error, "context canceled") {
			r.failed, r.reason = v.Digest, v.Error
		}
	}
	for _, l := range s.Logs {
		r.tails[l.Vertex] = appendTail(r.tails[l.Vertex], l.Data)
		if l.Stream == stderr {
			r.errs[l.Vertex] = appendTail(r.errs[l.Vertex], l.Data)
		}
	}
	s.Logs = r.capLocked(s.Logs)
	r.mu.Unlock()
	r.send(r.rename(s))
}

// capLocked drops output beyond the limit and says so once.
func (r *recorder) capLocked(logs []*bkclient.VertexLog) []*bkclient.VertexLog {
	kept := logs[:0]
	for _, l := range logs {
		if r.full {
			break
		}
		if r.logged += int64(len(l.Data)); r.logged > r.limit {
			r.full = true
			l.Data = fmt.Appendf(nil, "[output of %s is larger than %d MiB and not shown any further]\n", r.id, r.limit>>20)
		}
		kept = append(kept, l)
	}
	return kept
}

// rename prefixes steps with the function's name and makes their digests distinct: two functions
// that share a step would otherwise be shown as one.
func (r *recorder) rename(s *bkclient.SolveStatus) *bkclient.SolveStatus {
	for _, v := range s.Vertexes {
		v.Digest = r.own(v.Digest)
		inputs := make([]digest.Digest, len(v.Inputs))
		for i, in := range v.Inputs {
			inputs[i] = r.own(in)
		}
		v.Inputs = inputs
		v.Name = r.prefix(v.Name)
	}
	for _, st := range s.Statuses {
		st.Vertex = r.own(st.Vertex)
	}
	for _, l := range s.Logs {
		l.Vertex = r.own(l.Vertex)
	}
	for _, w := range s.Warnings {
		w.Vertex = r.own(w.Vertex)
	}
	return s
}

func (r *recorder) own(d digest.Digest) digest.Digest {
	return digest.FromString(r.id + "\x00" + string(d))
}

// prefix turns "[1/2] FROM x" into "[hello 1/2] FROM x" and "exporting" into "[hello] exporting".
func (r *recorder) prefix(name string) string {
	if rest, ok := strings.CutPrefix(name, "["); ok {
		return "[" + r.id + " " + rest
	}
	return "[" + r.id + "] " + name
}

// failure returns the step that failed, its error and the last lines it printed.
func (r *recorder) failure() (step, reason string, output []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == "" {
		return "", "", nil
	}
	output = lastLines(r.tails[r.failed], tailLines)
	if errs := lastLines(r.errs[r.failed], stderrLines); len(errs) > 0 && !slices.Contains(output, errs[len(errs)-1]) {
		output = append(output[min(len(errs), len(output)):], errs...)
	}
	return r.names[r.failed], r.reason, output
}

func appendTail(tail, data []byte) []byte {
	tail = append(tail, data...)
	return tail[max(0, len(tail)-maxTail):]
}

func lastLines(text []byte, n int) []string {
	s := strings.TrimRight(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	if s == "" {
		return nil
	}
	lines := strings.Split(s, "\n")
	return lines[max(0, len(lines)-n):]
}
