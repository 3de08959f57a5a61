package function

import (
	"bytes"
	"encoding/json"
	"slices"
)

// maxConcurrencyEnv switches runtimes to several invocations at once; see Concurrency.PerInstance.
const maxConcurrencyEnv = "AWS_LAMBDA_MAX_CONCURRENCY"

// reservedEnv holds the names that belong to the platform, sorted (AWS Lambda Developer Guide,
// "Defined runtime environment variables"). A customer may not set them; what an image sets is replaced or dropped.
var reservedEnv = []string{
	"AWS_ACCESS_KEY",
	"AWS_ACCESS_KEY_ID",
	"AWS_CONTAINER_AUTHORIZATION_TOKEN",
	"AWS_CONTAINER_CREDENTIALS_FULL_URI",
	"AWS_DEFAULT_REGION",
	"AWS_EXECUTION_ENV",
	"AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
	"AWS_LAMBDA_FUNCTION_NAME",
	"AWS_LAMBDA_FUNCTION_VERSION",
	"AWS_LAMBDA_INITIALIZATION_TYPE",
	"AWS_LAMBDA_LOG_GROUP_NAME",
	"AWS_LAMBDA_LOG_STREAM_NAME",
	maxConcurrencyEnv,
	"AWS_LAMBDA_RUNTIME_API",
	"AWS_REGION",
	"AWS_SECRET_ACCESS_KEY",
	"AWS_SESSION_TOKEN",
	"LAMBDA_RUNTIME_DIR",
	"LAMBDA_TASK_ROOT",
	"_AWS_XRAY_DAEMON_ADDRESS",
	"_AWS_XRAY_DAEMON_PORT",
	"_HANDLER",
	"_LAMBDA_TELEMETRY_LOG_FD",
	"_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET",
	"_X_AMZN_TRACE_ID",
}

// ReservedEnv reports whether the environment variable belongs to the platform.
func ReservedEnv(name string) bool {
	_, found := slices.BinarySearch(reservedEnv, name)
	return found
}

// ReservedEnvNames returns all names for which ReservedEnv holds, sorted.
func ReservedEnvNames() []string { return slices.Clone(reservedEnv) }

// MaxEnvironment bounds the variables of a function, in bytes of measureEnvironment.
const MaxEnvironment = 4096

// environmentTooLarge is what AWS says of variables above MaxEnvironment.
const environmentTooLarge = "Lambda was unable to configure your environment variables because the environment variables you have provided exceeded the 4KB limit."

// CheckEnvironmentSize refuses variables above 4 KB with AWS's words, which quote all of them: for
// the client that sent them, never for a log.
func CheckEnvironmentSize(env map[string]string) error {
	measured := measureEnvironment(env)
	if len(measured) <= MaxEnvironment {
		return nil
	}
	return &AWSError{typeInvalidParameter, environmentTooLarge + " String measured: " + string(measured)}
}

// measureEnvironment returns what AWS measures: the map as compact JSON.
func measureEnvironment(env map[string]string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(env); err != nil {
		panic(err) // a map of strings always encodes
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// envName reports whether a customer's variable may have this name: [a-zA-Z]([a-zA-Z0-9_])+.
func envName(s string) bool {
	letter := func(c byte) bool { return lower(c) || 'A' <= c && c <= 'Z' }
	return len(s) >= 2 && letter(s[0]) && indexNot(s, func(c byte) bool { return letter(c) || digit(c) || c == '_' }) < 0
}
