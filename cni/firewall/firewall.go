package firewall

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// execTimeout bounds one run of nft; it takes about 5 ms.
const execTimeout = 10 * time.Second

// ErrChanged is wrapped by Check when the kernel holds other rules than were installed.
var ErrChanged = errors.New("firewall rules were changed by somebody else")

// ErrElements is wrapped by Check when the rules stand but a set lacks or adds an instance.
var ErrElements = errors.New("firewall sets were changed by somebody else")

// Pin ties one instance to its address: frames that enter Port must come from IP and MAC.
type Pin struct {
	IP   netip.Addr
	MAC  net.HardwareAddr
	Port string // host side of the veth pair
}

func (p Pin) validate() error {
	if !p.IP.Is4() || len(p.MAC) != 6 || !linkName.MatchString(p.Port) {
		return fmt.Errorf("pin %s %s on %q: %w", p.IP, p.MAC, p.Port, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Firewall is the two tables of one Rules. Its methods may be called concurrently.
type Firewall struct {
	rules Rules
	nft   string // path of the nft program

	// mu orders changes of sets against replacements of the tables: a replacement writes the sets
	// from pins, so an element added beside it would be lost. It is held across netlink calls (below
	// a millisecond) and across nft (about 5 ms) for that reason.
	mu       sync.Mutex
	pins     map[string]Pin // by port
	baseline map[string]string
}

// New validates r and finds nft. Nothing is installed yet. Without nft the error is
// errdefs.ErrFailedPrecondition and says what to install.
func New(r Rules) (*Firewall, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	nft, err := findNFT()
	if err != nil {
		return nil, err
	}
	return &Firewall{rules: r, nft: nft, pins: map[string]Pin{}}, nil
}

// findNFT looks beside $PATH in the places a service's or user's path often lacks.
func findNFT() (string, error) {
	for _, name := range []string{"nft", "/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("nft is not installed, and without it functions cannot be kept from the host: apt-get install nftables: %w", errdefs.ErrFailedPrecondition)
}

// Install replaces both tables, whatever is there, in one transaction that holds every pin added
// so far, and remembers how they read for Check. onlyOurs is Rules.OnlyOurs from now on.
func (f *Firewall) Install(ctx context.Context, onlyOurs bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules.OnlyOurs = onlyOurs
	return f.installLocked(ctx)
}

// Restore is Install with the rules as they are.
func (f *Firewall) Restore(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.installLocked(ctx)
}

func (f *Firewall) installLocked(ctx context.Context) error {
	s := f.rules.generate(f.sortedPinsLocked())
	if _, err := f.run(ctx, s.text, "-f", "-"); err != nil {
		return fmt.Errorf("install firewall tables: %w", err)
	}
	base := map[string]string{}
	for _, family := range families {
		l, err := f.list(ctx, family)
		if err != nil {
			return fmt.Errorf("read back firewall table: %w", err)
		}
		for chain, want := range s.rules {
			if fam, name, _ := strings.Cut(chain, "/"); fam == family && l.rules[name] != want {
				return fmt.Errorf("chain %s has %d rules after the installation of %d: %w", chain, l.rules[name], want, ErrChanged)
			}
		}
		base[family] = l.fingerprint
	}
	f.baseline = base
	return nil
}

func (f *Firewall) sortedPinsLocked() []Pin {
	pins := make([]Pin, 0, len(f.pins))
	for _, p := range f.pins {
		pins = append(pins, p)
	}
	slices.SortFunc(pins, func(a, b Pin) int { return cmp.Compare(a.Port, b.Port) })
	return pins
}

// Preload records pins without writing them, for an Install that follows.
func (f *Firewall) Preload(pins []Pin) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range pins {
		if err := p.validate(); err != nil {
			return err
		}
		f.pins[p.Port] = p
	}
	return nil
}

// Check compares the kernel's tables with what was installed. The error wraps ErrChanged when
// rules are missing or different, ErrElements when only the sets of instances are.
func (f *Firewall) Check(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.baseline == nil {
		return fmt.Errorf("firewall tables were never installed: %w", ErrChanged)
	}
	for _, family := range families {
		l, err := f.list(ctx, family)
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("table %s %s is gone: %w", family, f.rules.Table, ErrChanged)
		}
		if err != nil {
			return err
		}
		if l.fingerprint != f.baseline[family] {
			return fmt.Errorf("table %s %s: %w", family, f.rules.Table, ErrChanged)
		}
		if family == "bridge" && !f.samePinsLocked(l) {
			return fmt.Errorf("table bridge %s: %w", f.rules.Table, ErrElements)
		}
	}
	return nil
}

func (f *Firewall) samePinsLocked(l listing) bool {
	var ports, who []string
	for _, p := range f.pins {
		ports = append(ports, p.Port)
		who = append(who, p.Port+" "+p.IP.String()+" "+p.MAC.String())
	}
	slices.Sort(ports)
	slices.Sort(who)
	return slices.Equal(ports, l.ports) && slices.Equal(who, l.who)
}

// Pins returns what is recorded, ordered by port.
func (f *Firewall) Pins() []Pin {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sortedPinsLocked()
}

// Remove deletes both tables; absent tables are no error.
func (f *Firewall) Remove(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var text strings.Builder
	for _, family := range families {
		// "add" first, because deleting what is not there fails
		fmt.Fprintf(&text, "table %[1]s %[2]s\ndelete table %[1]s %[2]s\n", family, f.rules.Table)
	}
	f.baseline = nil
	clear(f.pins)
	if _, err := f.run(ctx, text.String(), "-f", "-"); err != nil {
		return fmt.Errorf("remove firewall tables: %w", err)
	}
	return nil
}

var families = []string{"inet", "bridge"}

// run executes nft with input on stdin and returns stdout.
func (f *Firewall) run(ctx context.Context, input string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, execTimeout, errors.New("nft did not finish"))
	defer cancel()
	cmd := exec.CommandContext(ctx, f.nft, args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, explain(errOut.String(), err)
	}
	return out.Bytes(), nil
}

// explain turns nft's complaint into a class and, where there is one, a remedy. nft has no error
// codes; these are strerror texts of the kernel's answer under LC_ALL=C.
func explain(stderr string, err error) error {
	text, _, _ := strings.Cut(strings.TrimSpace(stderr), "\n")
	switch {
	case strings.Contains(text, "No such file or directory") && strings.Contains(stderr, "list table"):
		return errdefs.ErrNotFound
	case strings.Contains(text, "Operation not permitted"):
		return fmt.Errorf("nft may not change the firewall: root with CAP_NET_ADMIN is needed: %w", errdefs.ErrPermissionDenied)
	case strings.Contains(text, "not supported"), strings.Contains(text, "No such file or directory"),
		strings.Contains(text, "cache initialization failed"), strings.Contains(text, "Unable to initialize Netlink"):
		return fmt.Errorf("the kernel lacks a part of nf_tables that keeps functions from the host (%s): "+
			"modprobe nf_tables nft_fib_inet nft_ct nft_limit nft_connlimit nft_masq nft_meta_bridge, or boot a kernel that has them: %w",
			text, errdefs.ErrFailedPrecondition)
	case text == "":
		return fmt.Errorf("nft: %w", err)
	}
	return fmt.Errorf("nft: %s", text)
}

// listing is one table as the kernel holds it.
type listing struct {
	fingerprint string         // rules, chains and set types without counters, handles and elements of sets
	rules       map[string]int // by chain
	ports, who  []string       // elements, sorted; only in the bridge table
}

func (f *Firewall) list(ctx context.Context, family string) (listing, error) {
	out, err := f.run(ctx, "", "-j", "-n", "-s", "list", "table", family, f.rules.Table)
	if err != nil {
		return listing{}, err
	}
	return parseListing(out)
}

// mutable are the sets whose elements come and go; the others belong to the fingerprint.
var mutable = map[string]bool{"ports": true, "who": true, "rtapi": true, "fn_conns": true, "fn_dns": true}

// parseListing reads the output of nft -j list table.
func parseListing(out []byte) (listing, error) {
	var doc struct {
		Nftables []map[string]map[string]any `json:"nftables"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return listing{}, fmt.Errorf("read nft listing: %w", err)
	}
	l := listing{rules: map[string]int{}}
	var kept []any
	for _, object := range doc.Nftables {
		for kind, body := range object {
			if kind == "metainfo" {
				continue
			}
			l.take(kind, body)
			kept = append(kept, map[string]any{kind: strip(body)})
		}
	}
	slices.Sort(l.ports)
	slices.Sort(l.who)
	text, err := json.Marshal(kept)
	if err != nil {
		return listing{}, fmt.Errorf("read nft listing: %w", err)
	}
	l.fingerprint = string(text)
	return l, nil
}

// take counts a rule or keeps the elements of a mutable set, which it removes from body.
func (l *listing) take(kind string, body map[string]any) {
	name, _ := body["name"].(string)
	switch kind {
	case "rule":
		chain, _ := body["chain"].(string)
		l.rules[chain]++
	case "set":
		elems, _ := body["elem"].([]any)
		for _, e := range elems {
			switch name {
			case "ports":
				port, _ := e.(string)
				l.ports = append(l.ports, port)
			case "who":
				l.who = append(l.who, concatenation(e))
			}
		}
		if mutable[name] {
			delete(body, "elem")
		}
	}
}

// concatenation renders {"concat": [a, b]} as "a b".
func concatenation(e any) string {
	m, _ := e.(map[string]any)
	parts, _ := m["concat"].([]any)
	var text []string
	for _, p := range parts {
		s, _ := p.(string)
		text = append(text, s)
	}
	return strings.Join(text, " ")
}

// strip removes handles and counter values, which change without anybody changing a rule.
func strip(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if k != "handle" && k != "counter" {
				out[k] = strip(e)
			}
		}
		return out
	case []any:
		for i := range v {
			v[i] = strip(v[i])
		}
		return v
	}
	return v
}
