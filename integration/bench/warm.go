//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// warmArm is one way to be answered over one hop.
type warmArm struct {
	name string
	target
}

// warmArms measures warm invocations against the echo.
func warmArms(o options, d *daemonUnderTest, res *results) error {
	echo, err := startEcho(filepath.Join(d.arms, "echo.sock"))
	if err != nil {
		return err
	}
	defer echo.close()
	canary := filepath.Join(d.state, "warm/raw/bootstrap")
	for hop := range strings.SplitSeq(o.hops, ",") {
		arms := armsOf(hop, d, echo)
		for _, a := range arms { // every connection's first request is slower
			if _, err := load(a.target, 32, 200*time.Millisecond); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
		}
		for count := range strings.SplitSeq(o.counts, ",") {
			clients, err := strconv.Atoi(count)
			if err != nil {
				return fmt.Errorf("-clients: %w", err)
			}
			progress("warm, %s, %d clients", hop, clients)
			stop := profileDuring(o, d, fmt.Sprintf("warm-%s-%d", hop, clients))
			err = warmRounds(o, res, hop, clients, arms, canary)
			stop()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func armsOf(hop string, d *daemonUnderTest, echo *echoServer) []warmArm {
	address, bare := "127.0.0.1:9000", echo.tcp
	if hop == "unix" {
		address, bare = filepath.Join(d.run, "invoke.sock"), echo.unix
	}
	invoke := func(name string) target {
		return post(d.cmd.Process.Pid, hop, address, "/2015-03-31/functions/"+name+"/invocations")
	}
	return []warmArm{{"echo", post(echo.cmd.Process.Pid, hop, bare, "/echo")}, {"raw", invoke("warm-raw")}, {"go", invoke("warm-go")}}
}

// warmRounds interleaves the arms. Each function's ratio is taken with the mean of the echo before and
// after it.
func warmRounds(o options, res *results, hop string, clients int, arms []warmArm, canary string) error {
	series := map[string][]sample{}
	var canaries []float64
	for range o.rounds {
		us, err := execTime(canary, 10)
		if err != nil {
			return err
		}
		canaries = append(canaries, us)
		for _, a := range arms {
			s, err := load(a.target, clients, o.slice)
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			series[a.name] = append(series[a.name], s)
		}
	}
	res.Canary = append(res.Canary, canaryOf(fmt.Sprintf("exec of a static program (warm %s %d)", hop, clients), "µs", canaries))
	echo := series["echo"]
	for _, m := range measures {
		res.Canary = appendEcho(res.Canary, hop, clients, m, echo)
		for _, name := range []string{"raw", "go"} {
			row := row{Group: fmt.Sprintf("warm, %s, %d clients", hop, clients), Name: name + " ÷ echo, " + m.name, Unit: m.unit}
			for i, s := range series[name] {
				row.add(m.of(s), m.of(echo[i]))
			}
			res.addRow(row)
		}
	}
	return nil
}

// measureOf is one figure of a sample.
type measureOf struct {
	name, unit string
	of         func(sample) float64
}

var measures = []measureOf{
	{"mean", "µs", func(s sample) float64 { return s.Mean }},
	{"p50", "µs", func(s sample) float64 { return s.P50 }},
	{"p99", "µs", func(s sample) float64 { return s.P99 }},
	{"the server's CPU time", "µs", func(s sample) float64 { return s.CPU }},
	{"requests/s (more is better)", "/s", func(s sample) float64 { return s.Rate }},
}

// appendEcho records the reference itself: its spread is the machine's noise.
func appendEcho(list []canary, hop string, clients int, m measureOf, all []sample) []canary {
	if m.name != "mean" {
		return list
	}
	var v []float64
	for _, s := range all {
		v = append(v, m.of(s))
	}
	return append(list, canaryOf(fmt.Sprintf("echo, %s, %d clients, mean", hop, clients), m.unit, v))
}

// profileDuring takes a CPU profile of lfxd until the returned function is called, when profiles are wanted.
func profileDuring(o options, d *daemonUnderTest, name string) (stop func()) {
	if o.pprof == "" {
		return func() {}
	}
	seconds := int((o.slice * time.Duration(3*o.rounds)).Seconds() + 1)
	done := make(chan error, 1)
	go func() { // the returned function waits for it
		_, err := output("", "curl", "-sS", "--fail", "--unix-socket", d.run+"/lfxd.sock", "-o", filepath.Join(o.pprof, strings.ReplaceAll(name, " ", "-")+".pprof"),
			fmt.Sprintf("http://lfxd/lfx/v1/debug/pprof/profile?seconds=%d", seconds))
		done <- err
	}()
	return func() {
		if err := <-done; err != nil {
			fmt.Fprintln(os.Stderr, "bench: no profile:", err)
		}
	}
}
