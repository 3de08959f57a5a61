#!/bin/sh
# The quick start: builds everything, starts lfxd with an engine of its own, deploys the examples and
# invokes them. Running it again takes seconds. down.sh undoes it.
set -eu
. "$(dirname "$0")/env.sh"
cd "$root"

[ "$(id -u)" = 0 ] || die "lfxd makes namespaces, cgroups and firewall rules: run sudo make quickstart"
command -v go >/dev/null || die "Go is missing: install Go 1.26 or newer from go.dev and put it on the PATH"
command -v npm >/dev/null || die "npm is missing: install Node.js (it builds the Node.js base image)"

sh contrib/deps.sh build
say "building the engine (about 4 minutes the first time)"
make -s engine
say "building lfxd and lfxctl"
make -s build
say "building the Go example"
make -s examples

# base_images replaces the base images only when AWS's registry does not answer.
base_images=""
if curl -s -o /dev/null --max-time 5 https://public.ecr.aws/v2/; then
	say "base images: public.ecr.aws answers, using AWS's own"
else
	say "base images: public.ecr.aws does not answer, using stand-ins built from Debian packages"
	make -s images
	base_images='
[base_images]
"public.ecr.aws/lambda/provided:al2023" = "localhost/lfx-base/provided:1"
"public.ecr.aws/lambda/python:3.11" = "localhost/lfx-base/python:3.11"
"public.ecr.aws/lambda/nodejs:18" = "localhost/lfx-base/nodejs:18"
'
fi

mkdir -p "$state"
chmod 711 "$state"
new=$(mktemp)
trap 'rm -f "$new"' EXIT
cat >"$new" <<END
# Written by make quickstart; docs/configuration.md explains every key.
state_dir = "$state"
libexec_dir = "$libexec"
$base_images
END

running() { "$bin/lfxctl" version >/dev/null 2>&1; }

if running && ! cmp -s "$new" "$config"; then
	say "the configuration changed, restarting lfxd"
	"$bin/lfxd" down --with-engine --config "$config" 2>>"$log" || die "the old lfxd did not stop: see $log"
fi
cat "$new" >"$config"

if running; then
	say "lfxd runs already"
else
	say "starting lfxd --with-engine (log: $log)"
	setsid "$bin/lfxd" --with-engine --config "$config" </dev/null >>"$log" 2>&1 &
	pid=$!
	tries=0
	until running; do
		kill -0 "$pid" 2>/dev/null || { tail -n 5 "$log" >&2; die "lfxd did not start: the last lines of its log are above"; }
		tries=$((tries + 1))
		[ $tries -lt 600 ] || die "lfxd did not answer within 60 s: see $log"
		sleep 0.1
	done
fi

if [ -n "$base_images" ]; then
	for name in provided python nodejs; do
		stamp=$state/imported-$name
		if ! cmp -s "$root/build/images/.inputs-$name" "$stamp"; then
			say "importing the base image $name"
			"$libexec/ctr" --address /run/lfxd/engine/sock/containerd.sock --namespace lfx images import --local "$root/build/images/$name.tar" >/dev/null ||
				die "the base image $name could not be imported: see $log"
			cp "$root/build/images/.inputs-$name" "$stamp"
		fi
	done
fi

say "lfxctl deploy contrib/examples"
"$bin/lfxctl" deploy contrib/examples || die "the examples were not deployed: the message is above"

call() {
	printf '    %s\n' "$*"
	printf '    '
	"$@" || die "the call failed: see $bin/lfxctl logs NAME and $log"
	echo
}
say "invoking them"
call curl -sS --fail-with-body -XPOST http://localhost:9000/2015-03-31/functions/function/invocations -d '{}'
call curl -sS --fail-with-body -XPOST http://localhost:9001/2015-03-31/functions/function/invocations -d '{"name":"steve2"}'
call curl -sS --fail-with-body -XPOST http://localhost:9002/2015-03-31/functions/function/invocations -d '{"name":"steve2"}'

cat <<END

lfxd is running. Try:
    $bin/lfxctl ls
    $bin/lfxctl invoke hello-python -d '{"name":"you"}' --log
    $bin/lfxctl logs hello-go -f
    curl --unix-socket /run/lfxd/invoke.sock -XPOST http://lfx/2015-03-31/functions/hello-go/invocations -d '{"name":"x"}'
    edit contrib/examples/lambda-python/app.py, then: $bin/lfxctl deploy contrib/examples
Stop it with: sudo make down   (and remove its data with: sudo make clean-state)
END
