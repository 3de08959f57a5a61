package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// upstream is a real DNS server on the loopback that answers with handle.
func upstream(t *testing.T, handle dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: handle}, {PacketConn: p, Handler: handle}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		go func() { defer close(done); s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// answerA answers with n addresses, cut for UDP as a server must.
func answerA(n int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		for i := range n {
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
				A:   net.IPv4(203, 0, 113, byte(i)),
			})
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			m.Truncate(dns.MinMsgSize)
		}
		w.WriteMsg(m)
	}
}

func start(t *testing.T, c Config) (*Forwarder, string) {
	t.Helper()
	c.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	f, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return f, f.Addrs()[0].String()
}

func query(t *testing.T, network, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := c.Exchange(q, addr)
	if err != nil {
		t.Fatalf("query %s over %s: %v", addr, network, err)
	}
	return m
}

func question(name string, kind uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, kind) }

func TestForward(t *testing.T) {
	up := upstream(t, answerA(2))
	_, addr := start(t, Config{Upstreams: []netip.AddrPort{up}})
	for _, network := range []string{"udp", "tcp"} {
		m := query(t, network, addr, question("example.com.", dns.TypeA))
		if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 2 {
			t.Errorf("%s: rcode %d with %d answers, want 2", network, m.Rcode, len(m.Answer))
		}
	}
}

// TestTruncation: the upstream's long answer is fetched over TCP; the asker gets as much as it can take.
func TestTruncation(t *testing.T) {
	const n = 200
	up := upstream(t, answerA(n))
	_, addr := start(t, Config{Upstreams: []netip.AddrPort{up}})
	if m := query(t, "tcp", addr, question("long.example.", dns.TypeA)); len(m.Answer) != n || m.Truncated {
		t.Errorf("tcp: %d answers, truncated %t, want all %d", len(m.Answer), m.Truncated, n)
	}
	m := query(t, "udp", addr, question("long.example.", dns.TypeA))
	m.Compress = true // as it was sent
	if !m.Truncated || m.Len() > dns.MinMsgSize {
		t.Errorf("udp: truncated %t, %d bytes, want at most %d", m.Truncated, m.Len(), dns.MinMsgSize)
	}
	big := question("long.example.", dns.TypeA).SetEdns0(4096, false)
	if m := query(t, "udp", addr, big); m.Truncated || len(m.Answer) != n {
		t.Errorf("udp with EDNS 4096: %d answers, truncated %t, want all %d", len(m.Answer), m.Truncated, n)
	}
}

func TestEDNSPassesThrough(t *testing.T) {
	var mu sync.Mutex
	var seen *dns.OPT
	up := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		seen = q.IsEdns0()
		mu.Unlock()
		m := new(dns.Msg).SetReply(q)
		m.SetEdns0(1232, true)
		w.WriteMsg(m)
	})
	_, addr := start(t, Config{Upstreams: []netip.AddrPort{up}})
	m := query(t, "udp", addr, question("example.com.", dns.TypeA).SetEdns0(1400, true))
	mu.Lock()
	defer mu.Unlock()
	if seen == nil || !seen.Do() || seen.UDPSize() != 1400 {
		t.Errorf("the upstream saw %v, want DO and 1400", seen)
	}
	if opt := m.IsEdns0(); opt == nil || !opt.Do() {
		t.Errorf("the asker got %v, want DO", opt)
	}
}

func TestRefusals(t *testing.T) {
	up := upstream(t, answerA(1))
	_, addr := start(t, Config{Upstreams: []netip.AddrPort{up}})
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	update := question("example.com.", dns.TypeSOA)
	update.Opcode = dns.OpcodeUpdate
	none := new(dns.Msg)
	none.Id = dns.Id()
	for _, tt := range []struct {
		name string
		q    *dns.Msg
		want int
	}{
		{"ANY", question("example.com.", dns.TypeANY), dns.RcodeRefused},
		{"AXFR", question("example.com.", dns.TypeAXFR), dns.RcodeRefused},
		{"IXFR", question("example.com.", dns.TypeIXFR), dns.RcodeRefused},
		{"class CH", chaos, dns.RcodeRefused},
		{"update", update, dns.RcodeNotImplemented},
		{"no question", none, dns.RcodeFormatError},
	} {
		if m := query(t, "udp", addr, tt.q); m.Rcode != tt.want {
			t.Errorf("%s: rcode %s, want %s", tt.name, dns.RcodeToString[m.Rcode], dns.RcodeToString[tt.want])
		}
	}
}

func TestUpstreamsInOrder(t *testing.T) {
	failing := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	})
	nobody, err := net.Listen("tcp4", "127.0.0.1:0") // nothing on UDP there
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	good := upstream(t, answerA(1))
	_, addr := start(t, Config{Upstreams: []netip.AddrPort{nobody.Addr().(*net.TCPAddr).AddrPort(), failing, good}})
	if m := query(t, "udp", addr, question("example.com.", dns.TypeA)); len(m.Answer) != 1 {
		t.Errorf("rcode %d, want the third upstream's answer", m.Rcode)
	}
	_, addr = start(t, Config{Upstreams: []netip.AddrPort{failing}})
	if m := query(t, "udp", addr, question("example.com.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("rcode %d, want SERVFAIL", m.Rcode)
	}
}

