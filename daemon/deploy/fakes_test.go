package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/opencontainers/go-digest"

	"lfx.dev/lfxd/buildkit"
	"lfx.dev/lfxd/buildkit/source"
	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/store"
	"lfx.dev/lfxd/internal/leaktest"
	"lfx.dev/lfxd/internal/tmpdir"
	"lfx.dev/lfxd/runtime/image"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var shop = function.Environment{Project: "shop", Name: function.DefaultEnvironment}

const host = "localhost:9000"

// seam counts the calls into everything outside of the deployer and lets one of them go wrong.
type seam struct {
	mu    sync.Mutex
	calls []string
	// at is the call that goes wrong, from 1; 0 for none. hit is what to do there: return an error,
	// or cancel the deploy and go on.
	at  int
	hit func() error
	// every is called at each call, before it does anything.
	every func(call string)
}

var errInjected = errors.New("injected")

func (s *seam) call(ctx context.Context, format string, args ...any) error {
	s.mu.Lock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
	hit, every := s.hit, s.every
	if len(s.calls) != s.at {
		hit = nil
	}
	s.mu.Unlock()
	if every != nil {
		every(fmt.Sprintf(format, args...))
	}
	if hit != nil {
		if err := hit(); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// images is the image store as a map.
type images struct {
	*seam
	mu       sync.Mutex
	names    map[string]image.Info
	unpacked map[digest.Digest]bool
	registry map[string]string // reference to content
}

func info(name, content string) image.Info {
	d := digest.FromString(content)
	return image.Info{
		Name: name, Digest: d, ConfigDigest: d, DiffIDs: []digest.Digest{digest.FromString("layer " + content)}, Size: 10,
		Entrypoint: []string{"/entry"}, Cmd: []string{"handler"}, Env: []string{"PATH=/bin"}, Workdir: "/var/task",
	}
}

func (m *images) get(name string) (image.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in, ok := m.names[name]
	if !ok {
		return in, fmt.Errorf("image %s: %w", name, errdefs.ErrNotFound)
	}
	return in, nil
}

func (m *images) put(name string, in image.Info) image.Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	in.Name = name
	m.names[name] = in
	return in
}

func (m *images) Inspect(ctx context.Context, ref string) (image.Info, error) {
	if err := m.call(ctx, "inspect"); err != nil {
		return image.Info{}, err
	}
	return m.get(ref)
}

func (m *images) Annotate(ctx context.Context, ref string, annotations map[string]string, newName string) (image.Info, error) {
	if err := m.call(ctx, "annotate"); err != nil {
		return image.Info{}, err
	}
	in, err := m.get(ref)
	if err != nil {
		return in, err
	}
	in.Digest = digest.FromString(string(in.Digest) + newName)
	in.Annotations = annotations
	return m.put(newName, in), nil
}

func (m *images) Tag(ctx context.Context, from, to string, _ map[string]string) error {
	if err := m.call(ctx, "tag"); err != nil {
		return err
	}
	in, err := m.get(from)
	if err == nil {
		m.put(to, in)
	}
	return err
}

func (m *images) Remove(ctx context.Context, name string) error {
	if err := m.call(ctx, "remove"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.names, name)
	return nil
}

func (m *images) Unpack(ctx context.Context, ref string) error {
	if err := m.call(ctx, "unpack"); err != nil {
		return err
	}
	in, err := m.get(ref)
	if err == nil {
		m.mu.Lock()
		m.unpacked[in.Digest] = true
		m.mu.Unlock()
	}
	return err
}

func (m *images) ResolvePin(ctx context.Context, ref string) (string, error) {
	if err := m.call(ctx, "resolve"); err != nil {
		return "", err
	}
	content, ok := m.registry[ref]
	if !ok {
		return "", fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
	}
	return ref + "@" + digest.FromString(content).String(), nil
}

func (m *images) Pull(ctx context.Context, pinned string) (image.Info, error) {
	if err := m.call(ctx, "pull"); err != nil {
		return image.Info{}, err
	}
	ref, _, _ := strings.Cut(pinned, "@")
	return m.put(pinned, info(pinned, m.registry[ref])), nil
}

func (m *images) Sweep(ctx context.Context, keep func(string) bool) (removed []string, err error) {
	if err := m.call(ctx, "sweep"); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.names {
		if !strings.HasPrefix(name, "example.com/others") && !keep(name) { // all others are the deployer's
			delete(m.names, name)
			removed = append(removed, name)
		}
	}
	return removed, nil
}

func (m *images) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.names))
}

// builder makes an image whose content is that of the mirror's file app.
type builder struct {
	*seam
	images *images
	mu     sync.Mutex
	last   map[string]buildkit.Request
}

