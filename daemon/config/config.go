package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Path is where lfxd looks for its file when no other is named.
const Path = "/etc/lfxd/config.toml"

// Config is the daemon's configuration. The comments are the documentation that users read.
type Config struct {
	// Where lfxd keeps what must survive a reboot: `state.db`, logs, and with `--with-engine` the
	// images and the build cache.
	StateDir string `toml:"state_dir"`
	// Where sockets and everything that must not survive a reboot go. At most 24 characters, because
	// the sockets of containerd's shims lie below it.
	RunDir string `toml:"run_dir"`
	// Where the binaries of the engine are: containerd, its shim, runc, buildkitd, the CNI plugins.
	LibexecDir string `toml:"libexec_dir"`
	// The containerd namespace in which images, containers and snapshots live.
	Namespace string `toml:"namespace"`
	// The AWS region that ARNs name.
	Region string `toml:"region"`
	// How much lfxd says: `debug`, `info`, `warn` or `error`.
	LogLevel slog.Level `toml:"log_level"`
	// The cgroup under which every function's cgroup lies.
	CgroupParent string `toml:"cgroup_parent"`
	// Replaces base images: the key is the reference as a Dockerfile has it (leave out `:latest`), the
	// value the reference to use instead: a digest pin, a mirror, an image of the local store.
	BaseImages map[string]string `toml:"base_images"`

	Engine    Engine    `toml:"engine"`
	Listen    Listen    `toml:"listen"`
	Network   Network   `toml:"network"`
	Functions Functions `toml:"functions"`
	Build     Build     `toml:"build"`
	Logs      Logs      `toml:"logs"`
	Records   Records   `toml:"records"`
	Releases  Releases  `toml:"releases"`
}

// Engine says which containerd and buildkitd to drive.
type Engine struct {
	// The socket of containerd; empty means our own engine.
	ContainerdAddress string `toml:"containerd_address"`
	// The socket of buildkitd; empty means our own engine.
	BuildkitAddress string `toml:"buildkit_address"`
	// The OCI runtime: `auto` (crun where one is new enough and the host's cgroups suit it, else runc), a
	// name below `libexec_dir` or in the PATH, or an absolute path.
	OCIRuntime string `toml:"oci_runtime"`
}

// Listen says where lfxd listens and for whom.
type Listen struct {
	// The TCP address for invocations without credentials. Only a loopback address is accepted, because
	// any other needs TLS and access keys, which lfxd does not have yet; empty means none.
	TCP string `toml:"tcp"`
	// The Unix socket that may do everything; empty means `lfxd.sock` in `run_dir`.
	ControlSocket string `toml:"control_socket"`
	// The group that may use the control socket. Without such a group only root may.
	ControlGroup string `toml:"control_group"`
	// The Unix socket that may only invoke; empty means `invoke.sock` in `run_dir`.
	InvokeSocket string `toml:"invoke_socket"`
	// The group that may use the invoke socket. Without such a group only root may.
	InvokeGroup string `toml:"invoke_group"`
	// The names that a request over TCP may carry in its Host header, so that a web page cannot reach
	// functions by DNS rebinding. `*.name` stands for every name below.
	AllowedHosts []string `toml:"allowed_hosts"`
	// The loopback address on which functions with a `port` of their own listen.
	FunctionPortAddress string `toml:"function_port_address"`
}

// Network says how functions and builds are connected.
type Network struct {
	// The bridge of the functions; at most 15 characters.
	Bridge string `toml:"bridge"`
	// The IPv4 network of the functions. Must not overlap another network that the host uses.
	Subnet string `toml:"subnet"`
	// The bridge of builds; at most 15 characters.
	BuildBridge string `toml:"build_bridge"`
	// The IPv4 network of builds.
	BuildSubnet string `toml:"build_subnet"`
	// The name of the nftables tables.
	Table string `toml:"table"`
	// The MTU of the bridges and of the functions' interfaces.
	MTU int `toml:"mtu"`
	// The name servers that the forwarder asks, as `address` or `address:port`; empty means those of
	// the host's `/etc/resolv.conf`.
	DNS []string `toml:"dns"`
	// Private destinations that functions may reach although private networks are blocked, as
	// `address:port` or `network/bits:port`, for example `192.168.1.5:5432`.
	Allow []string `toml:"allow"`
}

