package main

// int80 makes a system call of the 32-bit table from a 64-bit program.
func int80(nr, a, b, c uintptr) uintptr
