//go:build !failpoint

package failpoint

// Here does nothing.
func Here(string) {}

// Error does nothing and returns nil.
func Error(string) error { return nil }