func TestNoUpstream(t *testing.T) {
	_, addr := start(t, Config{ResolvConf: filepath.Join(t.TempDir(), "absent")})
	if m := query(t, "udp", addr, question("example.com.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("rcode %d, want SERVFAIL", m.Rcode)
	}
}

func TestClients(t *testing.T) {
	up := upstream(t, answerA(1))
	_, addr := start(t, Config{Upstreams: []netip.AddrPort{up}, Clients: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	c := dns.Client{Timeout: 200 * time.Millisecond}
	if _, _, err := c.Exchange(question("example.com.", dns.TypeA), addr); err == nil {
		t.Error("somebody outside the subnets was answered")
	}
}

// TestCloseEndsQueries: an upstream that never answers holds neither Close nor the slots.
func TestCloseEndsQueries(t *testing.T) {
	arrived := make(chan struct{}, 10)
	stuck := make(chan struct{})
	up := upstream(t, func(w dns.ResponseWriter, q *dns.Msg) { arrived <- struct{}{}; <-stuck })
	defer close(stuck)
	f, addr := start(t, Config{Upstreams: []netip.AddrPort{up}, Concurrency: 1})
	conn, err := dns.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.WriteMsg(question("slow.example.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	<-arrived
	if m := query(t, "udp", addr, question("next.example.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("above the limit: rcode %d, want SERVFAIL at once", m.Rcode)
	}
	began := time.Now()
	if err := f.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(began); took > tryTimeout {
		t.Errorf("Close took %s", took)
	}
	if err := f.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestStartUndoesItself(t *testing.T) {
	taken, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := taken.LocalAddr().(*net.UDPAddr).AddrPort()
	f, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), busy}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(t.Context()); err == nil || !strings.Contains(err.Error(), busy.String()) {
		t.Errorf("Start = %v, want an error naming %s", err, busy)
	}
	l, err := net.Listen("tcp4", f.Addrs()[0].String())
	if err != nil {
		t.Errorf("the first address is still bound: %v", err)
	} else {
		l.Close()
	}
}

func TestTCPConnectionsPerClient(t *testing.T) {
	up := upstream(t, answerA(1))
	_, addr := start(t, Config{Upstreams: []netip.AddrPort{up}})
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range maxConnsPerClient {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	for i, c := range open { // all are served, so all are counted
		conn := &dns.Conn{Conn: c}
		if err := conn.WriteMsg(question(fmt.Sprintf("n%d.example.", i), dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.ReadMsg(); err != nil {
			t.Fatal(err)
		}
	}
	over, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	over.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := over.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("connection above the limit: %v, want it closed", err)
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	own := netip.MustParseAddrPort("10.201.0.1:53")
	u := upstreams{path: path, own: []netip.AddrPort{own}}
	now := time.Now()
	write := func(text string, age time.Duration) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...string) {
		t.Helper()
		now = now.Add(statEvery)
		got := []string{}
		for _, a := range u.current(now) {
			got = append(got, a.String())
		}
		if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
			t.Errorf("upstreams (-want +got):\n%s", diff)
		}
	}
	check()
	write("# comment\nsearch example\nnameserver 127.0.0.53\nnameserver 10.201.0.1\nnameserver nonsense\n", time.Hour)
	check("127.0.0.53:53")
	write("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", time.Minute)
	check("192.0.2.1:53", "[2001:db8::1]:53")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestFiles(t *testing.T) {
	got := string(ResolvConf(netip.MustParseAddr("10.201.0.1")))
	if !strings.HasPrefix(got, "nameserver 10.201.0.1\n") {
		t.Errorf("resolv.conf:\n%s", got)
	}
	want := "127.0.0.1 localhost sandbox sandbox.localdomain\n10.201.1.2 fn\n"
	if diff := cmp.Diff(want, string(Hosts("fn", netip.MustParseAddr("10.201.1.2")))); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
	if got := string(Hosts("", netip.Addr{})); got != "127.0.0.1 localhost sandbox sandbox.localdomain\n" {
		t.Errorf("hosts without an address: %q", got)
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\noptions edns0\n"))
	f.Add([]byte("nameserver\nnameserver fe80::1%eth0\n\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, a := range parseResolvConf(data) {
			if !a.IsValid() {
				t.Errorf("invalid upstream %v", a)
			}
		}
	})
}

// FuzzServe sends bytes as a function may and requires that the forwarder still answers after them.
func FuzzServe(f *testing.F) {
	good, _ := question("example.com.", dns.TypeA).Pack()
	f.Add(good)
	f.Add([]byte{})
	f.Add(append([]byte{0, 1, 1, 0, 255, 255, 0, 0, 0, 0, 0, 0}, "\xc0\x0c"...))
	ctx, cancel := context.WithCancel(context.Background())
	f.Cleanup(cancel)
	fw, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, ResolvConf: "/nonexistent"})
	if err != nil {
		f.Fatal(err)
	}
	if err := fw.Start(ctx); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { fw.Close() })
	f.Fuzz(func(t *testing.T, packet []byte) {
		conn, err := net.Dial("udp4", fw.Addrs()[0].String())
		if err != nil {
			t.Skip(err)
		}
		defer conn.Close()
		conn.Write(packet)
		if m := query(t, "udp", fw.Addrs()[0].String(), question("x.", dns.TypeANY)); m.Rcode != dns.RcodeRefused {
			t.Errorf("rcode %d", m.Rcode)
		}
	})
}
