// Package logs is what functions print: reading it from the instances' FIFOs, keeping a bounded
// amount of it on disk, following it, and the lines that the platform adds (START, END, REPORT).
// It knows no containers and no pools; whoever runs an instance hands in the read ends of its FIFOs
// and attributes lines to requests. It imports daemon/api for the wire form of an entry and
// daemon/function for keys, nothing else of ours.
//
//	FIFO ──► Capture ──► (attribution) ──► Store.Append ──► memory ──► segments on disk
//	                          │                  ├────────► followers (lfxctl logs -f)
//	                          └──► Tail          └────────► Sink (systemd's journal)
//
// # What must never happen
//
// A function never waits for a disk or for a reader: Append works in memory only, a full disk or
// a slow reader costs lines, and every lost line is counted and reported by a platform line.
// Nothing here grows without bound: lines, queues, segments and followers all have limits.
//
// # Framing
//
// An entry is a line: it ends at "\n", which is not part of it; a "\r" right before it is dropped.
// Any other "\r" becomes "\n" inside the entry, because Lambda's runtime clients write a message of
// several lines (a stack trace) as one, with "\r" between them. Lines over the limit are cut into
// pieces, at a character's boundary where there is one. Bytes that are not UTF-8 become U+FFFD, one for
// each; NUL and other control characters stay and are escaped by JSON, so that no line can end or
// forge another entry. Whoever prints entries to a terminal escapes control characters there.
//
// # On disk
//
//	<dir>/<project>/<environment>/<function>/<16 digits>.ndjson
//
// Segments hold newline-delimited JSON (api.LogEntry), the number only grows, and the oldest are
// deleted so that a function stays within its bound. They are not fsynced: a crash of lfxd loses
// nothing that was written, a power cut may lose the last seconds. A torn last line is cut off when the
// segment is next written to, and skipped when it is read.
package logs
