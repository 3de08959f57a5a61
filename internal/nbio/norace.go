//go:build !race

package nbio

const raced = false
