package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lfx.dev/lfxd/integration/sim/trace"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "sim: %v\n", err)
		os.Exit(1)
	}
}

// run parses the command line and prints what it asks for.
func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("sim", flag.ContinueOnError)
	sizes := flags.String("functions", "10,1000,100000", "numbers of functions, separated by commas")
	hours := flags.Float64("hours", 24, "hours of the trace; budgets of more than 10,000 functions are simulated for a quarter of it")
	seed := flags.Uint64("seed", 1, "seed of the trace")
	dir := flags.String("write", "", "write the trace of the first number of functions into this folder, in both published schemas, instead of simulating it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is not expected: options only", flags.Arg(0))
	}
	var counts []int
	for s := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 1 {
			return fmt.Errorf("-functions: %q is not a number of functions", s)
		}
		counts = append(counts, n)
	}
	if !(*hours > 0 && *hours <= 24*365) {
		return fmt.Errorf("-hours: %v is not between 0 and a year", *hours)
	}
	until := time.Duration(*hours * float64(time.Hour))
	if *dir != "" {
		return write(trace.New(*seed, counts[0]), *dir, until)
	}
	for _, n := range counts {
		began := time.Now()
		compare(trace.New(*seed, n), until).print(out)
		fmt.Fprintf(out, "  (simulated in %v)\n\n", time.Since(began).Round(100*time.Millisecond))
	}
	return nil
}

// write writes the days of a trace, and its calls.
func write(t *trace.Trace, dir string, until time.Duration) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the trace: %w", err)
	}
	open := func(name string) *os.File {
		f, e := os.Create(filepath.Join(dir, name))
		if e != nil && err == nil {
			err = fmt.Errorf("write the trace: %w", e)
		}
		return f
	}
	shut := func(f *os.File) {
		if e := f.Close(); e != nil && err == nil {
			err = fmt.Errorf("write the trace: %w", e)
		}
	}
	for day := 0; time.Duration(day)*24*time.Hour < until; day++ {
		counts := open(fmt.Sprintf("invocations_per_function_md.anon.d%02d.csv", day+1))
		durations := open(fmt.Sprintf("function_durations_percentiles.anon.d%02d.csv", day+1))
		memory := open(fmt.Sprintf("app_memory_percentiles.anon.d%02d.csv", day+1))
		if err == nil {
			err = t.WriteDay(counts, durations, memory, day)
		}
		shut(counts)
		shut(durations)
		shut(memory)
		if err != nil {
			return err
		}
	}
	calls := open("invocations.csv")
	if err == nil {
		err = t.WriteCalls(calls, until)
	}
	shut(calls)
	return err
}
