//go:build integration && faults

package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/function"
)

// load calls a function until stop and counts what does not come back as it should.
type load struct {
	calls, bad atomic.Int64
	first      atomic.Pointer[string] // what went wrong first
	stop       chan struct{}
	wg         sync.WaitGroup
}

// underLoad starts clients of a function that must answer want.
func (f *faultDaemon) underLoad(clients int, name, want string) *load {
	l := &load{stop: make(chan struct{})}
	for range clients {
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				a, err := f.invoke(name, "{}")
				l.calls.Add(1)
				if err != nil || a.status != http.StatusOK || a.body != want {
					l.bad.Add(1)
					text := fmt.Sprintf("%d %.200s %v", a.status, a.body, err)
					l.first.CompareAndSwap(nil, &text)
				}
			}
		})
	}
	return l
}

// end stops the clients; every call must have been answered well.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	if l.bad.Load() > 0 {
		t.Errorf("%d of %d calls failed, the first: %s", l.bad.Load(), l.calls.Load(), *l.first.Load())
	}
	if l.calls.Load() == 0 {
		t.Error("nothing was called")
	}
}

// mortal answers its name and ends its process when it is asked to.
const mortal = `
import os, time
def handler(event, context):
    if event.get("die"): os._exit(9)
    time.sleep(event.get("sleep", 0))
    return context.function_name
`

// chill ends the instances of a mortal function, so that the next call is a cold one.
func (f *faultDaemon) chill(t *testing.T, name string) {
	t.Helper()
	if err := poll(30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		running, err := f.client.Instances(ctx)
		for _, in := range running {
			if in.Key.Function != name {
				continue
			}
			err = fmt.Errorf("%s has an instance: %s", name, in.State)
			if in.State == "idle" || in.State == "frozen" {
				if _, err := f.invoke(name, `{"die":true}`); err != nil {
					return err
				}
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// isSettled waits until nothing is left over.
func (f *faultDaemon) isSettled(t *testing.T) {
	t.Helper()
	err := poll(60*time.Second, func() error {
		w, err := f.look()
		if err != nil {
			return err
		}
		return f.settled(w)
	})
	if err != nil {
		t.Error(err)
	}
}

// TestEngineFaults ends and stops the parts that lfxd drives while it works with them.
func TestEngineFaults(t *testing.T) {
	f := newFaultDaemon(t, faultConfig{name: "lfxe"})
	empty := f.observe(t)
	dir := f.project(with(
		map[string]string{"lfx.yaml": manifest("engine", "warm concurrency: {min: 2, max: 2}; timeout: 5s", "cold timeout: 5s; concurrency: {max: 3}")},
		python("warm", mortal), python("cold", mortal),
	))
	f.mustDeploy(dir)
	f.answers("cold", "{}", `"cold"`)
	goroutines, descriptors := f.goroutines(), f.descriptors()
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"containerd killed under load", f.containerdKilled},
		{"killed inside create and start", f.killedInside},
		{"containerd hangs", f.containerdHangs},
		{"builds interrupted", f.buildsInterrupted},
		{"CNI plugin", f.pluginFails},
		{"no address left", f.addressesExhausted},
		{"images lost", func(t *testing.T) { f.imagesLost(t, dir) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := f.in(t)
			c.run(t)
			f.engineBack()
			f.answers("cold", "{}", `"cold"`)
			f.answers("warm", "{}", `"warm"`)
			f.isSettled(t)
			f.noGrowth(t, goroutines, descriptors)
		})
	}
	f.removeAll(empty)
}

// in is the daemon for a subtest.
func (f *faultDaemon) in(t *testing.T) *faultDaemon {
	g := *f
	g.t = t
	return &g
}

// containerdKilled: warm functions go on answering, cold ones recover.
func (f *faultDaemon) containerdKilled(t *testing.T) {
	l := f.underLoad(2, "warm", `"warm"`)
	for range 3 {
		f.chill(t, "cold")
		f.kill("containerd")
		if a, err := f.invoke("cold", "{}"); err != nil || a.status != http.StatusOK && a.status != http.StatusServiceUnavailable {
			t.Errorf("a cold call while containerd starts: %d %s, %v", a.status, a.body, err)
		}
		f.engineBack()
		f.answers("cold", "{}", `"cold"`)
	}
	l.end(t)
}

// killedInside: containerd, the shim or runc dies in the middle of making an instance.
func (f *faultDaemon) killedInside(t *testing.T) {
	for _, fault := range sample([]string{
		"create 1*kill CONTAINERD", "start 1*kill-after CONTAINERD",
		"create 1*kill-parent", "start 1*kill-parent",
		"create 1*die-before", "create 1*die", "start 1*die-before", "start 1*die", "delete 1*die-before",
		"create 1*error no such luck", "start 1*error no such luck",
	}, 4) {
		t.Run(strings.ReplaceAll(fault, "1*", ""), func(t *testing.T) {
			f := f.in(t)
			f.engineBack()
			f.chill(t, "cold")
			f.fault("runc", strings.ReplaceAll(fault, "CONTAINERD", fmt.Sprint(f.child("containerd")))+"\n")
			a, err := f.invoke("cold", "{}")
			if err != nil || a.status != http.StatusOK && a.status != http.StatusServiceUnavailable {
				t.Errorf("%d %s, %v", a.status, a.body, err)
			}
			f.fault("runc", "")
			f.answers("cold", "{}", `"cold"`)
		})
	}
	t.Run("shims", f.in(t).shimsKilled)
	// The caller waits until nothing is left: some of it is the periodic reconciliation's.
}

// shimsKilled: instances whose shim died are replaced, and runc's state of them goes.
func (f *faultDaemon) shimsKilled(t *testing.T) {
	for _, pid := range pidsOf("containerd-shim-runc-v2", f.run) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			t.Fatal(err)
		}
	}
	f.answers("warm", "{}", `"warm"`)
}

