//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// results is all that a run found; its JSON form is what -json prints.
type results struct {
	Machine machineInfo `json:"machine"`
	Rows    []row       `json:"ratios"`
	Phases  []phases    `json:"cold_phases_ms"`
	Memory  []memory    `json:"memory"`
	Canary  []canary    `json:"canary"`
	Took    string      `json:"took"`
}

// machineInfo says what the figures depend on.
type machineInfo struct {
	CPUs        int    `json:"cpus"`
	Kernel      string `json:"kernel"`
	Cgroups     string `json:"cgroups"`
	Favordyn    bool   `json:"favordynmods"`
	MemoryMiB   uint64 `json:"memory_mib"`
	LoadBefore  string `json:"load_before"`
	LoadAfter   string `json:"load_after"`
	Interleaved bool   `json:"interleaved"`
}

// row is one ratio: ours by theirs of each round, and its median.
type row struct {
	Group     string    `json:"group"`
	Name      string    `json:"name"`
	Unit      string    `json:"unit"`
	Ours      []float64 `json:"ours"`
	Reference []float64 `json:"reference"`
	Ratios    []float64 `json:"ratios"`
	Median    float64   `json:"median"`
	Min       float64   `json:"min"`
	Max       float64   `json:"max"`
}

func (r *row) add(ours, reference float64) {
	r.Ours, r.Reference = append(r.Ours, ours), append(r.Reference, reference)
	r.Ratios = append(r.Ratios, ours/reference)
}

func (r *results) addRow(x row) {
	x.Median, x.Min, x.Max = median(x.Ratios), slices.Min(x.Ratios), slices.Max(x.Ratios)
	r.Rows = append(r.Rows, x)
}

// phases is where the time of the cold invocations of one function went, as medians in ms.
type phases struct {
	Function string             `json:"function"`
	Total    float64            `json:"total"`
	P99      float64            `json:"p99"`
	Phases   map[string]float64 `json:"phases"`
}

// phaseNames in the order of a start.
var phaseNames = []string{"turn", "files", "container", "create", "network", "check", "start", "init", "handler"}

// memory is one figure in MiB.
type memory struct {
	What  string             `json:"what"`
	MiB   float64            `json:"mib"`
	Parts map[string]float64 `json:"parts,omitempty"`
}

// canary is something that no code of ours changes: when it moves, the machine did.
type canary struct {
	What             string  `json:"what"`
	Unit             string  `json:"unit"`
	Median, Min, Max float64 `json:",omitempty"`
}

func canaryOf(what, unit string, v []float64) canary {
	return canary{what, unit, median(v), slices.Min(v), slices.Max(v)}
}

func median(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return quantile(s, 0.5)
}

// quantile of a sorted list, by linear interpolation.
func quantile(s []float64, q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	at := q * float64(len(s)-1)
	i := int(at)
	if i+1 >= len(s) {
		return s[len(s)-1]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

func machine() machineInfo {
	m := machineInfo{CPUs: runtime.NumCPU(), LoadBefore: loadAverage(), Interleaved: true, Cgroups: "v2"}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.MemoryMiB = uint64(si.Totalram) * uint64(si.Unit) >> 20
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo") // then nothing is known
	if strings.Contains(string(mounts), " - cgroup ") {
		m.Cgroups = "v1"
	}
	m.Favordyn = strings.Contains(string(mounts), "favordynmods")
	return m
}

func loadAverage() string {
	data, _ := os.ReadFile("/proc/loadavg") // then it is unknown
	f := strings.Fields(string(data))
	return strings.Join(f[:min(3, len(f))], " ")
}

// execTime is the mean time in µs of starting a program and waiting for its end.
func execTime(program string, n int) (float64, error) {
	begin := time.Now()
	for range n {
		if err := exec.Command(program, "exit").Run(); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(begin).Microseconds()) / float64(n), nil
}

// print writes the table for people.
func (r *results) print(w io.Writer) {
	m := r.Machine
	fmt.Fprintf(w, "%d CPUs, %d MiB, Linux %s, cgroups %s, favordynmods %v; load before %s, after %s; took %s\n\n",
		m.CPUs, m.MemoryMiB, m.Kernel, m.Cgroups, m.Favordyn, m.LoadBefore, m.LoadAfter, r.Took)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight|tabwriter.Debug)
	group := ""
	for _, x := range r.Rows {
		if x.Group != group {
			group = x.Group
			fmt.Fprintf(t, "%s\tmedian\tmin\tmax\tours\treference\t\n", strings.ToUpper(group))
		}
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%s\t%s\t\n", x.Name, x.Median, x.Min, x.Max, figure(median(x.Ours), x.Unit), figure(median(x.Reference), x.Unit))
	}
	t.Flush() //nolint:errcheck // nobody reads it then
	r.printPhases(w)
	r.printMemory(w)
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight|tabwriter.Debug)
	fmt.Fprint(t, "\nCANARY (what our code does not change)\tmedian\tmin\tmax\t\n")
	for _, c := range r.Canary {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t\n", c.What, figure(c.Median, c.Unit), figure(c.Min, c.Unit), figure(c.Max, c.Unit))
	}
	t.Flush() //nolint:errcheck // nobody reads it then
}

func figure(v float64, unit string) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

func (r *results) printPhases(w io.Writer) {
	if len(r.Phases) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight|tabwriter.Debug)
	fmt.Fprintf(t, "\nCOLD, ms by phase (medians)\t%s\ttotal\tp99\t\n", strings.Join(phaseNames, "\t"))
	for _, p := range r.Phases {
		fmt.Fprintf(t, "%s\t", p.Function)
		for _, name := range phaseNames {
			fmt.Fprintf(t, "%.1f\t", p.Phases[name])
		}
		fmt.Fprintf(t, "%.1f\t%.1f\t\n", p.Total, p.P99)
	}
	t.Flush() //nolint:errcheck // nobody reads it then
}

func (r *results) printMemory(w io.Writer) {
	if len(r.Memory) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "\nMEMORY\tMiB\tof which\n")
	for _, m := range r.Memory {
		var parts []string
		for name, v := range m.Parts {
			parts = append(parts, fmt.Sprintf("%s %.2f", name, v))
		}
		slices.Sort(parts)
		fmt.Fprintf(t, "%s\t%.2f\t%s\n", m.What, m.MiB, strings.Join(parts, ", "))
	}
	t.Flush() //nolint:errcheck // nobody reads it then
}
