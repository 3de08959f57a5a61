// Package leaktest fails a package's tests when goroutines outlive them. Only tests import it:
//
//	func TestMain(m *testing.M) { leaktest.Main(m) }
package leaktest

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patience is how long goroutines may take to end after the last test.
const patience = 10 * time.Second

// Main runs the tests and exits; with 1 when they passed but left goroutines behind.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main without the exit, for a TestMain that has more to do. Call it last.
func Run(m *testing.M) int {
	code := m.Run()
	if code != 0 || isFuzzWorker() {
		return code
	}
	if left := wait(); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "%d goroutines were left behind by the tests:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		return 1
	}
	return 0
}

func isFuzzWorker() bool {
	f := flag.Lookup("test.fuzzworker")
	return f != nil && f.Value.String() == "true"
}

// wait polls until nothing is left or patience ends.
func wait() (left []string) {
	if t, ok := http.DefaultTransport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if left = goroutines(); len(left) == 0 {
			return nil
		}
	}
	return left
}

// own names what belongs to the runtime, to package testing or to libraries that start a goroutine
// once for good.
var own = []string{
	"leaktest.goroutines(", "testing.Main(", "testing.(*T).Run(", "testing.tRunner(", "testing.(*M).",
	"created by runtime.", "created by testing.", "os/signal.signal_recv", "os/signal.loop",
	"runtime.ensureSigM", "runtime/trace.", "go.opencensus.io/stats/view.(*worker).start",
	"github.com/golang/glog.", "k8s.io/klog", "internal/poll.runtime_pollServerInit",
}

// goroutines returns the stacks of all others.
func goroutines() (left []string) {
	buf := make([]byte, 2<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		_, stack, ok := strings.Cut(strings.TrimSpace(g), "\n")
		if !ok || stack == "" || isOwn(stack) {
			continue
		}
		left = append(left, g)
	}
	return left
}

func isOwn(stack string) bool {
	for _, s := range own {
		if strings.Contains(stack, s) {
			return true
		}
	}
	return false
}
