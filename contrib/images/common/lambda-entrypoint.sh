#!/bin/sh
# Entry point of the stand-in base images: the image's CMD is the handler's name, the platform
# provides the Runtime API (AWS_LAMBDA_RUNTIME_API), /var/runtime/bootstrap is the runtime.
if [ $# -ne 1 ]; then
	echo "entrypoint requires the handler name to be the first argument" >&2
	exit 142
fi
if [ -z "${AWS_LAMBDA_RUNTIME_API:-}" ]; then
	echo "AWS_LAMBDA_RUNTIME_API is not set and there is no emulator in this image: run it with lfxd, or set it to the host:port of a Lambda Runtime API" >&2
	exit 1
fi
export _HANDLER="$1"
exec /var/runtime/bootstrap
