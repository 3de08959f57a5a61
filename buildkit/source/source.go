// Package source is the client's side of a build: it offers local directories to the daemon.
//
// It has no Linux dependencies, because lfxctl runs on macOS and Windows too.
package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// handshakeTimeout bounds the upgrade of the connection, not the session that follows.
const handshakeTimeout = 15 * time.Second

// Dialer opens a connection to the daemon, ready for an HTTP/1.1 request.
type Dialer func(ctx context.Context) (net.Conn, error)

// Options tells Offer where the daemon is and what the request to it needs.
type Options struct {
	// Dial opens the connection.
	Dial Dialer
	// Path is the session endpoint, "/lfx/v1/session".
	Path string
	// Host is the Host header; "lfx" when empty.
	Host string
	// Header is added to the upgrade request (an Authorization header, for one).
	Header http.Header
	// Dirs are the offered directories by name. Nothing else can be read through the session.
	Dirs map[string]string
}

// Offer performs the HTTP upgrade on a new connection to the daemon and serves the directories on
// it until the returned function is called, the context ends or the daemon hangs up.
//
// It returns the session's id, with which the daemon finds the session, once the daemon has
// accepted it. The function ends the session and waits for it; it may be called more than once.
func Offer(ctx context.Context, opts Options) (id string, done func(), err error) {
	dirs := filesync.StaticDirSource{}
	for name, dir := range opts.Dirs {
		if dirs[name], err = newFS(dir); err != nil {
			return "", nil, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			cancel(err)
		}
	}()
	s, err := session.NewSession(ctx, "")
	if err != nil {
		return "", nil, fmt.Errorf("make a session: %w", err)
	}
	s.Allow(filesync.NewFSSyncProvider(dirs))

	accepted := make(chan error, 1)
	finished := make(chan struct{})
	go func() { // ends when the session does; done waits for it
		defer close(finished)
		err := s.Run(ctx, func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			conn, err := upgrade(ctx, opts, proto, meta)
			accepted <- err
			return conn, err
		})
		if err != nil {
			select {
			case accepted <- err: // it ended before it dialled
			default:
			}
		}
	}()
	if err := <-accepted; err != nil {
		<-finished
		return "", nil, err
	}
	return s.ID(), func() {
		cancel(errors.New("the session was closed"))
		s.Close()
		<-finished
	}, nil
}

// upgrade asks the daemon to turn a new connection into a session. The daemon is the HTTP/2 client
// of a session and may send its preface right behind the 101 answer, so the reader that parsed the
// answer stays in use.
func upgrade(ctx context.Context, opts Options, proto string, meta map[string][]string) (_ net.Conn, err error) {
	conn, err := opts.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, fmt.Errorf("open a session with the daemon: %w", err)
	}

	req, err := request(ctx, opts, proto, meta)
	if err != nil {
		return nil, err
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("open a session with the daemon: %w", err)
	}
	buffered := bufio.NewReader(conn)
	resp, err := http.ReadResponse(buffered, req)
	if err != nil {
		return nil, fmt.Errorf("open a session with the daemon: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return nil, fmt.Errorf("the daemon refused the session: %s: %s", resp.Status, text)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("open a session with the daemon: %w", err)
	}
	return &bufferedConn{Conn: conn, r: buffered}, nil
}

func request(ctx context.Context, opts Options, proto string, meta map[string][]string) (*http.Request, error) {
	host := opts.Host
	if host == "" {
		host = "lfx"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+host+opts.Path, nil)
	if err != nil {
		return nil, fmt.Errorf("open a session with the daemon: %w", err)
	}
	for k, vv := range opts.Header {
		req.Header[k] = vv
	}
	for k, vv := range meta {
		req.Header[http.CanonicalHeaderKey(k)] = vv
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", proto)
	return req, nil
}

// bufferedConn reads what the HTTP parser has already taken off the wire first.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// treeFS is a directory as the daemon may read it. It differs from fsutil's own in two ways, both
// of which would otherwise silently become empty files in an image: a socket is marked as special
// (the daemon then refuses it by name unless .dockerignore leaves it out), and a file that cannot
// be read fails the transfer.
type treeFS struct{ fsutil.FS }

func newFS(dir string) (fsutil.FS, error) {
	inner, err := fsutil.NewFS(dir)
	if err != nil {
		return nil, fmt.Errorf("offer directory %s: %w", dir, err)
	}
	return treeFS{inner}, nil
}

// Walk implements fsutil.FS.
func (t treeFS) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	return t.FS.Walk(ctx, target, func(path string, entry fs.DirEntry, err error) error {
		if entry != nil && entry.Type()&os.ModeSocket != 0 {
			entry = socketEntry{entry}
		}
		return fn(path, entry, err)
	})
}

// Open implements fsutil.FS. fsutil's sender treats a failing Open as an empty file, so the error
// is given to the first Read instead.
func (t treeFS) Open(path string) (io.ReadCloser, error) {
	r, err := t.FS.Open(path)
	if err != nil {
		return io.NopCloser(failingReader{fmt.Errorf("read %s: %w", path, err)}), nil
	}
	return r, nil
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// socketEntry keeps a socket recognisable: the transfer protocol has no bit for it.
type socketEntry struct{ fs.DirEntry }

// Info implements fs.DirEntry.
func (e socketEntry) Info() (fs.FileInfo, error) {
	fi, err := e.DirEntry.Info()
	if err != nil {
		return nil, err
	}
	stat, ok := fi.Sys().(*types.Stat)
	if !ok {
		return fi, nil
	}
	stat = stat.Clone()
	stat.Mode |= uint32(os.ModeIrregular)
	return &fsutil.StatInfo{Stat: stat}, nil
}
