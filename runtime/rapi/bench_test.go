package rapi

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"
)

// rawRuntime is a runtime that answers every event on one connection, with as little of its own as possible.
func rawRuntime(b *testing.B, addr string, body []byte) net.Conn {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	go func() { // ends when the connection is closed
		buf := make([]byte, 64<<10)
		out := make([]byte, 0, 64<<10)
		_, _ = nc.Write([]byte(rawNext))
		for {
			n, err := nc.Read(buf)
			if err != nil {
				return
			}
			if bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 202")) {
				if _, err := nc.Write([]byte(rawNext)); err != nil {
					return
				}
				continue
			}
			out = append(out[:0], "POST /2018-06-01/runtime/invocation/01234567-89ab-cdef-0123-456789abcdef/response HTTP/1.1\r\nHost: 127.0.0.1:9001\r\nContent-Type: application/json\r\nContent-Length: "...)
			out = append(out, benchLength...)
			out = append(out, "\r\n\r\n"...)
			out = append(out, body...)
			if _, err := nc.Write(out); err != nil {
				return
			}
		}
	}()
	return nc
}

const benchLength = "100"

// BenchmarkInvoke is one whole cycle: event out, answer in, 202 out, next in.
func BenchmarkInvoke(b *testing.B) {
	idle := make(chan struct{}, 1)
	h := start(b, Options{OnIdle: func() { idle <- struct{}{} }})
	nc := rawRuntime(b, h.addr, bytes.Repeat([]byte("x"), 100))
	defer nc.Close()
	h.waitIdle()
	inv := event("01234567-89ab-cdef-0123-456789abcdef")
	inv.FunctionARN = "arn:aws:lambda:us-east-1:000000000000:function:hello"
	inv.TraceID = "Root=1-5e1b4151-5ac6c58dc39a6b6a0f7f3a4b;Parent=53995c3f42cd8ad8;Sampled=1"
	inv.Payload = bytes.Repeat([]byte("y"), 100)
	ctx := b.Context()
	b.ReportAllocs()
	var inInvoke time.Duration
	for b.Loop() {
		begin := time.Now()
		res, err := h.Invoke(ctx, inv)
		inInvoke += time.Since(begin)
		if err != nil {
			b.Fatal(err)
		}
		res.Release()
		<-idle
	}
	b.ReportMetric(float64(inInvoke.Nanoseconds())/float64(b.N), "ns/answer")
}

// BenchmarkEchoHTTP is the yardstick: net/http echoing the same payload to the same kind of client.
func BenchmarkEchoHTTP(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	defer wg.Wait()
	defer srv.Close()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	br := bufio.NewReader(nc)
	req := []byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + string(bytes.Repeat([]byte("y"), 100)))
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := nc.Write(req); err != nil {
			b.Fatal(err)
		}
		if _, err := br.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParkedMemory reports what one parked runtime costs: heap and stack of the server's side,
// listener and Server included, without the client's socket.
func BenchmarkParkedMemory(b *testing.B) {
	const n = 200
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var hs []*harness
		var peers []net.Conn
		for range n {
			h := start(b, Options{})
			nc, err := net.Dial("tcp", h.addr)
			if err != nil {
				b.Fatal(err)
			}
			_, _ = nc.Write([]byte(rawNext))
			hs, peers = append(hs, h), append(peers, nc)
		}
		for _, h := range hs {
			h.waitIdle()
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse)/n, "B/parked")
		for i, nc := range peers {
			_ = nc.Close()
			_ = hs[i].Close()
		}
	}
}
