//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The floor is what a warm invocation costs on this machine without lfxd: the same runtime clients as plain processes behind a minimal
// gateway. One goroutine serves all connections from epoll; it has no pools, limits, logs or releases, and it trusts what it reads.

// peer is one connection of the minimal gateway.
type peer struct {
	fd      int
	runtime bool // it came over the Runtime API
	in      []byte
	client  *peer // whose request a runtime works on
}

// minimal hands each request to the runtime that asked for work last.
type minimal struct {
	ep      int
	peers   map[int]*peer
	idle    []*peer // runtimes
	waiting []*peer // clients
	out     []byte
}

// serveFloor runs the gateway until standard input ends. It prints the addresses for clients and for runtimes.
func serveFloor() int {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		return 1
	}
	g := &minimal{ep: ep, peers: map[int]*peer{}, out: make([]byte, 0, 128<<10)}
	for _, kind := range []string{"clients", "runtimes"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			return 1
		}
		fmt.Println(l.Addr())
		go g.accept(l.(*net.TCPListener), kind == "runtimes") // ends with the process
	}
	go g.serve()
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is what counts
	return 0
}

// accept announces a connection by the bytes that it sends first: its peer is made by serve.
func (g *minimal) accept(l *net.TCPListener, runtime bool) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		f, err := c.File() // of its own, not in Go's poller
		c.Close()          //nolint:errcheck // f is what counts
		if err != nil {
			continue
		}
		fd, _ := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3) //nolint:errcheck // -1 fails below
		f.Close()                                               //nolint:errcheck // fd is what counts
		if unix.SetNonblock(fd, true) != nil {
			continue
		}
		mark := int32(0)
		if runtime {
			mark = 1
		}
		unix.EpollCtl(g.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd), Pad: mark}) //nolint:errcheck // the client would wait, and say so
	}
}

func (g *minimal) serve() {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(g.ep, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			p := g.peers[fd]
			if p == nil {
				p = &peer{fd: fd, runtime: e.Pad == 1, in: make([]byte, 0, 64<<10)}
				g.peers[fd] = p
			}
			m, errno := raw(unix.SYS_READ, fd, p.in[len(p.in):cap(p.in)])
			if errno == unix.EAGAIN || errno == unix.EINTR {
				continue
			}
			if errno != 0 || m == 0 {
				g.drop(p)
				continue
			}
			p.in = p.in[:len(p.in)+m]
			g.read(p)
		}
	}
}

func (g *minimal) drop(p *peer) {
	delete(g.peers, p.fd)
	is := func(q *peer) bool { return q == p }
	g.idle, g.waiting = slices.DeleteFunc(g.idle, is), slices.DeleteFunc(g.waiting, is)
	unix.Close(p.fd) //nolint:errcheck // it is gone
}

// read acts when a whole message is there.
func (g *minimal) read(p *peer) {
	body, ok := wholeBody(p.in)
	switch {
	case !ok:
	case p.runtime && p.in[0] == 'G':
		p.in = p.in[:0]
		if len(g.waiting) == 0 {
			g.idle = append(g.idle, p)
			return
		}
		c := g.waiting[0]
		g.waiting = g.waiting[1:]
		g.give(c, p)
	case p.runtime:
		g.out = append(g.out[:0], "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "...)
		g.write(p.client, body)
		p.in = p.in[:0]
		g.out = append(g.out[:0], "HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: "...)
		g.write(p, []byte(`{"status":"OK"}`+"\n"))
	case len(g.idle) == 0:
		g.waiting = append(g.waiting, p)
	default:
		last := len(g.idle) - 1
		r := g.idle[last]
		g.idle = g.idle[:last]
		g.give(p, r)
	}
}

// give writes a client's request to a runtime as its next event.
func (g *minimal) give(c, r *peer) {
	body, _ := wholeBody(c.in)
	r.client = c
	g.out = append(g.out[:0], "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd\r\n"+
		"Lambda-Runtime-Deadline-Ms: 9942409382706\r\nLambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:000000000000:function:floor\r\n"+
		"Lambda-Runtime-Trace-Id: Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1\r\nContent-Length: "...)
	g.write(r, body)
	c.in = c.in[:0]
}

// write ends the head that is in out and sends it with a body.
func (g *minimal) write(to *peer, body []byte) {
	g.out = strconv.AppendInt(g.out, int64(len(body)), 10)
	g.out = append(append(g.out, "\r\n\r\n"...), body...)
	raw(unix.SYS_WRITE, to.fd, g.out) // the client would wait, and say so
}

// raw is a read or write that does not block, without a word to Go's scheduler.
func raw(call uintptr, fd int, p []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}

