package lfxinit

import "syscall"

// What begins a word.
const (
	wordGo      = 1 // start what the arguments say
	wordCommand = 2 // start the Command that follows
)

// maxWord bounds a Command in bytes, as written: far above what execve(2) takes.
const maxWord = 8 << 20

// Go is the word for an instance whose function was known when its container was created: start what the arguments say.
func Go() []byte { return []byte{wordGo} }

// Command is what the runtime of an instance is whose container was created before its function was known. No string may have a NUL.
type Command struct {
	Dir       string
	Args, Env []string
}

// Word returns the word for a command: wordCommand, then as 32-bit numbers (little-endian) the length of what follows and the number of
// arguments, then directory, arguments and environment, each with a NUL behind it.
func (c Command) Word() []byte {
	b := make([]byte, 9, 4<<10)
	b[0] = wordCommand
	b = append(append(b, c.Dir...), 0)
	for _, all := range [][]string{c.Args, c.Env} {
		for _, s := range all {
			b = append(append(b, s...), 0)
		}
	}
	putUint32(b[1:], uint32(len(b)-5))
	putUint32(b[5:], uint32(len(c.Args)))
	return b
}

// Package encoding/binary would bring reflection into lfx-init.
func putUint32(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

func uint32At(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// readWord reads a word; a nil Command means what the arguments say. ok is false when there will be none, or it is broken.
func readWord(read func([]byte) (int, error)) (c *Command, ok bool) {
	full := func(b []byte) bool {
		for len(b) > 0 {
			n, err := read(b)
			switch {
			case err == syscall.EINTR:
			case err != nil || n <= 0:
				return false
			default:
				b = b[n:]
			}
		}
		return true
	}
	var head [9]byte
	if !full(head[:1]) {
		return nil, false
	}
	if head[0] == wordGo {
		return nil, true
	}
	if head[0] != wordCommand || !full(head[1:]) {
		return nil, false
	}
	length, args := uint32At(head[1:]), uint32At(head[5:])
	if length < 4 || length > maxWord {
		return nil, false
	}
	b := make([]byte, length-4)
	if !full(b) {
		return nil, false
	}
	return parseCommand(b, int(args))
}

func parseCommand(b []byte, args int) (c *Command, ok bool) {
	var all []string
	for start, i := 0, 0; i < len(b); i++ {
		if b[i] == 0 {
			all = append(all, string(b[start:i]))
			start = i + 1
		}
	}
	if len(b) == 0 || b[len(b)-1] != 0 || args < 1 || len(all)-1 < args {
		return nil, false
	}
	return &Command{Dir: all[0], Args: all[1 : 1+args], Env: all[1+args:]}, true
}
