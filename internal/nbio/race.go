//go:build race

package nbio

// raced makes calls through syscall, which tells the race detector that what a peer in the same process wrote has happened before.
const raced = true
