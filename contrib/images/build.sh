#!/bin/sh
# Builds the stand-in base images provided.tar, python.tar and nodejs.tar (OCI layout archives)
# from Debian packages. Root, mmdebstrap and Go are needed; npm for nodejs.
#
#   build.sh OUTDIR [IMAGE...]
#
# Each archive is cached by content: OUTDIR/.inputs-IMAGE holds a hash of everything here that
# goes into it. Remove an archive to build it again from today's packages.
set -eu
# The image must not depend on who builds it.
umask 022
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUTDIR [IMAGE...]}
shift
[ $# -gt 0 ] || set -- provided python nodejs

suite=bookworm
arch=$(dpkg --print-architecture 2>/dev/null || echo amd64)
export SOURCE_DATE_EPOCH=1686355200 # Debian 12's release; the mtime of every file

base_packages=base-files,base-passwd,libc6,libc-bin,libgcc-s1,libstdc++6,zlib1g,dash,bash,coreutils,grep,sed,findutils,tar,gzip,mawk,curl,ca-certificates,tzdata
python_packages=$base_packages,python3,python3-pip
nodejs_packages=$base_packages,nodejs
native_packages=libc6,dash,bash,coreutils,grep,sed,findutils,diffutils,tar,gzip,mawk,m4,perl,python3,nodejs,libnode-dev,g++,make,cmake,autoconf,automake,libtool

say() { echo "images: $*" >&2; }
die() {
	say "$*"
	exit 1
}

[ "$(id -u)" = 0 ] || die "building base images needs root (mmdebstrap unpacks files of root): run it with sudo"
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: apt-get install mmdebstrap"
command -v go >/dev/null || die "go is missing: install Go and put it into PATH"
mkdir -p "$out"
out=$(cd "$out" && pwd)

# inputs IMAGE: what an archive depends on, hashed. Tests and documents do not count.
inputs() {
	(cd "$here" && {
		echo "$1 $suite $arch"
		cat build.sh config.json mkimage/archive.go mkimage/main.go mkimage/tree.go common/*
		case $1 in
		python) cat python/bootstrap python/lfx_runtime.py ;;
		nodejs) cat nodejs/bootstrap nodejs/index.mjs nodejs/build-native.sh nodejs/package-lock.json ;;
		esac
	}) | sha256sum | cut -d' ' -f1
}

wanted=
for image; do
	case $image in
	provided | python | nodejs) ;;
	*) die "there is no image called $image: choose among provided, python and nodejs" ;;
	esac
	if [ -f "$out/$image.tar" ] && [ "$(cat "$out/.inputs-$image" 2>/dev/null)" = "$(inputs "$image")" ]; then
		say "$image is up to date in $out"
	else
		wanted="$wanted $image"
	fi
done
[ -n "$wanted" ] || exit 0

work=$(mktemp -d "$out/.work.XXXXXX")
native=
cleanup() {
	status=$?
	trap - EXIT INT TERM
	if [ -n "$native" ]; then
		kill "$native" 2>/dev/null || true
		wait "$native" 2>/dev/null || true
	fi
	rm -rf "$work"
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Packages come from wherever this host gets Debian's; neither that nor the proxies in between
# end up in an image.
sources=
for f in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/debian.list; do
	if [ -f "$f" ] && grep -q "\\b$suite\\b" "$f"; then sources="$sources $f"; fi
done
[ -n "$sources" ] || die "this host's apt knows no Debian $suite (looked in /etc/apt/sources.list and sources.list.d/debian.sources): add a $suite source there"
apt-config dump --format '%f "%v";%n' Acquire |
	grep -E '^Acquire::(https?(::|-)|Check-|Retries|ForceIPv|Max-FutureTime)' >"$work/apt.conf" || true

# unpack DIR PACKAGES: a tree of Debian packages, unpacked and not configured (no maintainer
# script runs), with merged /usr and a record of what is in it.
unpack() {
	# shellcheck disable=SC2016,SC2086 # $1 is mmdebstrap's to expand; sources are words
	mmdebstrap --quiet --variant=extract --format=directory --architectures="$arch" \
		--aptopt="$work/apt.conf" --include="$2" \
		--setup-hook='for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done' \
		--extract-hook='mkdir -p "$1/var/lib/dpkg/status.d"; for d in "$1"/var/cache/apt/archives/*.deb; do dpkg-deb -f "$d" >"$1/var/lib/dpkg/status.d/$(dpkg-deb -f "$d" Package)"; done' \
		"$suite" "$1" $sources >"$1.log" 2>&1 ||
		{
			tail -n 5 "$1.log" >&2
			die "unpacking Debian packages did not work (above: mmdebstrap's last lines): check that apt-get update works on this host"
		}
}

# finish TREE: what maintainer scripts would have done, the Lambda layout, and nothing of this host.
finish() {
	t=$1
	rm -rf "$t/etc/apt" "$t/var/lib/apt" "$t/var/cache" "$t/var/log" "$t/var/backups" "$t/boot" "$t/home" \
		"$t/etc/hostname" "$t/etc/fstab" "$t/etc/cron.daily" "$t/etc/logrotate.d" "$t/etc/update-motd.d" \
		"$t/etc/machine-id" "$t/etc/dpkg" "$t/usr/share/man" "$t/usr/share/locale" "$t/usr/share/info" \
		"$t/usr/share/lintian" "$t/usr/share/bug" "$t/usr/share/zoneinfo/right" "$t/usr/share/zoneinfo/posix"
	find "$t/usr/share/doc" ! -type d ! -name copyright -delete
	find "$t/usr/share/doc" -type d -empty -delete
	find "$t/dev" -mindepth 1 -delete
	rm -f "$t/var/lib/dpkg/status" "$t/var/lib/dpkg/available" "$t"/var/lib/dpkg/lock*
	mkdir -p "$t/var/task" "$t/var/runtime" "$t/var/lang/bin" "$t/opt/extensions" "$t/tmp" "$t/home/sbx_user1051" \
		"$t/var/cache" "$t/var/log" "$t/proc" "$t/sys" "$t/dev" "$t/run"
	chmod 1777 "$t/tmp" "$t/var/tmp"
	rm -rf "$t/var/run" "$t/var/lock" "$t/etc/rmt"
	ln -s /run "$t/var/run"
	ln -s /run/lock "$t/var/lock"
	cp "$t/usr/share/base-passwd/passwd.master" "$t/etc/passwd"
	cp "$t/usr/share/base-passwd/group.master" "$t/etc/group"
	echo 'sbx_user1051:x:1000:1000::/home/sbx_user1051:/bin/sh' >>"$t/etc/passwd"
	echo 'sbx_user1051:x:1000:' >>"$t/etc/group"
	echo 'hosts: files dns' >"$t/etc/nsswitch.conf"
	: >"$t/etc/resolv.conf"
	: >"$t/etc/hosts"
	ln -sf /usr/share/zoneinfo/Etc/UTC "$t/etc/localtime"
	ln -sf mawk "$t/usr/bin/awk"
	mkdir -p "$t/etc/ssl/certs"
	find "$t/usr/share/ca-certificates/mozilla" -name '*.crt' | sort | xargs cat >"$t/etc/ssl/certs/ca-certificates.crt"
	ldconfig -r "$t"
	rm -f "$t/var/cache/ldconfig/aux-cache"
	cp "$here/common/lambda-entrypoint.sh" "$t/lambda-entrypoint.sh"
	chmod 755 "$t/lambda-entrypoint.sh"
}

add_python() {
	t=$1
	cp "$here/python/bootstrap" "$here/python/lfx_runtime.py" "$t/var/runtime/"
	chmod 755 "$t/var/runtime/bootstrap"
	chmod 644 "$t/var/runtime/lfx_runtime.py"
	for name in python python3 python3.11; do ln -s /usr/bin/python3.11 "$t/var/lang/bin/$name"; done
	for name in pip pip3; do ln -s /usr/bin/pip3 "$t/var/lang/bin/$name"; done
	# `pip install` without a virtual environment is what Dockerfiles for Lambda do.
	rm -f "$t/usr/lib/python3.11/EXTERNALLY-MANAGED"
	# Byte code that is used without a look at the source: the root is read-only, and Python
	# would otherwise compile its library again at every start.
	chroot "$t" /usr/bin/env -i PATH=/usr/bin PYTHONHASHSEED=0 /usr/bin/python3.11 -m compileall -q \
		--invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/lib/python3/dist-packages /var/runtime ||
		die "compiling Python's library did not work (above: its own words); this is a bug in build.sh"
}

add_nodejs() {
	t=$1
	mkdir -p "$t/var/runtime/node_modules/aws-lambda-ric" "$t/usr/lib/node_modules"
	m=$modules/node_modules/aws-lambda-ric
	cp -R "$m/dist" "$m/package.json" "$m/LICENSE" "$m/NOTICE" "$m/THIRD-PARTY-LICENSES" "$t/var/runtime/node_modules/aws-lambda-ric/"
	cp -R "$modules/node_modules/npm" "$t/usr/lib/node_modules/npm"
	rm -rf "$t/usr/lib/node_modules/npm/man" "$t/usr/lib/node_modules/npm/docs"
	cp "$here/nodejs/bootstrap" "$here/nodejs/index.mjs" "$t/var/runtime/"
	chmod 755 "$t/var/runtime/bootstrap"
	ln -s /usr/bin/node "$t/var/lang/bin/node"
	for name in npm npx; do ln -s "/usr/lib/node_modules/npm/bin/$name-cli.js" "$t/var/lang/bin/$name"; done
}

# interruptible SIGNAL COMMAND...: runs a command so that a TERM to this (sub)shell ends it at once;
# a shell otherwise waits for the command before it looks at its traps.
interruptible() {
	signal=$1
	shift
	"$@" &
	running=$!
	trap 'kill -"$signal" "$running" 2>/dev/null; wait "$running"; exit 143' TERM
	if wait "$running"; then result=0; else result=$?; fi
	trap - TERM
	return "$result"
}

# build_modules: aws-lambda-ric with its native part, and npm, into $modules; cached by content.
build_modules() {
	start=$(date +%s)
	command -v npm >/dev/null || die "npm is missing (the nodejs image needs it): apt-get install npm"
	say "nodejs: fetching aws-lambda-ric and compiling it in a Debian $suite tree (two minutes)"
	mkdir -p "$work/npm"
	cp "$here/nodejs/package.json" "$here/nodejs/package-lock.json" "$here/nodejs/.npmrc" "$work/npm/"
	interruptible TERM npm --prefix "$work/npm" ci --ignore-scripts --no-audit --no-fund --loglevel=error >"$work/npm/npm.log" 2>&1 || {
		tail -n 5 "$work/npm/npm.log" >&2
		die "npm could not fetch aws-lambda-ric (above: its last lines): check that npm reaches a registry (npm ping)"
	}
	unpack "$work/native" "$native_packages"
	t=$work/native
	for link in awk:mawk cc:gcc c++:g++ automake:automake-1.16 aclocal:aclocal-1.16; do
		ln -sfn "${link#*:}" "$t/usr/bin/${link%:*}"
	done
	mkdir -p "$t/build"
	mv "$work/npm/node_modules" "$t/build/"
	cp "$here/nodejs/build-native.sh" "$t/build/"
	# A pid namespace of its own: whatever the build leaves running ends with it. unshare itself
	# ignores TERM; its child is killed when it is.
	interruptible KILL unshare --mount --pid --fork --kill-child --mount-proc="$t/proc" chroot "$t" /bin/sh /build/build-native.sh >"$work/native-build.log" 2>&1 || {
		tail -n 15 "$work/native-build.log" >&2
		die "compiling aws-lambda-ric did not work (above: the last lines)"
	}
	mkdir -p "$modules.new/node_modules"
	cp -R "$t/build/node_modules/npm" "$modules.new/node_modules/"
	mkdir "$modules.new/node_modules/aws-lambda-ric"
	(cd "$t/build/node_modules/aws-lambda-ric" && cp -R dist package.json LICENSE NOTICE THIRD-PARTY-LICENSES "$modules.new/node_modules/aws-lambda-ric/")
	mv "$modules.new" "$modules"
	say "nodejs: aws-lambda-ric is ready ($(($(date +%s) - start)) s)"
}

# build IMAGE PACKAGES REFERENCE
build() {
	image=$1
	start=$(date +%s)
	say "$image: unpacking Debian packages"
	unpack "$work/$image" "$2"
	finish "$work/$image"
	base=
	if [ "$image" != provided ]; then
		base=$work/provided
		"add_$image" "$work/$image"
	fi
	# shellcheck disable=SC2086 # empty base means no flag
	"$work/mkimage" -out "$out/$image.tar" -ref "$3" -arch "$goarch" -config "$here/config.json" ${base:+-base "$base"} -tree "$work/$image" ||
		die "writing $out/$image.tar did not work: is the disk full?"
	inputs "$image" >"$out/.inputs-$image"
	say "$image: $out/$image.tar, $(($(stat -c %s "$out/$image.tar") / 1000000)) MB ($(($(date +%s) - start)) s)"
}

(cd "$here/mkimage" && go build -trimpath -buildvcs=false -o "$work/mkimage" .) || die "building mkimage did not work (above: go's own words)"
goarch=$(go env GOARCH)

modules=$out/.nodejs-$( (cd "$here" && cat nodejs/build-native.sh nodejs/package-lock.json && echo "$suite $arch $native_packages") | sha256sum | cut -c1-16)
case $wanted in
*nodejs*)
	if [ ! -d "$modules" ]; then
		rm -rf "$out"/.nodejs-*
		build_modules &
		native=$!
	fi
	;;
esac
case $wanted in
*provided*) build provided "$base_packages" localhost/lfx-base/provided:1 ;;
*) # the lower layer of the others
	unpack "$work/provided" "$base_packages"
	finish "$work/provided"
	;;
esac
case $wanted in *python*) build python "$python_packages" localhost/lfx-base/python:3.11 ;; esac
case $wanted in
*nodejs*)
	if [ -n "$native" ]; then
		wait "$native" || {
			native=
			exit 1
		}
		native=
	fi
	build nodejs "$nodejs_packages" localhost/lfx-base/nodejs:18
	;;
esac
