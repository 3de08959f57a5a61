// Command sim judges the pool's keep-alive policy without a host: it drives daemon/pool/policy, the same code that the
// daemon runs, with a synthetic day shaped like the public trace of Azure Functions (package trace), and prints what it costs
// beside fixed windows. docs/simulation.md explains the table.
//
//	go run ./integration/sim                       10, 1,000 and 100,000 functions (make sim)
//	go run ./integration/sim -functions 1000 -seed 7 -hours 48
//	go run ./integration/sim -functions 100 -write DIR
//
// A host (host.go) is event-driven: each function has a heap of its own for what ends on it, its next call and a
// timer. Without a memory budget functions do not touch each other, and each is simulated from beginning to
// end, on all cores; with one, they take turns by time. Calls are made when they are needed and never stored.
//
// The same seed gives the same figures on any number of cores.
package main
