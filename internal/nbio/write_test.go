package nbio

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// TestTryNeverWaits: a peer that does not read gets what fits, and the rest can follow.
func TestTryNeverWaits(t *testing.T) {
	a, b := pair(t)
	var w Writer
	w.Reset(a)
	if n, err := w.Try([]byte("head "), []byte("payload")); n != 12 || err != nil {
		t.Fatalf("Try = %d, %v", n, err)
	}
	large := bytes.Repeat([]byte("x"), 64<<20)
	n, err := w.Try(large, nil)
	if err != nil || n == 0 || n == len(large) {
		t.Fatalf("Try of 64 MiB = %d, %v", n, err)
	}
	if n, err := w.Try(large, nil); n != 0 || err != nil {
		t.Fatalf("Try on a full socket = %d, %v", n, err)
	}
	got := make([]byte, 12+n)
	if _, err := io.ReadFull(b, got); err != nil || string(got[:12]) != "head payload" {
		t.Errorf("read %q, %v", got[:12], err)
	}
}

func TestConnectionWithoutDescriptor(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	var w Writer
	w.Reset(a)
	if n, err := w.Try([]byte("x"), nil); n != 0 || err != nil {
		t.Errorf("Try = %d, %v", n, err)
	}
}

func TestClosedConnectionIsAnError(t *testing.T) {
	a, _ := pair(t)
	var w Writer
	w.Reset(a)
	a.Close()
	if _, err := w.Try([]byte("x"), nil); err == nil {
		t.Error("no error")
	}
}
