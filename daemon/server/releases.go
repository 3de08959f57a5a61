package server

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// complete fills in what a request may leave out of its environment: the name of the default one, and the
// project where the host has only one.
func (s *Server) complete(env *function.Environment) error {
	if env.Name == "" {
		env.Name = function.DefaultEnvironment
	}
	if env.Project != "" {
		return nil
	}
	var projects []string
	for _, e := range s.opts.Backend.Environments(function.Environment{}) {
		projects = append(projects, e.Project)
	}
	slices.Sort(projects)
	switch projects = slices.Compact(projects); len(projects) {
	case 0:
		return &api.Error{Code: api.CodeNotFound, Message: "no project is deployed: `lfxctl deploy` deploys one"}
	case 1:
		env.Project = projects[0]
		return nil
	}
	return &api.Error{Code: api.CodeConflict, Message: "this host has several projects: say which one, with --project in lfxctl", Details: projects}
}

// decodeFor reads a JSON body and completes the environment that it names.
func (s *Server) decodeFor(r *http.Request, v any, env *function.Environment) error {
	if err := decode(r, v); err != nil {
		return err
	}
	return s.complete(env)
}

// rollback streams a rollback. Errors before the first event are plain answers.
func (s *Server) rollback(w http.ResponseWriter, r *http.Request, _ string) error {
	var req api.RollbackRequest
	if err := s.decodeFor(r, &req, &req.Environment); err != nil {
		return err
	}
	streamEvents(w, r, func(ctx context.Context, event func(api.DeployEvent)) (*api.DeployResult, error) {
		return s.opts.Backend.Rollback(ctx, req, event)
	})
	return nil
}

func (s *Server) setTraffic(w http.ResponseWriter, r *http.Request, _ string) error {
	var req api.TrafficRequest
	if err := s.decodeFor(r, &req, &req.Environment); err != nil {
		return err
	}
	t, err := s.opts.Backend.SetTraffic(r.Context(), req)
	return reply(w, t, err)
}

// endCanary promotes or aborts, as end does.
func (s *Server) endCanary(end func(context.Context, api.ReleaseRequest) (*api.Traffic, error)) func(http.ResponseWriter, *http.Request, string) error {
	return func(w http.ResponseWriter, r *http.Request, _ string) error {
		var req api.ReleaseRequest
		if err := s.decodeFor(r, &req, &req.Environment); err != nil {
			return err
		}
		t, err := end(r.Context(), req)
		return reply(w, t, err)
	}
}

// diff compares two releases; without ?from= the active one is the first.
func (s *Server) diff(w http.ResponseWriter, r *http.Request, _ string) error {
	env := filter(r)
	if err := s.complete(&env); err != nil {
		return err
	}
	to, err := releaseNumber(r, "to")
	if err != nil {
		return err
	}
	from := 0
	if r.URL.Query().Get("from") != "" {
		from, err = releaseNumber(r, "from")
	} else {
		from, err = s.active(env)
	}
	if err != nil {
		return err
	}
	d, err := s.opts.Backend.Diff(env, from, to)
	return reply(w, d, err)
}

// releaseNumber reads the query parameter that names a release.
func releaseNumber(r *http.Request, name string) (int, error) {
	text := r.URL.Query().Get(name)
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%s: %q is not the number of a release", name, text)}
	}
	return n, nil
}

// active is the number of the active release.
func (s *Server) active(env function.Environment) (int, error) {
	for _, t := range s.opts.Backend.Traffic(env) {
		if t.Active != 0 {
			return t.Active, nil
		}
	}
	return 0, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%s has no active release to compare with: `lfxctl releases` lists what there is", env)}
}

func (s *Server) aliases(w http.ResponseWriter, r *http.Request, _ string) error {
	list, err := s.opts.Backend.Aliases(filter(r), r.URL.Query().Get("function"))
	if err != nil {
		return err
	}
	return writeList(w, list)
}

func (s *Server) setAlias(w http.ResponseWriter, r *http.Request, _ string) error {
	var alias api.Alias
	if err := s.decodeFor(r, &alias, &alias.Environment); err != nil {
		return err
	}
	a, err := s.opts.Backend.SetAlias(r.Context(), alias)
	return reply(w, a, err)
}

func (s *Server) deleteAlias(w http.ResponseWriter, r *http.Request, _ string) error {
	env := filter(r)
	if err := s.complete(&env); err != nil {
		return err
	}
	q := r.URL.Query()
	if q.Get("name") == "" {
		return &api.Error{Code: api.CodeInvalid, Message: "name: say which alias is to go"}
	}
	a, err := s.opts.Backend.DeleteAlias(r.Context(), env, q.Get("function"), q.Get("name"))
	return reply(w, a, err)
}

// removeEnvironment completes nothing: what removes so much must be named in full.
func (s *Server) removeEnvironment(w http.ResponseWriter, r *http.Request, _ string) error {
	env := filter(r)
	if env.Project == "" || env.Name == "" {
		return &api.Error{Code: api.CodeInvalid, Message: "project and environment: both must be named when an environment is removed"}
	}
	e, err := s.opts.Backend.RemoveEnvironment(r.Context(), env)
	return reply(w, e, err)
}

// metrics answers in Prometheus' text format, whole or with an error.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request, _ string) error {
	var text bytes.Buffer
	if err := s.opts.Backend.Metrics(&text); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(text.Len()))
	w.Write(text.Bytes()) //nolint:errcheck // the client is gone
	return nil
}
