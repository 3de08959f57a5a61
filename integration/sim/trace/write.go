package trace

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
)

// hash names an owner, app or function as the published files do: by 64 hexadecimal digits that say nothing.
func (t *Trace) hash(kind byte, i int) string {
	var b [32]byte
	b[0] = kind
	binary.BigEndian.PutUint64(b[1:], t.Seed)
	binary.BigEndian.PutUint64(b[24:], uint64(i))
	return hex.EncodeToString(b[:])
}

// WriteDay writes one day of the trace in the schema of 2019: invocations per function
// and minute, percentiles of each function's durations in ms, and of each app's memory in MB. Functions without a call
// that day have no row, as there. Every app is its own owner.
func (t *Trace) WriteDay(counts, durations, memory io.Writer, day int) error {
	c, d, m := bufio.NewWriter(counts), bufio.NewWriter(durations), bufio.NewWriter(memory)
	c.WriteString("HashOwner,HashApp,HashFunction,Trigger")
	for i := range 24 * 60 {
		fmt.Fprintf(c, ",%d", i+1)
	}
	c.WriteByte('\n')
	d.WriteString("HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum")
	for _, p := range durationPercentiles {
		fmt.Fprintf(d, ",percentile_Average_%d", p)
	}
	d.WriteByte('\n')
	called := make([]int, len(t.Apps))
	for i := range t.Functions {
		called[t.Functions[i].App] += t.writeFunction(c, d, i, day)
	}
	t.writeMemory(m, called)
	for _, w := range []*bufio.Writer{c, d, m} {
		if err := w.Flush(); err != nil {
			return fmt.Errorf("write the trace: %w", err)
		}
	}
	return nil
}

var (
	durationPercentiles = []int{0, 1, 25, 50, 75, 99, 100}
	memoryPercentiles   = []int{1, 5, 25, 50, 75, 95, 99, 100}
)

// writeFunction writes the rows of a function and returns the number of its calls.
func (t *Trace) writeFunction(c, d *bufio.Writer, i, day int) int {
	f := &t.Functions[i]
	from, until := time.Duration(day)*24*time.Hour, time.Duration(day+1)*24*time.Hour
	var minutes [24 * 60]int
	var ms []float64
	calls := t.Calls(i)
	for at := calls.Next(); at < until; at = calls.Next() {
		took := calls.Duration()
		if at >= from {
			minutes[(at-from)/time.Minute]++
			ms = append(ms, took.Seconds()*1000)
		}
	}
	if len(ms) == 0 {
		return 0
	}
	app := int(f.App)
	fmt.Fprintf(c, "%s,%s,%s,%s", t.hash('o', app), t.hash('a', app), t.hash('f', i), f.Trigger)
	for _, n := range minutes {
		c.WriteByte(',')
		c.WriteString(strconv.Itoa(n))
	}
	c.WriteByte('\n')
	slices.Sort(ms)
	sum := 0.0
	for _, x := range ms {
		sum += x
	}
	fmt.Fprintf(d, "%s,%s,%s,%.3f,%d,%.3f,%.3f", t.hash('o', app), t.hash('a', app), t.hash('f', i), sum/float64(len(ms)), len(ms), ms[0], ms[len(ms)-1])
	for _, p := range durationPercentiles {
		fmt.Fprintf(d, ",%.3f", ms[(len(ms)-1)*p/100])
	}
	d.WriteByte('\n')
	return len(ms)
}

// writeMemory writes the apps' rows: the percentiles lie on the line from the least through the average to the maximum.
func (t *Trace) writeMemory(m *bufio.Writer, called []int) {
	m.WriteString("HashOwner,HashApp,SampleCount,AverageAllocatedMb")
	for _, p := range memoryPercentiles {
		fmt.Fprintf(m, ",AverageAllocatedMb_pct%d", p)
	}
	m.WriteByte('\n')
	for i := range t.Apps {
		a := &t.Apps[i]
		fmt.Fprintf(m, "%s,%s,%d,%.1f", t.hash('o', i), t.hash('a', i), called[i], a.AverageMB)
		for _, p := range memoryPercentiles {
			mb := a.AverageMB * (0.8 + 0.2*float64(p)/50)
			if p > 50 {
				mb = a.AverageMB + (a.MaxMB-a.AverageMB)*float64(p-50)/50
			}
			fmt.Fprintf(m, ",%.1f", mb)
		}
		m.WriteByte('\n')
	}
}

// WriteCalls writes every call up to a time in the schema of 2021: app, function, the
// time of its end in seconds since the beginning, its duration in seconds. Rows are by function, then by time.
func (t *Trace) WriteCalls(w io.Writer, until time.Duration) error {
	b := bufio.NewWriter(w)
	b.WriteString("app,func,end_timestamp,duration\n")
	for i := range t.Functions {
		app, name := t.hash('a', int(t.Functions[i].App)), t.hash('f', i)
		calls := t.Calls(i)
		for at := calls.Next(); at < until; at = calls.Next() {
			took := calls.Duration()
			fmt.Fprintf(b, "%s,%s,%.3f,%.3f\n", app, name, (at + took).Seconds(), took.Seconds())
		}
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write the trace: %w", err)
	}
	return nil
}