// Functions bounds what runs.
type Functions struct {
	// The most instances of one function when its manifest does not say; 0 chooses by the host: four for each
	// core, as far as memory goes.
	DefaultMax int `toml:"default_max"`
	// How long an instance without work is kept at most.
	IdleTimeout Duration `toml:"idle_timeout"`
	// Who says how long an idle instance is kept within `idle_timeout`: `adaptive` learns when each function is called and
	// weighs it against the memory and the time of a start, and may start an instance ahead of a call; `fixed` keeps all of
	// them until then.
	KeepAlive string `toml:"keep_alive"`
	// How long a function may take to start. 10 s is Lambda's own limit.
	InitTimeout Duration `toml:"init_timeout"`
	// How many requests may wait for one function; more are answered with 429.
	QueueLimit int `toml:"queue_limit"`
	// How long a request may wait for an instance before it is answered with 429.
	QueueTimeout Duration `toml:"queue_timeout"`
	// How much memory all instances together may have: a share of the host's such as `80%`, or a size. A smaller
	// limit of the cgroup in which they run counts instead.
	MemoryBudget Budget `toml:"memory_budget"`
	// How many times the budget the limits of all instances together may be: memory and `/tmp` of each. What they really
	// use stays below the budget all the same; 1 promises every instance all of its memory.
	MemoryOvercommit float64 `toml:"memory_overcommit"`
	// The most instances of all functions together; 0 means as many as memory allows.
	MaxInstances int `toml:"max_instances"`
	// How long an instance is idle before its processes are stopped, so that it uses no CPU; the next event
	// lets them go on. `0s` means never.
	FreezeAfter Duration `toml:"freeze_after"`
	// How many spares each active version has: instances that are made before there is a request and have run nothing of the
	// function yet, so that the next start takes no longer than the function's own. Each uses some 2 MiB; 0 means none.
	Spares int `toml:"spares"`
	// The most spares on the host. Versions that were called last come first.
	MaxSpares int `toml:"max_spares"`
	// How many sandboxes stand ready for the next instances of any function: network and container, in which nothing of an
	// image is yet. Each uses some 2 MiB; 0 means none. They need runc; with crun there are none.
	SandboxesAhead int `toml:"sandboxes_ahead"`
}

// Build bounds builds.
type Build struct {
	// How long one build may take.
	Timeout Duration `toml:"timeout"`
	// How many build steps run at the same time.
	MaxParallel int `toml:"max_parallel"`
	// The most bytes that one build context may have.
	ContextLimit Size `toml:"context_limit"`
	// The most files and folders that one build context may have.
	ContextEntries int `toml:"context_entries"`
	// The most bytes of build output that are shown; the rest is cut.
	LogLimit Size `toml:"log_limit"`
	// How large the build cache may grow.
	CacheLimit Size `toml:"cache_limit"`
}

// Logs bounds what is kept of the functions' output.
type Logs struct {
	// How much output is kept on disk for each function; the oldest goes first.
	MaxBytesPerFunction Size `toml:"max_bytes_per_function"`
	// Whether output also goes to systemd's journal: `auto` (when there is one), `on` or `off`.
	Journald string `toml:"journald"`
}

// Records bounds what lfxd remembers of single invocations for `lfxctl why`.
type Records struct {
	// How many of the newest invocations have a record. Records are in memory, about 300 bytes each; 0 means none.
	Max int `toml:"max"`
}

// Releases says what is kept for rollbacks.
type Releases struct {
	// How many releases of each environment are kept with their images.
	Keep int `toml:"keep"`
}

