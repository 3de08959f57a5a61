package manifest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// maxManifest and maxEnvFile bound what is read, in bytes.
	maxManifest = 1 << 20
	maxEnvFile  = 1 << 20
)

// readFile reads a regular file of at most limit bytes below root; links are followed as long as
// they stay below it. The error completes "<name> …".
func readFile(root *os.Root, name string, limit int64) ([]byte, error) {
	// Looked at before it is opened, for opening a pipe waits for its writer.
	info, err := root.Stat(filepath.FromSlash(name))
	if err != nil {
		return nil, explain(err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("is %s, not a regular file", kindOf(info))
	}
	f, err := root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, explain(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, explain(err)
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("is larger than %d KiB", limit>>10)
	}
	return data, nil
}

// explain words an error of an os.Root so that it completes "<name> …".
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("does not exist")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("may not be read: permission denied")
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	return fmt.Errorf("cannot be opened inside the project folder: %w", err)
}

// kindOf names what is not a regular file.
func kindOf(info fs.FileInfo) string {
	switch {
	case info.IsDir():
		return "a folder"
	case info.Mode()&fs.ModeSymlink != 0:
		return "a link"
	}
	return "a special file"
}

// checkContext reports what keeps a folder from being built: it must be a folder below root, and
// the Dockerfile a regular file below the folder. Links are followed as long as they stay inside.
// The error is one clause.
func checkContext(root *os.Root, context, dockerfile string) error {
	info, err := root.Stat(filepath.FromSlash(context))
	switch {
	case err != nil:
		return fmt.Errorf("folder %s %w", quote(context), explain(err))
	case !info.IsDir():
		return fmt.Errorf("%s is a file: write the folder that holds it", quote(context))
	}
	sub, err := root.OpenRoot(filepath.FromSlash(context))
	if err != nil {
		return fmt.Errorf("folder %s %w", quote(context), explain(err))
	}
	defer sub.Close()
	info, err = sub.Stat(filepath.FromSlash(dockerfile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no %s in folder %s", dockerfile, quote(context))
	case err != nil:
		return fmt.Errorf("%s in folder %s %w", dockerfile, quote(context), explain(err))
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s in folder %s is %s, not a regular file", dockerfile, quote(context), kindOf(info))
	}
	return nil
}
