#!/bin/sh
# Runs the core integration tests on cgroup v2: in a virtual machine with a Debian kernel and a real
# systemd. Not part of `make test`: without hardware acceleration it takes a quarter of an hour.
#
#   run.sh BUILDDIR [TEST-REGEXP]
#
# The machine's disk (Debian, kernel, AWS's clients) is cached in BUILDDIR/v2; the programs and the
# tests come on a second disk that is made anew.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$(cd "${1:?usage: run.sh BUILDDIR [TEST-REGEXP]}" && pwd)
tests=${2:-'TestExamples|TestChangedHandler|TestFailuresReach|TestFailedInit|TestConcurrency|TestNested|TestInsideTheSandbox|TestDaemonRestart|TestLogsAre'}
v2=$build/v2
mkdir -p "$v2"

say() { echo "test-v2: $*" >&2; }
die() { say "$*"; exit 1; }
[ "$(id -u)" = 0 ] || die "making the machine's disk needs root: run sudo make test-v2"
for need in qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs; do
	command -v "${need%%:*}" >/dev/null || die "${need%%:*} is missing: apt-get install ${need##*:}"
done

packages=systemd-sysv,dbus,udev,kmod,linux-image-cloud-amd64,initramfs-tools,zstd,nftables,iproute2,libseccomp2,apparmor,python3-boto3,awscli,procps
key=$( { cat "$here/run.sh"; echo "$packages"; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$v2/.inputs" 2>/dev/null || true)" != "$key" ]; then
	say "making the machine's disk (a few minutes)"
	rm -rf "$v2/tree" "$v2/.inputs"
	mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
		--aptopt='Apt::Install-Recommends "false"' \
		--customize-hook='rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*' \
		bookworm "$v2/tree" >"$v2/mmdebstrap.log" 2>&1 || die "mmdebstrap failed: see $v2/mmdebstrap.log"
	cp "$v2/tree"/boot/vmlinuz-* "$v2/vmlinuz"
	cp "$v2/tree"/boot/initrd.img-* "$v2/initrd"
	echo lfx-v2 >"$v2/tree/etc/hostname"
	printf '127.0.0.1 localhost lfx-v2\n' >"$v2/tree/etc/hosts"
	cat >"$v2/tree/etc/systemd/system/lfx-test.service" <<'END'
[Unit]
Description=lfxd integration tests
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh /lfx/inside.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
LimitNOFILE=65536
ExecStopPost=/bin/systemctl --no-block poweroff
END
	mkdir -p "$v2/tree/lfx" "$v2/tree/etc/systemd/system/multi-user.target.wants"
	ln -sf ../lfx-test.service "$v2/tree/etc/systemd/system/multi-user.target.wants/lfx-test.service"
	ln -sf /dev/null "$v2/tree/etc/systemd/system/serial-getty@ttyS0.service" # it would hang the console up
	printf '/dev/vda / ext4 defaults 0 1\n/dev/vdb /lfx ext4 defaults 0 2\n' >"$v2/tree/etc/fstab"
	rm -f "$v2/disk.img"
	mke2fs -q -t ext4 -d "$v2/tree" "$v2/disk.img" 8G
	rm -rf "$v2/tree"
	echo "$key" >"$v2/.inputs"
fi

say "packing programs and tests"
pay=$v2/payload
rm -rf "$pay"
mkdir -p "$pay/build/images" "$pay/integration" "$pay/contrib"
cp -r "$build/bin" "$build/engine" "$pay/build/"
cp "$build"/images/*.tar "$build"/images/.inputs-* "$pay/build/images/"
cp -r "$root/contrib/examples" "$pay/contrib/"
(cd "$root" && CGO_ENABLED=0 go test -c -tags integration -o "$pay/integration/integration.test" ./integration)
cp -r "$root/integration/testdata" "$pay/integration/" 2>/dev/null || true
cat >"$pay/inside.sh" <<END
cd /lfx/integration
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LFX_TEST_SLOW=1
uname -r; stat -fc %T /sys/fs/cgroup
sysctl -qw kernel.printk=1
./integration.test -test.v -test.timeout 80m -test.run '$tests' 2>&1
echo "LFX-EXIT \$?"
END
mke2fs -q -t ext4 -d "$pay" -F "$v2/payload.img" 2G
rm -rf "$pay"

say "starting the machine; its console follows"
out=$v2/console.log
timeout 5400 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 6G -nographic -no-reboot \
	-kernel "$v2/vmlinuz" -initrd "$v2/initrd" \
	-append "root=/dev/vda rw console=ttyS0 systemd.unified_cgroup_hierarchy=1 quiet" \
	-drive "file=$v2/disk.img,if=virtio,format=raw,snapshot=on" \
	-drive "file=$v2/payload.img,if=virtio,format=raw,snapshot=on" \
	-nic none </dev/null 2>&1 | tee "$out" | tr -d '\r'
grep -q 'LFX-EXIT 0' "$out" || die "the tests did not pass: see $out"
