package buildkit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	testNamespace = "lfxtest"
	testBase      = "test.lfx.dev/base:1"
)

// engine is a private containerd and buildkitd, shared by the tests of the package.
type engine struct {
	client *containerd.Client
	bk     *Client
	dir    string
	bin    string
	stop   []func()
	kill   func() // ends the daemon that was started last at once
}

var shared struct {
	once sync.Once
	e    *engine
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.e != nil {
		shared.e.close()
	}
	os.Exit(code)
}

// testEngine starts the engine once, or skips.
func testEngine(t *testing.T) *engine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: containerd mounts overlayfs")
	}
	bin := engineDir(t)
	shared.once.Do(func() { shared.e, shared.err = startEngine(bin) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.e
}

func engineDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("LFX_ENGINE_DIR")
	if dir == "" {
		_, file, _, _ := runtime.Caller(0)
		dir = filepath.Join(filepath.Dir(file), "..", "build", "engine")
	}
	for _, name := range []string{"containerd", "buildkitd", "runc", "containerd-shim-runc-v2"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Skipf("needs the engine (make engine): %v", err)
		}
	}
	return dir
}

func startEngine(bin string) (_ *engine, err error) {
	dir, err := os.MkdirTemp("", "lfxbk") // short: socket paths are limited to 108 bytes
	if err != nil {
		return nil, err
	}
	e := &engine{dir: dir, bin: bin}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	sock, bksock := filepath.Join(dir, "c.sock"), filepath.Join(dir, "b.sock")
	files := map[string]string{
		"containerd.toml": fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.cri.v1.runtime\", \"io.containerd.cri.v1.images\", \"io.containerd.grpc.v1.cri\", \"io.containerd.nri.v1.nri\"]\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
			dir+"/root", dir+"/state", sock, sock+".ttrpc"),
		"buildkitd.toml": fmt.Sprintf("root = %q\n[grpc]\naddress = [%q]\n[worker.oci]\nenabled = false\n[worker.containerd]\nenabled = true\naddress = %q\nnamespace = %q\nnetworkMode = \"host\"\nsnapshotter = \"overlayfs\"\ndefaultCgroupParent = %q\n[cdi]\ndisabled = true\n[frontend.\"gateway.v0\"]\nenabled = false\n[otel]\nsocketPath = %q\n",
			dir+"/bk", "unix://"+bksock, sock, testNamespace, "/"+filepath.Base(dir), dir+"/otel.sock"),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if err := e.spawn(bin, "containerd"); err != nil {
		return nil, err
	}
	if e.client, err = containerd.New(sock, containerd.WithDefaultNamespace(testNamespace), containerd.WithTimeout(time.Second)); err != nil {
		return nil, err
	}
	if err := poll(func() error { _, err := e.client.Version(context.Background()); return err }); err != nil {
		return nil, e.withLog("containerd", err)
	}
	if err := e.spawn(bin, "buildkitd"); err != nil {
		return nil, err
	}
	if e.bk, err = New(context.Background(), "unix://"+bksock, Options{DockerConfig: dir}); err != nil {
		return nil, err
	}
	if err := poll(func() error { _, err := e.bk.Info(context.Background()); return err }); err != nil {
		return nil, e.withLog("buildkitd", err)
	}
	return e, e.importImage(testBase, map[string][]byte{"bin/tool": buildTool(dir)})
}

// spawn starts a daemon of the engine in its own process group.
func (e *engine) spawn(bin, name string) error {
	log, err := os.Create(filepath.Join(e.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, name), "--config", filepath.Join(e.dir, name+".toml"))
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	e.kill = func() { cmd.Process.Kill() }
	e.stop = append(e.stop, func() {
		cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
	})
	return nil
}

func (e *engine) withLog(name string, err error) error {
	log, _ := os.ReadFile(filepath.Join(e.dir, name+".log"))
	return fmt.Errorf("%w\n%s", err, log)
}

