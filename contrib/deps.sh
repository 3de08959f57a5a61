#!/bin/sh
# Installs the Debian packages that are missing.
#
#   deps.sh build   what building the engine, the base images and lfxd needs
#   deps.sh test    what the tests need beside that
#   deps.sh v2      what the tests on cgroup v2 need beside that
set -eu

build="libseccomp-dev pkg-config nftables iproute2 mmdebstrap cmake autoconf automake libtool unzip python3 curl ca-certificates"
test="awscli python3-boto3 systemd-container apparmor"

want=""
for set in "$@"; do
	case $set in
	build) want="$want $build" ;;
	test) want="$want $test" ;;
	v2) want="$want qemu-system-x86 e2fsprogs" ;;
	*) echo "deps: unknown set $set: build, test or v2" >&2 && exit 2 ;;
	esac
done

missing=""
for p in $want; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q '^install ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" != 0 ]; then
	echo "deps: these Debian packages are missing and only root can install them: apt-get install$missing" >&2
	exit 1
fi
echo "installing Debian packages:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "deps: apt-get could not install$missing: see above, and install them by hand" >&2
	exit 1
fi
