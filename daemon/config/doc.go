// Package config is the daemon's file, /etc/lfxd/config.toml: its keys, their defaults and their
// rules. It opens nothing and imports nothing of ours. Every key is explained by the comment of its
// field, and docs/configuration.md is generated from these comments (go test ./daemon/config -update).
//
// Default makes the configuration of an empty file, Load reads a file over it, Validate reports all
// that is wrong with the result at once. Flags of lfxd go between Load and Validate.
package config