// wholeBody returns the body of a message that has arrived; one in chunks has a single one, as the runtime clients here send it.
func wholeBody(b []byte) ([]byte, bool) {
	end := bytes.Index(b, headEnd)
	if end < 0 {
		return nil, false
	}
	head, rest := b[:end+2], b[end+4:]
	if at := bytes.Index(head, length); at >= 0 {
		digits := head[at+len(length):]
		n, err := strconv.Atoi(string(digits[:bytes.IndexByte(digits, '\r')]))
		return rest[:min(n, len(rest))], err == nil && len(rest) >= n
	}
	if !bytes.Contains(head, []byte("\r\nTransfer-Encoding: chunked\r\n")) {
		return nil, true
	}
	size, data, _ := bytes.Cut(rest, []byte("\r\n"))
	n, err := strconv.ParseInt(string(size), 16, 32)
	return data[:min(int(n), len(data))], err == nil && bytes.HasSuffix(rest, []byte("\r\n0\r\n\r\n"))
}

// floor is a running minimal gateway with its functions.
type floor struct {
	cmds  []*exec.Cmd // the gateway first
	stdin io.Closer
	target
}

// startFloor runs count processes of a function behind a gateway.
func startFloor(function string, count int) (f *floor, err error) {
	f = &floor{}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	cmd, stdin, stdout, err := startSelf("floor")
	if err != nil {
		return f, err
	}
	f.stdin = stdin
	f.cmds = append(f.cmds, cmd)
	var addresses []string
	for len(addresses) < 2 {
		line, err := stdout.ReadString('\n')
		if err != nil {
			return f, fmt.Errorf("the minimal gateway did not start: %w", err)
		}
		addresses = append(addresses, strings.TrimSpace(line))
	}
	for range count {
		fn := exec.Command(function)
		fn.Env = []string{"AWS_LAMBDA_RUNTIME_API=" + addresses[1], "GOMAXPROCS=1", "AWS_LAMBDA_FUNCTION_NAME=floor", "AWS_LAMBDA_FUNCTION_VERSION=1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256"}
		if err := fn.Start(); err != nil {
			return f, err
		}
		f.cmds = append(f.cmds, fn)
	}
	f.target = post(cmd.Process.Pid, "tcp", addresses[0], "/2015-03-31/functions/floor/invocations")
	return f, nil
}

func (f *floor) close() {
	if f.stdin != nil {
		f.stdin.Close() //nolint:errcheck // it ends the gateway
	}
	for i, cmd := range f.cmds {
		if i > 0 {
			cmd.Process.Kill() //nolint:errcheck // it has ended then
		}
		cmd.Wait() //nolint:errcheck // nothing to learn from it
	}
}

// floorRounds measures the floor of both functions against the echo, by one client over TCP.
func floorRounds(o options, d *daemonUnderTest, res *results) error {
	progress("floor: the same runtime clients without lfxd")
	raw := filepath.Join(d.state, "floor-raw")
	if err := buildStatic(o.root, raw); err != nil {
		return err
	}
	echo, err := startEcho(filepath.Join(d.arms, "floor-echo.sock"))
	if err != nil {
		return err
	}
	defer echo.close()
	reference := post(echo.cmd.Process.Pid, "tcp", echo.tcp, "/echo")
	for _, arm := range []struct{ name, function string }{{"raw", raw}, {"go", filepath.Join(o.root, "contrib/examples/lambda-go/bootstrap")}} {
		f, err := startFloor(arm.function, warmCount)
		if err != nil {
			return err
		}
		err = f.rounds(o, res, arm.name, reference)
		f.close()
		if err != nil {
			return fmt.Errorf("floor, %s: %w", arm.name, err)
		}
	}
	return nil
}

func (f *floor) rounds(o options, res *results, name string, reference target) error {
	group := "floor: no lfxd, no container, TCP, 1 client"
	mean := row{Group: group, Name: name + " ÷ echo, mean", Unit: "µs"}
	cpu := row{Group: group, Name: name + " ÷ echo, the server's CPU time", Unit: "µs"}
	if _, err := load(f.target, warmCount, 200*time.Millisecond); err != nil { // waits for the functions
		return err
	}
	for range o.rounds {
		theirs, err := load(reference, 1, o.slice)
		if err != nil {
			return err
		}
		ours, err := load(f.target, 1, o.slice)
		if err != nil {
			return err
		}
		mean.add(ours.Mean, theirs.Mean)
		cpu.add(ours.CPU, theirs.CPU)
	}
	res.addRow(mean)
	res.addRow(cpu)
	return nil
}