func (e *engine) close() {
	if e.bk != nil {
		e.bk.Close()
	}
	if e.client != nil {
		e.killTasks()
		e.client.Close()
	}
	for i := len(e.stop) - 1; i >= 0; i-- {
		e.stop[i]()
	}
	// BuildKit pins a network namespace and containerd may leave a mount behind when killed.
	mounts, _ := os.ReadFile("/proc/self/mounts")
	lines := bytes.Split(mounts, []byte("\n"))
	for i := len(lines) - 1; i >= 0; i-- {
		if f := bytes.Fields(lines[i]); len(f) > 1 && bytes.HasPrefix(f[1], []byte(e.dir+"/")) {
			syscall.Unmount(string(f[1]), syscall.MNT_DETACH)
		}
	}
	os.RemoveAll(e.dir)
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		for _, depth := range []string{"/*/*", "/*", ""} {
			groups, _ := filepath.Glob(pattern + filepath.Base(e.dir) + depth)
			for _, g := range groups {
				syscall.Rmdir(g) // files in it are the kernel's and fail to go
			}
		}
	}
}

// killTasks ends the steps that a killed buildkitd left running.
func (e *engine) killTasks() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	all, err := e.client.Containers(ctx)
	if err != nil {
		return
	}
	for _, c := range all {
		if task, err := c.Task(ctx, nil); err == nil {
			task.Delete(ctx, containerd.WithProcessKill)
		}
		c.Delete(ctx)
	}
}

// poll tries until it works, for at most 30 seconds.
func poll(f func() error) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// buildTool compiles the program that is the test base image's shell.
func buildTool(dir string) []byte {
	src := filepath.Join(dir, "tool.go")
	out := filepath.Join(dir, "tool")
	must(os.WriteFile(src, []byte(toolSource), 0o600))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("build the test tool: %v\n%s", err, text))
	}
	data, err := os.ReadFile(out)
	must(err)
	return data
}

// toolSource does what the tests' RUN instructions need.
const toolSource = `package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	switch os.Args[1] {
	case "fail":
		for i := range 30 {
			fmt.Println("line", i)
		}
		fmt.Fprintln(os.Stderr, "something is missing")
		os.Exit(3)
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "flood":
		for range 200 {
			fmt.Printf("%01000d\n", 0)
		}
	case "write":
		if err := os.WriteFile(os.Args[2], []byte(os.Args[3]), 0o644); err != nil {
			panic(err)
		}
	}
}
`

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// importImage puts a one-layer image of those files into the store.
func (e *engine) importImage(name string, files map[string][]byte) error {
	_, err := e.client.Import(context.Background(), bytes.NewReader(ociArchive(name, files)))
	return err
}

// ociArchive returns an OCI layout with one image of one layer.
func ociArchive(name string, files map[string][]byte) []byte {
	var layer bytes.Buffer
	zw := gzip.NewWriter(&layer)
	diff := sha256.New()
	tw := tar.NewWriter(&teeWriter{zw, diff})
	for path, data := range files {
		must(tw.WriteHeader(&tar.Header{Name: path, Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg}))
		_, err := tw.Write(data)
		must(err)
	}
	must(tw.Close())
	must(zw.Close())

	blobs := map[string][]byte{}
	put := func(mediaType string, v any) ocispec.Descriptor {
		data, ok := v.([]byte)
		if !ok {
			var err error
			data, err = json.Marshal(v)
			must(err)
		}
		d := digest.FromBytes(data)
		blobs["blobs/sha256/"+d.Encoded()] = data
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.NewDigest(digest.SHA256, diff)}},
	}
	config.Config.Env = []string{"PATH=/bin"}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    put(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{put(ocispec.MediaTypeImageLayerGzip, layer.Bytes())},
	}
	desc := put(ocispec.MediaTypeImageManifest, manifest)
	desc.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: name}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{desc}})
	must(err)
	blobs["index.json"] = index
	blobs["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)

	var out bytes.Buffer
	ar := tar.NewWriter(&out)
	for path, data := range blobs {
		must(ar.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}))
		_, err := ar.Write(data)
		must(err)
	}
	must(ar.Close())
	return out.Bytes()
}

type teeWriter struct {
	a interface{ Write([]byte) (int, error) }
	b interface{ Write([]byte) (int, error) }
}

func (t *teeWriter) Write(p []byte) (int, error) {
	if n, err := t.a.Write(p); err != nil {
		return n, err
	}
	return t.b.Write(p)
}
