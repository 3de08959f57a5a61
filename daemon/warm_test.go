package daemon

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/gateway"
	"lfx.dev/lfxd/daemon/invocation"
	"lfx.dev/lfxd/daemon/logs"
	"lfx.dev/lfxd/daemon/pool"
	"lfx.dev/lfxd/daemon/server"
	"lfx.dev/lfxd/daemon/worker"
	"lfx.dev/lfxd/internal/tmpdir"
	"lfx.dev/lfxd/runtime/instance"
)

// rawInstance is an instance whose runtime is a goroutine that speaks raw bytes to the Runtime API.
type rawInstance struct {
	worker.Instance // what a warm invocation does not call

	listener net.Listener
	pipes    [2][2]*os.File
	exited   chan struct{}
	once     sync.Once
	ended    sync.WaitGroup
	conn     net.Conn
}

func (i *rawInstance) Address() netip.Addr     { return netip.Addr{} }
func (i *rawInstance) Phases() instance.Phases { return instance.Phases{} }
func (i *rawInstance) Stdout() *os.File        { return i.pipes[0][0] }
func (i *rawInstance) Stderr() *os.File        { return i.pipes[1][0] }
func (i *rawInstance) SetCores(float64) error  { return nil }
func (i *rawInstance) PeakMemory() uint64      { return 1 << 20 }
func (i *rawInstance) Exited() <-chan struct{} { return i.exited }
func (i *rawInstance) Exit() instance.Exit     { return instance.Exit{Signal: syscall.SIGKILL} }
func (i *rawInstance) Begin() error            { return nil }
func (i *rawInstance) Kill() error             { i.once.Do(func() { close(i.exited); i.conn.Close() }); return nil }
func (i *rawInstance) Destroy(context.Context) error {
	i.ended.Wait()
	for _, p := range i.pipes {
		p[0].Close()
		p[1].Close()
	}
	return i.listener.Close()
}

// run answers every event with itself, in as few system calls as can be.
func (i *rawInstance) run() {
	const next = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"
	in, out := make([]byte, 64<<10), []byte(nil)
	br := bufio.NewReaderSize(i.conn, 64<<10)
	for {
		if _, err := io.WriteString(i.conn, next); err != nil {
			return
		}
		head, body, err := readMessage(br, in)
		if err != nil {
			return
		}
		_, id, _ := bytes.Cut(head, []byte("Lambda-Runtime-Aws-Request-Id: "))
		out = append(append(out[:0], "POST /2018-06-01/runtime/invocation/"...), id[:36]...)
		out = fmt.Appendf(out, "/response HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		if _, err := i.conn.Write(out); err != nil {
			return
		}
		if _, _, err := readMessage(br, in); err != nil {
			return
		}
	}
}

// readMessage reads a head and a body with a Content-Length into buf.
func readMessage(br *bufio.Reader, buf []byte) (head, body []byte, err error) {
	n, length := 0, 0
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return nil, nil, err
		}
		n += copy(buf[n:], line)
		if len(line) == 2 {
			break
		}
		if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			for _, c := range v[:len(v)-2] {
				length = length*10 + int(c-'0')
			}
		}
	}
	if _, err := io.ReadFull(br, buf[n:n+length]); err != nil {
		return nil, nil, err
	}
	return buf[:n], buf[n : n+length], nil
}

// rawInstances implements worker.Creator.
type rawInstances struct{ made atomic.Int32 }

func (r *rawInstances) NewID(string) string { return instance.RandomID() }

