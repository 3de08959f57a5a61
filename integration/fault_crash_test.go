//go:build integration && faults

package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestDaemonCrashes ends lfxd at arbitrary moments, and starts a second one on the same state.
func TestDaemonCrashes(t *testing.T) {
	f := newFaultDaemon(t, faultConfig{name: "lfxc"})
	empty := f.observe(t)
	dir := f.project(versioned(1))
	f.mustDeploy(dir)
	t.Run("one owner", f.oneOwner)
	t.Run("killed again and again", func(t *testing.T) {
		f := f.in(t)
		for range sample(make([]struct{}, 10), 4) {
			f.restart()
		}
		f.answers("first", "", `"v1"`)
		f.answers("second", "", `"second"`)
		f.consistent(t)
	})
	t.Run("killed under mixed load", func(t *testing.T) { f.in(t).killedUnderLoad(t, dir) })
	f.removeAll(empty)
}

// oneOwner: another lfxd on the same state ends with 75 and changes nothing, whatever path leads there.
func (f *faultDaemon) oneOwner(t *testing.T) {
	for _, c := range []struct {
		name  string
		state func(t *testing.T, dir string) // makes dir lead to the state
	}{
		{"same path", nil},
		{"bind mount", func(t *testing.T, dir string) {
			if err := syscall.Mount(f.state, dir, "", syscall.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
		}},
		{"hard links", func(t *testing.T, dir string) {
			for _, name := range files(filepath.Join(f.state, "state")) {
				if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Link(filepath.Join(f.state, "state", name), filepath.Join(dir, "state", name)); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, err := os.ReadFile(f.config)
			if err != nil {
				t.Fatal(err)
			}
			other := filepath.Join(f.state, "other.toml")
			if c.state != nil {
				dir, err := os.MkdirTemp("/var/lib", "lfxd-other")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { // never through a mount
					if !slices.Contains(mounts(filepath.Dir(dir)), dir) {
						os.RemoveAll(dir) //nolint:errcheck // a folder of links at worst
					}
				})
				c.state(t, dir)
				text = bytes.Replace(text, []byte(strconv.Quote(f.state)), []byte(strconv.Quote(dir)), 1)
				text = bytes.Replace(text, []byte(strconv.Quote(f.run)), []byte(strconv.Quote(f.run+"o")), 1)
				defer os.RemoveAll(f.run + "o") //nolint:errcheck // as above
			}
			if err := os.WriteFile(other, text, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(f.binary("lfxd"), "--with-engine", "--config", other)
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 75 || !strings.Contains(string(out), "another lfxd") {
				t.Errorf("exit %d (%v): %s", code, err, lastOf(string(out), 1000))
			}
			f.answers("first", "", `"v1"`)
		})
	}
}

// killedUnderLoad: deploys and calls go on while the daemon is killed at random moments. No deploy that was
// acknowledged may be lost.
func (f *faultDaemon) killedUnderLoad(t *testing.T, dir string) {
	var acked, tried atomic.Int64
	acked.Store(1)
	tried.Store(1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // the one who deploys
		for n := int64(2); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			text := strings.ReplaceAll(versioned(1)["first/app.py"], "v1", fmt.Sprintf("v%d", n))
			if err := os.WriteFile(filepath.Join(dir, "first/app.py"), []byte(text), 0o644); err != nil {
				t.Error(err)
			}
			tried.Store(n)
			if _, _, code := f.deploy(dir); code == 0 {
				acked.Store(n)
			} else {
				time.Sleep(100 * time.Millisecond) // the daemon is away: do not spin
			}
		}
	})
	wg.Go(func() { // the one who calls
		for {
			select {
			case <-stop:
				return
			default:
			}
			a, err := f.invoke("first", "")
			if err == nil && a.status != http.StatusOK && a.status < 500 {
				t.Errorf("a call was answered with %d %s", a.status, a.body)
			}
			if err != nil {
				time.Sleep(20 * time.Millisecond)
			}
		}
	})
	for range sample(make([]struct{}, 5), 3) {
		time.Sleep(time.Duration(300+rand.IntN(2000)) * time.Millisecond)
		f.restart()
	}
	close(stop)
	wg.Wait()
	least, most := acked.Load(), tried.Load()
	var got int64
	err := poll(60*time.Second, func() error {
		a, err := f.invoke("first", "")
		if err == nil {
			_, err = fmt.Sscanf(a.body, `"v%d"`, &got)
		}
		return err
	})
	if err != nil || got < least || got > most {
		t.Errorf("version %d answers, %d was acknowledged and %d tried: %v", got, least, most, err)
	}
	if least < 2 {
		t.Errorf("no deploy was acknowledged in %d", most)
	}
	f.consistent(t)
}
