//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// serveEcho is the reference of the warm rounds: net/http that answers with what it was sent, in a
// process of its own, over TCP and over a Unix socket. It prints the TCP address and runs until its
// standard input ends.
func serveEcho(args []string) int {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		return 1
	}
	unix, err := net.Listen("unix", args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		return 1
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			w.Header()["Content-Type"] = []string{"application/json"}
			w.Write(body) //nolint:errcheck // the client is gone
		}
	})
	for _, l := range []net.Listener{tcp, unix} {
		go http.Serve(l, handler) //nolint:errcheck,gosec // ends with the process
	}
	fmt.Println(tcp.Addr())
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is what counts
	return 0
}

// echoServer is the running reference.
type echoServer struct {
	cmd       *exec.Cmd
	stdin     io.Closer
	tcp, unix string
}

func startEcho(socket string) (*echoServer, error) {
	cmd, stdin, stdout, err := startSelf("echo", socket)
	if err != nil {
		return nil, err
	}
	line, err := stdout.ReadString('\n')
	e := &echoServer{cmd: cmd, stdin: stdin, tcp: strings.TrimSpace(line), unix: socket}
	if err != nil {
		e.close()
		return nil, fmt.Errorf("the echo server did not start: %w", err)
	}
	return e, nil
}

// startSelf runs a server of this program in a process of its own, which ends with its standard input.
func startSelf(args ...string) (cmd *exec.Cmd, stdin io.Closer, stdout *bufio.Reader, err error) {
	cmd = exec.Command("/proc/self/exe", args...)
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, &syscall.SysProcAttr{Setsid: true}
	if stdin, err = cmd.StdinPipe(); err != nil {
		return nil, nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	return cmd, stdin, bufio.NewReader(out), cmd.Start()
}

func (e *echoServer) close() {
	e.stdin.Close() //nolint:errcheck // it ends the server
	e.cmd.Wait()    //nolint:errcheck // nothing to learn from it
}
