// Command probe32 opens sockets of every address family by the calls of a 32-bit program (socketcall), and says which it got.
package main

import (
	"fmt"
	"syscall"
)

func main() {
	for family := range 47 {
		for _, kind := range []int{syscall.SOCK_STREAM, syscall.SOCK_DGRAM, syscall.SOCK_RAW, syscall.SOCK_SEQPACKET} {
			if fd, err := syscall.Socket(family, kind, 0); err == nil {
				fmt.Println("family", family)
				syscall.Close(fd)
				break
			}
		}
	}
}
