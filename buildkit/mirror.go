package buildkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	defaultDockerfile = "Dockerfile"
	dockerignore      = ".dockerignore"
	// maxDockerfile and maxIgnore bound the two files that are read whole, in bytes. The patterns
	// travel to the client as request headers.
	maxDockerfile = 1 << 20
	maxIgnore     = 256 << 10
)

// ReceiveOptions says what to pull.
type ReceiveOptions struct {
	// Dockerfile is the path of the Dockerfile inside the directory; "Dockerfile" when empty.
	Dockerfile string
	// Limits bounds the context; DefaultLimits when zero.
	Limits Limits
}

// Received says what a mirror holds and what had to travel for it.
type Received struct {
	// Entries and Bytes describe the whole context.
	Entries int
	Bytes   int64
	// Transferred counts the bytes of file contents that were sent.
	Transferred int64
}

// Receive brings the mirror dest in line with the directory that the client offers under that
// name, and returns when it is. Only files whose size, mode or time changed travel. Files that
// .dockerignore (or <Dockerfile>.dockerignore, which then counts alone) leaves out are not sent;
// the Dockerfile and the ignore files themselves always are.
//
// The mirror belongs to Receive: one call per dest at a time, and no build from it meanwhile. A
// call that fails may leave it half-written; the next one notices and starts over. The same holds
// after the machine restarted, because the files are not synced to disk.
//
// What breaks a rule of the context is an error of class invalid argument that names the entry.
func Receive(ctx context.Context, caller session.Caller, name, dest string, opts ReceiveOptions) (Received, error) {
	if opts.Dockerfile == "" {
		opts.Dockerfile = defaultDockerfile
	}
	if opts.Limits == (Limits{}) {
		opts.Limits = DefaultLimits()
	}
	if err := checkPath(opts.Dockerfile, opts.Limits); err != nil {
		return Received{}, fmt.Errorf("dockerfile of %s: %w", name, err)
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o700); err != nil {
		return Received{}, fmt.Errorf("make the mirror of %s: %w", name, err)
	}
	excludes, err := receiveHead(ctx, caller, name, dest, opts)
	if err != nil {
		return Received{}, err
	}
	if err := prepareMirror(dest); err != nil {
		return Received{}, fmt.Errorf("prepare the mirror of %s: %w", name, err)
	}
	got, err := pull(ctx, caller, name, dest, request{excludes: excludes}, opts.Limits)
	if err != nil {
		return Received{}, err
	}
	return got, os.WriteFile(stampOf(dest), bootID(), 0o600)
}

// RemoveMirror deletes a mirror and what belongs to it.
func RemoveMirror(dest string) error {
	return errors.Join(os.RemoveAll(stampOf(dest)), os.RemoveAll(dest))
}

// stampOf names the file that says the mirror is whole. It lies beside the mirror, where no entry
// of a context can be.
func stampOf(dest string) string { return filepath.Clean(dest) + ".whole" }

// bootID identifies the running kernel; a mirror that an earlier one wrote may have lost data.
var bootID = sync.OnceValue(func() []byte {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return []byte("unknown\n")
	}
	return id
})

// prepareMirror makes dest a directory whose contents can be trusted and marks it as being written.
func prepareMirror(dest string) error {
	stamp, err := os.ReadFile(stampOf(dest))
	whole := err == nil && bytes.Equal(stamp, bootID())
	if err := os.RemoveAll(stampOf(dest)); err != nil {
		return err
	}
	if fi, err := os.Lstat(dest); !whole || err != nil || !fi.IsDir() {
		if err := os.RemoveAll(dest); err != nil {
			return err
		}
	}
	return os.MkdirAll(dest, 0o700)
}

