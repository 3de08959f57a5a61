//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// coldArm is one function with what its reference arms need.
type coldArm struct {
	name   string
	title  string
	spare  bool // wait for a spare before each invocation
	v      *function.Version
	rootfs string // its image, read only
	chroot string // the same with /proc and /dev
	env    []string
}

// coldArms measures cold invocations against runc alone and against the process alone.
func coldArms(o options, d *daemonUnderTest, res *results) error { return coldWith(o, d, res, "") }

// unaidedArms is the same with nothing made before the request.
func unaidedArms(o options, d *daemonUnderTest, res *results) error {
	return coldWith(o, d, res, ", with nothing made ahead")
}

// spareArms is the same with a spare of each function: an instance that was created before the request.
func spareArms(o options, d *daemonUnderTest, res *results) error {
	return coldWith(o, d, res, withSpare)
}

const withSpare = ", with a spare"

func coldWith(o options, d *daemonUnderTest, res *results, how string) error {
	canary := filepath.Join(d.state, "canary")
	if err := buildStatic(o.root, canary); err != nil {
		return err
	}
	for _, name := range []string{"cold-go", "cold-python", "cold-nodejs"} {
		if !o.wantsFunction(name) {
			continue
		}
		a, err := newColdArm(d, name)
		if err == nil {
			a.title, a.spare = name+how, how == withSpare
			if a.spare {
				err = a.callOnce(d) // spares are for what is called
			}
			progress("%s", a.title)
			if err == nil {
				err = a.rounds(o, d, res, canary)
			}
		}
		if a != nil {
			err = errors.Join(err, a.close(d))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func newColdArm(d *daemonUnderTest, name string) (a *coldArm, err error) {
	v, err := d.version(name)
	if err != nil {
		return nil, err
	}
	a = &coldArm{name: name, v: v, rootfs: filepath.Join(d.state, name+"-rootfs"), chroot: filepath.Join(d.state, name+"-chroot")}
	a.env = append(append([]string{}, v.Image.Env...), "AWS_LAMBDA_RUNTIME_API="+apiAddress, "AWS_REGION=us-east-1", "AWS_LAMBDA_FUNCTION_NAME="+name,
		"AWS_LAMBDA_FUNCTION_VERSION=1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256", "LAMBDA_TASK_ROOT=/var/task", "LAMBDA_RUNTIME_DIR=/var/runtime")
	for _, dir := range []string{a.rootfs, a.chroot} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return a, err
		}
	}
	if _, err := d.ctr("images", "mount", v.Image.Name+"@"+v.Image.Digest, a.rootfs); err != nil {
		if _, err := d.ctr("images", "mount", v.Image.Name, a.rootfs); err != nil {
			return a, err
		}
	}
	if err := unix.Mount(a.rootfs, a.chroot, "", unix.MS_BIND, ""); err != nil {
		return a, err
	}
	for _, m := range []struct{ from, to, typ string }{{"proc", "proc", "proc"}, {"/dev", "dev", ""}, {"tmpfs", "tmp", "tmpfs"}} {
		flags := uintptr(0)
		if m.typ == "" {
			flags = unix.MS_BIND
		}
		if err := unix.Mount(m.from, filepath.Join(a.chroot, m.to), m.typ, flags, ""); err != nil {
			return a, fmt.Errorf("mount %s: %w", m.to, err)
		}
	}
	return a, nil
}

func (a *coldArm) close(d *daemonUnderTest) error {
	for _, m := range []string{"tmp", "dev", "proc", ""} {
		unix.Unmount(filepath.Join(a.chroot, m), unix.MNT_DETACH) //nolint:errcheck // was not mounted then
	}
	_, err := d.ctr("images", "unmount", "--rm", a.rootfs)
	return err
}

// rounds interleaves process, runc and lfxd.
func (a *coldArm) rounds(o options, d *daemonUnderTest, res *results, canary string) error {
	arms := map[string]func() (float64, error){
		"process": func() (float64, error) { return a.bare() },
		"runc":    func() (float64, error) { return a.runc(d, false) },
		"true":    func() (float64, error) { return a.runc(d, true) },
	}
	ours := map[string][]float64{}
	var colds []map[string]float64
	var canaries []float64
	rows := map[string]*row{}
	for name, title := range map[string]string{
		"runc": "cold invoke ÷ `runc run` of the same process, to its answer", "process": "cold invoke ÷ the bare process, to its answer",
		"true": "cold invoke ÷ `runc run` of /bin/true, to its exit",
	} {
		rows[name] = &row{Group: a.title, Name: title, Unit: "ms"}
	}
	for round := -1; round < o.rounds; round++ { // round -1 fills the page cache
		us, err := execTime(canary, 10)
		if err != nil {
			return err
		}
		sums, own := map[string]float64{}, 0.0
		for range o.colds {
			for name, f := range arms {
				ms, err := f()
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				sums[name] += ms
			}
			p, err := a.ours(d)
			if err != nil {
				return err
			}
			own += p["total"]
			if round >= 0 {
				colds = append(colds, p)
			}
		}
		if round < 0 {
			continue
		}
		canaries = append(canaries, us)
		for name, r := range rows {
			r.add(own/float64(o.colds), sums[name]/float64(o.colds))
		}
	}
	for _, name := range []string{"runc", "true", "process"} {
		res.addRow(*rows[name])
	}
	for _, p := range colds {
		for name, v := range p {
			ours[name] = append(ours[name], v)
		}
	}
	slices.Sort(ours["total"])
	ph := phases{Function: a.title, Phases: map[string]float64{}, Total: median(ours["total"]), P99: quantile(ours["total"], 0.99)}
	for _, name := range phaseNames {
		ph.Phases[name] = median(ours[name])
	}
	res.Phases = append(res.Phases, ph)
	res.Canary = append(res.Canary, canaryOf("exec of a static program ("+a.title+")", "µs", canaries))
	return nil
}

// ours is one cold invocation, by phase, in ms. Afterwards nothing of the instance is left.
func (a *coldArm) ours(d *daemonUnderTest) (map[string]float64, error) {
	if a.spare {
		if err := d.awaitSpare(a.name); err != nil {
			return nil, err
		}
	}
	http.DefaultClient.CloseIdleConnections()
	begin := time.Now()
	if err := d.invoke(a.name); err != nil {
		return nil, err
	}
	total := ms(time.Since(begin))
	all, err := d.instances(a.name)
	if err != nil {
		return nil, err
	}
	if len(all) != 1 {
		return nil, fmt.Errorf("%d instances after one cold invocation", len(all))
	}
	if _, taken := all[0].Phases["ahead"]; taken != a.spare {
		return nil, fmt.Errorf("the start took a spare: %v, want %v", taken, a.spare)
	}
	p, rest := map[string]float64{"total": total}, total
	for name, us := range all[0].Phases {
		if name == "ahead" || name == "handler" { // not of the start
			continue
		}
		p[name] = float64(us) / 1000
		rest -= p[name]
	}
	p["handler"] = rest // request, hand-off, handler and answer
	return p, d.endInstances(a.name)
}

// callOnce calls the function and ends its instance.
func (a *coldArm) callOnce(d *daemonUnderTest) error {
	if err := d.invoke(a.name); err != nil {
		return err
	}
	return d.endInstances(a.name)
}

// awaitSpare waits until there is a spare of the function.
func (d *daemonUnderTest) awaitSpare(name string) error {
	return poll(30*time.Second, func() error {
		all, err := d.list(name)
		if err == nil && !slices.ContainsFunc(all, func(i api.InstanceInfo) bool { return i.State == "spare" }) {
			err = fmt.Errorf("no spare of %s was made within 30 s", name)
		}
		return err
	})
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// apiAddress is where a runtime finds its Runtime API, in every arm.
const apiAddress = "127.0.0.1:9001"

// fakeAPI is the least a Runtime API can be: one event, then silence.
type fakeAPI struct {
	l        net.Listener
	srv      *http.Server
	answered chan time.Time
	quit     chan struct{}
}

func newFakeAPI(l net.Listener) *fakeAPI {
	f := &fakeAPI{l: l, answered: make(chan time.Time, 1), quit: make(chan struct{})}
	var once sync.Once
	f.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/next"):
			first := false
			once.Do(func() { first = true })
			if !first {
				<-f.quit
				return
			}
			h := w.Header()
			h.Set("Lambda-Runtime-Aws-Request-Id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd")
			h.Set("Lambda-Runtime-Deadline-Ms", fmt.Sprint(time.Now().Add(10*time.Second).UnixMilli()))
			h.Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:000000000000:function:x")
			h.Set("Lambda-Runtime-Trace-Id", "Root=1-5e1b4151-5ac6c58dc39a6b6a0f7f3a4b;Parent=53995c3f42cd8ad8;Sampled=1")
			h.Set("Content-Type", "application/json")
			io.WriteString(w, "{}") //nolint:errcheck // the runtime is gone
		case strings.HasSuffix(r.URL.Path, "/response"):
			io.Copy(io.Discard, r.Body) //nolint:errcheck // its end is what counts
			f.answered <- time.Now()
			w.WriteHeader(http.StatusAccepted)
		default:
			body, _ := io.ReadAll(r.Body) // for the message only
			fmt.Fprintf(os.Stderr, "bench: the runtime says %s: %s\n", r.URL.Path, body)
			w.WriteHeader(http.StatusAccepted)
		}
	})}
	go f.srv.Serve(l) //nolint:errcheck // ends with close
	return f
}

