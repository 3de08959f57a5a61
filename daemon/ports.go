package daemon

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"lfx.dev/lfxd/daemon/function"
	"lfx.dev/lfxd/daemon/server"
)

// portDrainTimeout is how long requests on a port that was given back may take.
const portDrainTimeout = 30 * time.Second

// ports holds the TCP ports that belong to one function each. A port is bound while a release is
// prepared, so that one that is taken is found before anything is switched.
type ports struct {
	address string
	server  *server.Server

	mu   sync.Mutex
	open map[int]*port
}

// port is one bound port. key is nil while only a candidate claims it: requests are refused then.
type port struct {
	served *server.Served
	env    function.Environment
	key    atomic.Pointer[function.Key]
	claims int
}

func newPorts(address string, s *server.Server) *ports {
	return &ports{address: address, server: s, open: map[int]*port{}}
}

// claim binds what a release needs and is not bound yet; unclaim undoes it.
func (p *ports) claim(rel function.Release) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var done []int
	for name, number := range rel.Ports {
		if err := p.claimLocked(rel.Environment, name, number); err != nil {
			for _, n := range done {
				p.dropLocked(n)
			}
			return err
		}
		done = append(done, number)
	}
	return nil
}

func (p *ports) claimLocked(env function.Environment, name string, number int) error {
	if e := p.open[number]; e != nil {
		if e.env != env {
			return fmt.Errorf("port %d of function %s belongs to %s: choose another port", number, name, e.env)
		}
		e.claims++
		return nil
	}
	addr := net.JoinHostPort(p.address, strconv.Itoa(number))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("port %d of function %s is in use by another program on %s: stop it or choose another port", number, name, p.address)
		}
		return fmt.Errorf("listen on port %d for function %s: %w", number, name, err)
	}
	e := &port{env: env, claims: 1}
	e.served, err = p.server.Serve(l, server.KindPort, e.owner)
	if err != nil {
		return err
	}
	p.open[number] = e
	return nil
}

// owner names the function that the port belongs to; one that matches nothing while there is none.
func (e *port) owner() *function.Key {
	if k := e.key.Load(); k != nil {
		return k
	}
	return &function.Key{Environment: e.env}
}

// unclaim gives back what claim took.
func (p *ports) unclaim(rel function.Release) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, number := range rel.Ports {
		p.dropLocked(number)
	}
}

// assign gives the ports to the functions of a release that became active.
func (p *ports) assign(rel function.Release) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, number := range rel.Ports {
		if e := p.open[number]; e != nil {
			e.key.Store(&function.Key{Environment: rel.Environment, Function: name})
		}
	}
}

// dropLocked gives one claim back and closes the port after the last one.
func (p *ports) dropLocked(number int) {
	e := p.open[number]
	if e == nil {
		return
	}
	if e.claims--; e.claims > 0 {
		return
	}
	delete(p.open, number)
	e.served.Retire(portDrainTimeout)
}
