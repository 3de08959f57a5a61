package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var shared struct {
	once sync.Once
	dir  string
	stop func()
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.stop != nil {
		shared.stop()
	}
	os.Exit(code)
}

// testStore returns a store in a namespace of its own on a private containerd, which the tests of
// the package share.
func testStore(t *testing.T) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: containerd mounts overlayfs")
	}
	bin := os.Getenv("LFX_ENGINE_DIR")
	if bin == "" {
		_, file, _, _ := runtime.Caller(0)
		bin = filepath.Join(filepath.Dir(file), "..", "..", "build", "engine")
	}
	if _, err := os.Stat(filepath.Join(bin, "containerd")); err != nil {
		t.Skipf("needs the engine (make engine): %v", err)
	}
	shared.once.Do(func() { shared.err = startContainerd(bin) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	ns := "t" + digest.FromString(t.Name()).Encoded()[:16]
	client, err := containerd.New(filepath.Join(shared.dir, "c.sock"), containerd.WithDefaultNamespace(ns))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return New(client, "", Options{})
}

func startContainerd(bin string) error {
	dir, err := os.MkdirTemp("", "lfximg") // short: socket paths are limited to 108 bytes
	if err != nil {
		return err
	}
	shared.dir = dir
	sock := filepath.Join(dir, "c.sock")
	conf := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.cri.v1.runtime\", \"io.containerd.cri.v1.images\", \"io.containerd.grpc.v1.cri\", \"io.containerd.nri.v1.nri\"]\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n[plugins.\"io.containerd.gc.v1.scheduler\"]\nschedule_delay = \"0s\"\n",
		dir+"/root", dir+"/state", sock, sock+".ttrpc")
	if err := os.WriteFile(dir+"/containerd.toml", []byte(conf), 0o600); err != nil {
		return err
	}
	log, err := os.Create(dir + "/log")
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, "containerd"), "--config", dir+"/containerd.toml")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	shared.stop = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		os.RemoveAll(dir)
	}
	return poll(func() error {
		c, err := containerd.New(sock, containerd.WithTimeout(time.Second))
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Version(context.Background()); err != nil { // New connects to nothing
			text, _ := os.ReadFile(dir + "/log")
			return fmt.Errorf("%w\n%s", err, text)
		}
		return nil
	})
}

// poll tries until it works, for at most 30 seconds.
func poll(f func() error) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// layout is an OCI image layout under construction.
type layout struct {
	blobs map[digest.Digest][]byte
	index ocispec.Index
}

func newLayout() *layout {
	return &layout{blobs: map[digest.Digest][]byte{}, index: ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}}
}

func (l *layout) put(mediaType string, v any) ocispec.Descriptor {
	data, ok := v.([]byte)
	if !ok {
		var err error
		data, err = json.Marshal(v)
		must(err)
	}
	d := digest.FromBytes(data)
	l.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// layer adds a gzipped layer of one file and returns it with its diff id.
func (l *layout) layer(name, text string) (ocispec.Descriptor, digest.Digest) {
	var raw, zipped bytes.Buffer
	tw := tar.NewWriter(&raw)
	must(tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}))
	_, err := tw.Write([]byte(text))
	must(err)
	must(tw.Close())
	zw := gzip.NewWriter(&zipped)
	_, err = zw.Write(raw.Bytes())
	must(err)
	must(zw.Close())
	return l.put(ocispec.MediaTypeImageLayerGzip, zipped.Bytes()), digest.FromBytes(raw.Bytes())
}

// spec is an image to make; the zero value is a good one.
type spec struct {
	layers     int
	arch       string
	labels     map[string]string
	workdir    string // "/var/task" when empty
	env        string
	configType string
	layerType  string
	padding    int
	docker     bool
	diffIDs    int // added to what is right
}

