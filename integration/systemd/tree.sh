#!/bin/sh
# Makes the Debian tree in which the test boots systemd, as one archive. Root and mmdebstrap are needed.
#
#   tree.sh OUTDIR
#
# It is made once: its name holds a hash of this script. Prints its path. Remove it to make it again from
# today's packages.
set -eu
umask 022
export LC_ALL=C

out=${1:?usage: tree.sh OUTDIR}
suite=bookworm
packages=systemd,systemd-sysv,dbus,nftables,iproute2,libseccomp2,curl

die() { echo "systemd test: $*" >&2; exit 1; }

mkdir -p "$out"
tree=$out/tree-$(sha256sum "$0" | cut -c1-16).tar
exec 9>"$out/.lock"
flock 9 # two tests at a time make one tree
if [ -f "$tree" ]; then
	echo "$tree"
	exit 0
fi

[ "$(id -u)" = 0 ] || die "only root can unpack a Debian tree"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: apt-get install mmdebstrap"
# Packages come from wherever this host gets Debian's.
sources=
for f in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/debian.list; do
	if [ -f "$f" ] && grep -q "\\b$suite\\b" "$f"; then sources="$sources $f"; fi
done
[ -n "$sources" ] || die "this host's apt knows no Debian $suite: add a $suite source to /etc/apt/sources.list"

work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
apt-config dump --format '%f "%v";%n' Acquire |
	grep -E '^Acquire::(https?(::|-)|Check-|Retries|ForceIPv|Max-FutureTime)' >"$work/apt.conf" || true
# PID 1 of the machine: systemd-nspawn mounts the hierarchies of cgroup v1 read-only, and systemd decides at its
# start which of them it can use.
cat >"$work/init" <<'INIT'
#!/bin/sh
mount -o remount,bind,rw /sys/fs/cgroup
for d in /sys/fs/cgroup/*/; do mount -o remount,bind,rw "$d" 2>/dev/null; done
exec /lib/systemd/systemd
INIT
chmod 755 "$work/init"
# shellcheck disable=SC2016,SC2086 # $1 is mmdebstrap's to expand; sources are words
mmdebstrap --quiet --variant=minbase --architectures="$(dpkg --print-architecture)" --include="$packages" \
	--aptopt="$work/apt.conf" --aptopt='Apt::Install-Recommends "false"' \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
	--customize-hook='rm -rf "$1"/etc/apt/sources.list* "$1"/etc/dpkg/dpkg.cfg.d/*' \
	--customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname"; for u in apt-daily apt-daily-upgrade dpkg-db-backup fstrim e2scrub_all; do chroot "$1" systemctl -q mask $u.timer; done' \
	--customize-hook="copy-in $work/init /sbin" --customize-hook='mv "$1/sbin/init" "$1/sbin/lfx-test-init"; ln -s /lib/systemd/systemd "$1/sbin/init"' \
	"$suite" "$work/tree.tar" $sources >"$work/log" 2>&1 || {
	tail -n 5 "$work/log" >&2
	die "mmdebstrap could not make the tree (its last lines are above): check that apt-get update works on this host"
}
mv "$work/tree.tar" "$tree"
echo "$tree"
