// Command rawfn is the least a Lambda runtime client can be: raw HTTP over one connection, no parser. What
// an invocation of it costs beside an echo is the platform's cost.
package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "exit" { // the canary: a static program that does nothing
		return
	}
	if err := serve(os.Getenv("AWS_LAMBDA_RUNTIME_API")); err != nil {
		fmt.Fprintln(os.Stderr, "rawfn:", err)
		os.Exit(1)
	}
}

func serve(api string) error {
	c, err := net.Dial("tcp", api)
	if err != nil {
		return err
	}
	next := []byte("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: " + api + "\r\n\r\n")
	in, out := make([]byte, 64<<10), make([]byte, 0, 64<<10)
	for {
		if _, err := c.Write(next); err != nil {
			return err
		}
		head, body, err := read(c, in)
		if err != nil {
			return err
		}
		id := header(head, "Lambda-Runtime-Aws-Request-Id: ")
		out = append(out[:0], "POST /2018-06-01/runtime/invocation/"...)
		out = append(out, id...)
		out = append(out, "/response HTTP/1.1\r\nHost: 127.0.0.1:9001\r\nContent-Type: application/json\r\nContent-Length: "...)
		out = strconv.AppendInt(out, int64(len(body)), 10)
		out = append(append(out, "\r\n\r\n"...), body...)
		if _, err := c.Write(out); err != nil {
			return err
		}
		if _, _, err := read(c, in); err != nil {
			return err
		}
	}
}

// read reads one response. The two parts alias buf.
func read(c net.Conn, buf []byte) (head, body []byte, err error) {
	for n, end := 0, -1; ; {
		m, err := c.Read(buf[n:])
		if n += m; err != nil {
			return nil, nil, err
		}
		if end < 0 {
			end = bytes.Index(buf[:n], []byte("\r\n\r\n"))
		}
		if end < 0 {
			continue
		}
		length, err := strconv.Atoi(string(header(buf[:end+2], "Content-Length: ")))
		if err != nil {
			return nil, nil, err
		}
		if n >= end+4+length {
			return buf[:end+2], buf[end+4 : end+4+length], nil
		}
	}
}

// header finds a header that is spelled just so.
func header(head []byte, name string) []byte {
	_, rest, ok := bytes.Cut(head, []byte("\r\n"+name))
	if !ok {
		return nil
	}
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	return value
}
