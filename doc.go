// Package lfxd is the root of the module and holds no code: README.md says what lfxd does,
// ARCHITECTURE.md how, and daemon is where a reader of the code begins.
//
// The tests here guard what no single package can: the import arrows (arch_test.go), and that the
// documents name only what exists (docs_test.go).
package lfxd
