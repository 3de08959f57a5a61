//go:build linux

// Command bench measures lfxd against reference arms of the same run and prints one table of ratios.
// `make bench` runs it as root; docs/performance.md says what the rows mean.
//
// It starts an lfxd with an engine of its own in a private network namespace, with private directories,
// and removes all of it. Every ratio is that of two arms of one round; the rounds are interleaved
// (reference, ours, reference, ours, …) and the table has the median of the per-round ratios with the
// least and the greatest. Milliseconds of one machine mean little to another one; ratios do.
package main