// receiveHead pulls the Dockerfile and the ignore files into a directory of its own and returns the
// patterns of what the context leaves out.
func receiveHead(ctx context.Context, caller session.Caller, name, dest string, opts ReceiveOptions) (_ []string, err error) {
	head, err := os.MkdirTemp(filepath.Dir(dest), ".head-")
	if err != nil {
		return nil, fmt.Errorf("make the mirror of %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(head)) }()

	own := opts.Dockerfile + dockerignore
	files := []string{opts.Dockerfile, own, dockerignore}
	var req request
	for _, f := range files {
		req.includes = append(req.includes, escapePattern(f))
	}
	if _, err := pull(ctx, caller, name, head, req, opts.Limits); err != nil {
		return nil, err
	}
	if _, err := ReadDockerfile(head, opts.Dockerfile); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	excludes, err := readIgnore(head, own)
	if errors.Is(err, fs.ErrNotExist) {
		excludes, err = readIgnore(head, dockerignore)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(excludes) == 0 {
		return nil, nil
	}
	for _, f := range files {
		excludes = append(excludes, "!"+escapePattern(f))
	}
	return excludes, nil
}

// readIgnore returns the patterns of an ignore file, nil and fs.ErrNotExist when there is none.
func readIgnore(dir, name string) ([]string, error) {
	data, err := readRegular(dir, name, maxIgnore)
	if err != nil {
		return nil, err
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(data))
	if err != nil {
		return nil, refuse("%s: %v", name, err)
	}
	if _, err := patternmatcher.New(patterns); err != nil {
		return nil, refuse("%s: %v", name, err)
	}
	return patterns, nil
}

// ReadDockerfile reads a Dockerfile from a mirror. It must be a regular file inside of it; the
// error is of class not found when there is none.
func ReadDockerfile(contextDir, name string) ([]byte, error) {
	if name == "" {
		name = defaultDockerfile
	}
	data, err := readRegular(contextDir, name, maxDockerfile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s in the folder: %w", name, errdefs.ErrNotFound)
	}
	return data, err
}

// readRegular reads a file of at most limit bytes below dir without following a link.
func readRegular(dir, name string, limit int64) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fi, err := root.Lstat(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, refuse("%s must be a regular file inside the context, not a link or a directory", name)
	}
	if fi.Size() > limit {
		return nil, refuse("%s is larger than %d KiB", name, limit>>10)
	}
	return root.ReadFile(filepath.FromSlash(name))
}

// escapePattern makes a path match only itself in the patterns of ignore files.
func escapePattern(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path.Clean(p))
}

// request is one filesync call: what to include (all when empty) and what to leave out.
type request struct{ includes, excludes []string }

// Keys of the call's metadata, as BuildKit's filesync client sends them.
const (
	keyName     = "dir-name"
	keyIncludes = "include-patterns"
	keyExcludes = "exclude-patterns"
)

// pull copies the offered directory into dest, which is written through a handle that no path can
// leave.
func pull(ctx context.Context, caller session.Caller, name, dest string, req request, l Limits) (Received, error) {
	if !caller.Supports(session.MethodURL(filesync.FileSync_ServiceDesc.ServiceName, "diffcopy")) {
		return Received{}, fmt.Errorf("the client offers no directories: %w", errdefs.ErrInvalidArgument)
	}
	opened, err := os.OpenRoot(dest)
	if err != nil {
		return Received{}, fmt.Errorf("open the mirror of %s: %w", name, err)
	}
	root := fsutil.NewRoot(opened)

	md := metadata.MD{}
	setPatterns(md, keyName, []string{name})
	setPatterns(md, keyIncludes, req.includes)
	setPatterns(md, keyExcludes, req.excludes)
	ctx, cancel := context.WithCancelCause(metadata.NewOutgoingContext(caller.Context(ctx), md))
	defer cancel(errReceived)
	stream, err := filesync.NewFileSyncClient(caller.Conn()).DiffCopy(ctx)
	if err != nil {
		return Received{}, errors.Join(fmt.Errorf("read %s: %w", name, err), root.Close())
	}
	g := newGuard(stream, l)
	if err := fsutil.ReceiveRoot(ctx, g, root, fsutil.ReceiveOpt{}); err != nil {
		// A transfer that fails returns before its writers have ended, and one that finds root closed
		// panics. They end soon after the context; the garbage collector then closes the directory,
		// as it does those that the receiver opened below it.
		return Received{}, receiveError(ctx, name, err)
	}
	if err := root.Close(); err != nil {
		return Received{}, fmt.Errorf("close the mirror of %s: %w", name, err)
	}
	return Received{Entries: g.entries, Bytes: g.declared, Transferred: g.received}, nil
}

var errReceived = errors.New("the transfer has ended")

// receiveError prefers the reason why a transfer was cancelled and strips gRPC's wording.
func receiveError(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("read %s: %w", name, context.Cause(ctx))
	}
	if st, ok := status.FromError(errors.Unwrap(err)); ok && st.Message() != "" {
		return fmt.Errorf("read %s: %s: %w", name, st.Message(), errdefs.ErrUnavailable)
	}
	return fmt.Errorf("read %s: %w", name, err)
}

// setPatterns puts values into gRPC metadata, which holds printable ASCII only. filesync decodes
// what its key's "-encoded" companion marks.
func setPatterns(md metadata.MD, key string, values []string) {
	if len(values) == 0 {
		return
	}
	plain := true
	for _, v := range values {
		plain = plain && !strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' })
	}
	if !plain {
		encoded := make([]string, len(values))
		for i, v := range values {
			encoded[i] = url.QueryEscape(v)
		}
		values = encoded
		md.Set(key+"-encoded", "1")
	}
	md.Set(key, values...)
}
