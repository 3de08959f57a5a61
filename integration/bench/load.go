//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// target is where a client sends its requests.
type target struct {
	network, address string
	request          []byte
	server           int // pid
}

func post(server int, network, address, path string) target {
	body := `{"name":"benchmark","padding":"` + string(bytes.Repeat([]byte("x"), 66)) + `"}` // 100 bytes
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost:9000\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", path, len(body))
	return target{network, address, []byte(head + body), server}
}

// sample is what one arm did in one round.
type sample struct {
	Mean, P50, P99 float64 // µs
	Rate           float64 // requests per second
	CPU            float64 // µs of the server's CPU time per request
}

// load sends requests from n clients, each over a connection of its own and one after the other, for
// about d. The client is the same for every arm: it writes a request and reads until the answer is whole.
func load(t target, n int, d time.Duration) (sample, error) {
	used := cpuTime(t.server)
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial(t.network, t.address)
		if err != nil {
			return sample{}, err
		}
		defer c.Close() //nolint:errcheck // nothing is left to send
		conns[i] = c
	}
	var wg sync.WaitGroup
	all, errs := make([][]float64, n), make([]error, n)
	begin := time.Now()
	for i, c := range conns {
		wg.Go(func() { all[i], errs[i] = requests(c, t.request, begin.Add(d)) })
	}
	wg.Wait()
	took := time.Since(begin)
	for _, err := range errs {
		if err != nil {
			return sample{}, fmt.Errorf("%s %s: %w", t.network, t.address, err)
		}
	}
	s := summary(slices.Concat(all...), took)
	s.CPU = float64((cpuTime(t.server) - used).Microseconds()) / (s.Rate * took.Seconds())
	return s, nil
}

// cpuTime is the CPU time that all threads of a process have used.
func cpuTime(pid int) (sum time.Duration) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // a fixed pattern
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended; a few µs are lost
		}
		ns, _, _ := strings.Cut(string(data), " ")
		v, _ := strconv.ParseInt(ns, 10, 64) // the kernel writes numbers
		sum += time.Duration(v)
	}
	return sum
}

func summary(us []float64, took time.Duration) sample {
	slices.Sort(us)
	var sum float64
	for _, v := range us {
		sum += v
	}
	n := float64(len(us))
	return sample{Mean: sum / n, P50: quantile(us, 0.5), P99: quantile(us, 0.99), Rate: n / took.Seconds()}
}

// requests returns the time of every request in µs.
func requests(c net.Conn, request []byte, end time.Time) ([]float64, error) {
	buf, us := make([]byte, 64<<10), make([]float64, 0, 1<<14)
	for t := time.Now(); t.Before(end); {
		if err := exchange(c, request, buf); err != nil {
			return us, err
		}
		now := time.Now()
		us = append(us, float64(now.Sub(t).Nanoseconds())/1e3)
		t = now
	}
	return us, nil
}

var (
	okLine  = []byte("HTTP/1.1 200 OK\r\n")
	failed  = []byte("\r\nX-Amz-Function-Error: ")
	headEnd = []byte("\r\n\r\n")
	length  = []byte("\r\nContent-Length: ")
)

// exchange sends one request and reads its answer, which must be a success.
func exchange(c net.Conn, request, buf []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	for n, want := 0, -1; n != want; {
		m, err := c.Read(buf[n:])
		if n += m; err != nil {
			return err
		}
		if want >= 0 {
			continue
		}
		end := bytes.Index(buf[:n], headEnd)
		if end < 0 {
			continue
		}
		head := buf[:end+2]
		at := bytes.Index(head, length)
		if !bytes.HasPrefix(head, okLine) || bytes.Contains(head, failed) || at < 0 {
			return fmt.Errorf("answer: %s", buf[:n])
		}
		digits := head[at+len(length):]
		size, err := strconv.Atoi(string(digits[:bytes.IndexByte(digits, '\r')]))
		if err != nil {
			return err
		}
		want = end + 4 + size
	}
	return nil
}