func (f *fakeAPI) close() {
	close(f.quit)
	f.srv.Close() //nolint:errcheck // nothing is left to serve
}

// wait returns when the answer came, or an error after ten seconds or when the process ends before.
func (f *fakeAPI) wait(cmd *exec.Cmd, out *bytes.Buffer) (time.Time, error) {
	end := make(chan error, 1)
	go func() { end <- cmd.Wait() }() // received below
	var at time.Time
	var err error
	select {
	case at = <-f.answered:
	case err = <-end:
		return at, fmt.Errorf("it ended without an answer: %v\n%s", err, out)
	case <-time.After(10 * time.Second):
		err = fmt.Errorf("no answer within ten seconds")
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // it has ended then
	<-end
	return at, err
}

// bare is the process alone, in our namespaces, with the image as its root.
func (a *coldArm) bare() (float64, error) {
	begin := time.Now()
	l, err := net.Listen("tcp", apiAddress)
	if err != nil {
		return 0, err
	}
	api := newFakeAPI(l)
	defer api.close()
	argv := a.v.Argv()
	var out bytes.Buffer
	cmd := &exec.Cmd{Path: argv[0], Args: argv, Env: a.env, Dir: a.v.Workdir(), Stdout: &out, Stderr: &out}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: a.chroot, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	at, err := api.wait(cmd, &out)
	return ms(at.Sub(begin)), err
}

// runc is `runc run` with runc's own default configuration: from the call to the process's answer, or
// for /bin/true to the exit. A network namespace with a Runtime API in it is made in the measured time,
// as lfxd makes one.
func (a *coldArm) runc(d *daemonUnderTest, justExit bool) (float64, error) {
	bundle, err := os.MkdirTemp(d.state, "bundle")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(bundle) //nolint:errcheck // removed with the state
	root, id := filepath.Join(d.arms, "runc"), filepath.Base(bundle)
	begin := time.Now()
	ns, l, err := namespaceWithAPI()
	if err != nil {
		return 0, err
	}
	defer ns.Close() //nolint:errcheck // the namespace goes with it
	api := newFakeAPI(l)
	defer api.close()
	spec := a.spec(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()), filepath.Join(d.cgroup+"-arms", id))
	if justExit {
		spec.Process.Args = []string{"/bin/true"}
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		return 0, err
	}
	var out bytes.Buffer
	cmd := exec.Command(filepath.Join(d.o.engine, "runc"), "--root", root, "run", "--bundle", bundle, id)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if justExit {
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("%w\n%s", err, &out)
		}
		return ms(time.Since(begin)), nil
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	at, err := api.wait(cmd, &out)
	_, delErr := output("", filepath.Join(d.o.engine, "runc"), "--root", root, "delete", "--force", id)
	return ms(at.Sub(begin)), errors.Join(err, delErr)
}

// spec is `runc spec` but for the process, its root file system, a /tmp, and names for the network namespace and
// the cgroup.
func (a *coldArm) spec(netns, cgroup string) *specs.Spec {
	m := func(dest, typ, source string, options ...string) specs.Mount {
		return specs.Mount{Destination: dest, Type: typ, Source: source, Options: options}
	}
	return &specs.Spec{
		Version: "1.2.0", Hostname: "runc", Root: &specs.Root{Path: a.rootfs, Readonly: true},
		Process: &specs.Process{Args: a.v.Argv(), Env: a.env, Cwd: a.v.Workdir(), NoNewPrivileges: true},
		Mounts: []specs.Mount{
			m("/proc", "proc", "proc"), m("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
			m("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
			m("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
			m("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"), m("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
			m("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"), m("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev"),
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: netns}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
				"/proc/sched_debug", "/sys/firmware", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// namespaceWithAPI makes a network namespace with loopback up and listens in it.
func namespaceWithAPI() (ns *os.File, l net.Listener, err error) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			if l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", apiAddress); err != nil {
				return err
			}
			ns, err = os.Open("/proc/thread-self/ns/net")
			return err
		}()
	}()
	err = <-done
	return ns, l, err
}
