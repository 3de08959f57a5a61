//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"lfx.dev/lfxd/daemon/api"
)

// TestSeveralInvocationsInOneInstance: four calls at once meet in one instance with concurrency.per_instance 4, and take one
// each without it.
func TestSeveralInvocationsInOneInstance(t *testing.T) {
	code, err := os.ReadFile("testdata/many/runtime.py")
	if err != nil {
		t.Fatal(err)
	}
	const dockerfile = "FROM public.ecr.aws/lambda/python:3.11\nCOPY runtime.py /var/task/\nENTRYPOINT [\"/usr/bin/python3\", \"/var/task/runtime.py\"]\n"
	p := newProject(t, with(
		map[string]string{"lfx.yaml": manifest("several", "together concurrency: {per_instance: 4, max: 1}; timeout: 10s; cpu: 0.5", "apart concurrency: {max: 4}; timeout: 10s; cpu: 0.5")},
		map[string]string{"together/Dockerfile": dockerfile, "together/runtime.py": string(code)},
		map[string]string{"apart/Dockerfile": dockerfile, "apart/runtime.py": string(code)},
	))
	p.deploy()
	for _, tc := range []struct {
		function, event string
		instances, most int
		limit           string
	}{
		{"together", fmt.Sprintf(`{"together":4,"wait":%d}`, slow(8)), 1, 4, "4"},
		{"apart", fmt.Sprintf(`{"together":2,"wait":%d}`, slow(1)), 4, 1, ""},
	} {
		seen := map[string]int{}
		most := 0
		var mu sync.Mutex
		var calls sync.WaitGroup
		for range 4 {
			calls.Go(func() {
				a, err := try(http.DefaultClient, "POST", invokeURL(tc.function), tc.event)
				var got struct {
					Instance string
					Most     int
					Limit    string
				}
				if err == nil {
					err = json.Unmarshal([]byte(a.body), &got)
				}
				if err != nil || a.status != http.StatusOK || got.Instance == "" || got.Limit != tc.limit {
					t.Errorf("%s: %+v, %v", tc.function, a, err)
				}
				mu.Lock()
				defer mu.Unlock()
				seen[got.Instance]++
				most = max(most, got.Most)
			})
		}
		calls.Wait()
		if len(seen) != tc.instances || most != tc.most {
			t.Errorf("%s: served by %v, at most %d at once, want %d instances with %d", tc.function, seen, most, tc.instances, tc.most)
		}
	}
	awaitInstances(t, functionEnvironment("several"), "together", func(all []api.InstanceInfo) error {
		if len(all) != 1 || all[0].State != "frozen" || all[0].InFlight != 0 {
			return fmt.Errorf("want one frozen instance: %+v", all)
		}
		return nil
	})
	a := post(t, invokeURL("together"), fmt.Sprintf(`{"together":1,"wait":%d}`, slow(1)))
	id := a.header.Get("X-Amzn-Requestid")
	if err := poll(10*time.Second, func() error {
		if log, stderr, _ := lfxctl("logs", "--request", id); !strings.Contains(log, `"message": "begun"`) || !strings.Contains(log, "REPORT RequestId: "+id) {
			return fmt.Errorf("the lines of %s are missing:\n%s%s", id, log, stderr)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
