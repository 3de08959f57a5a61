//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/function"
)

// manySwitched is how many functions the larger project switches at once.
const manySwitched = 20

// switchProjects are deployed twice, so that each has a release to go back to in which all functions differ.
var switchProjects = []struct {
	name  string
	count int
	warm  bool
}{{"switch-one", 1, false}, {"switch-many", manySwitched, false}, {"switch-one-warm", 1, true}, {"switch-many-warm", manySwitched, true}}

func (d *daemonUnderTest) deploySwitch() error {
	for _, p := range switchProjects {
		progress("deploying %s twice", p.name)
		for _, value := range []string{"a", "b"} {
			extra := "environment: {RELEASE: " + value + "}"
			if p.warm {
				extra += "\n    concurrency: {min: 1, max: 2}"
			}
			if err := d.deployProject(p.name, 2, extra, numbered(p.count)); err != nil {
				return err
			}
		}
	}
	return nil
}

// switchRounds goes back and forth between two releases, from the request to the answer that the other one is active. With
// warm instances an instance of each function is started before.
func switchRounds(o options, d *daemonUnderTest, res *results) error {
	times := map[string][]float64{}
	for round := range o.rounds {
		progress("switch, round %d", round+1)
		for _, p := range switchProjects {
			ms, err := d.rollback(p.name)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			times[p.name] = append(times[p.name], ms)
		}
	}
	for _, suffix := range []string{"", "-warm"} {
		group := "switch of a release, nothing warm"
		if suffix != "" {
			group = "switch of a release, an instance of each function started before"
		}
		r := row{Group: group, Name: fmt.Sprintf("%d functions ÷ 1", manySwitched), Unit: "ms"}
		one, many := times["switch-one"+suffix], times["switch-many"+suffix]
		for i := range many {
			r.add(many[i], one[i])
		}
		res.addRow(r)
		slices.Sort(one)
		slices.Sort(many)
		worst := row{Group: group, Name: fmt.Sprintf("%d functions ÷ 1, p99", manySwitched), Unit: "ms"}
		worst.add(quantile(many, 0.99), quantile(one, 0.99))
		res.addRow(worst)
	}
	return nil
}

// rollback goes to the release before and returns how long it took, in ms.
func (d *daemonUnderTest) rollback(project string) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	begin := time.Now()
	_, err := d.client.Rollback(ctx, api.RollbackRequest{Environment: function.Environment{Project: project, Name: "default"}}, func(api.DeployEvent) {})
	return ms(time.Since(begin)), err
}