func (l *layout) image(name string, s spec) ocispec.Descriptor {
	if s.layers == 0 {
		s.layers = 2
	}
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"}}
	if s.arch != "" {
		config.Architecture = s.arch
	}
	config.Author = strings.Repeat("x", s.padding)
	config.Config = ocispec.ImageConfig{
		Entrypoint: []string{"/lambda-entrypoint.sh"}, Cmd: []string{"app.handler"}, Env: []string{"A=b"}, WorkingDir: "/var/task", Labels: s.labels,
	}
	if s.workdir != "" {
		config.Config.WorkingDir = s.workdir
	}
	if s.env != "" {
		config.Config.Env = append(config.Config.Env, s.env)
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Annotations: map[string]string{"kept": "yes"}}
	for i := range max(s.layers, 0) {
		desc, diff := l.layer(fmt.Sprintf("f%d", i), name)
		if s.layerType != "" {
			desc.MediaType = s.layerType
		}
		m.Layers = append(m.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
	}
	for range s.diffIDs {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromString("more"))
	}
	m.Config = l.put(ocispec.MediaTypeImageConfig, config)
	if s.configType != "" {
		m.Config.MediaType = s.configType
	}
	if s.docker {
		m.MediaType, m.Config.MediaType, m.Annotations = images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2Config, nil
		for i := range m.Layers {
			m.Layers[i].MediaType = images.MediaTypeDockerSchema2LayerGzip
		}
	}
	desc := l.put(m.MediaType, m)
	desc.Platform = &ocispec.Platform{OS: "linux", Architecture: config.Architecture}
	return desc
}

// name lists a manifest or index in the layout's index.
func (l *layout) name(name string, desc ocispec.Descriptor) {
	desc.Platform = nil
	desc.Annotations = map[string]string{images.AnnotationImageName: name}
	l.index.Manifests = append(l.index.Manifests, desc)
}

func (l *layout) archive() []byte {
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	put := func(name string, data []byte) {
		must(tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}))
		_, err := tw.Write(data)
		must(err)
	}
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	index, err := json.Marshal(l.index)
	must(err)
	put("index.json", index)
	for d, data := range l.blobs {
		put("blobs/sha256/"+d.Encoded(), data)
	}
	must(tw.Close())
	return out.Bytes()
}

// seed puts an image into the store without any of the checks.
func seed(t *testing.T, s *Store, name string, sp spec) ocispec.Descriptor {
	t.Helper()
	l := newLayout()
	desc := l.image(name, sp)
	l.name(name, desc)
	if _, err := s.client.Import(context.Background(), bytes.NewReader(l.archive()), containerd.WithAllPlatforms(true)); err != nil {
		t.Fatal(err)
	}
	return desc
}

func TestInspect(t *testing.T) {
	s := testStore(t)
	desc := seed(t, s, "test.lfx.dev/a:1", spec{labels: map[string]string{"dev.lfx.function": "a"}})
	got, err := s.Inspect(context.Background(), "test.lfx.dev/a:1")
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != desc.Digest || len(got.DiffIDs) != 2 || got.Size == 0 || got.ChainID == "" || got.ConfigDigest == "" {
		t.Errorf("Inspect = %+v", got)
	}
	want := Info{
		Name: "test.lfx.dev/a:1", Digest: got.Digest, ConfigDigest: got.ConfigDigest, DiffIDs: got.DiffIDs, ChainID: got.ChainID, Size: got.Size,
		Entrypoint: []string{"/lambda-entrypoint.sh"}, Cmd: []string{"app.handler"}, Env: []string{"A=b"}, Workdir: "/var/task",
		Architecture: runtime.GOARCH, OS: "linux", Labels: map[string]string{"dev.lfx.function": "a"}, Annotations: map[string]string{"kept": "yes"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Inspect (-want +got):\n%s", diff)
	}
}

func TestInspectRefuses(t *testing.T) {
	s := testStore(t)
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	for name, tc := range map[string]struct {
		spec spec
		want string
	}{
		"platform":     {spec{arch: other}, "It is for linux/" + other},
		"no-layers":    {spec{layers: -1}, "no layers"},
		"many-layers":  {spec{layers: 128}, "128 layers"},
		"config-type":  {spec{configType: "application/vnd.cncf.helm.config.v1+json"}, "helm"},
		"config-size":  {spec{padding: 5 << 20}, "larger than 4"},
		"foreign":      {spec{layerType: images.MediaTypeDockerSchema2LayerForeignGzip}, "foreign"},
		"label":        {spec{labels: map[string]string{"containerd.io/gc.root": "x"}}, "reserved"},
		"workdir":      {spec{workdir: "/proc/self/fd/7"}, "below /proc"},
		"workdir-dots": {spec{workdir: "/x/../sys"}, "below /sys"},
		"relative":     {spec{workdir: "proc"}, "no absolute path"},
		"environment":  {spec{env: "=x"}, "environment"},
		"many-diffids": {spec{diffIDs: 1}, "lists 3 layers"},
	} {
		t.Run(name, func(t *testing.T) {
			ref := "test.lfx.dev/" + name + ":1"
			seed(t, s, ref, tc.spec)
			_, err := s.Inspect(context.Background(), ref)
			var e *Error
			if !errors.As(err, &e) || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Inspect = %v, want a refusal with %q", err, tc.want)
			}
			if want := "The image manifest, config or layer media type for the source image " + ref + " is not supported."; e.Message != want {
				t.Errorf("Message = %q, want %q", e.Message, want)
			}
		})
	}
	_, err := s.Inspect(context.Background(), "test.lfx.dev/none:1")
	if !errdefs.IsNotFound(err) || err.Error() != "Source image test.lfx.dev/none:1 does not exist. Provide a valid source image." {
		t.Errorf("Inspect = %v", err)
	}
}

