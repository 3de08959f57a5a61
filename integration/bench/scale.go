//go:build linux

package main

import (
	"fmt"
	"path/filepath"
	"time"
)

// scaleRounds measures the warm path of one function while more and more are deployed beside it: it must not
// grow. Sizes cannot be interleaved, so each is taken with an echo of its own round.
func scaleRounds(o options, d *daemonUnderTest, res *results) error {
	sizes := []int{1, 100, 1000}
	if o.short {
		sizes = []int{1, 20, 100}
	}
	echo, err := startEcho(filepath.Join(d.arms, "echo-scale.sock"))
	if err != nil {
		return err
	}
	defer echo.close()
	if err := d.deployProject("scale", 1, fmt.Sprintf("concurrency: {min: %d, max: %d}", warmCount, warmCount), map[string]string{"hot": ""}); err != nil {
		return err
	}
	arms := []target{
		post(d.cmd.Process.Pid, "tcp", "127.0.0.1:9000", "/2015-03-31/functions/scale-hot/invocations"),
		post(echo.cmd.Process.Pid, "tcp", echo.tcp, "/echo"),
	}
	means := map[int]row{}
	for _, n := range sizes {
		if n > 1 {
			began := time.Now()
			progress("deploying %d functions beside a warm one", n-1)
			if err := d.deployProject("beside", 2, "", numbered(n-1)); err != nil {
				return err
			}
			progress("they took %v", time.Since(began).Round(time.Second))
		}
		rows, err := scaleSize(o, n, arms)
		if err != nil {
			return err
		}
		for _, r := range rows {
			res.addRow(r)
		}
		means[n] = rows[0]
	}
	first, last := sizes[0], sizes[len(sizes)-1]
	growth := row{Group: "functions deployed", Name: fmt.Sprintf("with %d ÷ with %d, mean ÷ echo", last, first)}
	for i, r := range means[last].Ratios {
		growth.add(r, means[first].Ratios[i])
	}
	res.addRow(growth)
	return nil
}

// scaleSize measures with n functions deployed: the mean first, then p99.
func scaleSize(o options, n int, arms []target) ([]row, error) {
	progress("warm path with %d functions", n)
	name := fmt.Sprintf("raw ÷ echo with %d, 1 client, ", n)
	mean := row{Group: "functions deployed", Name: name + "mean", Unit: "µs"}
	p99 := row{Group: "functions deployed", Name: name + "p99", Unit: "µs"}
	for round := -1; round < o.rounds; round++ { // round -1 is not counted
		var s [2]sample
		for i, a := range arms {
			var err error
			if s[i], err = load(a, 1, o.slice); err != nil {
				return nil, err
			}
		}
		if round >= 0 {
			mean.add(s[0].Mean, s[1].Mean)
			p99.add(s[0].P99, s[1].P99)
		}
	}
	return []row{mean, p99}, nil
}
