#!/bin/sh
# Builds the pinned engine (containerd, its runc shim, ctr, runc, buildkitd, buildctl,
# CNI plugins) from the module in this directory into one folder.
#
#   build.sh OUTDIR
#
# The result is cached by content: OUTDIR/.inputs holds a hash of go.mod, go.sum, this script
# and the Go version; when it matches, nothing is built.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUTDIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)

key=$(cd "$here" && { cat go.mod go.sum build.sh; go version; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/.inputs" 2>/dev/null || true)" = "$key" ]; then
	echo "engine: up to date in $out"
	exit 0
fi
rm -f "$out/.inputs"

if ! pkg-config --exists libseccomp 2>/dev/null; then
	echo "engine: libseccomp headers are missing (runc needs them for seccomp): apt-get install libseccomp-dev pkg-config" >&2
	exit 1
fi

cd "$here"
version_of() { go list -m -f '{{.Version}}' "$1"; }
containerd=$(version_of github.com/containerd/containerd/v2)
buildkit=$(version_of github.com/moby/buildkit)
plugins=$(version_of github.com/containernetworking/plugins)

# build NAME TAGS CGO LDFLAGS PACKAGE
build() {
	start=$(date +%s)
	printf 'engine: building %-28s' "$1" >&2
	CGO_ENABLED=$3 go build -mod=readonly -trimpath -buildvcs=false -tags "$2" -ldflags "-s -w $4" -o "$out/$1.new" "$5"
	mv "$out/$1.new" "$out/$1"
	echo " $(($(date +%s) - start)) s" >&2
}

# Versions are set at link time: binaries built from modules otherwise call themselves unknown,
# and the daemon's own version floors would refuse them.
cdver="-X github.com/containerd/containerd/v2/version.Version=$containerd"
# no_cri, no_tracing: what the configuration would switch off anyway still takes memory and 8 MB of program.
cdtags="urfave_cli_no_docs no_btrfs no_zfs no_devmapper no_aufs no_cri no_tracing no_rdt osusergo netgo"
build runc "seccomp urfave_cli_no_docs" 1 "" github.com/opencontainers/runc
build containerd "$cdtags" 0 "$cdver" github.com/containerd/containerd/v2/cmd/containerd
build containerd-shim-runc-v2 "$cdtags no_grpc" 0 "$cdver" github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
build ctr "$cdtags" 0 "$cdver" github.com/containerd/containerd/v2/cmd/ctr
build buildkitd "osusergo netgo seccomp" 1 "-X github.com/moby/buildkit/version.Version=$buildkit" github.com/moby/buildkit/cmd/buildkitd
build buildctl "osusergo netgo" 0 "-X github.com/moby/buildkit/version.Version=$buildkit" github.com/moby/buildkit/cmd/buildctl
cniver="-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$plugins"
build bridge "" 0 "$cniver" github.com/containernetworking/plugins/plugins/main/bridge
build loopback "" 0 "$cniver" github.com/containernetworking/plugins/plugins/main/loopback
build host-local "" 0 "$cniver" github.com/containernetworking/plugins/plugins/ipam/host-local

echo "$key" >"$out/.inputs"
echo "engine: ready in $out" >&2
