package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// Backend is what the control API asks of the daemon.
type Backend interface {
	Version(ctx context.Context) api.VersionInfo
	// Deploy runs one deploy and reports its progress. The result is reported as the last event by the
	// caller of Deploy. Cancelling ctx cancels the build and leaves the running release untouched.
	Deploy(ctx context.Context, req api.DeployRequest, event func(api.DeployEvent)) (*api.DeployResult, error)
	Functions(filter function.Environment) []api.FunctionSummary
	Function(name string, filter function.Environment) (*api.FunctionDetail, error)
	Remove(ctx context.Context, name string, filter function.Environment) (*api.RemoveResult, error)
	Instances() []api.InstanceInfo
	ReleaseBackend
	// Logs calls entry for each line, until the query is exhausted, ctx ends or entry fails.
	Logs(ctx context.Context, q LogQuery, entry func(api.LogEntry) error) error
	Doctor(ctx context.Context) api.DoctorReport
}

// ReleaseBackend is what the control API asks about releases, traffic and single invocations. The
// environment of a filter may have empty members, which match all; that of a request is complete but for
// what its type says. Errors are *api.Error where the caller can do something.
type ReleaseBackend interface {
	Releases(filter function.Environment) []api.ReleaseInfo
	// Rollback activates an earlier release: warm first, then the switch. Progress as a deploy's.
	Rollback(ctx context.Context, req api.RollbackRequest, event func(api.DeployEvent)) (*api.DeployResult, error)
	Traffic(filter function.Environment) []api.Traffic
	SetTraffic(ctx context.Context, req api.TrafficRequest) (*api.Traffic, error)
	Promote(ctx context.Context, req api.ReleaseRequest) (*api.Traffic, error)
	Abort(ctx context.Context, req api.ReleaseRequest) (*api.Traffic, error)
	Diff(env function.Environment, from, to int) (*api.ReleaseDiff, error)
	Aliases(filter function.Environment, fn string) ([]api.Alias, error)
	SetAlias(ctx context.Context, a api.Alias) (*api.Alias, error)
	DeleteAlias(ctx context.Context, env function.Environment, fn, name string) (*api.Alias, error)
	Environments(filter function.Environment) []api.EnvironmentInfo
	RemoveEnvironment(ctx context.Context, env function.Environment) (*api.EnvironmentInfo, error)
	Record(id string) (*api.Record, error)
	// Metrics writes Prometheus' text format.
	Metrics(w io.Writer) error
}

// LogQuery selects log lines.
type LogQuery struct {
	Name      string
	Filter    function.Environment
	Follow    bool
	Since     time.Time
	Limit     int
	RequestID string
}

// maxControlBody bounds the JSON body of a control request in bytes.
const maxControlBody = 1 << 20

// route is one row of the table.
type route struct {
	method string
	path   string
	// sub accepts one more path segment below path.
	sub    bool
	access Access
	handle func(w http.ResponseWriter, r *http.Request, sub string) error
}

