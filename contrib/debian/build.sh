#!/bin/sh
# Makes the Debian package of what `make install` puts in place.
#
#   build.sh OUTDIR VERSION
#
# `make build engine` must have run. Prints the path of the package.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:?usage: build.sh OUTDIR VERSION}
version=${2:?usage: build.sh OUTDIR VERSION}

arch=$(dpkg --print-architecture)
# A tilde sorts before the release, as a pre-release must.
version=$(echo "$version" | sed 's/-/~/')
mkdir -p "$out"
tree=$(mktemp -d "$out/.deb.XXXXXX")
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"

make -s -C "$root" install-files DESTDIR="$tree" PREFIX=/usr ZSHDIR=/usr/share/zsh/vendor-completions
doc=$tree/usr/share/doc/lfxd
mkdir -p "$doc" "$tree/DEBIAN"
cp "$here/copyright" "$doc/copyright"
cp "$root"/docs/*.md "$doc/"
if [ -f "$root/CHANGELOG.md" ]; then
	gzip -9n <"$root/CHANGELOG.md" >"$doc/changelog.gz"
fi
size=$(du -sk --apparent-size "$tree" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" "$here/control.in" >"$tree/DEBIAN/control"
cp "$here/conffiles" "$tree/DEBIAN/"
for script in postinst prerm postrm; do
	install -m 755 "$here/$script" "$tree/DEBIAN/$script"
done
(cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)

deb=$out/lfxd_${version}_$arch.deb
# zstd unpacks fast; every dpkg since Debian 12 and Ubuntu 21.10 reads it.
dpkg-deb --root-owner-group -Zzstd -z3 --build "$tree" "$deb" >/dev/null
echo "$deb"
