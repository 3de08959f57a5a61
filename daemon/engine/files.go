package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/pelletier/go-toml/v2"
)

// disabledPlugins are containerd's plugins that a function host has no use for: each would listen,
// read a directory outside ours, run other people's programs or act on labels that images carry.
var disabledPlugins = []string{
	"io.containerd.grpc.v1.cri", // Kubernetes
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
	"io.containerd.podsandbox.controller.v1.podsandbox",
	"io.containerd.nri.v1.nri",                   // /var/run/nri, plugins from /opt
	"io.containerd.image-verifier.v1.bindir",     // programs from /opt
	"io.containerd.internal.v1.opt",              // /opt/containerd
	"io.containerd.monitor.container.v1.restart", // restarts what a label asks for
	"io.containerd.internal.v1.tracing",          // exports to whom the environment names
	"io.containerd.tracing.processor.v1.otlp",    //
	"io.containerd.http.v1.pprof",                // heap dumps hold registry credentials
	"io.containerd.server.v1.debug",              //
	"io.containerd.server.v1.metrics",            // TCP without authentication
	"io.containerd.server.v1.grpc-tcp",           //
	"io.containerd.snapshotter.v1.blockfile",     // overlayfs is the only snapshotter
	"io.containerd.snapshotter.v1.btrfs",         //
	"io.containerd.snapshotter.v1.devmapper",     //
	"io.containerd.snapshotter.v1.erofs",         //
	"io.containerd.snapshotter.v1.native",        //
	"io.containerd.snapshotter.v1.zfs",           //
	"io.containerd.differ.v1.erofs",              //
	"io.containerd.mount-handler.v1.erofs",       //
}

// requiredPlugins make containerd end with the reason when one of them cannot start. Without this
// it would go on without its database, say, and answer "unknown service" to everything.
var requiredPlugins = []string{
	"io.containerd.content.v1.content",
	"io.containerd.metadata.v1.bolt",
	"io.containerd.snapshotter.v1.overlayfs",
	"io.containerd.shim.v1.manager",
	"io.containerd.runtime.v2.task",
	"io.containerd.grpc.v1.containers",
	"io.containerd.grpc.v1.content",
	"io.containerd.grpc.v1.diff",
	"io.containerd.grpc.v1.events",
	"io.containerd.grpc.v1.images",
	"io.containerd.grpc.v1.leases",
	"io.containerd.grpc.v1.snapshots",
	"io.containerd.grpc.v1.tasks",
	"io.containerd.server.v1.ttrpc",
}

// containerdTOML is containerd's configuration, version 4.
func containerdTOML(c *Config, privileged bool) ([]byte, error) {
	type table = map[string]any
	file := table{
		"version":          4,
		"root":             filepath.Join(c.StateDir, "containerd"),
		"state":            filepath.Join(c.RunDir, "c"),
		"temp":             filepath.Join(c.StateDir, "tmp"),
		"disabled_plugins": disabledPlugins,
		"required_plugins": requiredPlugins,
		"plugins": table{
			"io.containerd.server.v1.grpc":   table{"address": c.socket("containerd")},
			"io.containerd.server.v1.ttrpc":  table{"address": c.socket("containerd-ttrpc")},
			"io.containerd.shim.v1.manager":  table{"socket_dir": shimSocketDir(c.RunDir)},
			"io.containerd.metadata.v1.bolt": table{"content_sharing_policy": "isolated", "no_sync": false},
		},
	}
	if privileged {
		file["oom_score"] = -999
	}
	return toml.Marshal(file)
}

// reservedCache is how much of the build cache is kept even when the disk is nearly full, in bytes.
const reservedCache = 2 << 30

// buildkitTOML is buildkitd's configuration. Its field names are those of BuildKit's
// cmd/buildkitd/config; that package is a program's and not ours to import.
func buildkitTOML(c *Config) ([]byte, error) {
	type table = map[string]any
	file := table{
		"root":                  filepath.Join(c.StateDir, "buildkit"),
		"insecure-entitlements": []string{},
		"provenanceEnvDir":      filepath.Join(c.StateDir, "etc", "provenance.d"),
		"cdi":                   table{"disabled": true},
		"grpc":                  table{"address": []string{"unix://" + c.socket("buildkitd")}},
		"otel":                  table{"socketPath": c.socket("otel")},
		"history":               table{"maxAge": 172800, "maxEntries": 50},
		"frontend":              table{"gateway.v0": table{"enabled": false}},
		"worker": table{
			"oci": table{"enabled": false},
			"containerd": table{
				"enabled":             true,
				"address":             c.socket("containerd"),
				"namespace":           c.Namespace,
				"snapshotter":         "overlayfs",
				"networkMode":         "cni",
				"cniConfigPath":       c.etc("build.conflist"),
				"cniBinaryPath":       c.BinDir,
				"cniPoolSize":         0,
				"defaultCgroupParent": c.buildCgroupParent(),
				"max-parallelism":     c.BuildParallel,
				"gc":                  true,
				"reservedSpace":       strconv.FormatInt(min(reservedCache, c.BuildCache), 10),
				"maxUsedSpace":        strconv.FormatInt(c.BuildCache, 10),
				"minFreeSpace":        "15%",
				"runtime": table{
					"name": "io.containerd.runc.v2",
					"options": table{
						"BinaryName":    filepath.Join(c.BinDir, "runc"),
						"Root":          c.runcRoot(),
						"SystemdCgroup": c.BuildSlice != "",
					},
				},
			},
		},
	}
	if len(c.DNS) > 0 {
		file["dns"] = table{"nameservers": c.DNS}
	}
	return toml.Marshal(file)
}

// buildConflist is the network of build containers: a bridge of its own, whose ports cannot reach
// one another. The firewall that keeps builds off the host and the LAN is cni/firewall's.
func buildConflist(c *Config) ([]byte, error) {
	subnet, err := netip.ParsePrefix(c.BuildSubnet)
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	return json.MarshalIndent(object{
		"cniVersion": "1.1.0",
		"name":       c.BuildBridge,
		"plugins": []object{{
			"type": "bridge", "bridge": c.BuildBridge,
			"isGateway": true, "ipMasq": false, "portIsolation": true,
			"hairpinMode": false, "promiscMode": false, "mtu": 1500,
			"ipam": object{
				"type":    "host-local",
				"dataDir": filepath.Join(c.RunDir, "ipam"),
				"ranges":  [][]object{{{"subnet": subnet.String(), "gateway": subnet.Addr().Next().String()}}},
				"routes":  []object{{"dst": "0.0.0.0/0"}},
			},
		}},
	}, "", "  ")
}

// writeFiles writes the three configuration files and returns them by name.
func (c *Config) writeFiles(privileged bool) (map[string][]byte, error) {
	containerd, err := containerdTOML(c, privileged)
	if err != nil {
		return nil, fmt.Errorf("encode containerd.toml: %w", err)
	}
	buildkit, err := buildkitTOML(c)
	if err != nil {
		return nil, fmt.Errorf("encode buildkitd.toml: %w", err)
	}
	conflist, err := buildConflist(c)
	if err != nil {
		return nil, fmt.Errorf("encode build.conflist: %w", err)
	}
	files := map[string][]byte{"containerd.toml": containerd, "buildkitd.toml": buildkit, "build.conflist": conflist}
	for name, data := range files {
		if err := replaceFile(c.etc(name), data); err != nil {
			return nil, fmt.Errorf("write engine configuration: %w", err)
		}
	}
	return files, nil
}

// replaceFile gives path new content in one step; a reader sees the old or the new.
func replaceFile(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
