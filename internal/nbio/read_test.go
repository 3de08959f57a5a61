package nbio

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// pair is two ends of a connection on the loopback.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestReadIsNetRead: bytes, the end, a deadline and a closed connection come as from Read of the connection.
func TestReadIsNetRead(t *testing.T) {
	for name, reset := range map[string]func(*Reader, net.Conn){
		"descriptor": (*Reader).Reset,
		"none":       func(r *Reader, nc net.Conn) { r.Reset(struct{ net.Conn }{nc}) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			var r Reader
			reset(&r, a)
			buf := make([]byte, 8)
			if n, err := r.Read(nil); n != 0 || err != nil {
				t.Errorf("Read of nothing: %d, %v", n, err)
			}
			go b.Write([]byte("later")) //nolint:errcheck // the read tells
			if n, err := r.Read(buf); string(buf[:n]) != "later" || err != nil {
				t.Errorf("Read: %q, %v", buf[:n], err)
			}
			a.SetReadDeadline(time.Now().Add(time.Millisecond)) //nolint:errcheck // the read tells
			if n, err := r.Read(buf); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read past the deadline: %d, %v", n, err)
			}
			a.SetReadDeadline(time.Time{}) //nolint:errcheck // the read tells
			b.Close()
			if n, err := r.Read(buf); n != 0 || err != io.EOF { //nolint:errorlint // as the contract says
				t.Errorf("Read at the end: %d, %v", n, err)
			}
			a.Close()
			if n, err := r.Read(buf); n != 0 || !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read of a closed connection: %d, %v", n, err)
			}
		})
	}
}

func TestSpin(t *testing.T) {
	a, b := pair(t)
	var r Reader
	r.Reset(a)
	always := func() bool { return true }
	begun := time.Now()
	r.Spin(time.Millisecond, always)
	if time.Since(begun) < time.Millisecond {
		t.Error("Spin has not waited")
	}
	r.Spin(time.Hour, func() bool { return false })
	b.Write([]byte("x")) //nolint:errcheck // the next line would hang
	r.Spin(time.Hour, always)
	b.Close()
	r.Spin(time.Hour, always)
	a.Close()
	r.Spin(time.Hour, always)
}