func (b *builder) Build(ctx context.Context, req buildkit.Request, progress func(*bkclient.SolveStatus)) (buildkit.Result, error) {
	if err := b.call(ctx, "build"); err != nil {
		return buildkit.Result{}, err
	}
	b.mu.Lock()
	b.last[req.ID] = req
	b.mu.Unlock()
	progress(&bkclient.SolveStatus{})
	content, err := os.ReadFile(filepath.Join(req.ContextDir, "app"))
	if err != nil {
		return buildkit.Result{}, err
	}
	in := b.images.put(req.ImageName, info(req.ImageName, "built "+string(content)))
	return buildkit.Result{
		Name: req.ImageName, Digest: in.Digest, ConfigDigest: in.ConfigDigest,
		Base: buildkit.Base{Name: "public.ecr.aws/lambda/provided:al2023", Digest: digest.FromString("base")},
	}, nil
}

// sessions counts the calls to the real ones.
type sessions struct {
	*seam
	real *buildkit.Sessions
}

func (s *sessions) Caller(ctx context.Context, id string) (session.Caller, error) {
	if err := s.call(ctx, "session"); err != nil {
		return nil, err
	}
	return s.real.Caller(ctx, id)
}

// releases remembers what is routed to.
type releases struct {
	*seam
	mu       sync.Mutex
	active   map[function.Environment]int
	canary   map[function.Environment]*fakeCandidate
	open     int // candidates that get no requests and were not aborted
	warming  chan struct{}
	forgot   map[function.Environment][]int // releases that Forget was told to keep
	draining func(context.Context) error
	inUse    map[int]bool // releases that requests are bound to
	late     map[int]bool // the same, when it was asked for once
}

func (r *releases) Prepare(rel function.Release, versions map[string]*function.Version) (Candidate, error) {
	if err := r.call(context.Background(), "prepare"); err != nil {
		return nil, err
	}
	if len(versions) != len(rel.Versions) {
		return nil, errors.New("versions are missing")
	}
	for _, v := range versions {
		if v.Image.Digest == "" || !strings.HasPrefix(v.Image.Name, host+"/") || strings.Contains(v.Image.Name, ":d") {
			return nil, fmt.Errorf("%s has the image %s", v, v.Image.Name)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open++
	return &fakeCandidate{r: r, rel: rel}, nil
}

func (r *releases) Canary(env function.Environment, number int) Candidate {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.canary[env]; c != nil && c.rel.Number == number {
		return c
	}
	return nil
}

func (r *releases) Deactivate(env function.Environment) func(context.Context) error {
	r.step("deactivate")
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.active, env)
	delete(r.canary, env)
	if r.draining != nil {
		return r.draining
	}
	return func(context.Context) error { return nil }
}

func (r *releases) InUse(function.Environment) store.InUse {
	r.mu.Lock()
	used := maps.Clone(r.inUse)
	if r.late != nil {
		r.inUse, r.late = r.late, nil
	}
	r.mu.Unlock()
	return func(rel *function.Release) bool { return used[rel.Number] }
}

func (r *releases) Forget(env function.Environment, keep func(int) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgot[env] = nil
	for n := range 100 {
		if keep(n) {
			r.forgot[env] = append(r.forgot[env], n)
		}
	}
}

// step is a call that cannot fail.
func (r *releases) step(what string) { _ = r.call(context.Background(), "%s", what) }

// routed says who gets requests: the active releases, and the canaries with their shares.
func (r *releases) routed() (active, canary, share map[function.Environment]int, open int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	canary, share = map[function.Environment]int{}, map[function.Environment]int{}
	for env, c := range r.canary {
		canary[env], share[env] = c.rel.Number, c.share
	}
	return maps.Clone(r.active), canary, share, r.open
}

type fakeCandidate struct {
	r     *releases
	rel   function.Release
	share int  // more than 0: the canary
	done  bool // activated or aborted
}

func (c *fakeCandidate) Warm(ctx context.Context) error {
	if c.r.warming != nil {
		close(c.r.warming)
		<-ctx.Done()
	}
	return c.r.call(ctx, "warm")
}

// end ends the candidate; the lock is held.
func (c *fakeCandidate) end() {
	if c.done {
		panic("a candidate ended twice")
	}
	c.done = true
	if c.share > 0 {
		delete(c.r.canary, c.rel.Environment)
		return
	}
	c.r.open--
}

func (c *fakeCandidate) Abort() {
	c.r.step("abort")
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.end()
}

func (c *fakeCandidate) Activate() {
	c.r.step("activate")
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.end()
	c.r.active[c.rel.Environment] = c.rel.Number
}

func (c *fakeCandidate) Share(share int) {
	c.r.step("share")
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if c.share == 0 {
		c.r.open--
	}
	c.share = share
	c.r.canary[c.rel.Environment] = c
}

// world is a deployer with fakes around it, a real store, a real session and a project directory.
type world struct {
	*Deployer
	t        testing.TB
	seam     *seam
	store    *store.Store
	images   *images
	builder  *builder
	releases *releases
	dir      string // state
	src      string // the client's
	session  string
	changes  int
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return openWorld(t, tmpdir.New(t), map[string]image.Info{})
}

// openWorld opens what a daemon left: its directory and the images of containerd.
func openWorld(t testing.TB, dir string, names map[string]image.Info) *world {
	t.Helper()
	w := &world{t: t, seam: &seam{}, dir: dir, src: t.TempDir()}
	log := slog.New(slog.DiscardHandler)
	var err error
	if w.store, err = store.Open(t.Context(), filepath.Join(w.dir, "state"), log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close() })
	w.images = &images{seam: w.seam, names: names, unpacked: map[digest.Digest]bool{}, registry: map[string]string{"example.com/b:1": "b1"}}
	w.builder = &builder{seam: w.seam, images: w.images, last: map[string]buildkit.Request{}}
	w.releases = &releases{
		seam: w.seam, active: map[function.Environment]int{}, canary: map[function.Environment]*fakeCandidate{}, forgot: map[function.Environment][]int{},
	}
	w.write("a/Dockerfile", "FROM public.ecr.aws/lambda/provided:al2023\nCOPY app /var/task/\n")
	w.write("a/app", "one")
	w.Deployer = New(Options{
		Store: w.store, Sessions: &sessions{w.seam, w.offer()}, Builder: w.builder, Images: w.images, Releases: w.releases, Dir: w.dir,
		RegistryHost: host, Keep: 2, MaxParallel: 1, BuildTimeout: time.Minute, WarmTimeout: time.Minute, Limits: buildkit.DefaultLimits(), Log: log,
	})
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	p := filepath.Join(w.src, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// offer serves the session endpoint and offers the folder a through it.
func (w *world) offer() *buildkit.Sessions {
	w.t.Helper()
	s, err := buildkit.NewSessions()
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{Handler: s, BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(l) }() // ends with the test
	id, done, err := source.Offer(context.Background(), source.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		},
		Path: api.PathSession, Dirs: map[string]string{api.SourceDirName("a"): filepath.Join(w.src, "a")},
	})
	w.t.Cleanup(func() { cancel(); srv.Close(); <-served })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(done)
	w.session = id
	return s
}

