# Sourced by up.sh and down.sh: where the quick start keeps its things.
root=$(cd "$(dirname "$0")/../.." && pwd)
state=${LFX_QUICKSTART_STATE:-/var/lib/lfxd-quickstart}
config=$state/config.toml
log=$state/lfxd.log
bin=$root/build/bin
libexec=$root/build/engine
socket=/run/lfxd/lfxd.sock

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }
