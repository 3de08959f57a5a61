package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lfx.dev/lfxd/daemon/config"
	"lfx.dev/lfxd/daemon/server"
)

func TestAdopt(t *testing.T) {
	dir := t.TempDir()
	listen := func(network, address string) net.Listener {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() }) //nolint:errcheck // closed by the daemon already
		return l
	}
	socket, tcp := listen("unix", filepath.Join(dir, "a.sock")), listen("tcp", "127.0.0.1:0")
	_, port, err := net.SplitHostPort(tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		l    net.Listener
		want door
		ok   bool
	}{
		{"the same path", socket, door{network: "unix", address: filepath.Join(dir, "a.sock")}, true},
		{"another path", socket, door{network: "unix", address: filepath.Join(dir, "b.sock")}, false},
		{"a socket for TCP", socket, door{network: "tcp", address: filepath.Join(dir, "a.sock")}, false},
		{"the same port", tcp, door{network: "tcp", address: "127.0.0.1:" + port}, true},
		{"the same port by name", tcp, door{network: "tcp", address: "localhost:" + port}, true},
		{"another port", tcp, door{network: "tcp", address: "127.0.0.1:1"}, false},
		{"switched off", tcp, door{network: "tcp", address: ""}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &Daemon{log: slog.New(slog.DiscardHandler)}
			c.want.unit, c.want.key, c.want.kind = "lfxd-x.socket", "listen.x", server.KindTCP
			err := d.adopt(c.want, []net.Listener{c.l})
			if (err == nil) != c.ok || (len(d.bound) == 1) != c.ok {
				t.Fatalf("adopt: %v, %d listeners, want success %v", err, len(d.bound), c.ok)
			}
			if err != nil && (!strings.Contains(err.Error(), "lfxd-x.socket") || !strings.Contains(err.Error(), "listen.x")) {
				t.Errorf("the error does not name unit and key: %v", err)
			}
		})
	}
}

// TestKnock: any answer of the control socket will do, and none is an error in bounded time.
func TestKnock(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{bound: []boundListener{{l, server.KindControl}}}
	done := make(chan struct{})
	go func() { // ends with the listener
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 1024))                        //nolint:errcheck // closing before it is read would break the client's pipe
			conn.Write([]byte("HTTP/1.1 404 Not Found\r\n\r\n")) //nolint:errcheck // the test sees it
			conn.Close()                                         //nolint:errcheck // as above
		}
	}()
	if err := d.knock(t.Context()); err != nil {
		t.Errorf("knock: %v", err)
	}
	l.Close() //nolint:errcheck // ends the goroutine
	<-done
	if err := d.knock(t.Context()); err == nil {
		t.Error("knock succeeded on a socket that nobody serves")
	}
}

// TestKnockEndsWithTheDaemon: Close waits for the watchdog, when nobody takes connections from systemd's socket any more.
func TestKnockEndsWithTheDaemon(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := &Daemon{bound: []boundListener{{l, server.KindControl}}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- d.knock(ctx) }() // ends with ctx
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || !errors.Is(err, net.ErrClosed) { // and not by a timeout
		t.Errorf("knock ended with %v", err)
	}
}

// TestUnitNames holds the sockets' units against what the daemon calls them.
func TestUnitNames(t *testing.T) {
	d := &Daemon{cfg: config.Default()}
	for _, door := range d.doors() {
		unit := readFile(t, filepath.Join("../contrib/systemd", door.unit))
		for _, want := range []string{"FileDescriptorName=" + door.name, "ListenStream=" + door.address} {
			if !strings.Contains(unit, "\n"+want+"\n") {
				t.Errorf("%s has no line %s", door.unit, want)
			}
		}
		if door.group != "" && !strings.Contains(unit, "\nSocketGroup="+door.group+"\n") {
			t.Errorf("%s does not belong to group %s", door.unit, door.group)
		}
	}
	for name, slice := range map[string]string{"lfx-buildkitd.service": buildSlice} {
		if !strings.Contains(readFile(t, filepath.Join("../contrib/systemd", name)), "\nSlice="+slice+"\n") {
			t.Errorf("%s is not in %s", name, slice)
		}
	}
	for _, slice := range []string{functionSlice, buildSlice} {
		readFile(t, filepath.Join("../contrib/systemd", slice))
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
