package dns

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// statEvery bounds how often resolv.conf is looked at; a stat costs a microsecond, so this only
// keeps a flood of queries from being a flood of stats.
const statEvery = time.Second

// upstreams says whom to ask: a fixed list, or what a resolv.conf says now.
type upstreams struct {
	fixed []netip.AddrPort
	path  string
	own   []netip.AddrPort // never asked: it would be us

	mu      sync.Mutex // guards what follows
	checked time.Time
	stamp   fileStamp
	list    []netip.AddrPort
}

type fileStamp struct {
	mtime time.Time
	size  int64
}

// current returns the upstreams in the order they are to be asked; none when there is none.
func (u *upstreams) current(now time.Time) []netip.AddrPort {
	if len(u.fixed) > 0 {
		return u.skipOwn(u.fixed)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.checked.IsZero() && now.Sub(u.checked) < statEvery {
		return u.list
	}
	u.checked = now
	info, err := os.Stat(u.path) // follows the link that systemd-resolved and others make of it
	if err != nil {
		u.list, u.stamp = nil, fileStamp{}
		return nil
	}
	if stamp := (fileStamp{info.ModTime(), info.Size()}); stamp != u.stamp {
		data, err := os.ReadFile(u.path)
		if err != nil {
			return u.list
		}
		u.list, u.stamp = u.skipOwn(parseResolvConf(data)), stamp
	}
	return u.list
}

func (u *upstreams) skipOwn(list []netip.AddrPort) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(list))
	for _, a := range list {
		if !slices.Contains(u.own, a) {
			out = append(out, a)
		}
	}
	return out
}

// parseResolvConf returns the nameserver lines in order, each on port 53. Lines it does not
// understand are skipped, as libc does.
func parseResolvConf(data []byte) []netip.AddrPort {
	var list []netip.AddrPort
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			list = append(list, netip.AddrPortFrom(addr.Unmap(), 53))
		}
	}
	return list
}
