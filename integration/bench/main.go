//go:build linux

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNamespace marks the run that is inside its own network namespace already.
const inNamespace = "LFX_BENCH_IN_NETNS"

// options say how long to measure and what.
type options struct {
	short  bool
	json   bool
	only   string // comma separated parts; empty is all
	hops   string // of the warm rounds, comma separated
	counts string // of clients
	cold   string // functions of the cold rounds, comma separated
	favour bool   // run with a better priority than the rest of the machine
	rounds int
	slice  time.Duration // of one warm arm in one round
	colds  int           // cold starts of one arm in one round
	root   string        // of the repository
	bin    string        // our programs
	engine string
	keep   bool
	pprof  string // folder for profiles of lfxd during the warm rounds
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "echo" {
		os.Exit(serveEcho(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "floor" {
		os.Exit(serveFloor())
	}
	o := parse()
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: it makes containers, namespaces and firewall rules: run it as root")
		os.Exit(1)
	}
	if os.Getenv(inNamespace) == "" {
		os.Exit(isolate(o))
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse() options {
	var o options
	flag.BoolVar(&o.short, "short", false, "fewer and shorter rounds: about four minutes")
	flag.BoolVar(&o.json, "json", false, "print the results as JSON")
	flag.StringVar(&o.only, "only", "", "measure only these, comma separated: "+strings.Join(parts, ", "))
	flag.StringVar(&o.hops, "hops", "tcp,unix", "warm: over which hops")
	flag.StringVar(&o.counts, "clients", "1,8,32", "warm: with how many clients")
	flag.StringVar(&o.cold, "functions", "go,python,nodejs", "cold: which functions")
	flag.IntVar(&o.rounds, "rounds", 5, "interleaved rounds")
	flag.StringVar(&o.root, "root", ".", "the repository")
	flag.StringVar(&o.bin, "bin", "", "folder of lfxd and lfxctl; default build/bin")
	flag.StringVar(&o.engine, "engine", "", "folder of the engine and lfx-init; default build/engine")
	flag.StringVar(&o.pprof, "pprof", "", "write CPU profiles of lfxd to this folder")
	flag.BoolVar(&o.favour, "favour", false, "give every arm a better priority than what else runs on the machine (nice -15)")
	flag.BoolVar(&o.keep, "keep", false, "keep the state and the log")
	flag.Parse()
	for part := range strings.SplitSeq(o.only, ",") {
		if o.only != "" && !slices.Contains(parts, part) {
			fmt.Fprintf(os.Stderr, "bench: -only %s is not known: %s\n", part, strings.Join(parts, ", "))
			os.Exit(2)
		}
	}
	o.root, _ = filepath.Abs(o.root) // fails only without a working directory
	if o.bin == "" {
		o.bin = filepath.Join(o.root, "build/bin")
	}
	if o.engine == "" {
		o.engine = filepath.Join(o.root, "build/engine")
	}
	o.slice, o.colds = 2*time.Second, 4
	if o.short {
		o.slice, o.colds = 400*time.Millisecond, 1
	}
	return o
}

// parts are what -only knows, in the order in which they are measured.
var parts = []string{"memory", "cold", "spares", "unaided", "burst", "starts", "switch", "warm", "floor", "scale"}

func (o *options) wants(part string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), part)
}

func (o *options) wantsFunction(name string) bool {
	return slices.Contains(strings.Split(o.cold, ","), strings.TrimPrefix(name, "cold-"))
}

// isolate runs this program again in a network namespace of its own.
func isolate(o options) int {
	if o.favour {
		runtime.LockOSThread() // a priority belongs to a thread and is inherited by what it starts
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -15); err != nil {
			fmt.Fprintln(os.Stderr, "bench: -favour:", err)
			return 1
		}
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM) // the child ends by itself and cleans up
	defer signal.Stop(stop)
	err := cmd.Run()
	if err == nil {
		return 0
	}
	if cmd.ProcessState != nil {
		return cmd.ProcessState.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "bench: a network namespace of our own:", err)
	return 1
}

func run(o options) (err error) {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	res := &results{Machine: machine()}
	began := time.Now()
	d, err := startDaemon(o)
	if err != nil {
		return err
	}
	defer func() {
		if downErr := d.finish(); err == nil {
			err = downErr
		}
	}()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- measure(o, d, res) }() // abandoned when interrupted: the process ends
	select {
	case err = <-done:
	case s := <-interrupted:
		err = fmt.Errorf("ended by %s", s)
	}
	if err != nil {
		d.showLog()
		return err
	}
	res.Took = time.Since(began).Round(time.Second).String()
	if o.json {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(res)
	}
	res.print(os.Stdout)
	return nil
}

// measure does everything between the start and the end of the daemon.
func measure(o options, d *daemonUnderTest, res *results) error {
	if o.wants("memory") {
		progress("idle memory")
		res.addIdleMemory("just started", d)
	}
	for _, step := range []struct {
		parts   string // that need it
		prepare func(*daemonUnderTest) error
		measure func(options, *daemonUnderTest, *results) error
	}{
		{"cold memory spares unaided", (*daemonUnderTest).deployCold, nil},
		{"cold", nil, coldArms},
		{"memory", nil, func(_ options, d *daemonUnderTest, res *results) error { return instanceMemory(d, res) }},
		// While there are few functions: a host has spares for those that are called only.
		{"spares", func(d *daemonUnderTest) error { return d.restart(1, defaultSandboxes) }, spareArms},
		{"unaided", func(d *daemonUnderTest) error { return d.restart(0, 0) }, unaidedArms},
		{"spares unaided", func(d *daemonUnderTest) error { return d.restart(0, defaultSandboxes) }, nil},
		{"burst starts", (*daemonUnderTest).deployBurst, nil},
		{"burst", nil, burstRounds},
		{"starts", nil, startRounds},
		{"switch", (*daemonUnderTest).deploySwitch, switchRounds},
		{"warm", (*daemonUnderTest).deployWarm, nil},
		{"warm", func(d *daemonUnderTest) error { d.favour(); return nil }, warmArms},
		{"floor", nil, floorRounds},
		{"scale", nil, scaleRounds},
	} {
		if !slices.ContainsFunc(strings.Fields(step.parts), o.wants) {
			continue
		}
		if step.prepare != nil {
			if err := step.prepare(d); err != nil {
				return err
			}
		}
		if step.measure != nil {
			if err := step.measure(o, d, res); err != nil {
				return err
			}
		}
	}
	res.Machine.LoadAfter = loadAverage()
	return nil
}

var start = time.Now()

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench %5.1fs: %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
}
