package worker

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// RuntimeAPI is the address of the Runtime API as every instance sees it.
const RuntimeAPI = "127.0.0.1:9001"

// environ builds the runtime's process environment. Precedence, weakest first: the image, the
// customer, platform defaults that may be overridden, credentials, the platform's own
// (AWS Lambda Developer Guide, "Defined runtime environment variables"). _HANDLER is never set: it belongs to the image's
// entrypoint. AWS_LAMBDA_MAX_CONCURRENCY switches runtimes into another mode and is set for concurrency.per_instance above 1 only;
// the log format is JSON then, because only the runtime knows which of its invocations a line belongs to.
func environ(v *function.Version, region, logStream string) []string {
	e := newEnv()
	for _, kv := range v.Image.Env {
		if k, val, ok := strings.Cut(kv, "="); ok && k != "AWS_LAMBDA_MAX_CONCURRENCY" {
			e.set(k, val)
		}
	}
	for k, val := range v.Config.Environment {
		e.set(k, val)
	}
	e.setDefault("PATH", "/usr/local/bin:/usr/bin:/bin:/opt/bin")
	e.setDefault("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR")
	if v.Config.Cores() <= 1 {
		// Go sees the host's processors, and rounds a quota up to two of them at least (GOMAXPROCS in package runtime). A further one has no
		// time of its own to run in: what it adds are wakes of other threads, and the end of the quota while they wait.
		e.setDefault("GOMAXPROCS", "1")
	}
	if n := v.Config.Concurrency.AtOnce(); n > 1 {
		e.set("AWS_LAMBDA_MAX_CONCURRENCY", strconv.Itoa(n))
		e.setDefault("AWS_LAMBDA_LOG_FORMAT", "JSON")
	}
	e.setDefault("AWS_LAMBDA_LOG_FORMAT", "Text")
	// SDKs fail in odd ways without credentials; these are not secrets and open nothing.
	e.set("AWS_ACCESS_KEY_ID", "LFXINSTANCE"+function.Account(v.Environment)[:9])
	e.set("AWS_SECRET_ACCESS_KEY", "instance-local")
	e.set("AWS_SESSION_TOKEN", "instance-local")
	e.setDefault("AWS_ENDPOINT_URL_LAMBDA", "http://"+RuntimeAPI)
	for k, val := range map[string]string{
		"AWS_LAMBDA_RUNTIME_API":          RuntimeAPI,
		"AWS_LAMBDA_FUNCTION_NAME":        v.Function,
		"AWS_LAMBDA_FUNCTION_VERSION":     strconv.Itoa(v.Number),
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.Itoa(v.Config.MemoryMB),
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"AWS_REGION":                      region,
		"AWS_DEFAULT_REGION":              region,
		"AWS_LAMBDA_LOG_GROUP_NAME":       "/aws/lambda/" + v.Function,
		"AWS_LAMBDA_LOG_STREAM_NAME":      logStream,
		"AWS_EXECUTION_ENV":               "AWS_Lambda_Image",
		"LAMBDA_TASK_ROOT":                "/var/task",
		"LAMBDA_RUNTIME_DIR":              "/var/runtime",
	} {
		e.set(k, val)
	}
	return e.list()
}

// logStream names the log stream of one instance.
func logStream(version int, now time.Time) string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	return fmt.Sprintf("%s/[%d]%s", now.UTC().Format("2006/01/02"), version, hex.EncodeToString(b[:]))
}

// env is an ordered set of variables.
type env struct {
	keys   []string
	values map[string]string
}

func newEnv() *env { return &env{values: map[string]string{}} }

func (e *env) set(k, v string) {
	if _, ok := e.values[k]; !ok {
		e.keys = append(e.keys, k)
	}
	e.values[k] = v
}

func (e *env) setDefault(k, v string) {
	if _, ok := e.values[k]; !ok {
		e.set(k, v)
	}
}

func (e *env) list() []string {
	out := make([]string, len(e.keys))
	for i, k := range e.keys {
		out[i] = k + "=" + e.values[k]
	}
	return out
}
