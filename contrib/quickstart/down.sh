#!/bin/sh
# Undoes up.sh: stops lfxd and its engine and removes everything they made on the host. With --data
# also the quick start's state directory.
set -eu
. "$(dirname "$0")/env.sh"

[ "$(id -u)" = 0 ] || die "only root can undo it: run sudo make down"
if [ -f "$config" ] && [ -x "$bin/lfxd" ]; then
	[ -e /run/lfxd ] && say "stopping lfxd"
	"$bin/lfxd" down --with-engine --config "$config" 2>>"$log" || { tail -n 3 "$log" >&2; die "not everything could be removed: the last lines of $log are above"; }
elif [ -e /run/lfxd ]; then
	die "lfxd seems to run, but $bin/lfxd or $config is missing: run make build, then make down again"
fi
if [ "${1:-}" = --data ] && [ -d "$state" ]; then
	rm -rf "$state"
	say "removed $state"
fi
