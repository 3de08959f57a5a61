package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// maxShimSocketDir is the longest directory containerd accepts for shim sockets: a Unix socket's
// path has 107 usable bytes and a socket's name takes 64 (containerd: core/runtime/v2/socket_linux.go).
const maxShimSocketDir = 42

// Config says where the engine lives and what limits builds have. BinDir, StateDir and RunDir are
// required, absolute and the engine's alone; the rest has defaults.
type Config struct {
	BinDir   string // containerd, containerd-shim-runc-v2, runc, buildkitd and the CNI plugins
	StateDir string // what survives a reboot
	RunDir   string // sockets and volatile state; at most 40 bytes long

	Namespace   string // containerd namespace of builds and functions; "lfx"
	BuildBridge string // bridge of build containers; "lfxb0"
	BuildSubnet string // their IPv4 subnet; "10.202.0.0/16"

	CgroupParent string // build steps run in CgroupParent/build; "/lfx"
	// BuildSlice is the systemd slice of build steps, such as "lfx-build.slice". When it is set, systemd makes their
	// cgroups and owns their limits: CgroupParent, BuildMemory and BuildPids are not used.
	BuildSlice  string
	BuildMemory int64 // bytes that all build steps together may use; 0 means no limit
	BuildPids   int64 // processes that all build steps together may have; 4096

	BuildParallel int   // build steps at the same time; 4
	BuildCache    int64 // bytes that the build cache may take; 20 GiB

	// NoBuilder leaves buildkitd out of Start: to remove what is left in an engine, containerd is enough, and
	// buildkitd would make its bridge.
	NoBuilder bool

	DNS []string // name servers of build containers; empty means the host's, as BuildKit reads them

	StartTimeout time.Duration // for each child to answer; 60 s. After a third of it a silent one is started once more
	MaxLogSize   int64         // bytes of a log file before it is rotated; 16 MiB

	Log *slog.Logger // required
}

func (c *Config) setDefaults() {
	setDefault(&c.Namespace, "lfx")
	setDefault(&c.BuildBridge, "lfxb0")
	setDefault(&c.BuildSubnet, "10.202.0.0/16")
	setDefault(&c.CgroupParent, "/lfx")
	setDefault(&c.BuildPids, 4096)
	setDefault(&c.BuildParallel, 4)
	setDefault(&c.BuildCache, 20<<30)
	setDefault(&c.StartTimeout, time.Minute)
	setDefault(&c.MaxLogSize, 16<<20)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate reports every mistake at once; the error is errdefs.ErrInvalidArgument.
func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for name, dir := range map[string]string{"BinDir": c.BinDir, "StateDir": c.StateDir, "RunDir": c.RunDir} {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || dir == "/" {
			bad("engine %s %q is not a clean absolute path", name, dir)
		}
	}
	if n := len(shimSocketDir(c.RunDir)); n > maxShimSocketDir {
		bad("engine run directory %q is %d bytes too long for the shims' sockets: choose a path of at most %d bytes",
			c.RunDir, n-maxShimSocketDir, len(c.RunDir)-(n-maxShimSocketDir))
	}
	if p, err := netip.ParsePrefix(c.BuildSubnet); err != nil || !p.Addr().Is4() || p.Bits() > 30 || p.Masked() != p {
		bad("build subnet %q is not an IPv4 network such as 10.202.0.0/16", c.BuildSubnet)
	}
	if c.BuildBridge == "" || len(c.BuildBridge) > 15 || strings.ContainsAny(c.BuildBridge, "/ \t\n:") {
		bad("build bridge %q is not an interface name of at most 15 bytes", c.BuildBridge)
	}
	if !strings.HasPrefix(c.CgroupParent, "/") || filepath.Clean(c.CgroupParent) != c.CgroupParent || c.CgroupParent == "/" {
		bad("cgroup parent %q is not a clean absolute cgroup path such as /lfx", c.CgroupParent)
	}
	if c.BuildSlice != "" && (!strings.HasSuffix(c.BuildSlice, ".slice") || strings.ContainsAny(c.BuildSlice, "/: ")) {
		bad("build slice %q is not the name of a systemd slice such as lfx-build.slice", c.BuildSlice)
	}
	for _, s := range c.DNS {
		if _, err := netip.ParseAddr(s); err != nil {
			bad("name server %q is not an IP address", s)
		}
	}
	if c.BuildMemory < 0 || c.BuildPids < 0 || c.BuildParallel < 0 || c.BuildCache < 0 || c.MaxLogSize < 0 {
		bad("engine limits must not be negative")
	}
	if c.Log == nil {
		bad("engine Log is nil")
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return nil
}

// checkBinaries says which of the engine's programs are missing from BinDir.
func (c *Config) checkBinaries() error {
	var missing []string
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "runc", "buildkitd", "bridge", "loopback", "host-local"} {
		info, err := os.Stat(filepath.Join(c.BinDir, name))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		return fmt.Errorf("the engine is incomplete, %s not found in %s: build it with `make engine`: %w",
			strings.Join(missing, ", "), c.BinDir, errdefs.ErrNotFound)
	}
	return nil
}

// Paths below StateDir and RunDir; doc.go draws them.

func shimSocketDir(runDir string) string { return filepath.Join(runDir, "s") }

func (c *Config) etc(name string) string { return filepath.Join(c.StateDir, "etc", name) }
func (c *Config) logFile(child string) string {
	return filepath.Join(c.StateDir, "log", child+".log")
}
func (c *Config) socket(child string) string {
	return filepath.Join(c.RunDir, "sock", child+".sock")
}
func (c *Config) record(child string) string { return filepath.Join(c.RunDir, child+".json") }
func (c *Config) runcRoot() string           { return filepath.Join(c.RunDir, "runc") }
func (c *Config) buildCgroup() string        { return filepath.Join(c.CgroupParent, "build") }

// buildCgroupParent is what BuildKit puts before the id of a build container (BuildKit: executor/oci/spec.go): a
// slice with a trailing colon makes it a scope LFX-BUILD-ID.scope of systemd's.
func (c *Config) buildCgroupParent() string {
	if c.BuildSlice != "" {
		return c.BuildSlice + ":" + strings.TrimSuffix(c.BuildSlice, ".slice") + ":"
	}
	return c.buildCgroup()
}

// makeDirs creates every directory, with the modes that make the sockets private.
func (c *Config) makeDirs() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{c.StateDir, 0o711},
		{filepath.Join(c.StateDir, "etc"), 0o700},
		{filepath.Join(c.StateDir, "log"), 0o700},
		{filepath.Join(c.StateDir, "tmp"), 0o700},
		{filepath.Join(c.StateDir, "containerd"), 0o700},
		{filepath.Join(c.StateDir, "buildkit"), 0o700},
		{c.RunDir, 0o711},
		{filepath.Join(c.RunDir, "sock"), 0o700},
		{filepath.Join(c.RunDir, "c"), 0o711},
		{shimSocketDir(c.RunDir), 0o700},
		{c.runcRoot(), 0o700},
		{filepath.Join(c.RunDir, "ipam"), 0o700},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("make engine directory: %w", err)
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return fmt.Errorf("make engine directory: %w", err)
		}
	}
	return nil
}