// containerdHangs: cold calls are refused in bounded time, warm ones answer, nothing piles up.
func (f *faultDaemon) containerdHangs(t *testing.T) {
	f.chill(t, "cold")
	goroutines := f.goroutines()
	pid := f.child("containerd")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT) //nolint:errcheck // it may be gone
	l := f.underLoad(1, "warm", `"warm"`)
	const callers = 20
	var wg sync.WaitGroup
	begin := time.Now()
	for range callers {
		wg.Go(func() {
			a, err := f.invoke("cold", "{}")
			if err != nil || a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, "lfxctl doctor") {
				t.Errorf("a cold call: %d %s, %v", a.status, a.body, err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(begin); took > 40*time.Second { // the queue's timeout is 10 s
		t.Errorf("the cold calls took %s", took)
	}
	if n := f.goroutines(); n > goroutines+60 {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	l.end(t)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// sleepy is a project whose build takes a while; n makes it a new build.
func sleepy(n string) map[string]string {
	return map[string]string{
		"lfx.yaml":     manifest("sleepy", "s timeout: 5s"),
		"s/Dockerfile": "FROM public.ecr.aws/lambda/python:3.11\nCOPY n app.py /var/task/\nRUN if test -e /var/task/wait; then sleep 60; fi; echo built " + n + "\nCMD [\"app.handler\"]\n",
		"s/app.py":     "def handler(event, context): return 'built'\n",
		"s/n":          n,
	}
}

// buildsInterrupted: buildkitd killed, lfxd killed, lfxctl interrupted in the middle of a RUN; afterwards the
// same build works, and no step is left running.
func (f *faultDaemon) buildsInterrupted(t *testing.T) {
	for _, c := range []struct {
		name string
		act  func(f *faultDaemon, lfxctl *exec.Cmd)
		want string
	}{
		{"buildkitd killed", func(f *faultDaemon, _ *exec.Cmd) { f.kill("buildkitd") }, "buildkitd is not answering on"},
		{"lfxd killed", func(f *faultDaemon, _ *exec.Cmd) { f.restart() }, "whole or not at all"},
		{"lfxctl interrupted", func(_ *faultDaemon, c *exec.Cmd) { c.Process.Signal(syscall.SIGINT) }, ""}, //nolint:errcheck // its end tells
	} {
		t.Run(c.name, func(t *testing.T) {
			f := f.in(t)
			files := sleepy(c.name)
			files["s/Dockerfile"] = strings.Replace(files["s/Dockerfile"], "test -e /var/task/wait", "true", 1)
			dir := f.project(files)
			cmd := exec.Command(f.binary("lfxctl"), "deploy", dir, "--progress", "plain")
			cmd.Env = append(cmd.Environ(), "LFX_HOST=unix://"+f.run+"/lfxd.sock", "NO_COLOR=1")
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := poll(60*time.Second, func() error {
				if len(cgroups(f.cgroup+"/build/buildkit")) == 0 {
					return fmt.Errorf("the step does not run yet")
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			c.act(f, cmd)
			if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), c.want) {
				t.Errorf("lfxctl: %v, %s", err, lastOf(out.String(), 2000))
			}
			f.engineBack()
			f.isSettled(t)
			if err := poll(60*time.Second, func() error {
				if left := cgroups(f.cgroup + "/build/buildkit"); len(left) > 0 {
					return fmt.Errorf("cgroups of build steps are left: %v", left)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			write(t, filepath.Join(dir, "s/Dockerfile"), sleepy(c.name)["s/Dockerfile"])
			f.mustDeploy(dir)
			f.answers("s", "{}", `"built"`)
			f.remove(t, "s")
		})
	}
}

func lastOf(s string, n int) string { return s[max(0, len(s)-n):] }

// pluginFails: whatever a CNI plugin does, no address is lost and a later call works.
func (f *faultDaemon) pluginFails(t *testing.T) {
	for _, fault := range sample([]string{"ADD 1*error no way", "ADD 1*die", "ADD 1*garbage", "ADD 1*delay 3s", "ADD 1*delay 60s", "DEL 5*error not now", "DEL 5*die-before"}, 3) {
		t.Run(strings.ReplaceAll(fault, "*", " times "), func(t *testing.T) {
			f := f.in(t)
			f.chill(t, "cold")
			f.fault("bridge", fault+"\n")
			a, err := f.invoke("cold", "{}")
			if err != nil || a.status != http.StatusOK && a.status != http.StatusServiceUnavailable {
				t.Errorf("%d %s, %v", a.status, a.body, err)
			}
			f.answers("cold", "{}", `"cold"`)
			f.chill(t, "cold")
			f.fault("bridge", "")
			f.isSettled(t)
		})
	}
}

// addressesExhausted: more instances than the network has addresses; the calls that find none wait or are told so.
func (f *faultDaemon) addressesExhausted(t *testing.T) {
	dir := f.project(with(
		map[string]string{"lfx.yaml": manifest("many", "many concurrency: {max: 20}; timeout: 20s; memory: 128MiB")},
		python("many", mortal),
	))
	f.mustDeploy(dir)
	var wg sync.WaitGroup
	var ok, refused atomic.Int64
	for range 18 { // the network has 13 addresses, 2 of which are taken
		wg.Go(func() {
			a, err := f.invoke("many", `{"sleep":4}`)
			switch {
			case err == nil && a.status == http.StatusOK && a.body == `"many"`:
				ok.Add(1)
			case err == nil && (a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable):
				refused.Add(1)
			default:
				t.Errorf("%d %s, %v", a.status, a.body, err)
			}
		})
	}
	wg.Wait()
	if ok.Load() < 5 {
		t.Errorf("%d calls were answered, %d refused", ok.Load(), refused.Load())
	}
	log, _ := f.logged(0)
	if !strings.Contains(log, "every address of 10.211.0.0/28 is in use") {
		t.Errorf("the log does not say that there are no addresses (%d answered, %d refused)", ok.Load(), refused.Load())
	}
	f.answers("many", "{}", `"many"`)
	f.remove(t, "many")
}

// imagesLost: containerd and buildkitd come back without their data. As soon as the base image is there the daemon
// brings everything back from what it has stored, without its author's folder.
func (f *faultDaemon) imagesLost(t *testing.T, dir string) {
	before := f.active(t, "engine")
	if err := f.signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"containerd", "buildkit"} {
		if err := os.RemoveAll(filepath.Join(f.state, "engine", part)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.start(); err != nil {
		t.Fatal(err)
	}
	a, err := f.invoke("cold", "{}")
	if err != nil || a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, "deploy") {
		t.Errorf("without its image: %d %s, %v", a.status, a.body, err)
	}
	f.importPython()
	f.answers("cold", "{}", `"cold"`)
	f.answers("warm", "{}", `"warm"`)
	after := f.active(t, "engine")
	if after.Number <= before.Number {
		t.Errorf("release %d is active, was %d", after.Number, before.Number)
	}
	for name, v := range before.Versions {
		if after.Versions[name] <= v {
			t.Errorf("%s is version %d, was %d", name, after.Versions[name], v)
		}
	}
	if res := f.mustDeploy(dir); !res.Unchanged {
		t.Errorf("a deploy from the same folder makes something else: %+v", res)
	}
}

// active is the active release of a project.
func (f *faultDaemon) active(t *testing.T, project string) function.Release {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	all, err := f.client.Releases(ctx, functionEnvironment(project))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.State == function.ReleaseActive {
			return r.Release
		}
	}
	t.Fatalf("no release of %s is active: %+v", project, all)
	return function.Release{}
}
