package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

const (
	defaultConcurrency = 512
	tryTimeout         = 2 * time.Second // for one upstream
	queryTimeout       = 6 * time.Second // for all of them
	idleTimeout        = 8 * time.Second // of a TCP connection between two queries
)

// Config says where a Forwarder answers and whom it asks.
type Config struct {
	// Listen is where it answers, on UDP and TCP; port 0 takes one that is free on both.
	Listen []netip.AddrPort
	// Clients are the subnets that may ask; queries from elsewhere get no answer. Empty means everybody.
	Clients []netip.Prefix
	// Upstreams are asked in order. Empty means the nameservers of ResolvConf.
	Upstreams []netip.AddrPort
	// ResolvConf is read again when it changes; empty means /etc/resolv.conf.
	ResolvConf string
	// Concurrency bounds the queries in progress, 512 by default; more get SERVFAIL at once.
	Concurrency int
	Log         *slog.Logger
}

// Forwarder answers DNS queries by asking upstreams. Start it once; Close waits for its goroutines.
type Forwarder struct {
	conf     Config
	up       upstreams
	slots    chan struct{}
	group    errgroup.Group
	ctx      context.Context // ends at Close; queries in progress end with it
	cancel   context.CancelCauseFunc
	servers  []*dns.Server
	addrs    []netip.AddrPort
	closing  sync.Once
	closeErr error
}

// New returns a forwarder that does nothing yet. An empty Listen is errdefs.ErrInvalidArgument.
func New(c Config) (*Forwarder, error) {
	if len(c.Listen) == 0 {
		return nil, fmt.Errorf("dns forwarder without an address to listen on: %w", errdefs.ErrInvalidArgument)
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Concurrency <= 0 {
		c.Concurrency = defaultConcurrency
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{conf: c, slots: make(chan struct{}, c.Concurrency)}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	return f, nil
}

// Start binds every address and answers from then on. When one cannot be bound none stays bound.
func (f *Forwarder) Start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, a := range f.conf.Listen {
		if err := f.bind(ctx, a); err != nil {
			return err
		}
	}
	f.up = upstreams{fixed: f.conf.Upstreams, path: f.conf.ResolvConf, own: f.addrs}
	for _, s := range f.servers {
		// Shutdown of a server that has not begun is an error, so wait; it begins, or fails, without I/O
		begun := make(chan struct{})
		begin := sync.OnceFunc(func() { close(begun) })
		s.NotifyStartedFunc = begin
		f.group.Go(func() error { // ends by Close
			defer begin()
			return s.ActivateAndServe()
		})
		<-begun
	}
	return nil
}

// bind opens UDP and TCP on one address.
func (f *Forwarder) bind(ctx context.Context, addr netip.AddrPort) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return bindError(addr, err)
	}
	bound := listener.Addr().(*net.TCPAddr).AddrPort()
	packets, err := lc.ListenPacket(ctx, "udp", bound.String())
	if err != nil {
		listener.Close()
		return bindError(addr, err)
	}
	idle := func() time.Duration { return idleTimeout }
	f.servers = append(f.servers,
		&dns.Server{PacketConn: packets, Handler: f, MsgAcceptFunc: accept, UDPSize: dns.MaxMsgSize},
		&dns.Server{Listener: newLimitListener(listener), Handler: f, MsgAcceptFunc: accept, ReadTimeout: tryTimeout, WriteTimeout: tryTimeout, IdleTimeout: idle, MaxTCPQueries: 128})
	f.addrs = append(f.addrs, netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port()))
	return nil
}

func bindError(addr netip.AddrPort, err error) error {
	return fmt.Errorf("dns forwarder cannot listen on %s (is another resolver bound to all addresses?): %w", addr, err)
}

// Addrs returns where the forwarder answers, in the order of Config.Listen.
func (f *Forwarder) Addrs() []netip.AddrPort { return f.addrs }

// Close stops answering, ends the queries in progress and waits for them. A second call does nothing.
func (f *Forwarder) Close() error {
	f.closing.Do(func() {
		f.cancel(errors.New("dns forwarder closed"))
		var errs []error
		for _, s := range f.servers {
			if err := s.Shutdown(); err != nil {
				// never started: close what was bound
				errs = append(errs, closeSockets(s))
			}
		}
		f.closeErr = errors.Join(append(errs, f.group.Wait())...)
	})
	return f.closeErr
}

