//go:build !amd64

package main

func int80(nr, a, b, c uintptr) uintptr { panic("there is no 32-bit table here") }
