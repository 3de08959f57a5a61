package buildkit

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// Limits bounds what one context may hold.
type Limits struct {
	// Bytes is the sum of all file sizes.
	Bytes int64
	// Entries counts files, directories and symbolic links.
	Entries int
	// PathLength is the longest path in bytes, PathDepth the deepest in components.
	PathLength, PathDepth int
}

// DefaultLimits are what the context of a Lambda function never needs to exceed.
func DefaultLimits() Limits {
	return Limits{Bytes: 256 << 20, Entries: 50_000, PathLength: 1024, PathDepth: 64}
}

const (
	// maxName is the longest file name that Linux file systems take.
	maxName = 255
	// maxLink is the longest target of a symbolic link (PATH_MAX).
	maxLink = 4095
	// maxOpen bounds the files that a sender may have in flight; fsutil's sender uses four.
	maxOpen = 64
)

// guard is the receiving end of a transfer. It stands between the wire and fsutil: each entry is
// checked and normalised, and every byte counted, before fsutil sees it.
//
// Normalised means: owner 0:0, mode 0755 for directories and executable files and 0644 for others
// (as git knows it, so that a umask does not change an image), no set-id bits, no extended
// attributes, and a hard link is an independent file.
//
// RecvMsg is called by one goroutine only (fsutil's contract), so nothing here is locked.
type guard struct {
	fsutil.Stream
	limits Limits

	entries  int
	declared int64
	received int64
	sizes    []int64          // by the entry's index on the wire
	open     map[uint32]int64 // bytes that have arrived of a file in flight
}

func newGuard(s fsutil.Stream, l Limits) *guard {
	return &guard{Stream: s, limits: l, open: map[uint32]int64{}}
}

// RecvMsg implements fsutil.Stream.
func (g *guard) RecvMsg(m any) error {
	if err := g.Stream.RecvMsg(m); err != nil {
		return err
	}
	p, ok := m.(*types.Packet)
	if !ok {
		return fmt.Errorf("unexpected message %T: %w", m, errdefs.ErrInvalidArgument)
	}
	switch {
	case p.Type == types.PACKET_STAT && p.Stat != nil:
		return g.entry(p.Stat)
	case p.Type == types.PACKET_DATA:
		return g.data(p.ID, int64(len(p.Data)))
	}
	return nil
}

// entry checks one announced file and normalises what would make the image depend on its sender.
func (g *guard) entry(st *types.Stat) error {
	g.entries++
	if g.entries > g.limits.Entries {
		return refuse("the context has more than %d files: leave some out with .dockerignore", g.limits.Entries)
	}
	if err := checkPath(st.Path, g.limits); err != nil {
		return err
	}
	mode := fs.FileMode(st.Mode)
	switch mode.Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if len(st.Linkname) == 0 || len(st.Linkname) > maxLink || strings.ContainsRune(st.Linkname, 0) {
			return refuse("the symbolic link %q has no usable target", st.Path)
		}
	default:
		return refuse("%q is neither a file, a directory nor a symbolic link: leave it out with .dockerignore", st.Path)
	}
	size := st.Size
	if mode.Type() != 0 {
		size = 0
	}
	if size < 0 {
		return refuse("%q has a negative size", st.Path)
	}
	if g.declared += size; g.declared > g.limits.Bytes {
		return g.tooLarge()
	}
	g.sizes = append(g.sizes, size)
	normalise(st)
	return nil
}

func normalise(st *types.Stat) {
	mode := fs.FileMode(st.Mode)
	perm := fs.FileMode(0o644)
	switch {
	case mode.Type() == fs.ModeSymlink:
		perm = 0o777
	case mode.IsDir(), mode&0o111 != 0:
		perm = 0o755
	}
	st.Mode = uint32(mode.Type() | perm)
	st.Uid, st.Gid = 0, 0
	st.Devmajor, st.Devminor = 0, 0
	st.Xattrs = nil
	if mode.Type() == 0 {
		st.Linkname = "" // the sender serves the bytes of every name of a hard-linked file
	}
}

// data counts what arrives. An empty packet ends a file.
func (g *guard) data(id uint32, n int64) error {
	if int(id) >= len(g.sizes) {
		return refuse("data arrived for a file that was never announced")
	}
	if n == 0 {
		got := g.open[id]
		delete(g.open, id)
		if got < g.sizes[id] {
			return fmt.Errorf("a file of the context became shorter while it was read: run the command again: %w", errdefs.ErrAborted)
		}
		return nil
	}
	g.open[id] += n
	if len(g.open) > maxOpen {
		return refuse("more than %d files arrive at a time", maxOpen)
	}
	if g.received += n; g.received > g.limits.Bytes {
		return g.tooLarge()
	}
	return nil
}

func (g *guard) tooLarge() error {
	return refuse("the context is larger than %d MiB: leave files out with .dockerignore", g.limits.Bytes>>20)
}

// checkPath refuses every path that is not plainly inside its root. Separators are slashes on the
// wire, whatever the sender's platform.
func checkPath(p string, l Limits) error {
	switch {
	case p == "" || p == ".":
		return refuse("an entry of the context has no name")
	case strings.ContainsRune(p, 0):
		return refuse("%q contains a NUL byte", p)
	case path.IsAbs(p):
		return refuse("%q is an absolute path", p)
	case p != path.Clean(p) || p == ".." || strings.HasPrefix(p, "../"):
		return refuse("%q leaves the context", p)
	case len(p) > l.PathLength:
		return refuse("the path %.80q… is longer than %d bytes", p, l.PathLength)
	case strings.Count(p, "/") >= l.PathDepth:
		return refuse("the path %.80q… is deeper than %d directories", p, l.PathDepth)
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > maxName {
			return refuse("the name %.80q… is longer than %d bytes", name, maxName)
		}
	}
	return nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
