package instance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// What of an instance does not depend on its version can be made before there is a request: record, uid range, files and FIFOs, user and
// network namespace, listener, address. A network made ahead is an instance of which these steps of Create are done, in their
// order: it has the ID, the record and the uid range of the instance that will take it, so that it is undone,
// reconciled and found by its name exactly as that. Its network namespace is made inside its user namespace, without which the
// container could not mount sysfs; both live as long as our descriptors, and no process is in them.

// NewID returns the ID for an instance of an image that is made now: that of a network made ahead, if there is one that serves, else one
// that was never used. Create or GiveBack must follow.
func (m *Manager) NewID(image string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.odd[image] {
		return RandomID()
	}
	for n := len(m.ahead) - 1; n >= 0; n-- {
		i := m.ahead[n]
		m.ahead = m.ahead[:n]
		if i.standing() {
			m.promised[i.id] = i
			return i.id
		}
		i.broken.Store(true) // Reconcile removes it
	}
	return RandomID()
}

// GiveBack lets go of an ID from NewID that Create was not called with. After DropNetworks Reconcile removes its network.
func (m *Manager) GiveBack(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.promised[id]; i != nil {
		delete(m.promised, id)
		if m.dropped {
			i.broken.Store(true)
			return
		}
		m.ahead = append(m.ahead, i)
	}
}

// RandomID returns an ID that was never used.
func RandomID() string {
	var b [8]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	return "lfx-" + hex.EncodeToString(b[:])
}

// NetworksAhead says how many networks made ahead nobody has taken.
func (m *Manager) NetworksAhead() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.ahead)
}

// MakeNetwork makes one network ahead. The errors are those of Create; one leaves nothing behind, or a record
// that Reconcile finishes.
func (m *Manager) MakeNetwork(ctx context.Context) (err error) {
	i, err := m.reserve(RandomID())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			i.undo(err)
		}
	}()
	if err := i.prepareNetwork(ctx); err != nil {
		return fmt.Errorf("make a network ahead as %s: %w", i.id, err)
	}
	if m.makesSandboxes() {
		if err := i.park(ctx); err != nil {
			if ctx.Err() == nil && !errdefs.IsUnavailable(err) {
				m.misfitted("") // networks alone are worth something too
			}
			return fmt.Errorf("make a sandbox ahead as %s: %w", i.id, err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	m.ahead, m.dropped = append(m.ahead, i), false
	return nil
}

// prepareNetwork is what of create does not need a Spec.
func (i *Instance) prepareNetwork(ctx context.Context) (err error) {
	if err := i.record(); err != nil {
		return err
	}
	dir := i.m.dir(i.id)
	if err := makeFiles(dir, i.rec.UID); err != nil {
		return err
	}
	if i.pipes, err = openPipes(dir); err != nil {
		return err
	}
	if i.userns, i.netns, err = makeNamespaces(i.m.o.InitPath, i.rec.UID); err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	// The runtime sets these again; until then nothing may speak IPv6.
	if err := inNetns(i.netns, i.m.netSysctls); err != nil {
		return err
	}
	if i.listener, err = listenInside(i.netns); err != nil {
		return fmt.Errorf("runtime API listener: %w", err)
	}
	if err := i.attach(ctx); err != nil {
		return err
	}
	i.prepared = true
	return nil
}

// DropNetworks removes all networks made ahead. One whose ID was given out and is given back later is left to Reconcile.
func (m *Manager) DropNetworks(ctx context.Context) error {
	m.mu.Lock()
	all := m.ahead
	m.ahead, m.dropped = nil, true
	m.mu.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for n, i := range all { // a few: see Ahead.Networks
		wg.Go(func() { errs[n] = i.Destroy(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// claim makes the ID of s known, or takes the network that was made ahead under it.
func (m *Manager) claim(s Spec) (*Instance, error) {
	m.mu.Lock()
	i, closed := m.promised[s.ID], m.closed
	delete(m.promised, s.ID)
	m.mu.Unlock()
	switch {
	case i != nil && closed: // Close has let go of it
		return nil, errClosed
	case i != nil:
		return i, s.validate()
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	return m.reserve(s.ID)
}

// netSysctls sets the namespaced sysctls of the network that the calling thread is in.
func (m *Manager) netSysctls() error {
	for key, value := range sysctls(m.host) {
		path, ok := netSysctl(key)
		if !ok {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl %s: %w", key, err)
		}
	}
	return nil
}

// makeNamespaces makes a user namespace with the uid range of an instance and a network namespace in it. A child that is
// stopped at its first instruction holds them until both are open here; its program, harmless anyway, never runs.
func makeNamespaces(program string, uid uint32) (user, net *os.File, err error) {
	// The thread is the child's tracer.
	err = onThread(func() (err error) {
		user, net, err = makeNamespacesLocked(program, uid)
		return err
	})
	return user, net, err
}

func makeNamespacesLocked(program string, uid uint32) (user, net *os.File, err error) {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(uid), Size: rangeSize}}
	child, err := os.StartProcess(program, []string{program}, &os.ProcAttr{Dir: "/", Env: []string{}, Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		kerr := child.Kill()
		_, werr := child.Wait()
		if err = errors.Join(err, kerr, werr); err != nil {
			for _, f := range []*os.File{user, net} {
				if f != nil {
					_ = f.Close()
				}
			}
			user, net = nil, nil
		}
	}()
	if user, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", child.Pid)); err != nil {
		return user, nil, err
	}
	net, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", child.Pid))
	return user, net, err
}

// specPath is fdPath for an OCI spec. runc 1.5.2 takes every path that begins like /proc/<pid> for that process's own user
// namespace (GetUserNamespaceMappings: Sscanf also counts a match that ends early) and reads the wrong mapping; with a dot in
// it, it enters the namespace and reads there.
func specPath(f *os.File) string { return fmt.Sprintf("/proc/./%d/fd/%d", os.Getpid(), f.Fd()) }

// inNamespaces checks that the parked init is in the namespaces that were made for it.
func (i *Instance) inNamespaces() error {
	for name, want := range map[string]*os.File{"user": i.userns, "net": i.netns} {
		got, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", i.pid, name))
		if err != nil {
			return err
		}
		made, err := want.Stat()
		if err != nil {
			return err
		}
		if !os.SameFile(got, made) {
			return differs(name+" namespace", "another", "the one made ahead")
		}
	}
	return nil
}
