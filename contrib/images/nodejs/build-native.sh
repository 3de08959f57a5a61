#!/bin/sh
# Runs inside the build chroot: compiles the native part of aws-lambda-ric against Debian's Node.
set -eu
export PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C CFLAGS=-O2
export MAKEFLAGS="-j$(nproc)"
cd /build/node_modules/aws-lambda-ric
./scripts/preinstall.sh
node ../node-gyp/bin/node-gyp.js rebuild --nodedir=/usr
cp build/Release/rapid-client.node dist/
strip --strip-unneeded dist/rapid-client.node
