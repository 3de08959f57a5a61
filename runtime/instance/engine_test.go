package instance

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
)

const (
	testNamespace = "lfx"
	testImage     = "test.invalid/probe:v1"
)

// testEngine is a private containerd with the probe image, shared by the tests of this package.
type testEngine struct {
	dir    string
	bin    string
	client *containerd.Client
	cmd    *exec.Cmd
	log    string
}

var (
	sharedOnce sync.Once
	shared     *testEngine
	sharedErr  error
)

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		shared.close(code != 0 || testing.Verbose())
	}
	os.Exit(code)
}

// needEngine skips the test, naming what is missing, or returns the shared engine.
func needEngine(t *testing.T) *testEngine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: namespaces, cgroups and mounts")
	}
	bin, err := filepath.Abs("../../build/engine")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "containerd")); err != nil {
		t.Skip("needs the engine in build/engine: run make engine")
	}
	sharedOnce.Do(func() { shared, sharedErr = startEngine(bin) })
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return shared
}

func startEngine(bin string) (_ *testEngine, err error) {
	// Short, because shim sockets live below it and a socket's path has at most 108 bytes.
	dir, err := os.MkdirTemp("/tmp", "lfxi")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // user namespaces must be able to traverse to the root file systems
		return nil, err
	}
	e := &testEngine{dir: dir, bin: bin, log: filepath.Join(dir, "containerd.log")}
	defer func() {
		if err != nil {
			e.close(true)
		}
	}()
	conf := fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri","io.containerd.cri.v1.runtime","io.containerd.cri.v1.images",
  "io.containerd.podsandbox.controller.v1.podsandbox","io.containerd.nri.v1.nri","io.containerd.monitor.container.v1.restart"]
[grpc]
  address = %q
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %q
`, dir+"/root", dir+"/state", dir+"/c.sock", dir+"/s")
	path := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(e.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	e.cmd = exec.Command(filepath.Join(bin, "containerd"), "-c", path)
	e.cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	e.cmd.Stdout, e.cmd.Stderr = log, log
	e.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := startOnOwnThread(e.cmd); err != nil {
		return nil, err
	}
	if e.client, err = containerd.New(dir+"/c.sock", containerd.WithTimeout(20*time.Second)); err != nil {
		return nil, err
	}
	if err := buildGo(dir+"/probe", "./testdata/probe"); err != nil {
		return nil, err
	}
	if err := buildGo(dir+"/lfx-init", "../../cmd/lfx-init"); err != nil {
		return nil, err
	}
	if err := e.answers(30 * time.Second); err != nil {
		return nil, err
	}
	return e, e.importImage()
}

// answers waits until containerd answers; making a client connects to nothing.
func (e *testEngine) answers(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		_, err := e.client.Version(context.Background())
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// startOnOwnThread starts a command whose Pdeathsig must mean the end of this process: the kernel sends it when the starting
// thread ends, and inNetns ends threads.
func startOnOwnThread(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- cmd.Start()
		select {} // keeps the thread until the process ends
	}()
	return <-started
}

func buildGo(out, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	b, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, b)
	}
	return nil
}

func (e *testEngine) close(showLog bool) {
	if e.client != nil {
		_ = e.client.Close()
	}
	if e.cmd != nil && e.cmd.Process != nil {
		_ = e.cmd.Process.Signal(unix.SIGTERM)
		_ = e.cmd.Wait()
	}
	if b, err := os.ReadFile(e.log); err == nil && showLog && os.Getenv("LFX_TEST_LOG") != "" {
		fmt.Printf("containerd's log:\n%s\n", b)
	}
	_ = os.RemoveAll(e.dir)
}

// importImage makes an OCI image of the probe, a script, and files that cannot be executed, and unpacks it.
func (e *testEngine) importImage() error {
	probe, err := os.ReadFile(e.dir + "/probe")
	if err != nil {
		return err
	}
	layer := tarOf(
		file{"probe", string(probe), 0o755}, file{"plain", "not executable", 0o644}, file{"garbage", "no program", 0o755},
		file{"bin/tool", string(probe), 0o755}, file{"var/task/", "", 0o755}, file{"etc/passwd", "", 0o644},
	)
	diff := digestOf(layer)
	config, _ := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"User": "0", "Labels": map[string]string{"containerd.io/restart.status": "running"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diff}},
	})
	manifest, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digestOf(config), "size": len(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff, "size": len(layer)}},
	})
	index, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "manifests": []any{map[string]any{
			"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digestOf(manifest), "size": len(manifest),
			"annotations": map[string]string{"io.containerd.image.name": testImage},
		}},
	})
	blob := func(b []byte) file {
		return file{"blobs/sha256/" + strings.TrimPrefix(digestOf(b), "sha256:"), string(b), 0o644}
	}
	archive := tarOf(file{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`, 0o644}, file{"index.json", string(index), 0o644},
		blob(layer), blob(config), blob(manifest))
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), testNamespace), time.Minute)
	defer cancel()
	imgs, err := e.client.Import(ctx, bytes.NewReader(archive))
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	return containerd.NewImage(e.client, imgs[0]).Unpack(ctx, snapshotter)
}

type file struct {
	name, data string
	mode       int64
}

func tarOf(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		typ := byte(tar.TypeReg)
		if strings.HasSuffix(f.name, "/") {
			typ = tar.TypeDir
		}
		_ = w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: typ})
		_, _ = w.Write([]byte(f.data))
	}
	_ = w.Close()
	return b.Bytes()
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
