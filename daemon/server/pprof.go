package server

import (
	"net/http"
	"net/http/pprof"
	"slices"

	"lfx.dev/lfxd/daemon/api"
)

// profiles are the names that runtime/pprof has profiles of.
var profiles = []string{"allocs", "block", "goroutine", "heap", "mutex", "threadcreate"}

// profile serves one profile of lfxd, for those who look for where its time and memory go. A CPU profile
// and a trace take as long as ?seconds= says. Importing net/http/pprof also adds routes to
// http.DefaultServeMux, which lfxd serves nowhere.
func profile(w http.ResponseWriter, r *http.Request, name string) error {
	switch {
	case name == "profile":
		pprof.Profile(w, r)
	case name == "trace":
		pprof.Trace(w, r)
	case slices.Contains(profiles, name):
		pprof.Handler(name).ServeHTTP(w, r)
	default:
		return &api.Error{Code: api.CodeNotFound, Message: "there is no profile " + name}
	}
	return nil
}
