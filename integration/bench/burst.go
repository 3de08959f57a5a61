//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// burstSize is how many different functions start at once.
	burstSize = 20
	// startsAtATime is how many starts are under way when they are counted by the second.
	startsAtATime = 4
)

// deployBurst deploys burstSize functions, none of them warm.
func (d *daemonUnderTest) deployBurst() error {
	progress("deploying %d functions that start at once", burstSize)
	return d.deployProject("burst", 2, "", numbered(burstSize))
}

func burstName(i int) string { return fmt.Sprintf("burst-%04d", i+1) }

// burstRounds calls burstSize different functions at once, of which none has an instance: the slowest ÷ the usual one, and the
// usual one ÷ a single cold call of one of them.
func burstRounds(o options, d *daemonUnderTest, res *results) error {
	group := fmt.Sprintf("%d different cold functions at once", burstSize)
	spread := row{Group: group, Name: "p99 ÷ p50", Unit: "ms"}
	middle := row{Group: group, Name: "p50 ÷ one cold function alone", Unit: "ms"}
	mean := row{Group: group, Name: "mean ÷ one cold function alone", Unit: "ms"}
	for round := range o.rounds {
		progress("burst, round %d", round+1)
		alone, err := d.coldCalls(1)
		if err != nil {
			return err
		}
		all, err := d.coldCalls(burstSize)
		if err != nil {
			return err
		}
		sum := 0.0
		for _, ms := range all {
			sum += ms
		}
		spread.add(quantile(all, 0.99), quantile(all, 0.5))
		middle.add(quantile(all, 0.5), alone[0])
		mean.add(sum/float64(len(all)), alone[0])
	}
	for _, r := range []row{spread, middle, mean} {
		res.addRow(r)
	}
	return nil
}

// coldCalls calls the first n functions of the burst at once and returns their times in ms, sorted. Nothing of their
// instances is left afterwards.
func (d *daemonUnderTest) coldCalls(n int) ([]float64, error) {
	http.DefaultClient.CloseIdleConnections()
	times, errs := make([]float64, n), make([]error, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			begin := time.Now()
			errs[i] = d.invoke(burstName(i))
			times[i] = ms(time.Since(begin))
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	slices.Sort(times)
	return times, d.endInstances("")
}

// startRounds counts the instances that come up by the second, startsAtATime at a time, beside runc alone at the same
// parallelism: both from the call to the answer.
func startRounds(o options, d *daemonUnderTest, res *results) (err error) {
	a, err := newColdArm(d, burstName(0))
	if a != nil {
		defer func() { err = errors.Join(err, a.close(d)) }()
	}
	if err != nil {
		return err
	}
	r := row{Group: fmt.Sprintf("starts, %d at a time", startsAtATime), Name: "instances started per second ÷ `runc run` (more is better)", Unit: "/s"}
	for round := -1; round < o.rounds; round++ { // round -1 fills the page cache
		progress("starts, round %d", round+1)
		http.DefaultClient.CloseIdleConnections()
		ours, err := perSecond(burstSize, func(i int) error { return d.invoke(burstName(i)) })
		if err == nil {
			err = d.endInstances("")
		}
		if err != nil {
			return err
		}
		theirs, err := perSecond(burstSize, func(int) error { _, err := a.runc(d, false); return err })
		if err != nil {
			return err
		}
		if round >= 0 {
			r.add(ours, theirs)
		}
	}
	res.addRow(r)
	return nil
}

// perSecond runs f n times, startsAtATime at a time, and returns how many ended per second.
func perSecond(n int, f func(i int) error) (float64, error) {
	next, errs := make(chan int), make([]error, n)
	var group sync.WaitGroup
	begin := time.Now()
	for range startsAtATime {
		group.Go(func() {
			for i := range next {
				errs[i] = f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	group.Wait()
	return float64(n) / time.Since(begin).Seconds(), errors.Join(errs...)
}