// table is the control API: who may call what.
func (s *Server) table() []route {
	b := s.opts.Backend
	return []route{
		{"GET", api.PathVersion, false, AccessControl, func(w http.ResponseWriter, r *http.Request, _ string) error {
			return writeJSON(w, http.StatusOK, b.Version(r.Context()))
		}},
		{"POST", api.PathSession, false, AccessControl, func(w http.ResponseWriter, r *http.Request, _ string) error {
			s.opts.Sessions.ServeHTTP(w, r)
			return nil
		}},
		{"POST", api.PathDeploys, false, AccessControl, s.deploy},
		{"GET", api.PathFunctions, false, AccessControl, func(w http.ResponseWriter, r *http.Request, _ string) error {
			return writeJSON(w, http.StatusOK, b.Functions(filter(r)))
		}},
		{"GET", api.PathFunctions, true, AccessControl, func(w http.ResponseWriter, r *http.Request, name string) error {
			d, err := b.Function(name, filter(r))
			return reply(w, d, err)
		}},
		{"DELETE", api.PathFunctions, true, AccessControl, func(w http.ResponseWriter, r *http.Request, name string) error {
			d, err := b.Remove(r.Context(), name, filter(r))
			return reply(w, d, err)
		}},
		{"GET", api.PathReleases, false, AccessControl, func(w http.ResponseWriter, r *http.Request, _ string) error {
			return writeList(w, b.Releases(filter(r)))
		}},
		{"POST", api.PathRollbacks, false, AccessControl, s.rollback},
		{"GET", api.PathTraffic, false, AccessControl, func(w http.ResponseWriter, r *http.Request, _ string) error {
			return writeList(w, b.Traffic(filter(r)))
		}},
		{"PUT", api.PathTraffic, false, AccessControl, s.setTraffic},
		{"POST", api.PathPromotions, false, AccessControl, s.endCanary(b.Promote)},
		{"POST", api.PathAborts, false, AccessControl, s.endCanary(b.Abort)},
		{"GET", api.PathDiff, false, AccessControl, s.diff},
		{"GET", api.PathAliases, false, AccessControl, s.aliases},
		{"PUT", api.PathAliases, false, AccessControl, s.setAlias},
		{"DELETE", api.PathAliases, false, AccessControl, s.deleteAlias},
		{"GET", api.PathEnvironments, false, AccessControl, func(w http.ResponseWriter, r *http.Request, _ string) error {
			return writeList(w, b.Environments(filter(r)))
		}},
		{"DELETE", api.PathEnvironments, false, AccessControl, s.removeEnvironment},
		{"GET", api.PathRecords, true, AccessControl, func(w http.ResponseWriter, _ *http.Request, id string) error {
			rec, err := b.Record(id)
			return reply(w, rec, err)
		}},
		{"GET", api.PathMetrics, false, AccessControl, s.metrics},
		{"GET", api.PathInstances, false, AccessControl, func(w http.ResponseWriter, _ *http.Request, _ string) error {
			return writeJSON(w, http.StatusOK, b.Instances())
		}},
		{"GET", api.PathLogs, false, AccessControl, s.logs},
		{"GET", api.PathDoctor, false, AccessControl, func(w http.ResponseWriter, r *http.Request, _ string) error {
			return writeJSON(w, http.StatusOK, b.Doctor(r.Context()))
		}},
		{"GET", api.PathPprof, true, AccessControl, profile},
	}
}

// match reports whether the path is the route's, and the last segment when the route takes one.
func (rt *route) match(path string) (sub string, ok bool) {
	if !rt.sub {
		return "", path == rt.path
	}
	sub, ok = strings.CutPrefix(path, rt.path+"/")
	return sub, ok && sub != "" && !strings.Contains(sub, "/")
}

// serve runs the handler and answers with its error.
func (rt *route) serve(w http.ResponseWriter, r *http.Request, sub string) {
	if err := rt.handle(w, r, sub); err != nil {
		writeAPIError(w, err)
	}
}

// unknown answers a request that is in no row: wrong path or wrong method.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request) {
	for i := range s.routes {
		if _, ok := s.routes[i].match(r.URL.Path); ok {
			writeJSON(w, http.StatusMethodNotAllowed, api.Error{Code: api.CodeInvalid, Message: r.Method + " is not possible on " + r.URL.Path}) //nolint:errcheck // the client is gone
			return
		}
	}
	writeJSON(w, http.StatusNotFound, api.Error{Code: api.CodeNotFound, Message: "there is nothing at " + r.URL.Path}) //nolint:errcheck // the client is gone
}

func filter(r *http.Request) function.Environment {
	q := r.URL.Query()
	return function.Environment{Project: q.Get("project"), Name: q.Get("environment")}
}

