package lfxinit

import (
	"errors"
	"io"
)

// Where lfx-init and its FIFOs are, seen from inside an instance.
const (
	Dir         = "/run/lfx"
	InitName    = "init"
	StdoutName  = "stdout"
	StderrName  = "stderr"
	ControlName = "control"
	// GateName is the FIFO from which lfx-init reads its Word before it runs anything of the image.
	GateName = "gate"
)

// RecordSize is the length of a record in bytes. It is far below PIPE_BUF, so a record is written whole
// or not at all.
const RecordSize = 8

// Kind says what a Record reports.
type Kind uint8

// The kinds of records. At most one Started comes first; exactly one of the others comes last.
const (
	// Started: the runtime's executable was started; Value is its pid inside the instance.
	Started Kind = iota + 1
	// ExecFailed: the runtime could not be started; Class says why, Value is the errno.
	ExecFailed
	// Exited: the runtime ended by exit; Value is its code, 0 to 255.
	Exited
	// Signaled: the runtime was ended by a signal; Value is its number.
	Signaled
)

// Class says what was wrong when a runtime could not be started. The Lambda error type that each
// becomes is Runtime.InvalidEntrypoint, Runtime.InvalidWorkingDir or
// Runtime.InvalidTaskConfig.
type Class uint8

// The classes of ExecFailed records.
const (
	// ClassNone is the class of every other kind of record.
	ClassNone Class = iota
	// ClassEntrypointMissing: no such file, or its interpreter is missing.
	ClassEntrypointMissing
	// ClassEntrypointNotExecutable: a directory, or without execute permission.
	ClassEntrypointNotExecutable
	// ClassExecFormat: neither a binary for this machine nor a script with an interpreter line.
	ClassExecFormat
	// ClassWorkingDir: the working directory is missing or cannot be entered.
	ClassWorkingDir
	// ClassTaskConfig: anything else, for example arguments and environment too large.
	ClassTaskConfig
)

// Record is one message of lfx-init to the daemon.
type Record struct {
	Kind  Kind
	Class Class
	Value int32
}

// ErrRecord is returned by ReadRecord for bytes that are no record.
var ErrRecord = errors.New("malformed record of lfx-init")

// Append appends r's wire form to b: kind, class, two zero bytes, value in little-endian order.
func (r Record) Append(b []byte) []byte {
	v := uint32(r.Value)
	return append(b, byte(r.Kind), byte(r.Class), 0, 0, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
}

// ReadRecord reads the next record. It returns io.EOF between records, io.ErrUnexpectedEOF within
// one, and ErrRecord when kind, class or value are out of range: the writer is not trusted.
func ReadRecord(rd io.Reader) (Record, error) {
	var b [RecordSize]byte
	if _, err := io.ReadFull(rd, b[:]); err != nil {
		return Record{}, err
	}
	v := uint32(b[4]) | uint32(b[5])<<8 | uint32(b[6])<<16 | uint32(b[7])<<24 // encoding/binary would link in reflect
	r := Record{Kind: Kind(b[0]), Class: Class(b[1]), Value: int32(v)}
	if b[2] != 0 || b[3] != 0 || !r.valid() {
		return Record{}, ErrRecord
	}
	return r, nil
}

func (r Record) valid() bool {
	switch r.Kind {
	case Started:
		return r.Class == ClassNone && r.Value > 1
	case ExecFailed:
		return r.Class >= ClassEntrypointMissing && r.Class <= ClassTaskConfig && r.Value >= 0 && r.Value < 4096
	case Exited:
		return r.Class == ClassNone && r.Value >= 0 && r.Value <= 255
	case Signaled:
		return r.Class == ClassNone && r.Value >= 1 && r.Value <= 64
	}
	return false
}