// Default is the configuration of an empty file.
func Default() *Config {
	return &Config{
		StateDir:     "/var/lib/lfxd",
		RunDir:       "/run/lfxd",
		LibexecDir:   "/usr/libexec/lfxd",
		Namespace:    "lfx",
		Region:       "us-east-1",
		LogLevel:     slog.LevelInfo,
		CgroupParent: "/lfx",
		BaseImages:   map[string]string{},
		Engine:       Engine{OCIRuntime: "auto"},
		Listen: Listen{
			TCP: "127.0.0.1:9000", ControlGroup: "lfxd", InvokeGroup: "lfx-invoke",
			AllowedHosts:        []string{"localhost", "127.0.0.1", "[::1]", "*.localhost"},
			FunctionPortAddress: "127.0.0.1",
		},
		Network: Network{
			Bridge: "lfx0", Subnet: "10.201.0.0/16", BuildBridge: "lfx-build0", BuildSubnet: "10.202.0.0/16",
			Table: "lfx", MTU: 1500, DNS: []string{}, Allow: []string{},
		},
		Functions: Functions{
			IdleTimeout: Duration{10 * time.Minute}, KeepAlive: "adaptive", InitTimeout: Duration{10 * time.Second},
			QueueLimit: 1000, QueueTimeout: Duration{time.Minute}, MemoryBudget: Budget{Percent: 80},
			MemoryOvercommit: 4, FreezeAfter: Duration{time.Second},
			Spares: 1, MaxSpares: 16, SandboxesAhead: 4,
		},
		Build: Build{
			Timeout: Duration{15 * time.Minute}, MaxParallel: 4, ContextLimit: 256 << 20,
			ContextEntries: 50_000, LogLimit: 8 << 20, CacheLimit: 20 << 30,
		},
		Logs:     Logs{MaxBytesPerFunction: 16 << 20, Journald: "auto"},
		Records:  Records{Max: 20_000},
		Releases: Releases{Keep: 10},
	}
}

// maxFile bounds the file: it is written by hand.
const maxFile = 1 << 20

// Load reads the file over the defaults. Unknown keys, wrong types and syntax errors are all
// refused with their line; fs.ErrNotExist is passed on. It does not validate.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	var data bytes.Buffer
	if n, err := data.ReadFrom(io.LimitReader(f, maxFile)); err != nil {
		return nil, fmt.Errorf("read the configuration %s: %w", path, err)
	} else if n >= maxFile {
		return nil, fmt.Errorf("read the configuration %s: it is larger than %d bytes", path, maxFile)
	}
	return Parse(path, data.Bytes())
}

// Parse reads data over the defaults; name is what errors call it.
func Parse(name string, data []byte) (*Config, error) {
	c := Default()
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c)
	if err == nil {
		return c, nil
	}
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var errs []error
		for _, e := range strict.Errors {
			row, _ := e.Position()
			errs = append(errs, fmt.Errorf("%s:%d: there is no key %q; docs/configuration.md lists them all",
				name, row, strings.Join(e.Key(), ".")))
		}
		return nil, errors.Join(errs...)
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, _ := decode.Position()
		return nil, fmt.Errorf("%s:%d: %s", name, row, decodeText(decode))
	}
	return nil, fmt.Errorf("%s: %s", name, strings.TrimPrefix(err.Error(), "toml: "))
}

// wrongType is how the decoder words a value of the wrong type, in terms of our Go fields.
var wrongType = regexp.MustCompile(`^cannot decode TOML (.+) into .* of type (\S+)$`)

// decodeText words what the decoder found wrong for somebody who has not read our types.
func decodeText(e *toml.DecodeError) string {
	text := strings.TrimPrefix(e.Error(), "toml: ")
	m := wrongType.FindStringSubmatch(text)
	if m == nil || len(e.Key()) == 0 {
		return text
	}
	want := map[string]string{
		"string": "a string in quotes", "int": "a whole number", "bool": "true or false", "[]string": "a list of strings in quotes",
	}[m[2]]
	if want == "" {
		want = "a value as docs/configuration.md shows it"
	}
	return fmt.Sprintf("%s must be %s and is of the TOML type %s", strings.Join(e.Key(), "."), want, m[1])
}

// ControlSocketPath returns the path of the control socket.
func (c *Config) ControlSocketPath() string { return c.socket(c.Listen.ControlSocket, "lfxd.sock") }

// InvokeSocketPath returns the path of the invoke socket.
func (c *Config) InvokeSocketPath() string { return c.socket(c.Listen.InvokeSocket, "invoke.sock") }

func (c *Config) socket(path, name string) string {
	if path != "" {
		return path
	}
	return filepath.Join(c.RunDir, name)
}

// DefaultMax returns the most instances of a function that sets no limit of its own, on a host with
// that many cores and that much memory in bytes, for a function of memoryMB.
func (c *Config) DefaultMax(cores int, memory int64, memoryMB int) int {
	if c.Functions.DefaultMax > 0 {
		return c.Functions.DefaultMax
	}
	fit := c.Functions.MemoryBudget.Of(memory) / (int64(max(memoryMB, 1)) << 20)
	return int(max(1, min(int64(4*cores), fit)))
}
