//go:build integration && faults

package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// archive makes a tar of entries; a regular file's contents are in Linkname.
func archive(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		data := ""
		if h.Typeflag == tar.TypeReg {
			data, h.Linkname = h.Linkname, ""
			h.Size = int64(len(data))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.ModTime, h.Format = time.Unix(1, 0), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// layer is one layer of an image as it travels.
type layer struct {
	data   []byte
	gzip   bool
	diffID string // of what is inside the gzip
}

// plain is a layer that travels as it is.
func plain(data []byte) layer {
	sum := sha256.Sum256(data)
	return layer{data: data, diffID: "sha256:" + hex.EncodeToString(sum[:])}
}

// importLayers puts an image of these layers into the engine's store, as a registry could have served it, until
// the test ends.
func importLayers(t *testing.T, name string, layers ...layer) {
	t.Helper()
	files := []tar.Header{{Name: "oci-layout", Typeflag: tar.TypeReg, Linkname: `{"imageLayoutVersion":"1.0.0"}`}}
	blob := func(mediaType string, data []byte) map[string]any {
		sum := sha256.Sum256(data)
		name := hex.EncodeToString(sum[:])
		files = append(files, tar.Header{Name: "blobs/sha256/" + name, Typeflag: tar.TypeReg, Linkname: string(data)})
		return map[string]any{"mediaType": mediaType, "digest": "sha256:" + name, "size": len(data)}
	}
	document := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var descs []any
	var diffs []string
	for _, l := range layers {
		mediaType := "application/vnd.oci.image.layer.v1.tar"
		if l.gzip {
			mediaType += "+gzip"
		}
		descs, diffs = append(descs, blob(mediaType, l.data)), append(diffs, l.diffID)
	}
	config := blob("application/vnd.oci.image.config.v1+json", document(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Entrypoint": []string{"/probe"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	}))
	image := blob("application/vnd.oci.image.manifest.v1+json", document(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": descs,
	}))
	image["annotations"] = map[string]string{"io.containerd.image.name": name}
	files = append(files, tar.Header{Name: "index.json", Typeflag: tar.TypeReg, Linkname: string(document(map[string]any{"schemaVersion": 2, "manifests": []any{image}}))})
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, archive(t, files...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ctr("images", "import", "--local", "--no-unpack", path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := d.ctr("images", "rm", "--sync", name); err != nil {
			t.Error(err)
		}
	})
}

// TestHostileLayers: whatever a layer's archive says, nothing outside of the image changes, and devices in it cannot
// be opened.
func TestHostileLayers(t *testing.T) {
	canary := newCanary(t)
	up := strings.Repeat("../", 14) + canary.dir[1:]
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
	}
	file := func(name, data string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Linkname: data, Mode: 0o666}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
	}
	probe := tar.Header{Name: "probe", Typeflag: tar.TypeReg, Linkname: probePrograms(t)["probe"]}
	for _, c := range []struct {
		name    string
		entries []tar.Header
		more    []tar.Header // of a layer above
	}{
		{name: "paths-up", entries: []tar.Header{file(up+"/canary", "dead"), file(up+"/new", "new")}},
		{name: "paths-absolute", entries: []tar.Header{file(canary.dir+"/canary", "dead"), file(canary.dir+"/new", "new")}},
		{name: "through-links", entries: []tar.Header{link("abs", canary.dir), file("abs/canary", "dead"), link("rel", up), file("rel/new", "new")}},
		{name: "through-links-below", entries: []tar.Header{link("abs", canary.dir), link("rel", up)}, more: []tar.Header{file("abs/canary", "dead"), file("rel/new", "new")}},
		{name: "hard-links", entries: []tar.Header{hard("stolen", up+"/canary"), file("stolen", "dead")}},
		{name: "hard-links-through-links", entries: []tar.Header{link("rel", up), hard("stolen", "rel/canary"), file("stolen", "dead")}},
		{name: "whiteouts", entries: []tar.Header{link("rel", up), file("rel/.wh.canary", ""), file(up+"/.wh.canary", ""), file("rel/.wh..wh..opq", ""), file(".wh...", "")}},
		{name: "whiteouts-below", entries: []tar.Header{link("rel", up)}, more: []tar.Header{file("rel/.wh.canary", ""), file("rel/.wh..wh..opq", "")}},
		{name: "root-is-a-link", entries: []tar.Header{link(".", up), link("/", canary.dir), file("canary", "dead")}},
		{name: "devices", entries: []tar.Header{
			{Name: "mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1, Mode: 0o666}, {Name: "kmsg", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 11, Mode: 0o666},
			{Name: "vda", Typeflag: tar.TypeBlock, Devmajor: 254, Devminor: 0, Mode: 0o666}, {Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 0, Mode: 0o666},
			{Name: "loop", Typeflag: tar.TypeChar, Devmajor: 10, Devminor: 237, Mode: 0o666}, {Name: "fuse", Typeflag: tar.TypeChar, Devmajor: 10, Devminor: 229, Mode: 0o666},
			{Name: "tun", Typeflag: tar.TypeChar, Devmajor: 10, Devminor: 200, Mode: 0o666}, {Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		}},
		{name: "many-users", entries: []tar.Header{file("etc/passwd", strings.Repeat("root:x:0:0:root:/root:/bin/sh\n", 1<<20)), file("etc/group", strings.Repeat("root:x:0:\n", 1<<20))}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref := "localhost/lfx-hostile/" + c.name + ":1"
			p := newProject(t, map[string]string{
				"lfx.yaml": manifest("layers", "f timeout: 5s"), "f/Dockerfile": "FROM " + ref + "\n",
			})
			layers := []layer{plain(archive(t, append([]tar.Header{probe}, c.entries...)...))}
			if len(c.more) > 0 {
				layers = append(layers, plain(archive(t, c.more...)))
			}
			importLayers(t, ref, layers...)
			_, stderr, code := p.tryDeploy()
			canary.check(t)
			if code != 0 {
				t.Logf("refused: %s", stderr)
				return
			}
			paths := []string{"/mem", "/kmsg", "/vda", "/sda", "/loop", "/fuse", "/tun", "/null", "/stolen", canary.dir + "/canary"}
			a := post(t, invokeURL("f"), probeEvent{Do: "read", Paths: paths}.String())
			canary.check(t)
			var got map[string]string
			if err := json.Unmarshal([]byte(a.body), &got); a.status != 200 || err != nil {
				t.Fatalf("answered %d %.300s", a.status, a.body)
			}
			for path, text := range got {
				if strings.Contains(text, "alive") {
					t.Errorf("%s shows a file of the host", path)
				}
				if c.name == "devices" && text != "EACCES" && text != "EPERM" && text != "ENOENT" {
					t.Errorf("%s could be opened: %.50q", path, text)
				}
			}
			t.Logf("%.300s", a.body)
		})
	}
}

// crowded is a layer with the probe and n empty files, 1,000 to a folder.
func crowded(t *testing.T, n int) layer {
	t.Helper()
	var out bytes.Buffer
	sum := sha256.New()
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(z, sum))
	add := func(h tar.Header, data string) {
		h.Mode, h.Size, h.ModTime, h.Format = 0o755, int64(len(data)), time.Unix(1, 0), tar.FormatUSTAR
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Name: "probe", Typeflag: tar.TypeReg}, probePrograms(t)["probe"])
	for i := range n {
		if i%1000 == 0 {
			add(tar.Header{Name: fmt.Sprintf("d%d/", i/1000), Typeflag: tar.TypeDir}, "")
		}
		add(tar.Header{Name: fmt.Sprintf("d%d/%d", i/1000, i%1000), Typeflag: tar.TypeReg}, "")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return layer{data: out.Bytes(), gzip: true, diffID: "sha256:" + hex.EncodeToString(sum.Sum(nil))}
}

// TestLayerOfAMillionEntries: a few megabytes that unpack to a million files are refused before they are unpacked, in
// bounded time and memory.
func TestLayerOfAMillionEntries(t *testing.T) {
	const ref = "localhost/lfx-hostile/crowded:1"
	p := newProject(t, map[string]string{"lfx.yaml": "project: crowded\nfunctions:\n  f:\n    image: " + ref + "\n"})
	importLayers(t, ref, crowded(t, 1_000_000))
	begin := time.Now()
	_, stderr, code := p.tryDeploy()
	took := time.Since(begin)
	if code == 0 || !strings.Contains(stderr, "more than 500000 files") {
		t.Errorf("exit %d after %s: %s", code, took, stderr)
	}
	if took > 30*time.Second {
		t.Errorf("the deploy took %s", took)
	}
	pids := pidsOf("containerd", d.state)
	if len(pids) != 1 {
		t.Fatalf("containerd is %v", pids)
	}
	peak := memoryPeak(t, pids[0])
	if peak > 512<<20 {
		t.Errorf("containerd took %d MiB", peak>>20)
	}
	t.Logf("refused after %s; containerd took at most %d MiB", took, peak>>20)
	if all := mustFunctions(t, "crowded"); len(all) > 0 {
		t.Errorf("something was deployed: %+v", all)
	}
}

// memoryPeak is the most memory in bytes that a process has had.
func memoryPeak(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
