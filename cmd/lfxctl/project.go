package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/manifest"
)

// loadProject reads the project in dir, the current directory when empty. Everything that is wrong
// with it is one usage error, a line for each.
func (a *app) loadProject(dir, env string) (*manifest.Project, error) {
	if dir == "" {
		dir = "."
	}
	project, err := manifest.Load(dir, manifest.Options{Lookup: a.lookup, Environment: env})
	if wrong, ok := errors.AsType[manifest.Errors](err); ok {
		return nil, manifestError(wrong)
	}
	if errors.Is(err, errdefs.ErrInvalidArgument) {
		return nil, &usageError{message: err.Error()}
	}
	return project, err
}

func manifestError(wrong manifest.Errors) error {
	if len(wrong) == 1 {
		return &usageError{message: wrong[0].Error()}
	}
	return &usageError{
		message: fmt.Sprintf("the project has %s; nothing was deployed", count(len(wrong), "error")),
		details: wrong.Lines(),
	}
}

// contexts returns the distinct build contexts of the functions in dir: the name that the session
// offers → the directory.
func contexts(dir string, functions []function.Spec) map[string]string {
	dirs := map[string]string{}
	for _, f := range functions {
		if f.Build != nil {
			dirs[api.SourceDirName(f.Build.Context)] = filepath.Join(dir, filepath.FromSlash(f.Build.Context))
		}
	}
	return dirs
}
