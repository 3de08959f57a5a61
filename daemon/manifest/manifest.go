// Package manifest reads a project: its lfx.yaml, or, without one, the folders that hold a
// Dockerfile. It owns the file's keys, units, variables and errors, and the checks that need the
// project's files; what a function may be is daemon/function's business. It builds on every
// platform, for lfxctl reads manifests on the machine of its user.
//
// A manifest may come from a stranger's repository: it is decoded strictly and within bounds, it
// reaches no file outside its folder, and nothing in it is run.
//
// docs/manifest.md is the reference for users, Schema the same for editors; both are tested against
// the decoder.
package manifest

import (
	_ "embed" // for Schema
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"lfx.dev/lfxd/daemon/function"
)

// Schema is the JSON schema (2020-12) of the manifest.
//
//go:embed lfx.schema.json
var Schema []byte

// Names are the file names of a manifest, the first preferred.
var Names = []string{"lfx.yaml", "lfx.yml"}

// Options say how a project is read. The zero value is usable.
type Options struct {
	// Lookup finds the variables of ${VAR} and of entries without a value; os.LookupEnv in lfxctl.
	// Nil finds none.
	Lookup Lookup
	// Environment is the environment that is deployed to; empty is function.DefaultEnvironment.
	Environment string
}

// Project is what a deploy needs to know: everything resolved and valid.
type Project struct {
	// Environment holds the project's name and the environment's.
	function.Environment
	// Dir is the absolute path of the project folder.
	Dir string
	// File is the name of the manifest in Dir; empty when the functions were discovered.
	File string
	// Specs are the functions by name, at least one.
	Specs []function.Spec
	// Canary says how a canary is judged; the defaults where the manifest says nothing.
	Canary Canary
	// Warnings are sentences for the user; the project is fine.
	Warnings []string
}

