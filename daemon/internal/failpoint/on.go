//go:build failpoint

package failpoint

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// variable names the control file.
const variable = "LFX_FAILPOINTS"

var (
	mu   sync.Mutex     // guards seen and the hits file
	seen map[string]int // how often a counted point has acted
)

// The process of a test has this goroutine until it ends.
func init() {
	path := os.Getenv(variable)
	if path == "" {
		return
	}
	seen = map[string]int{}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR2)
	go func() {
		for range asked {
			tmp := path + ".tmp"
			if os.WriteFile(tmp, []byte(strconv.Itoa(runtime.NumGoroutine())), 0o600) == nil {
				_ = os.Rename(tmp, path+".goroutines")
			}
		}
	}()
}

// Here acts on kill and delay; an error that is asked for is dropped.
func Here(name string) { _ = Error(name) }

// Error acts as the control file says and returns the error that it asks for.
func Error(name string) error {
	path := os.Getenv(variable)
	if path == "" {
		return nil
	}
	action, argument := next(path, name)
	switch action {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // not a step further
	case "delay":
		if d, err := time.ParseDuration(argument); err == nil {
			time.Sleep(d)
		}
	case "error":
		return fmt.Errorf("failpoint %s: %w", name, errors.New(argument))
	}
	return nil
}

// next notes the hit and returns what is to be done.
func next(path, name string) (action, argument string) {
	mu.Lock()
	defer mu.Unlock()
	if f, err := os.OpenFile(path+".hits", os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
		_, _ = f.WriteString(name + "\n")
		_ = f.Close()
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", ""
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		point, what, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if point != name {
			continue
		}
		action, argument, _ = strings.Cut(strings.TrimSpace(what), " ")
		count, rest, counted := strings.Cut(action, "*")
		if !counted {
			return action, argument
		}
		limit, err := strconv.Atoi(count)
		if err != nil || seen[lines.Text()] >= limit {
			return "", ""
		}
		seen[lines.Text()]++
		return rest, argument
	}
	return "", ""
}