func closeSockets(s *dns.Server) error {
	var err error
	if s.Listener != nil {
		err = s.Listener.Close()
	}
	if s.PacketConn != nil {
		err = s.PacketConn.Close()
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// accept drops what is no query and lets ServeDNS refuse the rest by name.
func accept(h dns.Header) dns.MsgAcceptAction {
	const response = 1 << 15
	if h.Bits&response != 0 {
		return dns.MsgIgnore
	}
	return dns.MsgAccept
}

// ServeDNS answers one query; it blocks at most queryTimeout.
func (f *Forwarder) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if !f.mayAsk(w.RemoteAddr()) {
		return
	}
	if code := refusal(q); code != dns.RcodeSuccess {
		f.reply(w, q, new(dns.Msg).SetRcode(q, code))
		return
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		f.reply(w, q, new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
		return
	}
	ctx, cancel := context.WithTimeoutCause(f.ctx, queryTimeout, errors.New("no upstream answered in time"))
	defer cancel()
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	answer, err := f.ask(ctx, q, tcp)
	if err != nil {
		f.conf.Log.Debug("dns query failed", "name", q.Question[0].Name, "error", err)
		answer = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	f.reply(w, q, answer)
}

func (f *Forwarder) mayAsk(remote net.Addr) bool {
	if len(f.conf.Clients) == 0 {
		return true
	}
	ap, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return false
	}
	for _, p := range f.conf.Clients {
		if p.Contains(ap.Addr().Unmap()) {
			return true
		}
	}
	return false
}

// refusal returns the code for queries that are not forwarded: RcodeSuccess means forward. Zone
// transfers and ANY are of no use to a function and of much use in an amplification.
func refusal(q *dns.Msg) int {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case len(q.Question) != 1:
		return dns.RcodeFormatError
	case q.Question[0].Qclass != dns.ClassINET:
		return dns.RcodeRefused
	}
	switch q.Question[0].Qtype {
	case dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB:
		return dns.RcodeRefused
	}
	return dns.RcodeSuccess
}

// ask tries the upstreams in order. A server that fails or refuses is an answer only when no
// other one has a better.
func (f *Forwarder) ask(ctx context.Context, q *dns.Msg, tcp bool) (*dns.Msg, error) {
	var last *dns.Msg
	errs := []error{}
	for _, addr := range f.up.current(time.Now()) {
		answer, err := f.exchange(ctx, q, addr, tcp)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", addr, err))
			continue
		}
		if answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused {
			return answer, nil
		}
		last = answer
	}
	if last != nil {
		return last, nil
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("no upstream nameserver is configured: %w", errdefs.ErrUnavailable)
	}
	return nil, errors.Join(errs...)
}

// exchange asks one upstream: over UDP with a fallback to TCP when the answer was truncated, over
// TCP when that is how we were asked. The query goes out under an id of its own, so that one asker
// cannot predict another's.
func (f *Forwarder) exchange(ctx context.Context, q *dns.Msg, addr netip.AddrPort, tcp bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, tryTimeout, errors.New("upstream did not answer in time"))
	defer cancel()
	out := q.Copy()
	out.Id = dns.Id()
	network := "udp"
	if tcp {
		network = "tcp"
	}
	answer, err := f.roundTrip(ctx, out, addr, network)
	if err == nil && answer.Truncated && !tcp {
		if full, tcpErr := f.roundTrip(ctx, out, addr, "tcp"); tcpErr == nil {
			answer = full
		}
	}
	if err != nil {
		return nil, err
	}
	answer.Id = q.Id
	return answer, nil
}

// roundTrip sends one message and reads one; it ends with ctx, also at Close.
func (f *Forwarder) roundTrip(ctx context.Context, m *dns.Msg, addr netip.AddrPort, network string) (*dns.Msg, error) {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, network, addr.String())
	if err != nil {
		return nil, err
	}
	conn := &dns.Conn{Conn: raw, UDPSize: dns.MaxMsgSize}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })()
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	for {
		answer, err := conn.ReadMsg()
		if err != nil && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, err
		}
		if answer.Id == m.Id && answer.Response && sameQuestion(answer, m) {
			return answer, nil
		}
	}
}

// sameQuestion guards against answers to another question; some servers leave the question out of errors.
func sameQuestion(answer, query *dns.Msg) bool {
	if len(answer.Question) == 0 {
		return answer.Rcode != dns.RcodeSuccess
	}
	got, want := answer.Question[0], query.Question[0]
	return len(answer.Question) == 1 && got.Qtype == want.Qtype && got.Qclass == want.Qclass &&
		dns.CanonicalName(got.Name) == dns.CanonicalName(want.Name)
}

// reply sends m, cut to what the asker can take over UDP.
func (f *Forwarder) reply(w dns.ResponseWriter, q, m *dns.Msg) {
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		m.Truncate(size)
	}
	if err := w.WriteMsg(m); err != nil {
		f.conf.Log.Debug("dns answer not sent", "client", w.RemoteAddr().String(), "error", err)
	}
}