// Load reads the project in dir. It reads files below dir and nothing else, and does not block on
// pipes or devices. What is wrong with the project is an Errors with everything at once; only trouble
// with the file system is another error.
func Load(dir string, opt Options) (*Project, error) {
	if opt.Lookup == nil {
		opt.Lookup = func(string) (string, bool) { return "", false }
	}
	if opt.Environment == "" {
		opt.Environment = function.DefaultEnvironment
	}
	if err := function.ValidateEnvironment(opt.Environment); err != nil {
		return nil, err
	}
	abs, root, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	p := &Project{Environment: function.Environment{Name: opt.Environment}, Dir: abs, Canary: DefaultCanary()}
	if p.File, err = findManifest(root); err != nil {
		return nil, err
	}
	if p.File == "" {
		err = discover(root, p)
	} else {
		err = p.read(root, opt.Lookup)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// openDir opens the project folder.
func openDir(dir string) (abs string, _ *os.Root, err error) {
	abs, err = filepath.Abs(dir)
	if err != nil {
		return "", nil, fmt.Errorf("project folder %s: %w", dir, err)
	}
	info, err := os.Stat(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, Errors{{Msg: fmt.Sprintf("project folder %s does not exist", abs)}}
	case err != nil:
		return "", nil, fmt.Errorf("project folder: %w", err)
	case !info.IsDir():
		return "", nil, Errors{{Msg: abs + " is not a folder: name the project folder that holds it"}}
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return "", nil, fmt.Errorf("project folder: %w", err)
	}
	return abs, root, nil
}

// findManifest returns the name of the manifest in root, empty when there is none.
func findManifest(root *os.Root) (string, error) {
	var found []string
	for _, name := range Names {
		switch _, err := root.Lstat(name); {
		case err == nil:
			found = append(found, name)
		case !errors.Is(err, fs.ErrNotExist):
			return "", Errors{{File: name, Msg: explain(err).Error()}}
		}
	}
	switch len(found) {
	case 0:
		return "", nil
	case 1:
		return found[0], nil
	}
	return "", Errors{{File: found[1], Msg: "stands beside " + found[0] + ": remove one of the two"}}
}

// read reads the manifest p.File.
func (p *Project) read(root *os.Root, lookup Lookup) error {
	data, err := readFile(root, p.File, maxManifest)
	if err != nil {
		return Errors{{File: p.File, Msg: err.Error()}}
	}
	decl, errs := parse(root, p.File, data, lookup)
	if p.Project = decl.name; p.Project == "" && len(errs) == 0 {
		if p.Project, err = projectName(p.Dir); err != nil {
			errs = append(errs, Error{File: p.File, Line: 1, Path: "project", Msg: err.Error()})
		}
	}
	if len(errs) > 0 {
		return errs.sorted(p.File)
	}
	p.Canary = decl.canary
	for _, f := range decl.functions {
		p.Specs = append(p.Specs, f.Spec)
	}
	return nil
}

// parse decodes and checks a manifest; root is where env files and build contexts are.
func parse(root *os.Root, file string, data []byte, lookup Lookup) (projectDecl, Errors) {
	node, syntax := parseYAML(file, data)
	if syntax != nil {
		return projectDecl{}, Errors{*syntax}
	}
	d := &decoder{file: file, root: root, lookup: lookup, at: map[string]position{}, work: maxWork}
	p := d.decodeProject(node)
	d.check(p)
	d.checkContexts(p)
	return p, d.errs
}

// checkContexts looks at the folders of all functions whose build could be read.
func (d *decoder) checkContexts(p projectDecl) {
	known := d.unread(p)
	for _, f := range p.functions {
		at := f.path + ".build"
		if f.Build == nil || known[at] {
			continue
		}
		dockerfile := f.Build.Dockerfile
		if dockerfile == "" {
			dockerfile = defaultDockerfile
		}
		if err := checkContext(d.root, f.Build.Context, dockerfile); err != nil {
			d.add(d.placeOf(at), at, "%v", err)
		}
	}
}

const defaultDockerfile = "Dockerfile"

// discover makes each direct sub-folder with a Dockerfile a function of that name, or, when there
// is none, the project folder itself.
func discover(root *os.Root, p *Project) error {
	var errs Errors
	var err error
	if p.Project, err = projectName(p.Dir); err != nil {
		errs = append(errs, Error{Msg: err.Error()})
	}
	folders, err := dockerFolders(root)
	if err != nil {
		return fmt.Errorf("project folder: %w", err)
	}
	own := isRegular(root, defaultDockerfile)
	switch {
	case len(folders) == 0 && own:
		p.Specs = append(p.Specs, discovered(filepath.Base(p.Dir), "."))
	case len(folders) == 0:
		return Errors{{Msg: fmt.Sprintf("no functions in %s: put a Dockerfile into a folder for each function, or write an lfx.yaml", p.Dir)}}
	case own:
		p.Warnings = append(p.Warnings, "the Dockerfile in the project folder itself is not used, because its sub-folders have Dockerfiles; write an lfx.yaml to build it too")
	}
	for _, name := range folders {
		p.Specs = append(p.Specs, discovered(name, name))
	}
	for _, s := range p.Specs {
		if e := function.ValidateSpec(s).Err(); e != nil {
			errs = append(errs, Error{File: s.Build.Context + "/" + defaultDockerfile, Msg: e.Error() + "; rename the folder, or write an lfx.yaml that names the function"})
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// discovered returns the function of a folder.
func discovered(name, folder string) function.Spec {
	return function.Spec{Name: name, Build: &function.Build{Context: folder}, Config: function.DefaultConfig()}
}

// dockerFolders returns the names of the direct sub-folders with a regular Dockerfile, sorted.
// Hidden folders and links are not looked into.
func dockerFolders(root *os.Root) ([]string, error) {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, err
	}
	var folders []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && isRegular(root, filepath.Join(e.Name(), defaultDockerfile)) {
			folders = append(folders, e.Name())
		}
	}
	slices.Sort(folders)
	return folders, nil
}

func isRegular(root *os.Root, name string) bool {
	info, err := root.Lstat(name)
	return err == nil && info.Mode().IsRegular()
}

// projectName makes a project's name of its folder's: lower case, with hyphens for blanks, dots and
// underscores.
func projectName(dir string) (string, error) {
	base := filepath.Base(dir)
	name := strings.Trim(strings.NewReplacer(" ", "-", ".", "-", "_", "-").Replace(strings.ToLower(base)), "-")
	if err := function.ValidateProject(name); err != nil {
		return "", fmt.Errorf("the folder's name %s makes no name for the project (%w): write an lfx.yaml with project: and a name", quote(base), err)
	}
	return name, nil
}
