package main

import (
	"errors"

	"lfx.dev/lfxd/daemon/function"
)

// loadProject reads the manifest in dir.
func (a *app) loadProject(dir, env string) (*project, error) {
	_ = function.Environment{}
	return nil, errors.New("no manifest package yet")
}