func (r *rawInstances) Create(_ context.Context, spec instance.Spec) (worker.Instance, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if err := spec.Listen(l); err != nil {
		return nil, err
	}
	i := &rawInstance{listener: l, exited: make(chan struct{})}
	for n := range i.pipes {
		if i.pipes[n][0], i.pipes[n][1], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	if i.conn, err = net.Dial("tcp", l.Addr().String()); err != nil {
		return nil, err
	}
	r.made.Add(1)
	i.ended.Go(i.run) // ends with Kill
	return i, nil
}

// bound resolves every name to one function.
type bound struct {
	pools *pool.Manager
	key   function.Key
}

func (b *bound) Resolve(context.Context, gateway.Target) (invocation.Route, error) {
	return b.pools.Bind(b.key.Environment, b.key.Function)
}

// warmPath is a listener of lfxd's with everything behind it but containers, and one function. It
// ends with the test.
func warmPath(tb testing.TB, most int) (addr string, made *rawInstances) {
	tb.Helper()
	store, err := logs.Open(tmpdir.New(tb), logs.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	made = &rawInstances{}
	starter := worker.NewStarter(worker.Options{
		Instances: made, Logs: store, Region: "us-east-1", InitTimeout: time.Minute, CreateTimeout: time.Minute, Log: log,
		LambdaAPI: func(function.Environment, func() invocation.Caller) http.Handler { return http.NotFoundHandler() },
	})
	pools := pool.NewManager(pool.Options{
		Starter: starter, DefaultMax: func(*function.Version) int { return most }, QueueLimit: 1000, QueueTimeout: time.Minute, IdleTimeout: time.Hour, Log: log,
	})
	env := function.Environment{Project: "shop", Name: "default"}
	v := &function.Version{Key: function.Key{Environment: env, Function: "hello"}, Number: 1, Image: function.Image{Name: "x", Entrypoint: []string{"/x"}}}
	v.Config = function.Config{MemoryMB: 128, Timeout: time.Minute}
	rel, err := pools.Prepare(function.Release{Environment: env, Number: 1, Versions: map[string]int{"hello": 1}}, map[string]*function.Version{"hello": v})
	if err != nil {
		tb.Fatal(err)
	}
	rel.Activate()
	s := server.New(server.Options{
		Gateway:     gateway.New(gateway.Options{Resolver: &bound{pools, v.Key}, Region: "us-east-1", Overhead: time.Minute, Log: log}),
		Backend:     &backend{}, // no control call is made
		BaseContext: context.Background(), AllowedHosts: []string{"127.0.0.1"}, Log: log,
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := s.Serve(l, server.KindTCP, nil); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		s.Shutdown(ctx)
		pools.Close(ctx)
		if err := s.Wait(ctx); err != nil {
			tb.Error(err)
		}
		starter.Wait()
		store.Close()
	})
	return l.Addr().String(), made
}

// caller is a client with one connection.
type caller struct {
	nc  net.Conn
	br  *bufio.Reader
	req []byte
	buf []byte
}

func newCaller(tb testing.TB, addr, event string) *caller {
	tb.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { nc.Close() })
	return &caller{
		nc: nc, br: bufio.NewReader(nc), buf: make([]byte, 64<<10),
		req: fmt.Appendf(nil, "POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s", len(event), event),
	}
}

// call makes one request and returns the head and the body of its answer.
func (c *caller) call() (head, body []byte, err error) {
	if _, err := c.nc.Write(c.req); err != nil {
		return nil, nil, err
	}
	return readMessage(c.br, c.buf)
}

// TestWarmPath: many clients share few instances, by the way that waits and by the one that does not, and everyone
// gets what he sent.
func TestWarmPath(t *testing.T) {
	addr, made := warmPath(t, 3)
	var wg sync.WaitGroup
	for n := range 8 {
		c := newCaller(t, addr, fmt.Sprintf(`{"n":%d,"x":"%s"}`, n, strings.Repeat("x", n*3000)))
		_, event, _ := bytes.Cut(c.req, []byte("\r\n\r\n"))
		wg.Go(func() {
			for range 100 {
				head, body, err := c.call()
				if err != nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 OK\r\n")) || !bytes.Equal(body, event) {
					t.Errorf("client %d: %v %s %d bytes", n, err, head, len(body))
					return
				}
			}
		})
	}
	wg.Wait()
	if n := made.made.Load(); n < 1 || n > 3 {
		t.Errorf("%d instances", n)
	}
}

// BenchmarkWarm is a warm invocation from socket to socket, without containers. The function and the client
// are part of what is measured.
func BenchmarkWarm(b *testing.B) {
	for _, clients := range []int{1, 8} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			addr, _ := warmPath(b, 8)
			event := `"` + strings.Repeat("x", 98) + `"`
			all := make(chan *caller, clients)
			for range clients {
				c := newCaller(b, addr, event)
				if _, _, err := c.call(); err != nil {
					b.Fatal(err)
				}
				all <- c
			}
			b.ReportAllocs()
			b.SetParallelism(clients)
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range clients {
				c := <-all
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if _, _, err := c.call(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
