package buildkit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bkclient "github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lfx.dev/lfxd/buildkit/progress"
)

// tree writes files below a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		writeFile(t, dir, name, text)
	}
	return dir
}

func writeFile(t *testing.T, dir, name, text string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func imageName(t *testing.T) string {
	return "test.lfx.dev/" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")) + ":v1"
}

// config reads a built image's config from the store.
func (e *engine) config(t *testing.T, name string) ocispec.Image {
	t.Helper()
	img, err := e.client.GetImage(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := img.Spec(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func mustBuild(t *testing.T, e *engine, req Request) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	res, err := e.bk.Build(ctx, req, nil)
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	return res
}

func TestInfo(t *testing.T) {
	e := testEngine(t)
	info, err := e.bk.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(info.Version, "v0.") || len(info.Workers) != 1 || info.Workers[0].Namespace != testNamespace {
		t.Errorf("Info = %+v", info)
	}
}

func TestInfoUnavailable(t *testing.T) {
	c, err := New(context.Background(), "unix:///nonexistent/b.sock", Options{Remedy: "systemctl start lfx-buildkitd"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Info(context.Background())
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "systemctl start lfx-buildkitd") {
		t.Errorf("Info = %v, want unavailable with a remedy", err)
	}
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	_, err = c.Build(context.Background(), Request{ID: "f", ContextDir: dir, ImageName: imageName(t)}, nil)
	if !errdefs.IsUnavailable(err) {
		t.Errorf("Build = %v, want unavailable", err)
	}
}

// An AWS Dockerfile builds offline from a stand-in, with a syntax line, and says truthfully what it
// was built on.
func TestBuildReplacedBase(t *testing.T) {
	e := testEngine(t)
	const aws = "public.ecr.aws/lambda/python:3.13"
	dir := tree(t, map[string]string{
		"Dockerfile": "# syntax=docker/dockerfile:1\nARG V=3.13\nFROM public.ecr.aws/lambda/python:${V}\nCOPY app.py /var/task/\nCMD [\"app.handler\"]\n",
		"app.py":     "print(1)\n",
	})
	res := mustBuild(t, e, Request{
		ID: "hello", ContextDir: dir, ImageName: imageName(t),
		BaseImages: map[string]string{aws: testBase},
		Labels:     map[string]string{"dev.lfx.function": "hello"},
	})
	base, err := e.client.GetImage(context.Background(), testBase)
	if err != nil {
		t.Fatal(err)
	}
	want := Base{Name: aws, Replacement: testBase, Digest: base.Target().Digest}
	if diff := cmp.Diff(want, res.Base); diff != "" {
		t.Errorf("Base (-want +got):\n%s", diff)
	}
	img, err := e.client.GetImage(context.Background(), res.Name)
	if err != nil {
		t.Fatal(err)
	}
	if img.Target().Digest != res.Digest || img.Target().MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("stored %v, want manifest %s", img.Target(), res.Digest)
	}
	spec := e.config(t, res.Name)
	if !slices.Equal(spec.Config.Cmd, []string{"app.handler"}) || spec.Config.Labels["dev.lfx.function"] != "hello" {
		t.Errorf("config %+v", spec.Config)
	}
	if spec.Created == nil || spec.Created.Unix() != sourceDateEpoch {
		t.Errorf("created %v, want the fixed time", spec.Created)
	}
}

// The image depends on names, contents and the executable bit; not on times, umasks or the cache.
func TestBuildReproducible(t *testing.T) {
	e := testEngine(t)
	files := map[string]string{
		"Dockerfile": "FROM " + testBase + "\nWORKDIR /var/task\nCOPY . .\n", "app.py": "print(1)\n", "lib/a.py": "a\n",
	}
	req := Request{ID: "f", ContextDir: tree(t, files), ImageName: imageName(t)}
	first := mustBuild(t, e, req)
	spec := e.config(t, first.Name)

	old := time.Unix(1e9, 12345)
	for name := range files {
		if err := os.Chtimes(filepath.Join(req.ContextDir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if again := mustBuild(t, e, req); again.Digest != first.Digest || again.ConfigDigest != first.ConfigDigest {
		t.Errorf("after touching the files: %+v, want %+v", again, first)
	}
	elsewhere := req
	elsewhere.ContextDir = tree(t, files)
	if again := mustBuild(t, e, elsewhere); again.Digest != first.Digest {
		t.Errorf("another author: %s, want %s", again.Digest, first.Digest)
	}

	// Times in layers are fixed, so even without a cache a layer of files only is the same.
	files["Dockerfile"] = "FROM scratch\nCOPY app.py lib/a.py /\n"
	flat := Request{ID: "f", ContextDir: tree(t, files), ImageName: imageName(t) + "-flat", NoCache: true}
	one := mustBuild(t, e, flat)
	flat.ContextDir = tree(t, files)
	if two := mustBuild(t, e, flat); two.Digest != one.Digest {
		t.Errorf("another author without a cache: %s, want %s", two.Digest, one.Digest)
	}

	// Same size, and a time that a careless tool put back: still another image.
	writeFile(t, req.ContextDir, "app.py", "print(2)\n")
	changed := mustBuild(t, e, req)
	if slices.Equal(e.config(t, changed.Name).RootFS.DiffIDs, spec.RootFS.DiffIDs) {
		t.Error("a changed file gave the same layers")
	}
}

func TestBuildError(t *testing.T) {
	e := testEngine(t)
	dir := tree(t, map[string]string{"sub/Dockerfile": "FROM " + testBase + "\n\nRUN [\"tool\", \"fail\"]\n"})
	_, err := e.bk.Build(context.Background(), Request{ID: "hello", ContextDir: dir, Dockerfile: "sub/Dockerfile", ImageName: imageName(t)}, nil)
	var be *BuildError
	if !errors.As(err, &be) {
		t.Fatalf("Build = %v, want a BuildError", err)
	}
	if be.File != "sub/Dockerfile" || be.Line != 3 || be.Step != "RUN [\"tool\", \"fail\"]" && be.Step != "RUN tool fail" ||
		be.Reason != "the command ended with exit code 3" || len(be.Output) != tailLines ||
		!slices.Contains(be.Output, "something is missing") {
		t.Errorf("BuildError = %+v", be)
	}
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("class of %v", err)
	}
	t.Log(err)
}

func TestBuildMissing(t *testing.T) {
	e := testEngine(t)
	for name, tc := range map[string]struct{ dockerfile, want string }{
		"file":   {"FROM " + testBase + "\nCOPY nothing /\n", `Dockerfile:2 (COPY nothing /): "/nothing" is not in the folder, or .dockerignore leaves it out`},
		"image":  {"FROM scratch AS x\nFROM 127.0.0.1:1/none:1\n", "at Dockerfile:2: base image 127.0.0.1:1/none:1 cannot be used: "},
		"add":    {"FROM " + testBase + "\nARG U=http://127.0.0.1:1/x\nADD $U /x\n", `in Dockerfile: ADD "http://127.0.0.1:1/x" is not allowed: fetch it in a RUN step`},
		"secret": {"FROM " + testBase + "\nRUN [\"nothing\"]\n", "Dockerfile:2"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, map[string]string{"Dockerfile": tc.dockerfile})
			_, err := e.bk.Build(context.Background(), Request{ID: "hello", ContextDir: dir, ImageName: imageName(t)}, nil)
			var be *BuildError
			if !errors.As(err, &be) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Build = %v, want a BuildError with %q", err, tc.want)
			}
			t.Log(err)
		})
	}
}

func TestBuildCancel(t *testing.T) {
	e := testEngine(t)
	dir := tree(t, map[string]string{"Dockerfile": "FROM " + testBase + "\nRUN [\"tool\", \"sleep\"]\n"})
	req := Request{ID: "slow", ContextDir: dir, ImageName: imageName(t)}
	t.Run("context", func(t *testing.T) {
		cause := errors.New("the client hung up")
		ctx, cancel := context.WithCancelCause(context.Background())
		var once sync.Once
		_, err := e.bk.Build(ctx, req, func(s *bkclient.SolveStatus) {
			for _, l := range s.Logs {
				if bytes.Contains(l.Data, []byte("sleeping")) {
					once.Do(func() { cancel(cause) })
				}
			}
		})
		if !errors.Is(err, cause) {
			t.Errorf("Build = %v, want the cause", err)
		}
	})
	t.Run("timeout", func(t *testing.T) {
		req.Timeout = 500 * time.Millisecond
		_, err := e.bk.Build(context.Background(), req, nil)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "500ms") {
			t.Errorf("Build = %v, want the time limit", err)
		}
	})
}

func TestBuildLogLimit(t *testing.T) {
	e := testEngine(t)
	dir := tree(t, map[string]string{"Dockerfile": "FROM " + testBase + "\nRUN [\"tool\", \"flood\"]\n"})
	var got bytes.Buffer
	_, err := e.bk.Build(context.Background(), Request{ID: "loud", ContextDir: dir, ImageName: imageName(t), LogLimit: 10_000}, func(s *bkclient.SolveStatus) {
		for _, l := range s.Logs {
			got.Write(l.Data)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.Len() > 10_200 || !strings.HasSuffix(got.String(), "not shown any further]\n") {
		t.Errorf("%d bytes of output, ending %.80q", got.Len(), got.String()[max(0, got.Len()-80):])
	}
}

// Two builds that share their steps show as two on one display.
func TestBuildParallel(t *testing.T) {
	e := testEngine(t)
	ch := make(chan *bkclient.SolveStatus)
	var out bytes.Buffer
	shown := make(chan error, 1)
	go func() { shown <- progress.Display(context.Background(), &out, progress.Plain, ch) }()
	var wg sync.WaitGroup
	ids := []string{"one", "two", "three"}
	for _, id := range ids {
		dir := tree(t, map[string]string{"Dockerfile": "FROM " + testBase + "\nCOPY x /x\nRUN [\"tool\", \"write\", \"/y\", \"1\"]\n", "x": "same"})
		wg.Go(func() {
			if _, err := e.bk.Build(context.Background(), Request{ID: id, ContextDir: dir, ImageName: "test.lfx.dev/parallel-" + id + ":v1"}, func(s *bkclient.SolveStatus) { ch <- s }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(ch)
	if err := <-shown; err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if !strings.Contains(out.String(), "["+id+" 2/3] RUN") {
			t.Errorf("no step of %s in:\n%s", id, out.String())
		}
	}
}

// A stage that has its base image's name is not replaced by that image.
func TestBuildStageNamedLikeBase(t *testing.T) {
	e := testEngine(t)
	if err := e.importImage("docker.io/library/golang:latest", map[string][]byte{"z": []byte("z")}); err != nil {
		t.Fatal(err)
	}
	dir := tree(t, map[string]string{
		"Dockerfile": "FROM golang AS golang\nCOPY x /made\nFROM scratch\nCOPY --from=golang /made /made\n", "x": "x",
	})
	res := mustBuild(t, e, Request{ID: "f", ContextDir: dir, ImageName: imageName(t)})
	if res.Base != (Base{}) || len(res.Bases) != 1 || res.Bases[0].Name != "golang" {
		t.Errorf("Result = %+v", res)
	}
	_, err := e.bk.Build(context.Background(), Request{
		ID: "f", ContextDir: dir, ImageName: imageName(t), BaseImages: map[string]string{"docker.io/library/golang:latest": testBase},
	}, nil)
	if err == nil || !strings.Contains(err.Error(), "give the stage another name") {
		t.Errorf("Build = %v, want a refusal to replace", err)
	}
}

// The manifest has layers of ordinary media types: what runs it and what serves it know them.
func TestBuildManifest(t *testing.T) {
	e := testEngine(t)
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /d\n"})
	res := mustBuild(t, e, Request{ID: "f", ContextDir: dir, ImageName: imageName(t)})
	raw, err := content.ReadBlob(context.Background(), e.client.ContentStore(), ocispec.Descriptor{Digest: res.Digest})
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if len(m.Layers) != 1 || m.Layers[0].MediaType != ocispec.MediaTypeImageLayerGzip || m.Config.Digest != res.ConfigDigest || digest.FromBytes(raw) != res.Digest {
		t.Errorf("manifest %s", raw)
	}
	if spec := e.config(t, res.Name); spec.Architecture != runtime.GOARCH {
		t.Errorf("architecture %s", spec.Architecture)
	}
}

// A build that loses buildkitd says so, and the same client builds again after a restart.
func TestBuildkitdRestart(t *testing.T) {
	e := testEngine(t)
	dir := tree(t, map[string]string{"Dockerfile": "FROM " + testBase + "\nRUN [\"tool\", \"sleep\"]\n"})
	sleeping := make(chan struct{})
	var once sync.Once
	failed := make(chan error, 1)
	go func() {
		_, err := e.bk.Build(context.Background(), Request{ID: "slow", ContextDir: dir, ImageName: imageName(t)}, func(s *bkclient.SolveStatus) {
			if len(s.Logs) > 0 {
				once.Do(func() { close(sleeping) })
			}
		})
		failed <- err
	}()
	<-sleeping
	last := len(e.stop) - 1
	e.kill()
	e.stop[last]()
	e.killTasks()
	e.stop = e.stop[:last]
	if err := <-failed; err == nil {
		t.Error("the build outlived buildkitd")
	} else if !errdefs.IsUnavailable(err) && !strings.Contains(err.Error(), "slow") {
		t.Errorf("Build = %v", err)
	} else {
		t.Log(err)
	}
	if _, err := e.bk.Info(context.Background()); !errdefs.IsUnavailable(err) {
		t.Errorf("Info without a buildkitd = %v", err)
	}
	if err := e.spawn(e.bin, "buildkitd"); err != nil {
		t.Fatal(err)
	}
	if err := poll(func() error { _, err := e.bk.Info(context.Background()); return err }); err != nil {
		t.Fatal(err)
	}
	dir = tree(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	mustBuild(t, e, Request{ID: "f", ContextDir: dir, ImageName: imageName(t)})
}
