package rapi

import "strings"

// route is what a method and a path ask for.
type route uint8

const (
	// routeOther is a path that is not ours: Options.Fallback serves it.
	routeOther route = iota
	routeNext
	routeResponse
	routeError
	routeInitError
	routePing
	routeRegister
	// routeExtension is any other call of the Extensions API; all of them need a registration.
	routeExtension
	routeTelemetry
	routeLogs
	routeNotFound
	// routeMethod is a path of ours with a method it does not have.
	routeMethod
)

const (
	runtimePrefix   = "/2018-06-01/"
	invocation      = "/2018-06-01/runtime/invocation/"
	pathNext        = "/2018-06-01/runtime/invocation/next"
	pathInitError   = "/2018-06-01/runtime/init/error"
	pathPing        = "/2018-06-01/ping"
	extensionPrefix = "/2020-01-01/"
	pathRegister    = "/2020-01-01/extension/register"
	pathTelemetry   = "/2022-07-01/telemetry"
	pathLogs        = "/2020-08-15/logs"
)

// ourPrefixes are the API versions that this package answers completely.
var ourPrefixes = [...]string{runtimePrefix, extensionPrefix, "/2020-08-15/", "/2022-07-01/", "/2021-04-23/"}

// resolve maps a method and an escaped path without query to a route and the request ID in it.
// It does not allocate; the ID aliases path.
func resolve(method, path string) (route, string) {
	if strings.HasPrefix(path, invocation) {
		return resolveInvocation(method, path)
	}
	switch path {
	case pathInitError:
		return only(method, "POST", routeInitError), ""
	case pathPing:
		return only(method, "GET", routePing), ""
	case pathRegister:
		return only(method, "POST", routeRegister), ""
	case "/2020-01-01/extension/event/next":
		return only(method, "GET", routeExtension), ""
	case "/2020-01-01/extension/init/error", "/2020-01-01/extension/exit/error":
		return only(method, "POST", routeExtension), ""
	case pathTelemetry:
		return only(method, "PUT", routeTelemetry), ""
	case pathLogs:
		return only(method, "PUT", routeLogs), ""
	}
	for _, p := range ourPrefixes {
		if strings.HasPrefix(path, p) {
			return routeNotFound, ""
		}
	}
	return routeOther, ""
}

// resolveInvocation resolves the paths below /2018-06-01/runtime/invocation/.
func resolveInvocation(method, path string) (route, string) {
	if path == pathNext {
		return only(method, "GET", routeNext), ""
	}
	rest := path[len(invocation):]
	slash := strings.IndexByte(rest, '/')
	if slash <= 0 {
		return routeNotFound, ""
	}
	switch rest[slash:] {
	case "/response":
		return only(method, "POST", routeResponse), rest[:slash]
	case "/error":
		return only(method, "POST", routeError), rest[:slash]
	}
	return routeNotFound, ""
}

// only returns r when the method is the one wanted.
func only(method, want string, r route) route {
	if method == want {
		return r
	}
	return routeMethod
}