func reply[T any](w http.ResponseWriter, v *T, err error) error {
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

// writeList answers with a list; an empty one is [], not null.
func writeList[T any](w http.ResponseWriter, list []T) error {
	if list == nil {
		list = []T{}
	}
	return writeJSON(w, http.StatusOK, list)
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	w.Write(append(b, '\n')) //nolint:errcheck // the client is gone
	return nil
}

// APIError turns any error into the wire form, by its class. The one place where this is decided.
func APIError(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	var fields function.FieldErrors
	if errors.As(err, &fields) {
		e = &api.Error{Code: api.CodeInvalid, Message: err.Error()}
		for _, f := range fields {
			e.Details = append(e.Details, f.Error())
		}
		return e
	}
	e = &api.Error{Code: api.CodeInternal, Message: err.Error()}
	switch {
	case errdefs.IsInvalidArgument(err), errdefs.IsOutOfRange(err):
		e.Code = api.CodeInvalid
	case errdefs.IsNotFound(err):
		e.Code = api.CodeNotFound
	case errdefs.IsAlreadyExists(err), errdefs.IsConflict(err), errdefs.IsFailedPrecondition(err), errdefs.IsAborted(err):
		e.Code = api.CodeConflict
	case errdefs.IsPermissionDenied(err), errdefs.IsUnauthorized(err):
		e.Code = api.CodeForbidden
	case errdefs.IsUnavailable(err), errdefs.IsResourceExhausted(err), errdefs.IsDeadlineExceeded(err):
		e.Code = api.CodeUnavailable
	}
	return e
}

var statuses = map[string]int{
	api.CodeInvalid: http.StatusBadRequest, api.CodeNotFound: http.StatusNotFound, api.CodeConflict: http.StatusConflict,
	api.CodeForbidden: http.StatusForbidden, api.CodeUnavailable: http.StatusServiceUnavailable, api.CodeInternal: http.StatusInternalServerError,
}

func writeAPIError(w http.ResponseWriter, err error) {
	e := APIError(err)
	writeJSON(w, statuses[e.Code], e) //nolint:errcheck // the client is gone
}

// stream writes newline-delimited JSON, one flushed line a value. Safe for concurrent use.
type stream struct {
	mu sync.Mutex
	w  http.ResponseWriter
	c  *http.ResponseController
}

func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	return &stream{w: w, c: http.NewResponseController(w)}
}

func (s *stream) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c.SetWriteDeadline(time.Now().Add(30 * time.Second)) //nolint:errcheck // not every writer has one
	if _, err := s.w.Write(append(b, '\n')); err != nil {
		return err
	}
	return s.c.Flush()
}

// deploy streams a deploy. Errors before the first event are plain answers.
func (s *Server) deploy(w http.ResponseWriter, r *http.Request, _ string) error {
	var req api.DeployRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	streamEvents(w, r, func(ctx context.Context, event func(api.DeployEvent)) (*api.DeployResult, error) {
		return s.opts.Backend.Deploy(ctx, req, event)
	})
	return nil
}

// streamEvents answers with the events of run, and its result or error as the last one. The context of run
// ends when the client goes away: it gave up.
func streamEvents(w http.ResponseWriter, r *http.Request, run func(context.Context, func(api.DeployEvent)) (*api.DeployResult, error)) {
	out := newStream(w)
	w.WriteHeader(http.StatusOK)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	res, err := run(ctx, func(e api.DeployEvent) {
		if out.send(e) != nil {
			cancel()
		}
	})
	if err != nil {
		out.send(api.DeployEvent{Error: APIError(err)}) //nolint:errcheck // the client is gone
		return
	}
	out.send(api.DeployEvent{Done: res}) //nolint:errcheck // the client is gone
}

// decode reads a JSON body strictly.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxControlBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &api.Error{Code: api.CodeInvalid, Message: "the request body is not valid: " + err.Error()}
	}
	if _, err := d.Token(); err != io.EOF {
		return &api.Error{Code: api.CodeInvalid, Message: "the request body has something after its JSON value"}
	}
	return nil
}

// logs streams log lines.
func (s *Server) logs(w http.ResponseWriter, r *http.Request, _ string) error {
	q, err := logQuery(r.URL.Query())
	if err != nil {
		return err
	}
	q.Filter = filter(r)
	var out *stream
	err = s.opts.Backend.Logs(r.Context(), q, func(e api.LogEntry) error {
		if out == nil {
			out = newStream(w)
		}
		return out.send(e)
	})
	if out == nil && err == nil {
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.WriteHeader(http.StatusOK)
	}
	if out != nil && err != nil && r.Context().Err() == nil {
		panic(http.ErrAbortHandler) // the answer has begun: only a cut tells the client that it is not whole
	}
	if out != nil {
		return nil
	}
	return err
}

func logQuery(v url.Values) (LogQuery, error) {
	q := LogQuery{Name: v.Get("function"), RequestID: v.Get("request_id"), Follow: v.Get("follow") == "1"}
	if t := v.Get("since"); t != "" {
		since, err := time.Parse(time.RFC3339Nano, t)
		if err != nil {
			return q, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("since: %q is not an RFC 3339 time", t)}
		}
		q.Since = since
	}
	if t := v.Get("limit"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil || n < 0 {
			return q, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("limit: %q is not a number of lines", t)}
		}
		q.Limit = n
	}
	return q, nil
}
