//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is what /proc says about one process.
type process struct {
	pid  int
	name string // of its program
	args string
}

// processes lists those of our run: whose arguments name one of its directories.
func (d *daemonUnderTest) processes() (out []process) {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline") // a fixed pattern
	for _, e := range entries {
		data, err := os.ReadFile(e)
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		line := strings.Join(args, " ")
		if !strings.Contains(line, d.run) && !strings.Contains(line, d.state) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(e, "/")[2])
		if err == nil && pid != os.Getpid() {
			out = append(out, process{pid, filepath.Base(args[0]), line})
		}
	}
	return out
}

// smaps returns PSS and RSS of a process in MiB.
func smaps(pid int) (pss, rss float64) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(f[1], 64) // headers are no numbers
		switch f[0] {
		case "Pss:":
			pss = kb / 1024
		case "Rss:":
			rss = kb / 1024
		}
	}
	return pss, rss
}

// kernelMiB is what the kernel itself holds in slabs and per-CPU memory, in MiB, of the whole machine.
func kernelMiB() float64 {
	data, _ := os.ReadFile("/proc/meminfo") // zero when it cannot be read
	var sum float64
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) > 1 && (f[0] == "SUnreclaim:" || f[0] == "Percpu:" || f[0] == "KernelStack:" || f[0] == "PageTables:") {
			kb, _ := strconv.ParseFloat(f[1], 64) // the kernel writes numbers
			sum += kb / 1024
		}
	}
	return sum
}

// addIdleMemory notes PSS and RSS of lfxd and its engine.
func (r *results) addIdleMemory(when string, d *daemonUnderTest) {
	time.Sleep(12 * time.Second) // idle means twice the five seconds after which lfxd gives memory back
	total := map[string]float64{}
	parts := map[string]map[string]float64{"PSS": {}, "RSS": {}}
	for _, p := range d.processes() {
		switch p.name {
		case "lfxd", "containerd", "buildkitd":
			pss, rss := smaps(p.pid)
			parts["PSS"][p.name] += pss
			parts["RSS"][p.name] += rss
			total["PSS"] += pss
			total["RSS"] += rss
		}
	}
	for _, kind := range []string{"PSS", "RSS"} {
		r.Memory = append(r.Memory, memory{"idle daemon and engine, " + when + ", " + kind, total[kind], parts[kind]})
	}
}

// instanceMemory measures what idle instances cost above their own process: one at a time is lost in
// the noise, so it compares none with several.
func instanceMemory(d *daemonUnderTest, res *results) error {
	const n = 12
	name := "cold-go"
	if err := d.invokeAtOnce(name, n); err != nil { // lfxd's heap grows once
		return err
	}
	if err := d.endInstances(name); err != nil {
		return err
	}
	before := d.usage()
	if err := d.invokeAtOnce(name, n); err != nil {
		return err
	}
	all, err := d.instances(name)
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	after := d.usage()
	if len(all) < 2 {
		return fmt.Errorf("%d instances of %s came up for the memory measurement", len(all), name)
	}
	parts := map[string]float64{}
	var sum float64
	for _, what := range []string{"shim", "lfx-init", "lfxd", "containerd", "kernel"} {
		parts[what] = (after[what] - before[what]) / float64(len(all))
		sum += parts[what]
	}
	res.Memory = append(res.Memory, memory{fmt.Sprintf("per idle instance above the process (%d instances, PSS, kernel by meminfo)", len(all)), sum, parts},
		memory{"the process itself (Go example, PSS)", (after["function"] - before["function"]) / float64(len(all)), nil})
	if err := d.endInstances(name); err != nil {
		return err
	}
	res.addIdleMemory("after deploys and "+fmt.Sprint(n)+" instances", d)
	return nil
}

// usage sums memory by what it belongs to, in MiB.
func (d *daemonUnderTest) usage() map[string]float64 {
	u := map[string]float64{"kernel": kernelMiB()}
	for _, p := range d.processes() {
		pss, _ := smaps(p.pid)
		switch {
		case strings.HasPrefix(p.name, "containerd-shim"):
			u["shim"] += pss
		case p.name == "lfxd" || p.name == "containerd":
			u[p.name] += pss
		}
	}
	for _, id := range files(filepath.Join(d.run, "instances")) {
		for _, pid := range pidsOf(d.cgroup, id) {
			pss, _ := smaps(pid)
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // ended: counts as the function
			if strings.TrimSpace(string(comm)) == "lfx-init" || strings.TrimSpace(string(comm)) == "init" {
				u["lfx-init"] += pss
			} else {
				u["function"] += pss
			}
		}
	}
	return u
}

// invokeAtOnce sends n requests at the same time and repeats until n instances are there.
func (d *daemonUnderTest) invokeAtOnce(name string, n int) error {
	for range 20 {
		errs := make(chan error, n)
		for range n {
			go func() { errs <- d.invoke(name) }() // received below
		}
		for range n {
			if err := <-errs; err != nil {
				return err
			}
		}
		all, err := d.instances(name)
		if err != nil {
			return err
		}
		if len(all) >= n {
			return nil
		}
	}
	return nil
}

func (d *daemonUnderTest) invoke(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost:9000/2015-03-31/functions/"+name+"/invocations", strings.NewReader("{}"))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // only the status counts
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Amz-Function-Error") != "" {
		return fmt.Errorf("invoke %s: %s %s", name, resp.Status, resp.Header.Get("X-Amz-Function-Error"))
	}
	return nil
}