func TestInspectIndex(t *testing.T) {
	s := testStore(t)
	l := newLayout()
	mine := l.image("mine", spec{})
	theirs := l.image("theirs", spec{arch: "s390x"})
	attestation := l.put(ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: l.put(ocispec.MediaTypeImageConfig, []byte("{}"))})
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	l.name("test.lfx.dev/index:1", l.put(ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{attestation, theirs, mine}}))
	if _, err := s.Import(context.Background(), bytes.NewReader(l.archive())); err != nil {
		t.Fatal(err)
	}
	got, err := s.Inspect(context.Background(), "test.lfx.dev/index:1")
	if err != nil || got.Digest != mine.Digest {
		t.Errorf("Inspect = %v, %v, want %s", got.Digest, err, mine.Digest)
	}
}

// gc runs containerd's collector and waits for it: deleting synchronously does.
func gc(t *testing.T, s *Store) {
	t.Helper()
	seed(t, s, "test.lfx.dev/garbage:1", spec{})
	if err := s.images.Delete(context.Background(), "test.lfx.dev/garbage:1", images.SynchronousDelete()); err != nil {
		t.Fatal(err)
	}
}

func TestAnnotateSurvivesCollection(t *testing.T) {
	s := testStore(t)
	ctx := context.Background()
	for _, docker := range []bool{false, true} {
		ref := fmt.Sprintf("test.lfx.dev/built-%v:1", docker)
		seed(t, s, ref, spec{docker: docker})
		before, err := s.Inspect(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		added := map[string]string{ocispec.AnnotationVersion: "3", "dev.lfx.release": "7"}
		to := strings.Replace(ref, ":1", ":v3", 1)
		after, err := s.Annotate(ctx, ref, added, to)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(after.DiffIDs, before.DiffIDs) || after.ConfigDigest != before.ConfigDigest || after.Digest == before.Digest {
			t.Errorf("Annotate = %+v, before %+v", after, before)
		}
		want := maps.Clone(added)
		maps.Copy(want, before.Annotations)
		if diff := cmp.Diff(want, after.Annotations); diff != "" {
			t.Errorf("annotations (-want +got):\n%s", diff)
		}
		again, err := s.Annotate(ctx, ref, added, to)
		if err != nil || again.Digest != after.Digest {
			t.Errorf("a second Annotate = %v, %v", again.Digest, err)
		}
		if err := s.Remove(ctx, ref); err != nil {
			t.Fatal(err)
		}
		gc(t, s)
		if _, err := s.content.Info(ctx, before.Digest); !errdefs.IsNotFound(err) {
			t.Errorf("the old manifest: %v, want it collected", err)
		}
		if _, err := s.Inspect(ctx, to); err != nil {
			t.Errorf("after collection: %v", err)
		}
		if err := s.Unpack(ctx, to); err != nil {
			t.Errorf("after collection: %v", err)
		}
	}
}

func TestTagRemoveList(t *testing.T) {
	s := testStore(t)
	ctx := context.Background()
	desc := seed(t, s, "test.lfx.dev/p/a:1", spec{})
	if err := s.Tag(ctx, "test.lfx.dev/p/a:1", "test.lfx.dev/p/a:r7", map[string]string{"dev.lfx.project": "p"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(ctx, "test.lfx.dev/p/a:1", "x", map[string]string{"containerd.io/gc.root": "x"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Tag with a foreign label = %v", err)
	}
	got, err := s.List(ctx, "test.lfx.dev/p/", map[string]string{"dev.lfx.project": "p"})
	want := []Record{{Name: "test.lfx.dev/p/a:r7", Digest: desc.Digest, Labels: map[string]string{"dev.lfx.project": "p"}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("List: %v (-want +got):\n%s", err, diff)
	}
	for range 2 {
		if err := s.Remove(ctx, "test.lfx.dev/p/a:r7"); err != nil {
			t.Errorf("Remove = %v", err)
		}
	}
	if err := s.Tag(ctx, "test.lfx.dev/none:1", "y", nil); !errdefs.IsNotFound(err) {
		t.Errorf("Tag of nothing = %v", err)
	}
}

// A lease keeps manifest, config, layers and snapshot without any name; ending it lets them go.
func TestSweepRemovesOnlyTheOwnersNamesAndLeases(t *testing.T) {
	s := testStore(t)
	ctx := context.Background()
	mine, other := New(s.client, "", Options{Owner: "node-a"}), New(s.client, "", Options{Owner: "node-b"})
	seed(t, s, "test.lfx.dev/foreign:1", spec{})
	for _, c := range []struct {
		s  *Store
		to string
	}{{mine, "test.lfx.dev/kept:1"}, {mine, "test.lfx.dev/left:1"}, {other, "test.lfx.dev/theirs:1"}} {
		if err := c.s.Tag(ctx, "test.lfx.dev/foreign:1", c.to, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := mine.Annotate(ctx, "test.lfx.dev/foreign:1", map[string]string{"a": "b"}, "test.lfx.dev/annotated:1"); err != nil {
		t.Fatal(err)
	}
	temporary := map[string]string{labelTemporary: "true"}
	for id, owner := range map[string]*Store{"mine": mine, "theirs": other} {
		if err := owner.Lease(ctx, id, owner.owned(temporary)); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := mine.Sweep(ctx, func(name string) bool { return name == "test.lfx.dev/kept:1" })
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(removed)
	if diff := cmp.Diff([]string{"test.lfx.dev/annotated:1", "test.lfx.dev/left:1"}, removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	all, err := s.List(ctx, "", nil)
	if err != nil || len(all) != 3 {
		t.Errorf("left %v, %v", all, err)
	}
	leases, err := s.Leases(ctx, temporary)
	if _, ok := leases["theirs"]; err != nil || len(leases) != 1 || !ok {
		t.Errorf("leases %v, %v", leases, err)
	}
}

func TestLease(t *testing.T) {
	s := testStore(t)
	ctx := context.Background()
	const ref = "test.lfx.dev/leased:1"
	seed(t, s, ref, spec{})
	info, err := s.Inspect(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unpack(ctx, ref); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again is harmless
		if err := s.Lease(ctx, "lfx-r7", map[string]string{"dev.lfx.release": "7"}, ref); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Lease(ctx, "lfx-r8", nil, ref, "test.lfx.dev/none:1"); !errdefs.IsNotFound(err) {
		t.Errorf("Lease of nothing = %v", err)
	}
	held, err := s.Leases(ctx, map[string]string{"dev.lfx.release": "7"})
	if diff := cmp.Diff(map[string]map[string]string{"lfx-r7": {"dev.lfx.release": "7"}}, held); err != nil || diff != "" {
		t.Errorf("Leases: %v (-want +got):\n%s", err, diff)
	}
	if err := s.Remove(ctx, ref); err != nil {
		t.Fatal(err)
	}
	gc(t, s)
	if _, err := s.content.Info(ctx, info.ConfigDigest); err != nil {
		t.Errorf("config under a lease: %v", err)
	}
	if _, err := s.snapshots.Stat(ctx, info.ChainID.String()); err != nil {
		t.Errorf("snapshot under a lease: %v", err)
	}
	for range 2 {
		if err := s.Unlease(ctx, "lfx-r7"); err != nil {
			t.Errorf("Unlease = %v", err)
		}
	}
	gc(t, s)
	if _, err := s.content.Info(ctx, info.ConfigDigest); !errdefs.IsNotFound(err) {
		t.Errorf("config without a lease: %v, want it collected", err)
	}
	if _, err := s.snapshots.Stat(ctx, info.ChainID.String()); !errdefs.IsNotFound(err) {
		t.Errorf("snapshot without a lease: %v, want it collected", err)
	}
}

func TestUnpack(t *testing.T) {
	s := testStore(t)
	ctx := context.Background()
	const ref = "test.lfx.dev/unpacked:1"
	seed(t, s, ref, spec{})
	for range 2 {
		if err := s.Unpack(ctx, ref); err != nil {
			t.Fatal(err)
		}
	}
	var left []string
	all, err := s.leases.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		left = append(left, l.ID)
	}
	if len(left) > 0 {
		t.Errorf("leases left: %v", left)
	}
	for name, limits := range map[string]Limits{
		"large image":        {Layers: 127, Bytes: 60, Config: 1 << 20, Manifest: 1 << 20},
		"image of two files": {Layers: 127, Bytes: 1 << 30, Entries: 1, Config: 1 << 20, Manifest: 1 << 20},
	} {
		small := New(s.client, "", Options{Limits: limits})
		if err := small.Unpack(ctx, ref); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Unpack of a %s = %v", name, err)
		}
		fresh := "test.lfx.dev/" + strings.ReplaceAll(name, " ", "-") + ":1"
		seed(t, s, fresh, spec{layers: 3})
		if err := small.Unpack(ctx, fresh); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Unpack of another %s = %v", name, err)
		}
		info, err := s.Inspect(ctx, fresh)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.snapshots.Stat(ctx, info.ChainID.String()); !errdefs.IsNotFound(err) {
			t.Errorf("a %s was unpacked before it was refused: %v", name, err)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	s := testStore(t)
	l := newLayout()
	l.index.Manifests = append(l.index.Manifests, l.image("x", spec{}))
	if _, err := s.Import(context.Background(), bytes.NewReader(l.archive())); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Import without names = %v", err)
	}
	if _, err := s.Import(context.Background(), strings.NewReader("no archive")); err == nil {
		t.Error("Import of rubbish succeeded")
	}
}

// registry serves a layout's images, as much of the protocol as a pull needs.
type registry struct {
	*layout
	mu     sync.Mutex
	tags   map[string]ocispec.Descriptor
	served []string
	status int
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	parts := strings.Split(req.URL.Path, "/")
	if r.status != 0 {
		w.WriteHeader(r.status)
		return
	}
	last := parts[len(parts)-1]
	desc, ok := r.tags[last]
	if !ok {
		desc = ocispec.Descriptor{Digest: digest.Digest(last), MediaType: "application/octet-stream"}
		var doc struct{ MediaType string }
		if json.Unmarshal(r.blobs[desc.Digest], &doc) == nil && doc.MediaType != "" {
			desc.MediaType = doc.MediaType
		}
	}
	data, ok := r.blobs[desc.Digest]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	r.served = append(r.served, string(desc.Digest))
	w.Header().Set("Content-Type", desc.MediaType)
	w.Header().Set("Docker-Content-Digest", string(desc.Digest))
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

func TestPull(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := testStore(t)
	ctx := context.Background()
	reg := &registry{layout: newLayout(), tags: map[string]ocispec.Descriptor{}}
	srv := httptest.NewServer(reg)
	defer srv.Close()
	repo := strings.TrimPrefix(srv.URL, "http://") + "/team/app"
	reg.tags["1"] = reg.image("one", spec{})

	pinned, err := s.ResolvePin(ctx, repo+":1")
	if err != nil || pinned != repo+"@"+reg.tags["1"].Digest.String() {
		t.Fatalf("ResolvePin = %q, %v", pinned, err)
	}
	first := reg.tags["1"].Digest
	reg.tags["1"] = reg.image("moved", spec{}) // the tag moves; the pin does not
	info, err := s.Pull(ctx, pinned)
	if err != nil || info.Digest != first || info.Name != pinned {
		t.Fatalf("Pull = %+v, %v", info, err)
	}
	if err := s.Unpack(ctx, pinned); err != nil {
		t.Error(err)
	}
	served := len(reg.served)
	if _, err := s.Pull(ctx, pinned); err != nil || len(reg.served) != served {
		t.Errorf("a second Pull = %v and asked for %v", err, reg.served[served:])
	}

	if _, err := s.ResolvePin(ctx, repo+":none"); !errdefs.IsNotFound(err) || err.Error() != "Source image "+repo+":none does not exist. Provide a valid source image." {
		t.Errorf("ResolvePin of nothing = %v", err)
	}
	if _, err := s.Pull(ctx, repo+":1"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Pull without a pin = %v", err)
	}
	if _, err := s.Pull(ctx, repo+"@"+digest.FromString("none").String()); !errdefs.IsNotFound(err) {
		t.Errorf("Pull of nothing = %v", err)
	}
	if _, err := s.ResolvePin(ctx, "NOT A REF"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ResolvePin of rubbish = %v", err)
	}
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		reg.status = status
		_, err := s.ResolvePin(ctx, repo+":1")
		if !errdefs.IsPermissionDenied(err) || !strings.HasPrefix(err.Error(), "Lambda does not have permission to access the ECR image. Check the ECR permissions.") {
			t.Errorf("ResolvePin with %d = %v", status, err)
		}
	}
}

// What must not run is refused before its layers are fetched.
func TestPullRefusesEarly(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := testStore(t)
	reg := &registry{layout: newLayout(), tags: map[string]ocispec.Descriptor{}}
	srv := httptest.NewServer(reg)
	defer srv.Close()
	repo := strings.TrimPrefix(srv.URL, "http://") + "/team/app"
	reg.tags["bad"] = reg.image("bad", spec{layerType: "application/vnd.oci.image.layer.v1.tar+encrypted"})
	_, err := s.Pull(context.Background(), repo+"@"+reg.tags["bad"].Digest.String())
	if !errdefs.IsInvalidArgument(err) {
		t.Fatalf("Pull = %v", err)
	}
	if len(reg.served) > 3 {
		t.Errorf("fetched %v", reg.served)
	}
}

func TestResolvePinLocal(t *testing.T) {
	s := testStore(t)
	desc := seed(t, s, "test.lfx.dev/local:latest", spec{})
	pinned, err := s.ResolvePin(context.Background(), "test.lfx.dev/local")
	if want := "test.lfx.dev/local@" + desc.Digest.String(); err != nil || pinned != want {
		t.Fatalf("ResolvePin = %q, %v, want %q", pinned, err, want)
	}
	info, err := s.Pull(context.Background(), pinned) // no registry is asked
	if err != nil || info.Name != pinned {
		t.Errorf("Pull = %+v, %v", info, err)
	}
	if data, err := content.ReadBlob(context.Background(), s.content, ocispec.Descriptor{Digest: info.Digest}); err != nil || digest.FromBytes(data) != desc.Digest {
		t.Errorf("manifest: %v", err)
	}
}

// vanishing is a snapshotter in which what was unpacked is gone again for some looks.
type vanishing struct {
	snapshots.Snapshotter
	looks int
}

func (v *vanishing) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	if v.looks > 0 {
		v.looks--
		return snapshots.Usage{}, fmt.Errorf("snapshot %s does not exist: %w", key, errdefs.ErrNotFound)
	}
	return v.Snapshotter.Usage(ctx, key)
}

// TestUnpackAgain: the garbage collector may take snapshots that another image has just left.
func TestUnpackAgain(t *testing.T) {
	s := testStore(t)
	ctx := context.Background()
	const ref = "test.lfx.dev/vanishing:1"
	seed(t, s, ref, spec{})
	real := s.snapshots
	s.snapshots = &vanishing{real, unpackAgain}
	if err := s.Unpack(ctx, ref); err != nil {
		t.Errorf("snapshots that are there at last: %v", err)
	}
	s.snapshots = &vanishing{real, unpackAgain + 1}
	if err := s.Unpack(ctx, ref); !errdefs.IsNotFound(err) {
		t.Errorf("snapshots that never are: %v", err)
	}
}
