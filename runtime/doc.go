// Package runtime groups the mechanism that turns an image into a running, reachable function:
//
//   - runtime/image: containerd images (resolve, pull, unpack, lease, remove)
//   - runtime/instance: one execution environment (snapshot, container, task, logs)
//   - runtime/lfxinit: PID 1 of every instance
//   - runtime/rapi: the Lambda Runtime API server that an instance polls
//
// It holds no code itself, so that nobody imports a package whose name hides the standard
// library's runtime. Nothing below it knows of versions, releases, aliases or callers.
package runtime