// request asks for function a, built, and b, pulled.
func (w *world) request() api.DeployRequest {
	return api.DeployRequest{
		Environment: shop, SessionID: w.session, Source: function.Source{Dir: "/src", Revision: "abc"},
		Functions: []function.Spec{
			{Name: "a", Build: &function.Build{Context: "a"}, Config: function.DefaultConfig(), Default: true},
			{Name: "b", Image: "example.com/b:1", Config: function.DefaultConfig(), Port: 9001},
		},
	}
}

func (w *world) deploy(ctx context.Context, req api.DeployRequest) (*api.DeployResult, error) {
	return w.Deploy(ctx, req, func(api.DeployEvent) {})
}

func (w *world) must(req api.DeployRequest) *api.DeployResult {
	w.t.Helper()
	res, err := w.deploy(w.t.Context(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return res
}

// state is everything that a failed deploy must leave as it was.
type state struct {
	Active   map[function.Environment]int
	Routed   map[function.Environment]int
	Canary   map[function.Environment]int
	Shared   map[function.Environment]int // to the canaries that are routed to
	Share    map[function.Environment]int // as recorded
	Open     int
	Images   []string
	Contexts []string
	Deploys  int
	Recorded int
	Busy     int
}

func (w *world) state() state {
	w.t.Helper()
	s := state{Active: map[function.Environment]int{}, Canary: map[function.Environment]int{}, Share: map[function.Environment]int{}, Images: w.images.list(), Contexts: w.contexts()}
	var canaries map[function.Environment]int
	s.Routed, canaries, s.Shared, s.Open = w.releases.routed()
	view := w.store.View()
	s.Deploys = len(view.Deploys())
	for _, e := range view.Environments() {
		if r := view.ActiveRelease(e.Environment); r != nil {
			s.Active[e.Environment] = r.Number
		}
		if c := view.Canary(e.Environment); c != nil {
			s.Canary[e.Environment], s.Share[e.Environment] = c.Release, c.Share
		}
		for _, r := range view.Releases(e.Environment) {
			if r.State == function.ReleaseRecorded {
				s.Recorded++
			}
		}
	}
	if !maps.Equal(s.Canary, canaries) {
		w.t.Errorf("the record has the canaries %v, routed are %v", s.Canary, canaries)
	}
	w.mu.Lock()
	s.Busy = len(w.busy)
	w.mu.Unlock()
	return s
}

func (w *world) contexts() (names []string) {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.dir, "contexts"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
